"""BERT: the plain architecture, in every storage type, pooling and layout."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    ElectraConfig,
    ElectraModel,
    ErnieConfig,
    ErnieModel,
)

import mistakes
import sentencepiece_unigram
import texts
import vocabulary
from family import Family, Mistake, drawn, random_tensors
from modules import Dense


_ALBERT_FIRST = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Bert(Family):
    activation: str = "gelu"
    lowercase: bool = True
    extra_scripts: bool = True
    pretraining_names: bool = False
    pooler: bool = True

    def tokenizer(self) -> Tokenizer:
        return vocabulary.tokenizer(vocabulary.entries(self.extra_scripts), vocabulary.BERT, lowercase=self.lowercase)

    def tokenizer_config(self) -> dict[str, object]:
        described = vocabulary.bert_tokenizer_config("BertTokenizer", self.tokenizer_limit(), self.lowercase)
        return described | ({"backend": "tokenizers"} if self.layout == "current" else {})

    def model(self, vocab_size: int) -> torch.nn.Module:
        return BertModel(BertConfig(**self.sizes(vocab_size)), add_pooling_layer=self.pooler)

    def sizes(self, vocab_size: int) -> dict[str, object]:
        """What the configurations of BERT and its kin have in common."""
        return {
            "vocab_size": vocab_size,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "hidden_act": self.activation,
            "max_position_embeddings": self.positions,
        }

    def draw(self, name: str, values: np.ndarray) -> np.ndarray:
        return draw(name, values)

    def stored(self, model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
        """With pretraining names: `bert.` in front, gamma and beta, positions, training heads, as the oldest files."""
        if not self.pretraining_names:
            return None
        renamed = {}
        for name, tensor in model.state_dict().items():
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            renamed["bert." + old] = tensor.contiguous()
        config = model.config
        renamed["bert.embeddings.position_ids"] = torch.arange(config.max_position_embeddings).unsqueeze(0)
        return renamed | random_tensors(
            {
                "cls.predictions.bias": (config.vocab_size,),
                "cls.predictions.transform.dense.weight": (config.hidden_size, config.hidden_size),
                "cls.predictions.transform.dense.bias": (config.hidden_size,),
                "cls.predictions.transform.LayerNorm.gamma": (config.hidden_size,),
                "cls.predictions.transform.LayerNorm.beta": (config.hidden_size,),
                "cls.seq_relationship.weight": (2, config.hidden_size),
                "cls.seq_relationship.bias": (2,),
            }
        )

    def edit_config(self, described: dict[str, object]) -> None:
        if self.pretraining_names:
            described["architectures"] = ["BertForPreTraining"]

    def items(self) -> list[texts.Item]:
        return [texts.Item(text) for text in texts.all_texts()]

    def mistakes(self) -> dict[str, Mistake]:
        return gelu_mistake(self.activation)


@dataclass(frozen=True)
class Electra(Bert):
    """The discriminator, as it is stored with its head. Small ones have narrower embeddings."""

    embedding: int = 32

    def model(self, vocab_size: int) -> torch.nn.Module:
        return ElectraModel(ElectraConfig(embedding_size=self.embedding, **self.sizes(vocab_size)))

    def stored(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        own = {"electra." + name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        head = {"discriminator_predictions.dense.weight": (self.hidden, self.hidden)}
        return own | random_tensors(head)


@dataclass(frozen=True)
class Ernie(Bert):
    """With a table of tasks."""

    def model(self, vocab_size: int) -> torch.nn.Module:
        return ErnieModel(ErnieConfig(type_vocab_size=4, use_task_id=True, **self.sizes(vocab_size)))

    def stored(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {"ernie." + name: tensor.contiguous() for name, tensor in model.state_dict().items()}


@dataclass(frozen=True)
class Albert(Bert):
    """Narrow embeddings, and groups of layers that share their weights."""

    groups: int = 1

    def tokenizer(self) -> Tokenizer:
        """SentencePiece behind a normaliser of its own."""
        pieces = sentencepiece_unigram.entries(_ALBERT_FIRST, ())
        plain = sentencepiece_unigram.tokenizer(pieces, "<unk>", ("[CLS]", "[SEP]"), _ALBERT_FIRST)
        described = json.loads(plain.to_str())
        described["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
                {"type": "Replace", "pattern": {"String": "''"}, "content": '"'},
                {"type": "NFKD"},
                {"type": "StripAccents"},
                *([{"type": "Lowercase"}] if self.lowercase else []),
                described["normalizer"],
            ],
        }
        return Tokenizer.from_str(json.dumps(described))

    def tokenizer_config(self) -> dict[str, object]:
        return {
            "bos_token": "[CLS]",
            "cls_token": "[CLS]",
            "do_lower_case": self.lowercase,
            "eos_token": "[SEP]",
            "keep_accents": False,
            "mask_token": "[MASK]",
            "model_max_length": self.tokenizer_limit(),
            "pad_token": "<pad>",
            "sep_token": "[SEP]",
            "tokenizer_class": "AlbertTokenizer",
            "unk_token": "<unk>",
        }

    def model(self, vocab_size: int) -> torch.nn.Module:
        sharing = {"embedding_size": 24, "num_hidden_groups": self.groups}
        return AlbertModel(AlbertConfig(**sharing, **self.sizes(vocab_size)))

    def draw(self, name: str, values: np.ndarray) -> np.ndarray:
        if name.endswith("ffn.bias"):
            return -1.6 + 0.3 * values
        if name.endswith("ffn.weight"):
            return drawn(values, name, 1.0)
        return drawn(values, name, 3.0 if name.endswith("ffn_output.weight") else 1.7)

    def stored(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """With the training head, as most files have it."""
        own = {"albert." + name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        return own | random_tensors({"predictions.dense.weight": (24, self.hidden), "predictions.bias": (24,)})

    def mistakes(self) -> dict[str, Mistake]:
        groups = lambda model: mistakes.encoder(model).encoder.albert_layer_groups  # noqa: E731
        other = mistakes.other_gelu(self.activation)
        return {
            "the other GELU": lambda model: mistakes.attribute(
                [layer for group in groups(model) for layer in group.albert_layers], "activation", other
            )
        }


def draw(name: str, values: np.ndarray) -> np.ndarray:
    """For every encoder with BERT's names."""
    if name.endswith("intermediate.dense.bias"):
        # Most inputs of a trained activation are negative; there the two GELUs differ most against their size.
        return -1.6 + 0.3 * values
    if name.endswith("intermediate.dense.weight"):
        return drawn(values, name, 1.0)
    # Behind the activation larger, so that it outweighs the residual.
    behind = name.endswith("output.dense.weight") and "attention" not in name
    return drawn(values, name, 3.0 if behind else 1.7)


