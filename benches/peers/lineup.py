"""Which engines take part, each in its best known setting."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import peer_onnx
import peer_openvino
import peer_torch
from engine import Engine, Pooling
from workload import Texts

GROUPS = ["embedserve", "openvino", "onnx", "torch", "sentence-transformers"]
POLICIES = ["unpadded", "padded"]


@dataclass(frozen=True)
class Place:
    """The model, where conversions of it go, and how many cores there are."""

    folder: Path
    scratch: Path
    threads: int


def start(part: str, groups: list[str], place: Place, texts: Texts) -> list[Engine]:
    """The peers of one part, `throughput` or `latency`."""
    pooling = _pooling(place.folder)
    started: list[Engine] = []
    if "openvino" in groups:
        models = peer_openvino.models(place.folder, place.scratch, texts.calibration())
        for precision, model in models.items():
            if part == "latency":
                started.append(peer_openvino.OpenVinoLatency(model, precision, pooling, place.threads))
                continue
            for policy in POLICIES:
                started.append(peer_openvino.OpenVinoStreams(model, precision, pooling, place.threads, policy))
    if "onnx" in groups:
        graphs = {
            "f32": peer_onnx.fused_graph(place.folder, place.scratch),
            "int8": peer_onnx.int8_graph(place.folder, place.scratch),
        }
        for precision, graph in graphs.items():
            for policy in POLICIES if part == "throughput" else ["all cores"]:
                started.append(peer_onnx.OnnxRuntime(graph, precision, pooling, place.threads, policy))
    if {"torch", "sentence-transformers"} & set(groups):
        for precision in peer_torch.TYPES:
            model = peer_torch.load(place.folder, precision)
            if "torch" in groups:
                started.append(peer_torch.Torch(model, precision, pooling, place.threads))
            if "sentence-transformers" in groups:
                started.append(peer_torch.SentenceTransformers(model, precision, place.threads))
    return started


def executes(engines: list[Engine]) -> dict[str, dict[str, int]]:
    """What those that can be asked say they compute in."""
    kinds = (peer_openvino.OpenVinoStreams, peer_openvino.OpenVinoLatency)
    return {engine.name: engine.executes for engine in engines if isinstance(engine, kinds)}


def _pooling(folder: Path) -> Pooling:
    found = json.loads((folder / "1_Pooling/config.json").read_text())
    return Pooling("cls" if found.get("pooling_mode_cls_token") else "mean")
