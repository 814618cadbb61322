"""One workload, all engines, in interleaved rounds: who took how long, how exact, with how much disturbance.

Every turn begins with a quiet machine; each round begins with another engine, so that nobody always runs after the same
neighbour. A turn of a throughput workload is one run, of a latency workload several in a row: the first of them, which
finds the caches full of a neighbour's weights, does not count.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import torch

import machine
from engine import Engine
from forward import Program
from workload import Workload


@dataclass(frozen=True)
class Accuracy:
    """Distance of vectors to those of float32 sentence-transformers, over all texts."""

    min_cosine: float
    mean_cosine: float
    max_abs_error: float

    @staticmethod
    def of(vectors: np.ndarray, reference: np.ndarray) -> Accuracy:
        left, right = vectors.astype(np.float64), reference.astype(np.float64)
        cosines = (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
        return Accuracy(float(cosines.min()), float(cosines.mean()), float(np.abs(left - right).max()))

    def worst(self, other: Accuracy) -> Accuracy:
        return Accuracy(
            min(self.min_cosine, other.min_cosine),
            min(self.mean_cosine, other.mean_cosine),
            max(self.max_abs_error, other.max_abs_error),
        )


@dataclass
class Entrant:
    """Everything about one engine on one workload."""

    precision: str
    setting: str = ""
    # The median of each round's runs, and all runs.
    seconds: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)
    foreign_load: float = 0.0
    accuracy: Accuracy | None = None


@dataclass
class Contest:
    """All engines on one workload; `flops` are those of its real tokens."""

    workload: str
    described: dict[str, int]
    flops: float
    # More than one run per turn: a latency workload, where times are compared instead of rates.
    latency: bool
    entrants: dict[str, Entrant] = field(default_factory=dict)
    gemm_gflops: list[float] = field(default_factory=list)
    scaling: list[float] = field(default_factory=list)
    fma_gflops: list[float] = field(default_factory=list)

    @property
    def peak_gflops(self) -> float:
        """The multiply-add peak where the forward bench measured it, else what torch multiplies."""
        return statistics.median(self.fma_gflops or self.gemm_gflops)

    @property
    def foreign_load(self) -> float:
        return max(entrant.foreign_load for entrant in self.entrants.values())


@dataclass(frozen=True)
class Protocol:
    """How often: rounds, and timed runs of one turn."""

    rounds: int
    repetitions: int
    program: Program | None


def hold(contest: Contest, engines: list[Engine], texts: tuple[Workload, np.ndarray], protocol: Protocol) -> None:
    """Fills the contest; `texts` are the workload and its reference vectors."""
    work, _ = texts
    for engine in engines:
        begun = time.perf_counter()
        engine.prepare(work)
        took = round(time.perf_counter() - begun, 1)
        print(json.dumps({"workload": work.name, "prepared": engine.name, "seconds": took}), file=sys.stderr)
        contest.entrants[engine.name] = Entrant(engine.precision, engine.setting(work))
    for index in range(protocol.rounds):
        gemm = machine.gemm_rates(torch.get_num_threads())
        contest.gemm_gflops.append(gemm["all_threads_gflops"])
        contest.scaling.append(gemm["scaling"])
        start = index * 5 % max(1, len(engines))
        for engine in engines[start:] + engines[:start]:
            _turn(contest, engine, texts, protocol.repetitions)
        if protocol.program:
            _other(contest, protocol.program, work, protocol.repetitions)
        rates = {name: round(work.tokens / entrant.seconds[-1], 1) for name, entrant in contest.entrants.items()}
        print(json.dumps({"workload": work.name, "round": index + 1, "tokens_per_s": rates}), file=sys.stderr)


def _turn(contest: Contest, engine: Engine, texts: tuple[Workload, np.ndarray], repetitions: int) -> None:
    work, reference = texts
    entrant = contest.entrants[engine.name]
    entrant.foreign_load = max(entrant.foreign_load, machine.wait_for_quiet())
    runs = []
    for _ in range(repetitions + contest.latency):
        begun = time.perf_counter()
        vectors = engine.run(work)
        runs.append(time.perf_counter() - begun)
    runs = runs[int(contest.latency) :]
    entrant.seconds.append(statistics.median(runs))
    entrant.runs += runs
    accuracy = Accuracy.of(vectors, reference)
    entrant.accuracy = entrant.accuracy.worst(accuracy) if entrant.accuracy else accuracy


def _other(contest: Contest, program: Program, work: Workload, repetitions: int) -> None:
    load = machine.wait_for_quiet()
    engines, peak = program.run(work, repetitions)
    if peak:
        contest.fma_gflops.append(float(peak))
    for name, (precision, seconds) in engines.items():
        entrant = contest.entrants.setdefault(name, Entrant(precision))
        entrant.seconds.append(seconds)
        entrant.foreign_load = max(entrant.foreign_load, load)