def gelu_mistake(activation: str) -> dict[str, Mistake]:
    """The other GELU, for encoders with BERT's names."""
    if activation not in ("gelu", "gelu_new"):
        return {}
    name = "intermediate_act_fn"
    other = mistakes.other_gelu(activation)
    return {
        "the other GELU": lambda model: mistakes.attribute(
            [layer.intermediate for layer in mistakes.encoder(model).encoder.layer], name, other
        )
    }


FAMILIES = [
    Bert("bert-mean-normalize", 1001),
    Bert("bert-cls-normalize", 1002, layout="classic", pooling="cls", lowercase=False),
    Bert("bert-mean-raw", 1003, normalize=False, layers=3),
    Bert("bert-prefixed", 1004, layout="classic", pretraining_names=True),
    Bert("bert-gelu-new", 1005, activation="gelu_new"),
    Bert("bert-relu", 1006, activation="relu", pooling="cls"),
    Bert("bert-f16", 1007, storage=torch.float16),
    Bert("bert-bf16", 1008, layout="classic", storage=torch.bfloat16),
    Bert("bert-max-pooling", 1009, layout="classic", pooling="max", normalize=False),
    Bert("bert-mean-sqrt-len", 1010, pooling="mean_sqrt_len_tokens", normalize=False),
    Bert("bert-max-seq-smaller", 1011, layout="classic", max_tokens=16),
    Bert("bert-model-max-length", 1012, max_tokens=16),
    # Stored as f16, with few vocabulary entries, because its matrices are larger than all the others' together.
    Bert(
        "bert-wide",
        1013,
        hidden=96,
        heads=3,
        intermediate=200,
        storage=torch.float16,
        extra_scripts=False,
        pooler=False,
    ),
    Bert("bert-dense", 1014, dense=(Dense(24),)),
    Electra("electra-mean", 1016),
    Electra("electra-small", 1018, embedding=16),
    Albert("albert-mean", 1019, activation="gelu_new", layers=4),
    Albert("albert-groups", 1020, layout="classic", layers=4, groups=2, normalize=False, lowercase=False),
    Ernie("ernie-mean", 1017, layout="classic"),
    Bert("bert-dense-classic", 1015, layout="classic", pooling="cls", dense=(Dense(40),), positions=128),
]
