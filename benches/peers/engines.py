"""The engines that are compared. Each takes the same texts, and each gets the best setting we know for it.

An engine's `run` returns the vectors in the workload's order; loading and conversion before it are not timed.
"Padded" engines sort by length and batch 32, "unpadded" ones run texts singly on one single-threaded instance per core,
longest first.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from onnxruntime.transformers import optimizer
from sentence_transformers import SentenceTransformer

from workload import Workload

BATCH = 32


class Engine(Protocol):
    """One competitor; `name` says how it is used."""

    name: str

    def run(self) -> np.ndarray: ...

    def close(self) -> None: ...


class Embedserve:
    """The built server over HTTP: one request with all texts, the answer as the SDKs ask for it (base64)."""

    name = "embedserve, HTTP"

    def __init__(self, binary: Path, folder: Path, workload: Workload) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [str(binary), "--host", "127.0.0.1", "--port", str(port), "--model", str(folder)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDSERVE_")}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        self._wait_until_ready()
        model = json.loads(self._ask("GET", "/v1/models"))["data"][0]["id"]
        body = {"model": model, "input": workload.texts, "encoding_format": "base64"}
        self.body = json.dumps(body).encode()
        self.tokens = workload.tokens
        self.answer = b""

    def run(self) -> np.ndarray:
        answer = json.loads(self._ask("POST", "/v1/embeddings", self.body))
        if answer["usage"]["prompt_tokens"] != self.tokens:
            raise AssertionError(f"the server read {answer['usage']} tokens, not {self.tokens}")
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in answer["data"]])

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"content-type": "application/json"} if body else {}
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path} answered {answer.status}: {content[:300]!r}")
        return content

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 120
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self._ask("GET", "/readyz")
            except (OSError, http.client.HTTPException, RuntimeError):
                self.connection.close()
                time.sleep(0.05)
            else:
                return
        raise RuntimeError("the server did not become ready")


class SentenceTransformers:
    """`encode` from text, as its users call it; it sorts by length and pads by itself."""

    name = "sentence-transformers fp32, padded"

    def __init__(self, model: SentenceTransformer, workload: Workload, threads: int) -> None:
        self.model, self.texts, self.threads = model, workload.texts, threads
        self.batch = BATCH

    def run(self) -> np.ndarray:
        torch.set_num_threads(self.threads)
        return self.model.encode(self.texts, batch_size=self.batch, show_progress_bar=False)

    def choose_batch(self, sizes: tuple[int, ...]) -> None:
        """Keeps the size that is fastest here: large paddings can cost torch more than small batches do."""
        took = {}
        for self.batch in sizes:
            begun = time.perf_counter()
            self.run()
            took[self.batch] = time.perf_counter() - begun
        self.batch = min(took, key=took.get)

    def close(self) -> None:
        pass


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


def export_onnx(folder: Path, target: Path) -> tuple[Path, Path]:
    """The encoder as it is, and fused by ONNX Runtime's own optimiser; pooling is done outside.

    Written-out attention and the older exporter, because only their graph is recognised and fused to one operator."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    encoder = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=options)[0].model
    plain, fused = target / "plain.onnx", target / "fused.onnx"
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ones = torch.ones(2, 8, dtype=torch.long)
    torch.onnx.export(
        Hidden(encoder),
        (ones, ones, torch.zeros_like(ones)),
        str(plain),
        input_names=names,
        output_names=["hidden"],
        dynamic_axes={name: {0: "rows", 1: "length"} for name in [*names, "hidden"]},
        opset_version=17,
        dynamo=False,
    )
    config = encoder.config
    found = optimizer.optimize_model(
        str(plain),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        opt_level=0,
    )
    if found.get_fused_operator_statistics()["Attention"] != config.num_hidden_layers:
        raise RuntimeError("the peer's optimiser did not fuse attention: the comparison would not be fair")
    found.save_model_to_file(str(fused))
    return plain, fused


