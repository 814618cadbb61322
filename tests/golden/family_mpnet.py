"""MPNet: RoBERTa's positions and frame, BERT's pieces, and one relative attention bias for all layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import MPNetConfig, MPNetModel

import family_bert
import mistakes
import vocabulary
from family import Family, Mistake, random_tensors
from mistakes import encoder


@dataclass(frozen=True)
class Mpnet(Family):
    def tokenizer(self) -> Tokenizer:
        return vocabulary.tokenizer(vocabulary.entries(True, vocabulary.MPNET), vocabulary.MPNET, lowercase=True)

    def tokenizer_config(self) -> dict[str, object]:
        return {
            "bos_token": "<s>",
            "cls_token": "<s>",
            "do_lower_case": True,
            "eos_token": "</s>",
            "mask_token": "<mask>",
            "model_max_length": self.tokenizer_limit(),
            "pad_token": "<pad>",
            "sep_token": "</s>",
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "tokenizer_class": "MPNetTokenizer",
            "unk_token": "[UNK]",
        }

    def model(self, vocab_size: int) -> torch.nn.Module:
        config = MPNetConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=self.positions,
            relative_attention_num_buckets=32,
            layer_norm_eps=1e-5,
        )
        return MPNetModel(config)

    def draw(self, name: str, values: np.ndarray) -> np.ndarray:
        if "relative_attention_bias" in name:
            # As large as the scores themselves.
            return 1.5 * values
        return family_bert.draw(name, values)

    def edit_config(self, described: dict[str, object]) -> None:
        described["architectures"] = ["MPNetForMaskedLM"]

    def surplus(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The position list that older libraries stored, and the head of masked-language training."""
        positions = torch.arange(self.positions).unsqueeze(0)
        surplus = {self.prefix + "embeddings.position_ids": positions}
        if self.prefix:
            surplus |= random_tensors({"lm_head.bias": (40,), "lm_head.dense.weight": (32, 32)})
        return surplus

    def expected_limit(self) -> int:
        return self.max_tokens or self.positions - 2

    def tokenizer_limit(self) -> int:
        return self.positions - 2

    def mistakes(self) -> dict[str, Mistake]:
        table = lambda model: encoder(model).embeddings.position_embeddings.weight
        bias = lambda model: encoder(model).encoder.relative_attention_bias.weight
        return family_bert.gelu_mistake("gelu") | {
            "positions off by one": lambda model: mistakes.positions_off_by_one(table(model)),
            "positions from zero": lambda model: mistakes.positions_from_zero(table(model), 2),
            "no relative bias": lambda model: mistakes.tensor(bias(model), torch.zeros_like),
            "left and right bias exchanged": lambda model: mistakes.tensor(
                bias(model), lambda rows: torch.roll(rows, 16, 0)
            ),
            "far tokens in a nearer bucket": lambda model: buckets_up_to(model, 96),
        }


@contextmanager
def buckets_up_to(model: SentenceTransformer, distance: int) -> Iterator[None]:
    """Buckets that end at another distance; texts beyond 64 tokens show it."""
    own = encoder(model).encoder
    right = own.relative_position_bucket
    with mistakes.attribute(
        [own],
        "relative_position_bucket",
        lambda positions, num_buckets=32: right(positions, num_buckets=num_buckets, max_distance=distance),
    ):
        yield


FAMILIES = [
    Mpnet("mpnet-mean-normalize", 1101, layout="classic", positions=514, max_tokens=384),
    Mpnet("mpnet-prefixed-cls", 1102, layout="classic", pooling="cls", normalize=False, positions=258, prefix="mpnet."),
    Mpnet("mpnet-long", 1103, positions=402, layers=3, heads=2),
]
