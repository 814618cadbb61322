"""The files of sentence-transformers around an encoder: modules.json, each module's folder, limits and prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from family import Family

_CLASSIC = "sentence_transformers.models."
_CURRENT = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
_THROUGH = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}


@dataclass(frozen=True)
class Dense:
    """One Dense module; its activation by the name of torch's class."""

    out: int
    activation: str = "Tanh"
    bias: bool = True


def write(family: Family, folder: Path) -> None:
    """modules.json and each module's own folder, in the words of the layout's generation."""
    classic = family.layout == "classic"
    chain = ["Transformer", "Pooling"]
    chain += ["Normalize"] if family.normalize_first else []
    chain += ["Dense"] * len(family.dense)
    chain += ["LayerNorm"] if family.layer_norm else []
    chain += ["Normalize"] if family.normalize else []
    width = family.hidden * len(family.pooling.split("+"))
    dense = iter(enumerate(family.dense))
    listed = []
    for index, kind in enumerate(chain):
        path = "" if index == 0 else f"{index}_{kind}"
        kind_name = _CLASSIC + kind if classic else _CURRENT[kind]
        listed.append({"idx": index, "name": str(index), "path": path, "type": kind_name})
        if kind == "Pooling":
            write_json(folder / path / "config.json", _pooling_config(family))
        elif kind == "Dense":
            number, module = next(dense)
            _write_dense(family, folder / path, (number, width, module))
            width = module.out
        elif kind == "LayerNorm":
            _write_layer_norm(family.seed, folder / path, width)
        elif kind == "Normalize" and not classic:
            write_json(folder / path / "config.json", _THROUGH)
    write_json(folder / "modules.json", listed)
    _write_limits(family, folder)
    _write_prompts(family, folder)


def write_json(path: Path, described: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(described, indent=2) + "\n")


def _pooling_config(family: Family) -> dict[str, object]:
    modes = family.pooling.split("+")
    if family.layout == "current":
        return {
            "embedding_dimension": family.hidden,
            "pooling_mode": modes if len(modes) > 1 else family.pooling,
            "include_prompt": family.include_prompt,
        }
    described: dict[str, object] = {"word_embedding_dimension": family.hidden}
    for name in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"):
        described[f"pooling_mode_{name}"] = name.removesuffix("_token").removesuffix("_tokens") in [
            mode.removesuffix("_tokens") for mode in modes
        ]
    # The oldest files do not know the rest; a folder names them only where it needs them.
    if "lasttoken" in modes or "weightedmean" in modes:
        described["pooling_mode_weightedmean_tokens"] = "weightedmean" in modes
        described["pooling_mode_lasttoken"] = "lasttoken" in modes
    if not family.include_prompt:
        described["include_prompt"] = False
    return described


def _write_dense(family: Family, folder: Path, place: tuple[int, int, Dense]) -> None:
    number, width, module = place
    generator = np.random.Generator(np.random.PCG64(family.seed + 5000 + number))
    tensors = {"linear.weight": generator.standard_normal((module.out, width)) * 0.7 / np.sqrt(width)}
    if module.bias:
        tensors["linear.bias"] = 0.2 * generator.standard_normal(module.out)
    _save(tensors, folder)
    described: dict[str, object] = {
        "in_features": width,
        "out_features": module.out,
        "bias": module.bias,
        "activation_function": _activation_path(module.activation),
    }
    write_json(folder / "config.json", described | (_THROUGH if family.layout == "current" else {}))


def _activation_path(name: str) -> str:
    kind = getattr(torch.nn, name)
    return f"{kind.__module__}.{kind.__qualname__}"


def _write_layer_norm(seed: int, folder: Path, width: int) -> None:
    generator = np.random.Generator(np.random.PCG64(seed + 6000))
    weight = 1.0 + 0.25 * generator.standard_normal(width)
    _save({"norm.weight": weight, "norm.bias": 0.3 * generator.standard_normal(width)}, folder)
    write_json(folder / "config.json", {"dimension": width})


def _save(tensors: dict[str, np.ndarray], folder: Path) -> None:
    folder.mkdir()
    ready = {name: torch.from_numpy(values.astype(np.float32)) for name, values in tensors.items()}
    save_file(ready, folder / "model.safetensors", metadata={"format": "pt"})


def _write_limits(family: Family, folder: Path) -> None:
    if family.layout == "classic":
        described = {"max_seq_length": family.expected_limit(), "do_lower_case": False}
    else:
        text = {"method": "forward", "method_output_name": "last_hidden_state"}
        described = {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": text},
            "module_output_name": "token_embeddings",
        }
    write_json(folder / "sentence_bert_config.json", described)


def _write_prompts(family: Family, folder: Path) -> None:
    if not family.prompts:
        return
    described: dict[str, object] = {"prompts": family.prompts, "default_prompt_name": family.default_prompt_name}
    if family.layout == "current":
        described = {"model_type": "SentenceTransformer", **described, "similarity_fn_name": "cosine"}
    else:
        # The versions are of the day when such a file was written; nobody reads them.
        described = {"__version__": {"sentence_transformers": "2.4.0"}, **described}
    write_json(folder / "config_sentence_transformers.json", described)
