"""The texts of `mixed256`, and what a machine can do: both belong beside every figure."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch

SEED = 256
COUNT = 256
MEDIAN_TOKENS = 40
SIGMA = 0.8
SHORTEST = 4
LONGEST = 512

# A run that started while others used the cores says nothing.
FOREIGN_LOAD_LIMIT = 0.02
QUIET_WAIT_SECONDS = 60


@dataclass(frozen=True)
class Workload:
    """Texts with their token ids, specials included; no engine sees another's."""

    texts: list[str]
    ids: list[list[int]]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))

    def described(self) -> dict[str, object]:
        lengths = [len(ids) for ids in self.ids]
        shape = {"texts": len(lengths), "tokens": self.tokens, "shortest": min(lengths), "longest": max(lengths)}
        return {"name": "mixed256", "seed": SEED, **shape}


def mixed256(folder: Path, max_tokens: int) -> Workload:
    """Lognormal lengths, clipped; whole words of the vocabulary, so that a text of n words has exactly n + 2 tokens."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    lengths = generator.lognormal(np.log(MEDIAN_TOKENS), SIGMA, COUNT)
    lengths = np.clip(np.rint(lengths).astype(int), SHORTEST, min(LONGEST, max_tokens))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2)
    words = [word for word in words if word == word.lower()]
    texts = [" ".join(generator.choice(words, length - 2)) for length in lengths]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    if [*map(len, ids)] != lengths.tolist():
        raise AssertionError("a word of the vocabulary is not one token")
    return Workload(texts, ids)


def flops(config: dict[str, int], lengths: list[int]) -> float:
    """Multiplications and additions of a BERT encoder over texts of these lengths, without padding."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    linear = 2 * layers * (4 * hidden * hidden + 2 * hidden * inner)
    return float(sum(length * (linear + 4 * layers * hidden * length) for length in lengths))


def gemm_rates(threads: int) -> dict[str, float]:
    """What torch multiplies in float32 here and now, on one thread and on all: the yardstick of the same run. Threads
    work on matrices of their own, so that their ratio also shows whether somebody else holds a core."""
    alone = _gemm_gflops(1)
    together = _gemm_gflops(threads)
    rates = {"one_thread_gflops": alone, "all_threads_gflops": together, "scaling": together / alone}
    return {name: round(value, 2) for name, value in rates.items()}


def _gemm_gflops(threads: int) -> float:
    size, repeats = 1024, 8
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pairs = [(torch.randn(size, size), torch.randn(size, size)) for _ in range(threads)]
    barrier = threading.Barrier(threads + 1)

    def work(left: torch.Tensor, right: torch.Tensor) -> None:
        torch.set_num_threads(1)
        result = left @ right
        barrier.wait()
        for _ in range(repeats):
            torch.mm(left, right, out=result)
        barrier.wait()

    workers = [threading.Thread(target=work, args=pair) for pair in pairs]
    for worker in workers:
        worker.start()
    barrier.wait()
    begun = time.perf_counter()
    barrier.wait()
    took = time.perf_counter() - begun
    for worker in workers:
        worker.join()
    torch.set_num_threads(before)
    return threads * repeats * 2 * size**3 / took / 1e9


def wait_for_quiet() -> float:
    """Waits until nobody else uses the cores, and returns the share that was in use at last."""
    deadline = time.monotonic() + QUIET_WAIT_SECONDS
    while True:
        load = _foreign_load()
        if load < FOREIGN_LOAD_LIMIT or time.monotonic() > deadline:
            return round(load, 4)


def _foreign_load() -> float:
    """Share of all cores' time spent by other processes than this one and its children, over half a second."""
    first, own_first = _busy_seconds(), _own_seconds()
    begun = time.monotonic()
    time.sleep(0.5)
    used = _busy_seconds() - first - (_own_seconds() - own_first)
    return max(0.0, used / ((time.monotonic() - begun) * (os.cpu_count() or 1)))


def _busy_seconds() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, soft, steal = map(int, fields[:8])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system
