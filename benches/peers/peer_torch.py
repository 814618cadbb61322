"""sentence-transformers as its users call it, and the bare torch model without its overheads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from engine import FEWEST_FOR_BATCHES, Batch, BatchEngine, Engine, Pooling, fastest, sampled
from workload import Workload

# torch loses more to large paddings than it gains from large batches on some machines.
SIZES = (1, 8, 32)
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def load(folder: Path, precision: str) -> SentenceTransformer:
    options = {"dtype": TYPES[precision]}
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=options).eval()


def reference(model: SentenceTransformer, work: Workload) -> np.ndarray:
    """What every engine's vectors are compared with: float32, one text at a time, nothing padded."""
    return np.stack([model.encode([text], batch_size=1, show_progress_bar=False)[0] for text in work.texts])


class SentenceTransformers(Engine):
    """`encode` from text; it sorts by length and pads by itself."""

    def __init__(self, model: SentenceTransformer, precision: str, threads: int) -> None:
        super().__init__(f"sentence-transformers {precision}", precision)
        self.model, self.threads = model, threads
        self.sizes: dict[str, int] = {}

    def prepare(self, work: Workload) -> None:
        if work.name in self.sizes:
            return
        sizes = SIZES if len(work.texts) >= FEWEST_FOR_BATCHES else (1,)
        sample = sampled(work.texts)
        self.sizes[work.name] = fastest(sizes, lambda size: self._encode(sample, size))
        self.run(work)

    def run(self, work: Workload) -> np.ndarray:
        return self._encode(work.texts, self.sizes[work.name])

    def setting(self, work: Workload) -> str:
        return f"batch {self.sizes[work.name]}"

    def _encode(self, texts: list[str], size: int) -> np.ndarray:
        torch.set_num_threads(self.threads)
        return np.asarray(self.model.encode(texts, batch_size=size, show_progress_bar=False), np.float32)


class Torch(BatchEngine):
    """The transformers model alone, fed with ids, with torch's own fused attention."""

    def __init__(self, model: SentenceTransformer, precision: str, pooling: Pooling, threads: int) -> None:
        super().__init__(f"torch {precision}", precision, SIZES)
        self.encoder, self.pooling, self.threads = model[0].model, pooling, threads

    def compute(self, batches: list[Batch]) -> Iterable[tuple[Batch, np.ndarray]]:
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return [(batch, self._one(batch)) for batch in batches]

    def _one(self, batch: Batch) -> np.ndarray:
        inputs = {name: torch.from_numpy(value) for name, value in batch.inputs().items()}
        if not batch.padded:
            # Without a mask, attention takes its fastest path.
            del inputs["attention_mask"]
        return self.pooling(self.encoder(**inputs).last_hidden_state.float().numpy(), batch)
