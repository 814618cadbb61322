"""Who is compared with whom, round by round, and the bars of the design that follow from it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from contest import Contest

ACCURATE = 0.999
OURS = "embedserve"


@dataclass(frozen=True)
class Ratio:
    """Rates over rates (more is better for us) or, in latency contests, times over times (less is better)."""

    against: str
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Opponent:
    """A peer that is chosen by what it does in this contest."""

    role: str
    name: str | None


@dataclass(frozen=True)
class Target:
    """A bar of the design: our precision against one peer. Throughput ratios are to be at least `bar`, latencies at
    most."""

    shape: str
    workload: str
    precision: str
    against: str
    bar: float


@dataclass(frozen=True)
class Verdict:
    what: str
    bar: str
    measured: float
    met: bool


def http_name(precision: str) -> str:
    return f"{OURS} {precision}, HTTP"


def forward_name(precision: str) -> str:
    return f"{OURS} {precision}, forward alone"


def ratio(contest: Contest, ours: str, theirs: str) -> Ratio:
    pairs = zip(contest.entrants[ours].seconds, contest.entrants[theirs].seconds, strict=True)
    values = [mine / other if contest.latency else other / mine for mine, other in pairs]
    return Ratio(theirs, round(statistics.median(values), 3), round(min(values), 3), round(max(values), 3))


def opponents(contest: Contest, proven: dict[str, float]) -> list[Opponent]:
    """The fastest peers; `proven` holds minimum cosines with real weights, which outrank those with random ones."""

    def fastest(names: list[str]) -> str | None:
        return min(names, key=lambda name: statistics.median(contest.entrants[name].seconds), default=None)

    peers = {name: entrant for name, entrant in contest.entrants.items() if not name.startswith(OURS)}
    accurate = []
    for name, entrant in peers.items():
        cosine = proven.get(name, entrant.accuracy.min_cosine if entrant.accuracy else 0.0)
        if cosine >= ACCURATE:
            accurate.append(name)
    return [
        Opponent("best f32 peer", fastest([name for name in peers if peers[name].precision == "f32"])),
        Opponent("best bf16 peer", fastest([name for name in peers if peers[name].precision == "bf16"])),
        Opponent(f"fastest peer with cosine >= {ACCURATE}", fastest(accurate)),
    ]


def proven_cosines(contests: list[Contest]) -> dict[str, float]:
    """The smallest cosine of each engine over all contests with real weights."""
    result: dict[str, float] = {}
    for contest in contests:
        for name, entrant in contest.entrants.items():
            if entrant.accuracy:
                result[name] = min(result.get(name, 1.0), entrant.accuracy.min_cosine)
    return result


def verdicts(shape: str, contests: list[Contest], proven: dict[str, float]) -> list[Verdict]:
    """Every bar that this run can judge."""
    found = [verdict for contest in contests for verdict in _of_contest(shape, contest, proven)]
    return found + _linearity(shape, {contest.workload: contest for contest in contests})


def _of_contest(shape: str, contest: Contest, proven: dict[str, float]) -> list[Verdict]:
    accurate = opponents(contest, proven)[-1].name
    found = []
    for target in TARGETS:
        if (target.shape, target.workload) != (shape, contest.workload):
            continue
        ours, theirs = http_name(target.precision), accurate if target.against == MOST_ACCURATE else target.against
        if theirs is None or not {ours, theirs} <= contest.entrants.keys():
            continue
        measured = ratio(contest, ours, theirs).median
        met = measured <= target.bar if contest.latency else measured >= target.bar
        sign = "<=" if contest.latency else ">="
        what = f"{shape}, {contest.workload}: {target.precision} against {theirs}"
        found.append(Verdict(what, f"{sign} {target.bar:.2f}x", measured, met))
    f32 = contest.entrants.get(http_name("f32"))
    if f32 and contest.fma_gflops and contest.workload == "mixed256":
        share = contest.flops / statistics.median(f32.seconds) / 1e9 / contest.peak_gflops
        what = f"{shape}, {contest.workload}: f32 share of the multiply-add peak"
        found.append(Verdict(what, f">= {PEAK_SHARE}", round(share, 3), share >= PEAK_SHARE))
    if contest.workload == "1x16":
        found += _overheads(shape, contest)
    return found


def _overheads(shape: str, contest: Contest) -> list[Verdict]:
    """What HTTP adds to a short text alone."""
    found = []
    for precision in ("f32", "bf16", "int8"):
        names = http_name(precision), forward_name(precision)
        if not contest.entrants.keys() >= set(names):
            continue
        with_http, alone = (statistics.median(contest.entrants[name].seconds) for name in names)
        added = round(1e3 * (with_http - alone), 3)
        what = f"{shape}, 1x16: ms that HTTP adds to the {precision} forward pass"
        found.append(Verdict(what, f"<= {ADDED_MILLISECONDS}", added, added <= ADDED_MILLISECONDS))
    return found


def _linearity(shape: str, contests: dict[str, Contest]) -> list[Verdict]:
    if not {"mixed256", "32x128"} <= contests.keys():
        return []
    mixed, uniform = contests["mixed256"], contests["32x128"]
    found = []
    for name, entrant in mixed.entrants.items():
        if name.startswith(OURS) and name in uniform.entrants:
            rates = [
                contest.flops / statistics.median(one.seconds)
                for contest, one in ((mixed, entrant), (uniform, uniform.entrants[name]))
            ]
            share = round(rates[0] / rates[1], 3)
            what = f"{shape}: {name}, arithmetic per second of mixed256 over 32x128"
            found.append(Verdict(what, f">= {LINEAR_SHARE}", share, share >= LINEAR_SHARE))
    return found


MOST_ACCURATE = "the fastest accurate peer"
PEAK_SHARE = 0.92
LINEAR_SHARE = 0.97
ADDED_MILLISECONDS = 0.3
# Of our precision and its peer, for each shape. The smaller model is held to the larger one's ratios at least.
_MIXED = [
    ("f32", "OpenVINO f32, unpadded", {"minilm": 1.12, "bge-base": 1.10}),
    ("f32", "OpenVINO f32, padded", {"minilm": 1.65, "bge-base": 1.65}),
    ("f32", "ONNX Runtime f32, padded", {"minilm": 1.8, "bge-base": 1.8}),
    ("f32", "candle padded", {"minilm": 3.0, "bge-base": 3.0}),
    ("bf16", "OpenVINO bf16, unpadded", {"minilm": 1.18, "bge-base": 1.12}),
    ("int8", MOST_ACCURATE, {"minilm": 2.0, "bge-base": 2.0}),
]
_UNIFORM = [("f32", "f32", 1.08), ("bf16", "bf16", 1.05), ("int8", "bf16", 1.8)]
_LATENCY = {
    ("minilm", "1x16"): (0.60, 0.60, 0.60),
    ("bge-base", "1x16"): (0.75, 0.60, 0.60),
    ("bge-base", "1x128"): (0.88, 0.82, 0.80),
    ("bge-base", "1x512"): (0.90, 0.87, 0.82),
}
TARGETS = [
    *(Target(shape, "mixed256", ours, theirs, bar) for ours, theirs, bars in _MIXED for shape, bar in bars.items()),
    *(
        Target("bge-base", "32x128", ours, f"OpenVINO {theirs}, {policy}", bar)
        for ours, theirs, bar in _UNIFORM
        for policy in ("unpadded", "padded")
    ),
    *(
        Target(shape, workload, precision, f"OpenVINO {precision}, latency mode", bar)
        for (shape, workload), bars in _LATENCY.items()
        for precision, bar in zip(("f32", "bf16", "int8"), bars, strict=True)
    ),
]
