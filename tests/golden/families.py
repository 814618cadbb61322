"""The tiny models: one per property that an encoder, a pooling or a loader can get wrong, each seeded.

Weights are drawn so that a wrong activation, a forgotten bias or a skipped LayerNorm moves the vectors by far more than
the tolerance of the tests: matrices with a standard deviation of 1 to 3 / sqrt(inputs), biases never zero, LayerNorm
weights never one.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

import vocabulary


@dataclass(frozen=True)
class Family:
    """What distinguishes one tiny model. `layout` is the generation of sentence-transformers that wrote the folder:
    "classic" is what most models on the Hub have, "current" what version 6 writes."""

    name: str
    seed: int
    layout: str = "current"
    pooling: str = "mean"
    normalize: bool = True
    activation: str = "gelu"
    hidden: int = 32
    layers: int = 2
    heads: int = 4
    intermediate: int = 64
    positions: int = 64
    max_tokens: int | None = None
    storage: torch.dtype = torch.float32
    lowercase: bool = True
    extra_scripts: bool = True
    pretraining_names: bool = False
    dense_out: int | None = None
    pooler: bool = True


FAMILIES = [
    Family("bert-mean-normalize", 1001),
    Family("bert-cls-normalize", 1002, layout="classic", pooling="cls", lowercase=False),
    Family("bert-mean-raw", 1003, normalize=False, layers=3),
    Family("bert-prefixed", 1004, layout="classic", pretraining_names=True),
    Family("bert-gelu-new", 1005, activation="gelu_new"),
    Family("bert-relu", 1006, activation="relu", pooling="cls"),
    Family("bert-f16", 1007, storage=torch.float16),
    Family("bert-bf16", 1008, layout="classic", storage=torch.bfloat16),
    Family("bert-max-pooling", 1009, layout="classic", pooling="max", normalize=False),
    Family("bert-mean-sqrt-len", 1010, pooling="mean_sqrt_len_tokens", normalize=False),
    Family("bert-max-seq-smaller", 1011, layout="classic", max_tokens=16),
    Family("bert-model-max-length", 1012, max_tokens=16),
    # Stored as f16, with few vocabulary entries, because its matrices are larger than all the others' together.
    Family(
        "bert-wide",
        1013,
        hidden=96,
        heads=3,
        intermediate=200,
        storage=torch.float16,
        extra_scripts=False,
        pooler=False,
    ),
    Family("bert-dense", 1014, dense_out=24),
    Family("bert-dense-classic", 1015, layout="classic", pooling="cls", dense_out=40, positions=128),
]

_CLASSIC = "sentence_transformers.models."
_CURRENT = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}


def write(family: Family, folder: Path) -> None:
    """The whole folder, as a download would leave it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokens = vocabulary.entries(family.extra_scripts)
    config = _bert_config(family, len(tokens))
    model = BertModel(config, add_pooling_layer=family.pooler)
    _randomise(model, family.seed)
    model.to(family.storage).save_pretrained(folder)
    if family.layout == "classic":
        _rename_dtype(folder / "config.json")
    if family.pretraining_names:
        _rename_like_a_pretraining_checkpoint(model, folder)
    vocabulary.tokenizer(tokens, lowercase=family.lowercase).save(str(folder / "tokenizer.json"), pretty=False)
    _write_tokenizer_config(family, folder)
    _write_modules(family, folder)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _bert_config(family: Family, vocab_size: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=family.hidden,
        num_hidden_layers=family.layers,
        num_attention_heads=family.heads,
        intermediate_size=family.intermediate,
        hidden_act=family.activation,
        max_position_embeddings=family.positions,
    )


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """NumPy's generator, because its stream is the same in every version; tensors are visited in name order."""
    generator = np.random.Generator(np.random.PCG64(seed))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = generator.standard_normal(tuple(parameter.shape))
            if name.endswith("LayerNorm.weight"):
                values = 1.0 + 0.25 * values
            elif name.endswith("intermediate.dense.bias"):
                # Most inputs of a trained activation are negative; there the two GELUs differ most against their size.
                values = -1.6 + 0.3 * values
            elif name.endswith("bias"):
                values = 0.3 * values
            elif "embeddings" in name:
                values = 0.5 * values
            elif name.endswith("intermediate.dense.weight"):
                values = values / np.sqrt(parameter.shape[1])
            elif name.endswith("output.dense.weight") and "attention" not in name:
                # Larger, so that the activation outweighs the residual.
                values = values * 3.0 / np.sqrt(parameter.shape[1])
            else:
                values = values * 1.7 / np.sqrt(parameter.shape[1])
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def _rename_dtype(path: Path) -> None:
    """Older writers said torch_dtype."""
    described = json.loads(path.read_text())
    described["torch_dtype"] = described.pop("dtype")
    _write_json(path, described)


