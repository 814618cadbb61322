"""What one text costs by its length, through HTTP: a cost per token that grows faster than attention's own arithmetic
would show that something else does."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import machine
from engine import Engine
from workload import Workload, flops

# Enough runs of each length for a median, unless one takes longer than all of them should.
RUNS = 9
SECONDS = 4.0


@dataclass(frozen=True)
class Point:
    tokens: int
    milliseconds: float
    microseconds_per_token: float
    gflops: float
    runs: int
    foreign_load: float


def measure(engine: Engine, works: list[Workload], config: dict[str, int]) -> list[Point]:
    points = []
    for work in works:
        engine.prepare(work)
        load = machine.wait_for_quiet()
        taken: list[float] = []
        while len(taken) < RUNS and sum(taken) < SECONDS:
            begun = time.perf_counter()
            engine.run(work)
            taken.append(time.perf_counter() - begun)
        seconds = statistics.median(taken)
        points.append(
            Point(
                tokens=work.tokens,
                milliseconds=round(seconds * 1e3, 3),
                microseconds_per_token=round(seconds * 1e6 / work.tokens, 2),
                gflops=round(flops(config, work.lengths) / seconds / 1e9, 1),
                runs=len(taken),
                foreign_load=load,
            )
        )
    return points
