#!/usr/bin/env python3
"""Times embedserve beside its peers on `mixed256` with real all-MiniLM-L6-v2 weights, in one run on one machine.

    python benches/peers/compare.py --binary target/release/embedserve --model FOLDER --output figures.json
    ... --forward "env EMBEDSERVE_BENCH_WORKLOAD={workload} target/release/deps/compute-HASH forward"
                     merges the figures of the forward bench, candle-transformers among them, into each round

Every figure is real tokens per second, never padding; the medians of interleaved rounds; beside each the ratio to
embedserve round by round, the largest error and the smallest cosine to sentence-transformers in float32, one text per
batch. Differences under 5 % are ties. `--forward` names a program that prints JSON lines {"engine", "tokens_per_s"} for
the same workload, whose texts it finds in the file that replaces `{workload}` in its arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

import engines
from workload import Workload, flops, gemm_rates, mixed256, wait_for_quiet

KINDS = ["embedserve", "onnx-padded", "onnx-unpadded", "openvino", "sentence-transformers"]


def main() -> int:
    arguments = parse()
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    # Inherited by the server and by every other program that is started here.
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    torch.set_num_threads(len(cores))
    model = SentenceTransformer(
        str(arguments.model), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    config = json.loads((arguments.model / "config.json").read_text())
    work = mixed256(arguments.model, model.max_seq_length)
    reference = np.stack([model.encode([text], batch_size=1, show_progress_bar=False)[0] for text in work.texts])
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "workload.json"
        file.write_text(json.dumps({"texts": work.texts, "tokens": [len(ids) for ids in work.ids]}))
        competitors = start(arguments, model, work, (Path(scratch), len(cores)))
        try:
            rounds = [
                one_round(competitors, work, reference, forward(arguments, file)) for _ in range(arguments.rounds)
            ]
        finally:
            for engine in competitors:
                engine.close()
    figures = {
        "workload": work.described(),
        "machine": {"cpu": cpu_name(), "cores": len(cores), "kernel": platform.release()},
        "versions": {name: version(name) for name in ("torch", "sentence-transformers", "onnxruntime", "openvino")},
        "flops": flops(config, [len(ids) for ids in work.ids]),
        "rounds": rounds,
    }
    figures["summary"] = summary(figures)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, help="the release build of embedserve")
    parser.add_argument("--model", type=Path, required=True, help="folder with the real all-MiniLM-L6-v2 snapshot")
    parser.add_argument("--engines", default=",".join(KINDS), help=f"some of {','.join(KINDS)}")
    parser.add_argument("--forward", help="another program whose figures take part")
    parser.add_argument("--rounds", type=int, default=7, help="at least 5")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="all figures as JSON")
    arguments = parser.parse_args()
    arguments.kinds = arguments.engines.split(",")
    if unknown := set(arguments.kinds) - set(KINDS):
        parser.error(f"unknown engines: {', '.join(sorted(unknown))}")
    if "embedserve" in arguments.kinds and arguments.binary is None:
        parser.error("--binary is needed for embedserve")
    if arguments.rounds < 5:
        parser.error("fewer than 5 rounds say nothing")
    return arguments


def start(
    arguments: argparse.Namespace, model: SentenceTransformer, work: Workload, place: tuple[Path, int]
) -> list[engines.Engine]:
    scratch, threads = place
    chosen = arguments.kinds
    started: list[engines.Engine] = []
    if "embedserve" in chosen:
        # Absolute, because a directory is only taken for a model when it is written as a path.
        binary, folder = arguments.binary.resolve(strict=True), arguments.model.resolve(strict=True)
        started.append(engines.Embedserve(binary, folder, work))
    if {"onnx-padded", "onnx-unpadded", "openvino"} & set(chosen):
        plain, fused = engines.export_onnx(arguments.model, scratch)
    if "onnx-padded" in chosen:
        started.append(engines.OnnxPadded(fused, work, threads))
    if "onnx-unpadded" in chosen:
        started.append(engines.OnnxUnpadded(fused, work, threads))
    if "openvino" in chosen:
        # It fuses by itself, and does not know the other's fused operators.
        started.append(engines.OpenVinoUnpadded(plain, work, threads))
    if "sentence-transformers" in chosen:
        started.append(engines.SentenceTransformers(model, work, threads))
    for engine in started:
        engine.run()
    return started


def one_round(
    competitors: list[engines.Engine], work: Workload, reference: np.ndarray, others: dict[str, float]
) -> dict[str, object]:
    """Each engine once, one after another, each after a quiet moment."""
    row: dict[str, object] = {"gemm": gemm_rates(torch.get_num_threads()), "engines": {}}
    for engine in competitors:
        load = wait_for_quiet()
        begun = time.perf_counter()
        vectors = engine.run()
        took = time.perf_counter() - begun
        row["engines"][engine.name] = {
            "tokens_per_s": round(work.tokens / took, 1),
            "foreign_load": load,
            "max_abs_error": float(f"{np.abs(vectors - reference).max():.2e}"),
            "min_cosine": float(cosines(vectors, reference).min()),
        }
    row["engines"] |= {name: {"tokens_per_s": rate} for name, rate in others.items()}
    print(json.dumps({name: figure["tokens_per_s"] for name, figure in row["engines"].items()}), file=sys.stderr)
    return row


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = left.astype(np.float64), right.astype(np.float64)
    return (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))


def forward(arguments: argparse.Namespace, workload_file: Path) -> dict[str, float]:
    """The other program's figures of this round."""
    if not arguments.forward:
        return {}
    wait_for_quiet()
    command = [part.replace("{workload}", str(workload_file)) for part in shlex.split(arguments.forward)]
    done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError("the forward program printed no figures")
    return {line["engine"]: float(line["tokens_per_s"]) for line in lines if "engine" in line}


