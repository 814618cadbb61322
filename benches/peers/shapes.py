"""Models of known shapes with seeded random weights, as folders in sentence-transformers' layout: speed needs no
trained weights, and few trained ones can be had everywhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

SPECIAL = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
# Words of the made tokenizer.
WORDS = 20_000
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SMALL = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
ROBERTA = {"pad_token_id": 1, "type_vocab_size": 1}


@dataclass(frozen=True)
class Shape:
    """One random model: transformers' classes and the fields of its configuration."""

    name: str
    kind: str
    fields: dict[str, object]
    pooling: str = "mean"
    max_tokens: int = 512


SHAPES = [
    Shape("minilm-l6", "Bert", {**SMALL, "vocab_size": 30522}),
    Shape("bert-base", "Bert", {**BASE, "vocab_size": 30522}),
    Shape("roberta-base", "Roberta", {**BASE, **ROBERTA, "vocab_size": 50265, "max_position_embeddings": 514}),
    Shape("xlm-roberta-base", "XLMRoberta", {**BASE, **ROBERTA, "vocab_size": 250002, "max_position_embeddings": 514}),
    Shape("mpnet-base", "MPNet", {**BASE, "vocab_size": 30527, "max_position_embeddings": 514}),
    Shape(
        "distilbert-base",
        "DistilBert",
        {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072, "vocab_size": 30522},
    ),
    Shape(
        "t5-base",
        "T5",
        {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128},
    ),
    Shape("modernbert-base", "ModernBert", {"vocab_size": 50368, "pad_token_id": 1}, pooling="cls", max_tokens=8192),
    Shape("nomic-base", "NomicBert", {**BASE, "vocab_size": 30528}, max_tokens=2048),
    Shape("gte-base", "Gte", {**BASE, "vocab_size": 30528, "type_vocab_size": 0}, pooling="cls", max_tokens=8192),
    Shape(
        "albert-small",
        "Albert",
        {**BASE, "num_hidden_layers": 6, "embedding_size": 128, "hidden_act": "gelu", "vocab_size": 30000},
    ),
    Shape(
        "electra-small",
        "Electra",
        {**BASE, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "vocab_size": 30522},
    ),
    Shape("bert-large", "Bert", {**LARGE, "vocab_size": 30522}, pooling="cls"),
    Shape(
        "bge-m3",
        "XLMRoberta",
        {**LARGE, **ROBERTA, "vocab_size": 250002, "max_position_embeddings": 8194},
        pooling="cls",
        max_tokens=8192,
    ),
]
# bge-base-en is BERT's base shape and vocabulary with the first token's state as the vector.
BGE_BASE = Shape("bge-base", "Bert", {**BASE, "vocab_size": 30522}, pooling="cls")
BGE_M3 = SHAPES[-1]


def write(shape: Shape, folder: Path, tokenizer_of: Path | None = None) -> None:
    """Weights as the library initialises them, and the tokenizer of another folder or one whose tokens are words."""
    torch.manual_seed(7)
    config = getattr(transformers, shape.kind + "Config")(**shape.fields)
    model = getattr(transformers, shape.kind + ("EncoderModel" if shape.kind == "T5" else "Model"))(config)
    model.save_pretrained(folder)
    del model
    if tokenizer_of is None:
        _write_word_tokenizer(folder, shape.max_tokens)
    else:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            if (tokenizer_of / name).exists():
                shutil.copy(tokenizer_of / name, folder / name)
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    width = shape.fields.get("d_model") or shape.fields.get("dim") or config.hidden_size
    cls = shape.pooling == "cls"
    pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": not cls}
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling/config.json", pooling)
    (folder / "2_Normalize").mkdir()
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": shape.max_tokens, "do_lower_case": False})


def with_all_positions(original: Path, folder: Path) -> None:
    """The same model, its limit raised to what its position table allows: some are published with less."""
    # A copy, because a link that leaves the model's folder is rightly refused.
    shutil.copytree(original, folder)
    positions = json.loads((original / "config.json").read_text())["max_position_embeddings"]
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": positions, "do_lower_case": False})


def word_ids(generator: np.random.Generator, length: int) -> list[int]:
    """Random words between the specials of the made tokenizer."""
    return [0, *generator.integers(len(SPECIAL), WORDS, length - 2).tolist(), 2]


def word_text(ids: list[int]) -> str:
    return " ".join(f"w{token}" for token in ids[1:-1])


def write_json(path: Path, described: object) -> None:
    path.write_text(json.dumps(described, indent=1) + "\n")


def _write_word_tokenizer(folder: Path, max_tokens: int) -> None:
    vocabulary = {token: index for index, token in enumerate(SPECIAL)}
    vocabulary |= {f"w{index}": index for index in range(len(SPECIAL), WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens}
    described |= {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    write_json(folder / "tokenizer_config.json", described)
