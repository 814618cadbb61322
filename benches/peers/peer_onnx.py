"""ONNX Runtime: its transformer optimiser's fused graph in float32, and the same quantised dynamically, per channel."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from sentence_transformers import SentenceTransformer

from engine import Batch, BatchEngine, Pooling, shared_out

PADDED_SIZES = (8, 32)


class Hidden(torch.nn.Module):
    """The encoder with its last hidden state as the only result."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return found.last_hidden_state


def plain_graph(folder: Path, scratch: Path) -> Path:
    """The encoder as ONNX, for every peer that reads it; pooling is done outside.

    Written-out attention and the older exporter, because only their graph is recognised and fused to one operator."""
    plain = scratch / "plain.onnx"
    if plain.exists():
        return plain
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    encoder = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=options)[0].model
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ones = torch.ones(2, 8, dtype=torch.long)
    torch.onnx.export(
        Hidden(encoder.eval()),
        (ones, ones, torch.zeros_like(ones)),
        str(plain),
        input_names=names,
        output_names=["hidden"],
        dynamic_axes={name: {0: "rows", 1: "length"} for name in [*names, "hidden"]},
        opset_version=17,
        dynamo=False,
    )
    return plain


def fused_graph(folder: Path, scratch: Path) -> Path:
    """The same through ONNX Runtime's own optimiser."""
    fused = scratch / "fused.onnx"
    if fused.exists():
        return fused
    config = SentenceTransformer(str(folder), device="cpu", local_files_only=True)[0].model.config
    found = optimizer.optimize_model(
        str(plain_graph(folder, scratch)),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        opt_level=0,
    )
    if found.get_fused_operator_statistics()["Attention"] != config.num_hidden_layers:
        raise RuntimeError("the peer's optimiser did not fuse attention: the comparison would not be fair")
    found.save_model_to_file(str(fused))
    return fused


def int8_graph(folder: Path, scratch: Path) -> Path:
    quantised = scratch / "fused-int8.onnx"
    if quantised.exists():
        return quantised
    fused = fused_graph(folder, scratch)
    # Shape inference does not know the fused operators, so that types after them have to be told.
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(fused, quantised, per_channel=True, weight_type=QuantType.QInt8, extra_options=options)
    kinds = [node.op_type for node in onnx.load(str(quantised), load_external_data=False).graph.node]
    if "Attention" in kinds or "QAttention" not in kinds:
        raise RuntimeError("the peer's attention was not quantised: the comparison would not be fair")
    return quantised


class OnnxRuntime(BatchEngine):
    """One instance with all threads, on padded batches or on one text; or, `unpadded`, one single-threaded instance per
    core on single texts."""

    def __init__(self, graph: Path, precision: str, pooling: Pooling, threads: int, policy: str) -> None:
        super().__init__(f"ONNX Runtime {precision}, {policy}", precision, PADDED_SIZES if policy == "padded" else (1,))
        counts = [1] * threads if policy == "unpadded" else [threads]
        self.instances = [_instance(graph, count) for count in counts]
        self.pooling = pooling

    def compute(self, batches: list[Batch]) -> Iterable[tuple[Batch, np.ndarray]]:
        def embed(instance: onnxruntime.InferenceSession, batch: Batch) -> np.ndarray:
            return self.pooling(instance.run(None, batch.inputs())[0], batch)

        workers = [lambda batch, instance=instance: embed(instance, batch) for instance in self.instances]
        return shared_out(batches, workers)

    def close(self) -> None:
        self.instances.clear()


def _instance(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Spinning is its fastest, but spinning threads must not steal from the engine that runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
