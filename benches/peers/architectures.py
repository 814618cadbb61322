#!/usr/bin/env python3
"""Times embedserve beside sentence-transformers for every architecture at its usual size, with random weights.

    python benches/peers/architectures.py --binary target/release/embedserve
    ... --only bert-large,bge-m3          shapes whose start and memory matter more than their speed

Each shape becomes a folder in the Hugging Face layout, seeded; both engines read the same folder and embed the same
texts in interleaved rounds, sentence-transformers with whichever batch size is fastest for it. A row says: seconds from
start to ready with files in the page cache, resident memory then and at its peak, medians of real tokens per second,
and the largest error and smallest cosine to sentence-transformers in float32, one text per batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

import machine
import peer_torch
from contest import Accuracy
from server import Embedserve
from shapes import SHAPES, Shape, word_ids, word_text, write
from workload import SEED, Workload, lognormal_lengths


def main() -> int:
    arguments = parse()
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    torch.set_num_threads(len(cores))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = []
    for shape in SHAPES:
        if arguments.only and shape.name not in arguments.only.split(","):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / shape.name
            write(shape, folder)
            row = measure(shape, folder, arguments, len(cores))
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    table(rows)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def texts(count: int, longest: int) -> Workload:
    """Lognormal lengths as in `mixed256`."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    ids = [word_ids(generator, length) for length in lognormal_lengths(generator, count, longest)]
    return Workload("mixed", [word_text(row) for row in ids], ids)


def measure(shape: Shape, folder: Path, arguments: argparse.Namespace, threads: int) -> dict[str, object]:
    work = texts(arguments.texts, min(shape.max_tokens, 512))
    model = peer_torch.load(folder, "f32")
    reference = peer_torch.reference(model, work)
    theirs = peer_torch.SentenceTransformers(model, "f32", threads)
    theirs.prepare(work)
    foreign = machine.wait_for_quiet()
    # The second start finds the files in the page cache.
    Embedserve(arguments.binary, folder).close()
    ours = Embedserve(arguments.binary, folder)
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    try:
        ours.prepare(work)
        for _ in range(arguments.rounds):
            for name, engine in (("ours", ours), ("theirs", theirs)):
                begun = time.perf_counter()
                found = engine.run(work)
                rates[name].append(work.tokens / (time.perf_counter() - begun))
                if name == "ours":
                    accuracy = Accuracy.of(found, reference)
        peak = ours.peak_mib()
    finally:
        ours.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "shape": shape.name,
        "weights_mib": round((folder / "model.safetensors").stat().st_size / 2**20),
        "ready_s": round(ours.ready_seconds, 2),
        "rss_mib": ours.ready_mib,
        "peak_mib": peak,
        "tokens_per_s": round(medians["ours"]),
        "sentence_transformers_tokens_per_s": round(medians["theirs"]),
        "their_batch": theirs.sizes[work.name],
        "ratio": round(medians["ours"] / medians["theirs"], 2),
        "max_error": f"{accuracy.max_abs_error:.1e}",
        "min_cosine": round(accuracy.min_cosine, 9),
        "foreign_load": foreign,
    }


def table(rows: list[dict[str, object]]) -> None:
    if not rows:
        return
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    sys.exit(main())
