"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT's encoder with positions that begin behind the padding id and skip pads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import CamembertConfig, CamembertModel, RobertaConfig, RobertaModel, XLMRobertaConfig, XLMRobertaModel

import byte_level
import family_bert
import mistakes
import sentencepiece_unigram
import texts
from family import Family, Mistake, random_tensors
from mistakes import encoder

_FIRST = ("<s>", "<pad>", "</s>", "<unk>")


@dataclass(frozen=True)
class Roberta(Family):
    """Byte-level BPE, as all-distilroberta-v1."""

    def tokenizer(self) -> Tokenizer:
        tokens = byte_level.entries(_FIRST, ("<mask>",))
        frame = {
            "type": "RobertaProcessing",
            "sep": ["</s>", tokens.index("</s>")],
            "cls": ["<s>", tokens.index("<s>")],
            "trim_offsets": True,
            "add_prefix_space": False,
        }
        splitter = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return byte_level.tokenizer(tokens, (*_FIRST, "<mask>"), (frame, splitter))

    def tokenizer_config(self) -> dict[str, object]:
        return self._common_tokenizer_config() | {
            "add_prefix_space": False,
            "errors": "replace",
            "tokenizer_class": "RobertaTokenizer",
            "trim_offsets": True,
        }

    def _common_tokenizer_config(self) -> dict[str, object]:
        return {
            "bos_token": "<s>",
            "cls_token": "<s>",
            "eos_token": "</s>",
            "mask_token": "<mask>",
            "model_max_length": self.tokenizer_limit(),
            "pad_token": "<pad>",
            "sep_token": "</s>",
            "unk_token": "<unk>",
        }

    def model(self, vocab_size: int) -> torch.nn.Module:
        return RobertaModel(RobertaConfig(**self._shape(vocab_size)))

    def _shape(self, vocab_size: int) -> dict[str, object]:
        return {
            "vocab_size": vocab_size,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.positions,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        }

    def draw(self, name: str, values: np.ndarray) -> np.ndarray:
        return family_bert.draw(name, values)

    def surplus(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        if not self.prefix:
            return {}
        positions = torch.arange(self.positions).unsqueeze(0)
        heads = {"lm_head.bias": (40,), "lm_head.dense.weight": (32, 32), "lm_head.layer_norm.weight": (32,)}
        return {self.prefix + "embeddings.position_ids": positions} | random_tensors(heads)

    def edit_config(self, described: dict[str, object]) -> None:
        if self.prefix:
            described["architectures"] = [described["architectures"][0].removesuffix("Model") + "ForMaskedLM"]

    def expected_limit(self) -> int:
        return self.max_tokens or self.positions - 2

    def tokenizer_limit(self) -> int:
        limit = self.max_tokens if self.layout == "current" else None
        return limit or self.positions - 2

    def mistakes(self) -> dict[str, Mistake]:
        table = lambda model: encoder(model).embeddings.position_embeddings.weight
        return family_bert.gelu_mistake("gelu") | {
            "positions off by one": lambda model: mistakes.positions_off_by_one(table(model)),
            "positions from zero": lambda model: mistakes.positions_from_zero(table(model), 2),
            "typed padding counted as a position": lambda model: mistakes.attribute(
                [encoder(model).embeddings], "create_position_ids_from_input_ids", consecutive_positions
            ),
        }


def consecutive_positions(input_ids: torch.Tensor, padding: int, _past: int = 0) -> torch.Tensor:
    """As if no token could be padding."""
    return (torch.arange(input_ids.shape[1]) + padding + 1).unsqueeze(0)


@dataclass(frozen=True)
class XlmRoberta(Roberta):
    """SentencePiece, as bge-m3 and the paraphrase-multilingual models."""

    def tokenizer(self) -> Tokenizer:
        pieces = sentencepiece_unigram.entries(_FIRST, ("<mask>",))
        return sentencepiece_unigram.tokenizer(pieces, "<unk>", ("<s>", "</s>"), (*_FIRST, "<mask>"))

    def tokenizer_config(self) -> dict[str, object]:
        return self._common_tokenizer_config() | {"tokenizer_class": "XLMRobertaTokenizer"}

    def model(self, vocab_size: int) -> torch.nn.Module:
        return XLMRobertaModel(XLMRobertaConfig(**self._shape(vocab_size)))


@dataclass(frozen=True)
class LongXlmRoberta(XlmRoberta):
    """8,192 tokens: a few texts only, among them one of exactly that length and a longer one."""

    def items(self) -> list[texts.Item]:
        # Ten tokens, as the words that no entry covers whole stay rare.
        phrase = " the river by the mountain was green and the stone"
        exact = texts.Item(phrase, 819)
        return [*map(texts.Item, [*texts.SHORT[:14], *texts.TYPED]), exact, texts.Item(phrase, 1000)]


@dataclass(frozen=True)
class Camembert(Roberta):
    """SentencePiece with the frame's ids after four entries that fairseq left unused."""

    def tokenizer(self) -> Tokenizer:
        first = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>")
        pieces = sentencepiece_unigram.entries(first, ("<mask>",))
        return sentencepiece_unigram.tokenizer(pieces, "<unk>", ("<s>", "</s>"), (*first, "<mask>"))

    def tokenizer_config(self) -> dict[str, object]:
        return self._common_tokenizer_config() | {
            "additional_special_tokens": ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"],
            "tokenizer_class": "CamembertTokenizer",
        }

    def model(self, vocab_size: int) -> torch.nn.Module:
        return CamembertModel(CamembertConfig(**self._shape(vocab_size), bos_token_id=5, eos_token_id=6))


FAMILIES: list[Family] = [
    # As bge-m3: the first token, normalised; 8,194 rows of positions, 16 values wide so that the file stays small.
    LongXlmRoberta(
        "xlm-roberta-long-cls",
        1201,
        layout="classic",
        pooling="cls",
        hidden=16,
        heads=2,
        intermediate=32,
        positions=8194,
        max_tokens=8192,
        storage=torch.float16,
    ),
    # As paraphrase-multilingual-mpnet-base-v2: 128 of 512 tokens, mean, not normalised.
    XlmRoberta("xlm-roberta-mean-128", 1202, layout="classic", normalize=False, positions=514, max_tokens=128),
    XlmRoberta("xlm-roberta-prefixed", 1203, positions=66, prefix="roberta.", layers=3),
    Roberta("roberta-mean-normalize", 1204, layout="classic", positions=130, max_tokens=128),
    Roberta("roberta-prefixed-cls", 1205, pooling="cls", normalize=False, positions=66, prefix="roberta."),
    Camembert("camembert-mean", 1206, layout="classic", normalize=False, positions=130, max_tokens=128),
]
