"""Jina's second generation: BERT with ALiBi in place of the position table and a gated feed-forward.

transformers has no such architecture (the repositories name remote code, which nothing here runs), so the oracle is the
reference below, written from the published description: plain torch, one head at a time, one text at a time. The
tokenizer, the modules around it and the comparison with float64 are the same as for every other family.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from torch import nn
from transformers import BertConfig, BertModel
from transformers.modeling_outputs import BaseModelOutput

import mistakes
import vocabulary
from family import Family, Mistake, drawn, random_tensors
from mistakes import encoder
from modules import write_json

_CODE = "jinaai/jina-bert-implementation--"


class Reference(nn.Module):
    """The whole encoder for one text. Modules carry the names that the tensors have in the files."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.activation = nn.GELU() if config.feed_forward_type == "geglu" else nn.ReLU()
        self.slopes = slopes(config.num_attention_heads)
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, width),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, width),
                "LayerNorm": nn.LayerNorm(width, eps=config.layer_norm_eps),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_layer(config) for _ in range(config.num_hidden_layers))})

    def save_pretrained(self, folder: Path) -> None:
        save_file(self.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        self.config.save_pretrained(folder)

    def forward(self, input_ids: torch.Tensor, **_unused: object) -> BaseModelOutput:
        if input_ids.shape[0] != 1:
            raise AssertionError("the reference reads one text at a time")
        types = torch.zeros_like(input_ids[0])
        states = self.embeddings["word_embeddings"](input_ids[0]) + self.embeddings["token_type_embeddings"](types)
        states = self.embeddings["LayerNorm"](states)
        for layer in self.encoder["layer"]:
            attention = layer["attention"]
            mixed = attention["output"]["dense"](self.attend(attention["self"], states))
            states = attention["output"]["LayerNorm"](mixed + states)
            states = self.feed_forward(layer["mlp"], states)
        return BaseModelOutput(last_hidden_state=states.unsqueeze(0))

    def attend(self, weights: nn.ModuleDict, states: torch.Tensor) -> torch.Tensor:
        """softmax(q k / sqrt(d) - slope |i - j|) v for each head."""
        size = states.shape[1] // self.config.num_attention_heads
        places = torch.arange(states.shape[0], dtype=states.dtype)
        distance = (places[:, None] - places[None, :]).abs()
        query, key, value = (weights[name](states) for name in ("query", "key", "value"))
        heads = []
        for head, slope in enumerate(self.slopes):
            part = slice(head * size, (head + 1) * size)
            scores = query[:, part] @ key[:, part].T / math.sqrt(size) - slope * distance
            heads.append(torch.softmax(scores, dim=1) @ value[:, part])
        return torch.cat(heads, dim=1)

    def feed_forward(self, weights: nn.ModuleDict, states: torch.Tensor) -> torch.Tensor:
        """The first half of the rows passes the activation, the second is the other factor."""
        gate, other = weights["gated_layers"](states).chunk(2, dim=1)
        return weights["layernorm"](weights["wo"](self.activation(gate) * other) + states)


def _layer(config: BertConfig) -> nn.ModuleDict:
    width, inner = config.hidden_size, config.intermediate_size
    norm = lambda: nn.LayerNorm(width, eps=config.layer_norm_eps)
    linear = lambda: nn.Linear(width, width)
    attention = {
        "self": nn.ModuleDict({"query": linear(), "key": linear(), "value": linear()}),
        "output": nn.ModuleDict({"dense": linear(), "LayerNorm": norm()}),
    }
    feed_forward = {
        "gated_layers": nn.Linear(width, 2 * inner, bias=False),
        "wo": nn.Linear(inner, width),
        "layernorm": norm(),
    }
    return nn.ModuleDict({"attention": nn.ModuleDict(attention), "mlp": nn.ModuleDict(feed_forward)})


def slopes(heads: int) -> list[float]:
    """ALiBi's: 2^(-8/n), its square and so on; between powers of two, every second one of the next power is added."""
    power = 1 << (heads.bit_length() - 1)
    own = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    between = [2.0 ** (-8.0 * (head + 1) / (2 * power)) for head in range(0, 2 * power, 2)]
    return [*own, *between[: heads - power]]


@dataclass(frozen=True)
class Jina(Family):
    oracle = "the reference in family_jina.py, since transformers has no such architecture"
    feed_forward: str = "geglu"

    def tokenizer(self) -> Tokenizer:
        return vocabulary.tokenizer(vocabulary.entries(True), vocabulary.BERT, lowercase=True)

    def tokenizer_config(self) -> dict[str, object]:
        return vocabulary.bert_tokenizer_config("BertTokenizer", self.tokenizer_limit())

    def model(self, vocab_size: int) -> nn.Module:
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=self.positions,
            feed_forward_type=self.feed_forward,
            dtype=str(self.storage).removeprefix("torch."),
        )
        return Reference(config)

    def draw(self, name: str, values: np.ndarray) -> np.ndarray:
        spread = {"gated_layers": 1.2, "wo": 2.0}.get(name.split(".")[-2], 1.6)
        return drawn(values, name, spread)

    def surplus(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return random_tensors({"pooler.dense.weight": (self.hidden, self.hidden), "pooler.dense.bias": (self.hidden,)})

    def edit_config(self, described: dict[str, object]) -> None:
        described |= {
            "architectures": ["JinaBertForMaskedLM"],
            "auto_map": {
                "AutoConfig": _CODE + "configuration_bert.JinaBertConfig",
                "AutoModel": _CODE + "modeling_bert.JinaBertModel",
                "AutoModelForMaskedLM": _CODE + "modeling_bert.JinaBertForMaskedLM",
            },
            "emb_pooler": "mean",
            "model_max_length": self.positions,
            "position_embedding_type": "alibi",
        }

    def load(self, folder: Path) -> SentenceTransformer:
        """sentence-transformers with a BERT of the same shape, which then makes room for the reference."""
        config = BertConfig.from_pretrained(folder)
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / folder.name
            shutil.copytree(folder, copy)
            plain = BertConfig(vocab_size=config.vocab_size, hidden_size=self.hidden, num_attention_heads=self.heads)
            plain.update({"num_hidden_layers": 1, "intermediate_size": 8, "max_position_embeddings": self.positions})
            BertModel(plain).save_pretrained(copy)
            write_json(copy / "config.json", json.loads(plain.to_json_string()) | {"architectures": ["BertModel"]})
            model = super().load(copy)
        reference = Reference(config)
        stored = load_file(folder / "model.safetensors")
        reference.load_state_dict({name: stored[name].float() for name in reference.state_dict()})
        model[0].model = reference.eval()
        return model

    def mistakes(self) -> dict[str, Mistake]:
        reference = lambda model: [encoder(model)]
        right = slopes(self.heads)
        return {
            "the other activation": lambda model: mistakes.attribute(
                reference(model),
                "activation",
                nn.GELU(approximate="tanh") if self.feed_forward == "geglu" else nn.GELU(),
            ),
            "no distances": lambda model: mistakes.attribute(reference(model), "slopes", [0.0] * self.heads),
            "slopes in another order": lambda model: mistakes.attribute(
                reference(model), "slopes", sorted(right) if sorted(right) != right else right[::-1]
            ),
            "gate and input exchanged": lambda model: mistakes.tensor(
                encoder(model).encoder["layer"][0]["mlp"]["gated_layers"].weight,
                lambda rows: torch.roll(rows, self.intermediate, 0),
            ),
        }


FAMILIES = [
    Jina("jina-geglu", 1801, layout="classic", positions=8192, max_tokens=300, normalize=False),
    # Six heads: slopes between the powers of two.
    Jina("jina-six-heads", 1802, layout="classic", hidden=48, heads=6, positions=128),
    Jina("jina-reglu", 1803, layout="classic", feed_forward="reglu", positions=128, storage=torch.float16),
]
