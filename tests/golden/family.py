"""What every tiny model has in common: a folder in the layout of real repositories, seeded weights, its own texts.

Weights are drawn so that a wrong activation, a forgotten bias or a skipped LayerNorm moves the vectors by far more than
the tolerance of the tests: matrices with a standard deviation of 1 to 3 / sqrt(inputs), biases never zero, LayerNorm
weights never one. Each family lists the mistakes that its vectors must reveal.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

import modules
import texts
from modules import write_json

Mistake = Callable[[SentenceTransformer], AbstractContextManager[None]]


@dataclass(frozen=True)
class Family:
    """What distinguishes one tiny model. `layout` is the generation of sentence-transformers that wrote the folder:
    "classic" is what most models on the Hub have, "current" what version 6 writes."""

    name: str
    seed: int
    layout: str = "current"
    # Several modes joined by + are concatenated.
    pooling: str = "mean"
    include_prompt: bool = True
    normalize: bool = True
    # Also before the Dense layers.
    normalize_first: bool = False
    layer_norm: bool = False
    dense: tuple[modules.Dense, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    hidden: int = 32
    layers: int = 2
    heads: int = 4
    intermediate: int = 64
    positions: int = 64
    max_tokens: int | None = None
    storage: torch.dtype = torch.float32
    shards: int = 1
    # In front of every tensor's name, as files have it that were saved from a model with a head.
    prefix: str = ""

    # Who computed, where it was not transformers; becomes part of the provenance.
    oracle: ClassVar[str | None] = None
    # Whether the tokenizer's class changes what tokenizer.json says; everywhere else both must agree.
    class_decides: ClassVar[bool] = False

    def tokenizer(self) -> Tokenizer:
        raise NotImplementedError

    def tokenizer_config(self) -> dict[str, object]:
        raise NotImplementedError

    def model(self, vocab_size: int) -> torch.nn.Module:
        raise NotImplementedError

    def draw(self, name: str, values: np.ndarray) -> np.ndarray:
        """From a standard normal to the tensor of this name."""
        raise NotImplementedError

    def mistakes(self) -> dict[str, Mistake]:
        """Each changes a loaded model into one with a plausible mistake, which the vectors must show."""
        raise NotImplementedError

    def surplus(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Tensors that real files of this kind have and an encoder does not read."""
        return {}

    def edit_config(self, described: dict[str, object]) -> None:
        """What real files say otherwise than the library writes it."""

    def finish(self, folder: Path) -> None:
        """Files that real folders of this kind have otherwise."""

    def stored(self, model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
        """The tensors under the names of the file; None = as the library saves them."""
        surplus = self.surplus(model)
        if not self.prefix and not surplus:
            return None
        return {self.prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()} | surplus

    def expected_limit(self) -> int:
        return self.max_tokens or self.positions

    def items(self) -> list[texts.Item]:
        return texts.for_limit(self.expected_limit())

    def load(self, folder: Path) -> SentenceTransformer:
        """The oracle: float32 whatever the file holds; newer libraries would otherwise compute in the stored type."""
        arguments = {"dtype": torch.float32}
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=arguments)
        if next(model.parameters()).dtype != torch.float32:
            raise AssertionError(f"{folder.name}: the oracle would not run in float32")
        return model.eval()

    def write(self, folder: Path) -> dict[str, torch.Tensor]:
        """The whole folder, as a download would leave it. Gives the weights, for proof that the oracle read them."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        tokenizer = self.tokenizer()
        model = self.model(tokenizer.get_vocab_size())
        self._randomise(model)
        model.to(self.storage).save_pretrained(folder)
        stored = self.stored(model)
        if stored is not None or self.shards > 1:
            _save(stored or model.state_dict(), folder, self.shards)
        path = folder / "config.json"
        described = json.loads(path.read_text())
        if self.layout == "classic":
            # Older writers said torch_dtype.
            described["torch_dtype"] = described.pop("dtype")
        self.edit_config(described)
        write_json(path, described)
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        write_json(folder / "tokenizer_config.json", self.tokenizer_config())
        modules.write(self, folder)
        self.finish(folder)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return {name: tensor.float() for name, tensor in model.state_dict().items()}

    def tokenizer_limit(self) -> int:
        """In the classic layout the limit stands in sentence_bert_config.json, and this one is the backbone's own."""
        limit = self.max_tokens if self.layout == "current" else None
        return limit or self.positions

    def _randomise(self, model: torch.nn.Module) -> None:
        """NumPy's generator, because its stream is the same in every version; tensors are visited in name order."""
        generator = np.random.Generator(np.random.PCG64(self.seed))
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                values = self.draw(name, generator.standard_normal(tuple(parameter.shape)))
                parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def drawn(values: np.ndarray, name: str, spread: float) -> np.ndarray:
    """The usual proportions: norms around one, biases never zero, embeddings, and matrices of `spread` / sqrt(inputs)."""
    if name.lower().replace("_", "").endswith("layernorm.weight"):
        return 1.0 + 0.25 * values
    if name.endswith("bias"):
        return 0.3 * values
    if "embeddings" in name:
        return 0.5 * values
    return values * spread / np.sqrt(values.shape[1])


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 7) -> dict[str, torch.Tensor]:
    """Surplus tensors: nobody may read them, so their values only have to be the same each time."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _save(tensors: dict[str, torch.Tensor], folder: Path, shards: int) -> None:
    """One file, or several of about the same number of tensors and the index that names them."""
    single = folder / "model.safetensors"
    if shards == 1:
        save_file(tensors, single, metadata={"format": "pt"})
        return
    single.unlink(missing_ok=True)
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[len(names) * number // shards : len(names) * (number + 1) // shards]
        save_file({name: tensors[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
