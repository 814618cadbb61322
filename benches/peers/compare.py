#!/usr/bin/env python3
"""Times embedserve beside its peers, each in its best known setting, on the same texts, in one run on one machine.

    python benches/peers/compare.py --binary target/release/embedserve --model FOLDER --output figures

writes figures.json and figures.md. README.md beside this file says how to get there with one command and how to read
the tables. FOLDER holds the real all-MiniLM-L6-v2; every other shape is made here with seeded random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers

import contest
import curve
import lineup
import machine
import peer_torch
import report
import shapes
from forward import Program
from server import Embedserve
from workload import Texts, Workload, flops

SHAPES = {"minilm": None, "bge-base": shapes.BGE_BASE}
PRECISIONS = {"f32": 4, "bf16": 2, "int8": 1}
PARTS = ["throughput", "latency", "curve"]
CURVES = {"minilm": [16, 32, 64, 128, 256, 384, 512], "bge-m3": [16, 64, 256, 512, 1024, 2048, 4096, 8192]}


def main() -> int:
    arguments = parse()
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    # Inherited by the server and by every other program that is started here.
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    torch.set_num_threads(len(cores))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    figures = report.Figures(
        machine=machine.described(len(cores)),
        versions=machine.versions(),
        settings={name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()},
        rounds=arguments.rounds,
    )
    with scratch_folder(arguments.scratch) as scratch:
        for name in arguments.shapes:
            folder = model_folder(name, arguments.model, scratch)
            if {"throughput", "latency"} & set(arguments.parts):
                figures.shapes.append(report.ShapeFigures(name, real_weights=name == "minilm"))
                for _ in measure(figures.shapes[-1], folder, arguments, len(cores)):
                    # At once, so that what was measured survives what comes next.
                    write(figures, arguments.output)
        for name in arguments.curves if "curve" in arguments.parts else []:
            draw(figures, name, arguments, scratch)
            write(figures, arguments.output)
    print(report.markdown(figures))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True, help="the release build of embedserve")
    parser.add_argument("--model", type=Path, required=True, help="folder with the real all-MiniLM-L6-v2 snapshot")
    parser.add_argument("--forward", help="command line of the forward bench, see forward.py")
    parser.add_argument("--output", type=Path, help="where the figures go, less .json and .md")
    parser.add_argument("--shape", default="all", choices=[*SHAPES, "all"])
    parser.add_argument("--precisions", default="f32", help=f"of our server, some of {','.join(PRECISIONS)}")
    parser.add_argument("--engines", default=",".join(lineup.GROUPS), help=f"some of {','.join(lineup.GROUPS)}")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--workloads", default="mixed256,32x128,natural", help="for throughput")
    parser.add_argument("--latencies", default="1x16,1x128,1x512", help="for latency")
    parser.add_argument("--curves", default=",".join(CURVES), help=f"some of {','.join(CURVES)}")
    parser.add_argument("--longest", type=int, default=8192, help="tokens at which the curves end")
    parser.add_argument("--rounds", type=int, default=5, help="fewer than 5 are marked as a trial")
    parser.add_argument("--repetitions", type=int, default=10, help="of a latency in each round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="keeps converted models here for the next run; else temporary")
    arguments = parser.parse_args()
    arguments.shapes = list(SHAPES) if arguments.shape == "all" else [arguments.shape]
    for name, allowed in (("precisions", PRECISIONS), ("engines", lineup.GROUPS), ("parts", PARTS), ("curves", CURVES)):
        chosen = getattr(arguments, name).split(",")
        setattr(arguments, name, chosen)
        if unknown := set(chosen) - set(allowed):
            parser.error(f"unknown {name}: {', '.join(sorted(unknown))}")
    arguments.workloads, arguments.latencies = arguments.workloads.split(","), arguments.latencies.split(",")
    return arguments


@contextlib.contextmanager
def scratch_folder(kept: Path | None) -> Iterator[Path]:
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def model_folder(name: str, real: Path, scratch: Path) -> Path:
    """The folder every engine reads; a made one appears under its name only when it is complete."""
    folder = scratch / name / "model"
    if folder.exists():
        return folder
    unfinished = scratch / name / "unfinished"
    if name == "minilm":
        shapes.with_all_positions(real, unfinished)
    elif name == "bge-m3":
        shapes.write(shapes.BGE_M3, unfinished)
    else:
        shapes.write(SHAPES[name], unfinished, tokenizer_of=real)
    unfinished.rename(folder)
    return folder


def measure(
    found: report.ShapeFigures, folder: Path, arguments: argparse.Namespace, threads: int
) -> Iterator[contest.Contest | None]:
    """All contests of one shape, then memory; yields whenever there is more."""
    texts = Texts(folder)
    parts = {"throughput": (arguments.workloads, 1), "latency": (arguments.latencies, arguments.repetitions)}
    program = Program(arguments.forward, folder, folder.parent, arguments.precisions) if arguments.forward else None
    reference_model = peer_torch.load(folder, "f32")
    servers = []
    if "embedserve" in arguments.engines:
        for precision in arguments.precisions:
            Embedserve(arguments.binary, folder, precision).close()
            servers.append(Embedserve(arguments.binary, folder, precision))
    place = lineup.Place(folder, folder.parent, threads)
    config = json.loads((folder / "config.json").read_text())
    try:
        for part, (names, repetitions) in parts.items():
            if part not in arguments.parts:
                continue
            peers = lineup.start(part, arguments.engines, place, texts)
            found.executes |= lineup.executes(peers)
            protocol = contest.Protocol(arguments.rounds, repetitions, program)
            for name in names:
                work = texts.named(name)
                held = contest.Contest(name, work.described(), flops(config, work.lengths), part == "latency")
                reference = peer_torch.reference(reference_model, work)
                contest.hold(held, [*servers, *peers], (work, reference), protocol)
                found.contests.append(held)
                yield held
            for peer in peers:
                peer.close()
        found.memory += [memory(server, folder) for server in servers]
        yield None
    finally:
        for server in servers:
            server.close()


def memory(server: Embedserve, folder: Path) -> report.ServerMemory:
    weights = weights_mib(folder, PRECISIONS[server.precision])
    return report.ServerMemory(server.precision, server.ready_seconds, server.ready_mib, server.peak_mib(), weights)


def weights_mib(folder: Path, linear_bytes: int) -> int:
    """Matrices of linear layers in the compute format, tables and vectors in float32; counted from the file's head."""
    with (folder / "model.safetensors").open("rb") as file:
        head = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    total = 0
    for name, tensor in head.items():
        if name == "__metadata__" or "pooler" in name or not tensor["dtype"].startswith("F"):
            continue
        linear = len(tensor["shape"]) == 2 and "embeddings" not in name
        total += int(np.prod(tensor["shape"])) * (linear_bytes if linear else 4)
    return round(total / 2**20)


def draw(figures: report.Figures, name: str, arguments: argparse.Namespace, scratch: Path) -> None:
    """Our own cost by length, each precision."""
    folder = model_folder(name, arguments.model, scratch)
    config = json.loads((folder / "config.json").read_text())
    lengths = [length for length in CURVES[name] if length <= arguments.longest]
    if name == "bge-m3":
        generator = np.random.Generator(np.random.PCG64(8192))
        rows = [shapes.word_ids(generator, length) for length in lengths]
        works = [Workload(f"1x{len(ids)}", [shapes.word_text(ids)], [ids]) for ids in rows]
    else:
        works = [Texts(folder).named(f"1x{length}") for length in lengths]
    for precision in arguments.precisions:
        server = Embedserve(arguments.binary, folder, precision)
        try:
            figures.curves[f"{name}, {precision}"] = curve.measure(server, works, config)
        finally:
            server.close()


def write(figures: report.Figures, output: Path | None) -> None:
    report.judge(figures)
    if output:
        output.with_name(output.name + ".json").write_text(json.dumps(asdict(figures), indent=1) + "\n")
        output.with_name(output.name + ".md").write_text(report.markdown(figures) + "\n")


if __name__ == "__main__":
    sys.exit(main())