def summary(figures: dict[str, object]) -> dict[str, dict[str, float]]:
    """Median, spread, ratio to embedserve and share of the measured multiplication rate, for each engine."""
    rounds = figures["rounds"]
    per_token = figures["flops"] / figures["workload"]["tokens"]
    peak = statistics.median(row["gemm"]["all_threads_gflops"] for row in rounds)
    ours = engines.Embedserve.name
    result = {}
    for name in rounds[0]["engines"]:
        rates = [row["engines"][name]["tokens_per_s"] for row in rounds]
        entry = {"tokens_per_s": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}
        entry["percent_of_torch_gemm"] = round(100 * entry["tokens_per_s"] * per_token / 1e9 / peak, 1)
        if ours in rounds[0]["engines"]:
            ratios = [row["engines"][ours]["tokens_per_s"] / rate for row, rate in zip(rounds, rates, strict=True)]
            entry["embedserve_ratio"] = round(statistics.median(ratios), 3)
            entry["ratio_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
        last = rounds[-1]["engines"][name]
        entry |= {key: last[key] for key in ("max_abs_error", "min_cosine") if key in last}
        result[name] = entry
    return result


def table(figures: dict[str, object]) -> str:
    work, machine = figures["workload"], figures["machine"]
    gemm = statistics.median(row["gemm"]["all_threads_gflops"] for row in figures["rounds"])
    scaling = statistics.median(row["gemm"]["scaling"] for row in figures["rounds"])
    loads = [x.get("foreign_load", 0.0) for row in figures["rounds"] for x in row["engines"].values()]
    lines = [
        f"{work['name']}: {work['texts']} texts, {work['tokens']} tokens ({work['shortest']} to {work['longest']}); "
        f"{machine['cpu']}, {machine['cores']} cores; torch GEMM {gemm:.0f} GFLOP/s, {scaling:.2f}x one core; "
        f"{len(figures['rounds'])} rounds, highest foreign load {100 * max(loads):.1f} %",
        "",
        "| engine | tokens/s, median | lowest to highest | % of torch GEMM | embedserve is | error | min cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in sorted(figures["summary"].items(), key=lambda item: -item[1]["tokens_per_s"]):
        spread = f"{entry['lowest']:.0f} to {entry['highest']:.0f}"
        low, high = entry.get("ratio_spread", (0, 0))
        ratio = f"{entry['embedserve_ratio']:.2f}x ({low:.2f} to {high:.2f})" if low else "-"
        error = f"{entry['max_abs_error']:.0e}" if "max_abs_error" in entry else "-"
        cosine = f"{entry['min_cosine']:.7f}" if "min_cosine" in entry else "-"
        share = f"{entry['percent_of_torch_gemm']:.0f}"
        lines.append(f"| {name} | {entry['tokens_per_s']:.0f} | {spread} | {share} | {ratio} | {error} | {cosine} |")
    return "\n".join(lines)


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
