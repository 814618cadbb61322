"""OpenVINO in float32, bfloat16 and int8 (NNCF, calibrated on real prose), for throughput and for latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import nncf
import numpy as np
import openvino

from engine import Batch, BatchEngine, Pooling, batches
from peer_onnx import plain_graph
from workload import Workload

PADDED_SIZES = (8, 32)
HINTS = {"f32": "f32", "bf16": "bf16", "int8": "f32"}
# The operators that hold nearly all of the arithmetic.
HEAVY = ("FullyConnected", "MatMul", "ScaledDotProductAttention")


def models(folder: Path, scratch: Path, calibration: Workload) -> dict[str, openvino.Model]:
    """By precision. One float32 model serves bfloat16 too, which is a setting when it is compiled."""
    plain = openvino.convert_model(str(plain_graph(folder, scratch)))
    return {"f32": plain, "bf16": plain, "int8": _quantised(plain, scratch, calibration)}


def _quantised(model: openvino.Model, scratch: Path, calibration: Workload) -> openvino.Model:
    saved = scratch / "openvino-int8.xml"
    if not saved.exists():
        samples = nncf.Dataset([batch.inputs() for batch in batches(calibration.ids, 1)])
        kind = nncf.ModelType.TRANSFORMER
        quantised = nncf.quantize(model, samples, model_type=kind, subset_size=len(calibration.ids))
        openvino.save_model(quantised, str(saved), compress_to_fp16=False)
    return openvino.Core().read_model(str(saved))


def executed(compiled: openvino.CompiledModel) -> dict[str, int]:
    """What it says it computes the heavy operators in: kind and precision, with their counts."""
    found: Counter[str] = Counter()
    for operator in compiled.get_runtime_model().get_ordered_ops():
        facts = operator.get_rt_info()
        kind, precision = (facts[name].astype(str) for name in ("layerType", "runtimePrecision"))
        if kind in HEAVY:
            found[f"{kind} {precision}"] += 1
    return dict(found)


class OpenVinoStreams(BatchEngine):
    """Throughput mode, asynchronous requests: one stream per core with single texts, or one stream of all cores with
    padded batches; twice as many in flight as there are streams."""

    def __init__(self, model: openvino.Model, precision: str, pooling: Pooling, threads: int, policy: str) -> None:
        super().__init__(f"OpenVINO {precision}, {policy}", precision, PADDED_SIZES if policy == "padded" else (1,))
        streams = threads if policy == "unpadded" else 1
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": streams,
        }
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        self.executes = executed(compiled)
        self.pooling = pooling
        self.found: list[tuple[Batch, np.ndarray]] = []
        self.requests = openvino.AsyncInferQueue(compiled, 2 * streams)
        self.requests.set_callback(self._take)

    def compute(self, batches: list[Batch]) -> Iterable[tuple[Batch, np.ndarray]]:
        self.found = []
        for batch in batches:
            self.requests.start_async(batch.inputs(), batch, share_inputs=True)
        self.requests.wait_all()
        return self.found

    def _take(self, request: openvino.InferRequest, batch: Batch) -> None:
        self.found.append((batch, self.pooling(request.get_output_tensor(0).data, batch)))

    def close(self) -> None:
        del self.requests


class OpenVinoLatency(BatchEngine):
    """Latency mode: one request at a time, all cores on it."""

    def __init__(self, model: openvino.Model, precision: str, pooling: Pooling, threads: int) -> None:
        super().__init__(f"OpenVINO {precision}, latency mode", precision, (1,))
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        self.executes = executed(compiled)
        self.request = compiled.create_infer_request()
        self.pooling = pooling

    def compute(self, batches: list[Batch]) -> Iterable[tuple[Batch, np.ndarray]]:
        for batch in batches:
            self.request.infer(batch.inputs(), share_inputs=True)
            yield batch, self.pooling(self.request.get_output_tensor(0).data, batch)

    def close(self) -> None:
        del self.request
