"""The figures as markdown: for people, beside the JSON with every single time."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import numpy as np

from contest import Contest, Entrant
from curve import Point
from ratios import OURS, Verdict, opponents, proven_cosines, ratio, verdicts


@dataclass(frozen=True)
class ServerMemory:
    """One server of ours: its start with files in the page cache, and its memory."""

    precision: str
    ready_seconds: float
    ready_mib: int
    peak_mib: int
    # Linear layers in the compute format, everything else in float32.
    weights_mib: int


@dataclass
class ShapeFigures:
    name: str
    real_weights: bool
    contests: list[Contest] = field(default_factory=list)
    memory: list[ServerMemory] = field(default_factory=list)
    # What each OpenVINO model says it executes in.
    executes: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class Figures:
    machine: dict[str, str | int]
    versions: dict[str, str]
    settings: dict[str, object]
    rounds: int
    shapes: list[ShapeFigures] = field(default_factory=list)
    curves: dict[str, list[Point]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)


# Peak memory may exceed the weights by this much.
MEMORY_ALLOWANCE_MIB = 256
FEWEST_ROUNDS = 5


def judge(figures: Figures) -> None:
    proven = _proven(figures)
    figures.verdicts = [verdict for shape in figures.shapes for verdict in verdicts(shape.name, shape.contests, proven)]
    for shape in figures.shapes:
        for server in shape.memory:
            limit = server.weights_mib + MEMORY_ALLOWANCE_MIB
            what = f"{shape.name}: peak MiB of the {server.precision} server"
            figures.verdicts.append(Verdict(what, f"<= {limit}", server.peak_mib, server.peak_mib <= limit))
            what = f"{shape.name}: seconds from start to ready, {server.precision}"
            figures.verdicts.append(Verdict(what, "< 1", round(server.ready_seconds, 3), server.ready_seconds < 1))


def markdown(figures: Figures) -> str:
    machine, lines = figures.machine, ["# embedserve beside its peers", ""]
    lines += [f"{machine['cpu']}, {machine['cores']} cores ({machine['features']}), {machine['kernel']}", ""]
    lines += [", ".join(f"{name} {value}" for name, value in figures.versions.items()), ""]
    if figures.rounds < FEWEST_ROUNDS:
        lines += [f"**Fewer than {FEWEST_ROUNDS} rounds: a trial, not for publication.**", ""]
    lines += [
        "Medians of interleaved rounds, lowest and highest round in brackets; differences under 5 % are ties. Tokens "
        "are real tokens, never padding. Cosine and error are against sentence-transformers in float32, one text per "
        "batch, the worst of all rounds. Our times hold HTTP, JSON and tokenising; the peers that read ids (all but "
        "sentence-transformers) are given them for nothing.",
        "",
    ]
    proven = _proven(figures)
    for shape in figures.shapes:
        kind = "real weights" if shape.real_weights else "random weights: their accuracy says little about trained ones"
        lines += [f"## {shape.name} ({kind})", ""]
        for contest in shape.contests:
            lines += _contest(contest, proven)
        lines += _memory(shape) + _executes(shape)
    for name, points in figures.curves.items():
        lines += _curve(name, points)
    return "\n".join(lines + _verdicts(figures.verdicts))


def _proven(figures: Figures) -> dict[str, float]:
    return proven_cosines([contest for shape in figures.shapes if shape.real_weights for contest in shape.contests])


def _contest(contest: Contest, proven: dict[str, float]) -> list[str]:
    shape = contest.described
    kind = "f32 multiply-add peak" if contest.fma_gflops else "f32 torch GEMM"
    lines = [
        f"### {contest.workload}",
        "",
        f"{shape['texts']} texts, {shape['tokens']} tokens ({shape['shortest']} to {shape['longest']}); {kind} "
        f"{contest.peak_gflops:.0f} GFLOP/s, {statistics.median(contest.scaling):.2f}x one core; highest foreign load "
        f"{100 * contest.foreign_load:.1f} %",
        "",
    ]
    unit = "ms, p50 | p95" if contest.latency else "tokens/s"
    head = ["engine", "setting", unit, "rounds", f"% of {kind}", "min cosine", "mean cosine", "max error"]
    lines += _head(" | ".join(head).split(" | "))
    order = sorted(contest.entrants.items(), key=lambda item: statistics.median(item[1].seconds))
    lines += [_row([_bold(name), entrant.setting, *_speed(contest, entrant)]) for name, entrant in order]
    rivals = opponents(contest, proven)
    lines += [
        "",
        *_head(
            [f"time over that of the {x.role}" if contest.latency else f"over the {x.role}" for x in rivals],
            "embedserve",
        ),
    ]
    for name in contest.entrants:
        if name.startswith(OURS):
            lines.append(_row([name, *(_ratio(contest, name, rival.name) for rival in rivals)]))
    return [*lines, ""]


def _speed(contest: Contest, entrant: Entrant) -> list[str]:
    median = statistics.median(entrant.seconds)
    tokens = contest.described["tokens"]
    low, high = min(entrant.seconds), max(entrant.seconds)
    if contest.latency:
        late = f"{1e3 * float(np.percentile(entrant.runs, 95)):.2f}" if entrant.runs else "-"
        middle = statistics.median(entrant.runs) if entrant.runs else median
        cells = [f"{1e3 * middle:.2f}", late, f"{1e3 * low:.2f} to {1e3 * high:.2f}"]
    else:
        cells = [f"{tokens / median:.0f}", f"{tokens / high:.0f} to {tokens / low:.0f}"]
    cells.append(f"{100 * contest.flops / median / 1e9 / contest.peak_gflops:.0f}")
    if entrant.accuracy is None:
        return [*cells, "-", "-", "-"]
    accuracy = entrant.accuracy
    return [*cells, f"{accuracy.min_cosine:.7f}", f"{accuracy.mean_cosine:.7f}", f"{accuracy.max_abs_error:.0e}"]


def _ratio(contest: Contest, ours: str, theirs: str | None) -> str:
    if theirs is None:
        return "-"
    found = ratio(contest, ours, theirs)
    return f"**{found.median:.2f}x** ({found.low:.2f} to {found.high:.2f}) {theirs}"


def _memory(shape: ShapeFigures) -> list[str]:
    if not shape.memory:
        return []
    head = ["server", "start to ready, s", "MiB when ready", "peak MiB", "weights MiB", "peak allowed"]
    rows = [
        [
            server.precision,
            f"{server.ready_seconds:.2f}",
            *map(str, (server.ready_mib, server.peak_mib, server.weights_mib)),
            str(server.weights_mib + MEMORY_ALLOWANCE_MIB),
        ]
        for server in shape.memory
    ]
    return ["### start and memory", "", *_head(head), *map(_row, rows), ""]


def _executes(shape: ShapeFigures) -> list[str]:
    if not shape.executes:
        return []
    said = [
        f"* {name}: " + ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
        for name, kinds in shape.executes.items()
    ]
    return ["What OpenVINO says it executes in:", "", *said, ""]


def _curve(name: str, points: list[Point]) -> list[str]:
    head = ["tokens", "ms", "us per token", "GFLOP/s", "runs"]
    rows = [
        [str(x.tokens), f"{x.milliseconds:.2f}", f"{x.microseconds_per_token:.1f}", f"{x.gflops:.0f}", str(x.runs)]
        for x in points
    ]
    return [f"## One text by length: {name}", "", *_head(head), *map(_row, rows), ""]


def _verdicts(found: list[Verdict]) -> list[str]:
    rows = [[x.what, x.bar, f"{x.measured:g}", "yes" if x.met else "**no**"] for x in found]
    return ["## Bars of the design", "", *_head(["what", "bar", "measured", "met"]), *map(_row, rows), ""]


def _bold(name: str) -> str:
    return f"**{name}**" if name.startswith(OURS) else name


def _head(cells: list[str], first: str | None = None) -> list[str]:
    cells = [first, *cells] if first else cells
    return [_row(cells), "|" + "---|" * len(cells)]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
