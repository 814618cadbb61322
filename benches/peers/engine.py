"""What all engines share: how texts become batches, who picks the batch size, how hidden states become vectors.

Everything that a user could do once and ahead (loading, conversion, choosing a batch size, warming up, tokenising for
the engines that read token ids) is done in `prepare`; only `run` is timed. "Unpadded" engines take one text at a time
on one single-threaded instance per core, longest first; "padded" ones sort by length and use all cores on each batch.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from workload import Workload

# With fewer texts than this, batches larger than one are not tried.
FEWEST_FOR_BATCHES = 8
# A batch size is chosen on every fourth text, where that leaves more than one of the largest batches.
SAMPLE_STRIDE = 4
FEWEST_FOR_SAMPLE = 256


Item = TypeVar("Item")


class Engine(ABC):
    """One competitor in its best known setting. `precision` is what it is asked to compute in."""

    def __init__(self, name: str, precision: str) -> None:
        self.name, self.precision = name, precision

    @abstractmethod
    def prepare(self, work: Workload) -> None:
        """Once per workload, before any timing."""

    @abstractmethod
    def run(self, work: Workload) -> np.ndarray:
        """The vectors, in the workload's order."""

    def setting(self, work: Workload) -> str:
        """What was chosen for this workload, for the table."""
        del work
        return ""

    def close(self) -> None:
        """Ends what it started; its memory goes with it."""
        return


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass: their places in the workload, and arrays of rows by tokens."""

    rows: list[int]
    ids: np.ndarray
    mask: np.ndarray
    types: np.ndarray

    @property
    def padded(self) -> bool:
        return not self.mask.all()

    def inputs(self) -> dict[str, np.ndarray]:
        return {"input_ids": self.ids, "attention_mask": self.mask, "token_type_ids": self.types}


class BatchEngine(Engine):
    """An engine that reads token ids; the fastest of its batch sizes is kept for each workload."""

    def __init__(self, name: str, precision: str, sizes: tuple[int, ...]) -> None:
        super().__init__(name, precision)
        self.sizes = sizes
        self.plans: dict[str, list[Batch]] = {}

    @abstractmethod
    def compute(self, batches: list[Batch]) -> Iterable[tuple[Batch, np.ndarray]]:
        """Vectors of each batch, in any order."""

    def prepare(self, work: Workload) -> None:
        if work.name in self.plans:
            return
        sizes = self.sizes if len(work.ids) >= FEWEST_FOR_BATCHES else (1,)
        sample = sampled(work.ids)
        size = fastest(sizes, lambda size: list(self.compute(batches(sample, size))))
        self.plans[work.name] = batches(work.ids, size)
        self.run(work)

    def run(self, work: Workload) -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        for batch, vectors in self.compute(self.plans[work.name]):
            found |= zip(batch.rows, vectors, strict=True)
        return np.stack([found[row] for row in range(len(work.ids))])

    def setting(self, work: Workload) -> str:
        return f"batch {max(len(batch.rows) for batch in self.plans[work.name])}"


def batches(all_ids: list[list[int]], size: int) -> list[Batch]:
    """Sorted by length, longest first, each padded to its own longest row."""
    order = sorted(range(len(all_ids)), key=lambda row: -len(all_ids[row]))
    result = []
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        ids = np.zeros((len(rows), len(all_ids[rows[0]])), np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(all_ids[row])] = all_ids[row]
            mask[place, : len(all_ids[row])] = 1
        result.append(Batch(rows, ids, mask, np.zeros_like(ids)))
    return result


def sampled(items: list[Item]) -> list[Item]:
    """Those on which a batch size is chosen."""
    return items[::SAMPLE_STRIDE] if len(items) >= FEWEST_FOR_SAMPLE else items


def fastest(sizes: tuple[int, ...], run: Callable[[int], object]) -> int:
    """The size that takes the least time here, each tried once cold and once warm."""
    if len(sizes) == 1:
        return sizes[0]
    took = {}
    for size in sizes:
        run(size)
        begun = time.perf_counter()
        run(size)
        took[size] = time.perf_counter() - begun
    return min(took, key=took.__getitem__)


class Pooling:
    """Mean over real tokens or the first token's state, then unit length; outside the peers' graphs, so that their own
    optimisers see what they know."""

    def __init__(self, kind: str) -> None:
        if kind not in ("mean", "cls"):
            raise ValueError(f"pooling is not implemented for the peers: {kind}")
        self.kind = kind

    def __call__(self, hidden: np.ndarray, batch: Batch) -> np.ndarray:
        if self.kind == "cls":
            states = hidden[:, 0]
        elif batch.padded:
            states = np.einsum("blh,bl->bh", hidden, batch.mask.astype(np.float32))
        else:
            # Its length does not matter: it is made one.
            states = hidden.sum(1)
        return (states / np.linalg.norm(states, axis=1, keepdims=True)).astype(np.float32)


def shared_out(plan: list[Batch], workers: list[Callable[[Batch], np.ndarray]]) -> Iterable[tuple[Batch, np.ndarray]]:
    """Hands the batches out in order to workers that run at once; a single worker runs on the calling thread."""
    if len(workers) == 1:
        return [(batch, workers[0](batch)) for batch in plan]
    waiting: queue.SimpleQueue[Batch] = queue.SimpleQueue()
    for batch in plan:
        waiting.put(batch)
    found: list[tuple[Batch, np.ndarray]] = []
    failures: list[BaseException] = []

    def work(embed: Callable[[Batch], np.ndarray]) -> None:
        try:
            while True:
                batch = waiting.get_nowait()
                found.append((batch, embed(batch)))
        except queue.Empty:
            pass
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=work, args=(embed,)) for embed in workers]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failures:
        raise failures[0]
    return found
