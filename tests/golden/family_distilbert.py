"""DistilBERT: BERT without token types, under other names, in configuration and weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import DistilBertConfig, DistilBertModel

import mistakes
import vocabulary
from family import Family, Mistake, drawn, random_tensors
from mistakes import encoder


@dataclass(frozen=True)
class DistilBert(Family):
    activation: str = "gelu"

    def tokenizer(self) -> Tokenizer:
        return vocabulary.tokenizer(vocabulary.entries(True), vocabulary.BERT, lowercase=True)

    def tokenizer_config(self) -> dict[str, object]:
        return vocabulary.bert_tokenizer_config("DistilBertTokenizer", self.tokenizer_limit())

    def model(self, vocab_size: int) -> torch.nn.Module:
        config = DistilBertConfig(
            vocab_size=vocab_size,
            dim=self.hidden,
            n_layers=self.layers,
            n_heads=self.heads,
            hidden_dim=self.intermediate,
            activation=self.activation,
            max_position_embeddings=self.positions,
        )
        return DistilBertModel(config)

    def draw(self, name: str, values: np.ndarray) -> np.ndarray:
        """The same proportions as for BERT, under other names."""
        if name.endswith("lin1.bias"):
            return -1.6 + 0.3 * values
        spread = {"lin1.weight": 1.0, "lin2.weight": 3.0}.get(".".join(name.split(".")[-2:]), 1.7)
        return drawn(values, name, spread)

    def surplus(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        if not self.prefix:
            return {}
        return random_tensors({"vocab_transform.weight": (32, 32), "vocab_projector.bias": (40,)})

    def edit_config(self, described: dict[str, object]) -> None:
        if self.prefix:
            described["architectures"] = ["DistilBertForMaskedLM"]

    def mistakes(self) -> dict[str, Mistake]:
        table = lambda model: encoder(model).embeddings.position_embeddings.weight
        return {
            "the other GELU": lambda model: mistakes.attribute(
                [layer.ffn for layer in encoder(model).transformer.layer],
                "activation",
                mistakes.other_gelu(self.activation),
            ),
            "positions off by one": lambda model: mistakes.positions_off_by_one(table(model)),
        }


FAMILIES = [
    DistilBert("distilbert-mean-normalize", 1301, layout="classic", positions=128),
    DistilBert("distilbert-prefixed-cls", 1302, pooling="cls", normalize=False, prefix="distilbert.", layers=3),
]