def pooled(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over real tokens, then unit length, as MiniLM is defined."""
    summed = np.einsum("blh,bl->bh", hidden, mask.astype(np.float32)) / mask.sum(1, keepdims=True)
    return (summed / np.linalg.norm(summed, axis=1, keepdims=True)).astype(np.float32)


class OnnxPadded:
    """ONNX Runtime with all threads on one padded batch at a time."""

    name = "ONNX Runtime fp32, padded"

    def __init__(self, path: Path, workload: Workload, threads: int) -> None:
        self.instance = onnx_instance(path, threads)
        self.ids = workload.ids

    def run(self) -> np.ndarray:
        order = sorted(range(len(self.ids)), key=lambda index: len(self.ids[index]))
        found: dict[int, np.ndarray] = {}
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            longest = max(len(self.ids[index]) for index in chosen)
            ids = np.zeros((len(chosen), longest), np.int64)
            mask = np.zeros_like(ids)
            for row, index in enumerate(chosen):
                ids[row, : len(self.ids[index])] = self.ids[index]
                mask[row, : len(self.ids[index])] = 1
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            found |= zip(chosen, pooled(self.instance.run(None, inputs)[0], mask), strict=True)
        return np.stack([found[index] for index in range(len(self.ids))])

    def close(self) -> None:
        del self.instance


def onnx_instance(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Spinning threads would steal from the engine that runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OnnxUnpadded:
    """One single-threaded ONNX Runtime instance per core, one text at a time, longest first."""

    name = "ONNX Runtime fp32, unpadded"

    def __init__(self, path: Path, workload: Workload, threads: int) -> None:
        self.instances = [onnx_instance(path, 1) for _ in range(threads)]
        self.ids = workload.ids

    def run(self) -> np.ndarray:
        def one(instance: onnxruntime.InferenceSession, ids: list[int]) -> np.ndarray:
            row = np.array([ids], np.int64)
            mask = np.ones_like(row)
            inputs = {"input_ids": row, "attention_mask": mask, "token_type_ids": np.zeros_like(row)}
            return pooled(instance.run(None, inputs)[0], mask)[0]

        return singly(self.ids, [lambda ids, instance=instance: one(instance, ids) for instance in self.instances])

    def close(self) -> None:
        self.instances.clear()


def singly(all_ids: list[list[int]], workers: list[Callable[[list[int]], np.ndarray]]) -> np.ndarray:
    """Hands the texts out, longest first, to workers that run at once."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in sorted(range(len(all_ids)), key=lambda index: -len(all_ids[index])):
        waiting.put(index)
    found: dict[int, np.ndarray] = {}
    failures: list[BaseException] = []

    def work(embed: Callable[[list[int]], np.ndarray]) -> None:
        try:
            while True:
                index = waiting.get_nowait()
                found[index] = embed(all_ids[index])
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
    return np.stack([found[index] for index in range(len(all_ids))])


class OpenVinoUnpadded:
    """OpenVINO's throughput mode: one stream per core, asynchronous single texts, longest first."""

    name = "OpenVINO fp32, unpadded"

    def __init__(self, path: Path, workload: Workload, threads: int) -> None:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": threads,
        }
        compiled = openvino.Core().compile_model(openvino.convert_model(str(path)), "CPU", settings)
        self.requests = openvino.AsyncInferQueue(compiled, 2 * threads)
        self.ids = workload.ids
        self.found: dict[int, np.ndarray] = {}
        self.requests.set_callback(self._take)

    def _take(self, request: object, userdata: tuple[int, np.ndarray]) -> None:
        index, mask = userdata
        self.found[index] = pooled(request.get_output_tensor(0).data, mask)[0]

    def run(self) -> np.ndarray:
        self.found.clear()
        for index in sorted(range(len(self.ids)), key=lambda index: -len(self.ids[index])):
            row = np.array([self.ids[index]], np.int64)
            mask = np.ones_like(row)
            inputs = {"input_ids": row, "attention_mask": mask, "token_type_ids": np.zeros_like(row)}
            self.requests.start_async(inputs, (index, mask))
        self.requests.wait_all()
        return np.stack([self.found[index] for index in range(len(self.ids))])

    def close(self) -> None:
        del self.requests