def _rename_like_a_pretraining_checkpoint(model: BertModel, folder: Path) -> None:
    """Names and surplus of the oldest BERT files: `bert.` in front, gamma and beta, positions, training heads."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        renamed["bert." + old] = tensor.contiguous()
    config = model.config
    generator = torch.Generator().manual_seed(7)
    renamed["bert.embeddings.position_ids"] = torch.arange(config.max_position_embeddings).unsqueeze(0)
    surplus = {
        "cls.predictions.bias": (config.vocab_size,),
        "cls.predictions.transform.dense.weight": (config.hidden_size, config.hidden_size),
        "cls.predictions.transform.dense.bias": (config.hidden_size,),
        "cls.predictions.transform.LayerNorm.gamma": (config.hidden_size,),
        "cls.predictions.transform.LayerNorm.beta": (config.hidden_size,),
        "cls.seq_relationship.weight": (2, config.hidden_size),
        "cls.seq_relationship.bias": (2,),
    }
    for name, shape in surplus.items():
        renamed[name] = torch.randn(shape, generator=generator)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    described = json.loads(path.read_text())
    described["architectures"] = ["BertForPreTraining"]
    _write_json(path, described)


def _write_tokenizer_config(family: Family, folder: Path) -> None:
    # In the classic layout the limit stands in sentence_bert_config.json, and this one is the backbone's own.
    limit = family.max_tokens if family.layout == "current" else None
    described = {
        "cls_token": "[CLS]",
        "do_lower_case": family.lowercase,
        "mask_token": "[MASK]",
        "model_max_length": limit or family.positions,
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
        "unk_token": "[UNK]",
    }
    if family.layout == "current":
        described["backend"] = "tokenizers"
    _write_json(folder / "tokenizer_config.json", described)


def _write_modules(family: Family, folder: Path) -> None:
    """modules.json and each module's own folder, in the words of the layout's generation."""
    classic = family.layout == "classic"
    chain = ["Transformer", "Pooling"]
    chain += ["Dense"] if family.dense_out else []
    chain += ["Normalize"] if family.normalize else []
    modules = []
    for index, kind in enumerate(chain):
        path = "" if index == 0 else f"{index}_{kind}"
        kind_name = _CLASSIC + kind if classic else _CURRENT[kind]
        modules.append({"idx": index, "name": str(index), "path": path, "type": kind_name})
        if kind == "Pooling":
            _write_json(folder / path / "config.json", _pooling_config(family))
        elif kind == "Dense":
            _write_dense(family, folder / path)
        elif kind == "Normalize" and not classic:
            described = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
            _write_json(folder / path / "config.json", described)
    _write_json(folder / "modules.json", modules)
    if classic:
        described = {"max_seq_length": family.max_tokens or family.positions, "do_lower_case": False}
    else:
        text = {"method": "forward", "method_output_name": "last_hidden_state"}
        described = {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": text},
            "module_output_name": "token_embeddings",
        }
    _write_json(folder / "sentence_bert_config.json", described)


def _pooling_config(family: Family) -> dict[str, object]:
    if family.layout == "current":
        return {"embedding_dimension": family.hidden, "pooling_mode": family.pooling, "include_prompt": True}
    return {
        "word_embedding_dimension": family.hidden,
        "pooling_mode_cls_token": family.pooling == "cls",
        "pooling_mode_mean_tokens": family.pooling == "mean",
        "pooling_mode_max_tokens": family.pooling == "max",
        "pooling_mode_mean_sqrt_len_tokens": family.pooling == "mean_sqrt_len_tokens",
    }


def _write_dense(family: Family, folder: Path) -> None:
    generator = np.random.Generator(np.random.PCG64(family.seed + 5000))
    shape = (family.dense_out, family.hidden)
    weight = generator.standard_normal(shape) * 0.7 / np.sqrt(family.hidden)
    bias = 0.2 * generator.standard_normal(family.dense_out)
    folder.mkdir()
    tensors = {"linear.weight": weight, "linear.bias": bias}
    ready = {name: torch.from_numpy(values.astype(np.float32)) for name, values in tensors.items()}
    save_file(ready, folder / "model.safetensors", metadata={"format": "pt"})
    described: dict[str, object] = {
        "in_features": family.hidden,
        "out_features": family.dense_out,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    if family.layout == "current":
        described |= {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    _write_json(folder / "config.json", described)


def _write_json(path: Path, described: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(described, indent=2) + "\n")
