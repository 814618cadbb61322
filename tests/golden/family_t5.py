"""The encoder of T5: RMS norms before each block, a relative bias that the first layer holds for all, no positions, no
scale of the scores. relu as the first T5 (sentence-t5, gtr, instructor), gated GELU as version 1.1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

import mistakes
import sentencepiece_unigram
import texts
from family import Family, Mistake
from mistakes import encoder
from modules import Dense

_EXTRA = [f"<extra_id_{number}>" for number in range(100)]
_FIRST = ("<pad>", "</s>", "<unk>")


@dataclass(frozen=True)
class T5(Family):
    # T5 has no table of positions; the limit is sentence-transformers' alone.
    positions: int = 512
    head_size: int = 8
    buckets: int = 32
    max_distance: int = 128
    feed_forward: str = "relu"
    # The whole checkpoint, decoder included, as most repositories of the original T5.
    decoder: bool = False

    def tokenizer(self) -> Tokenizer:
        pieces = sentencepiece_unigram.entries(_FIRST, tuple(reversed(_EXTRA)))
        return sentencepiece_unigram.tokenizer(pieces, "<unk>", (None, "</s>"), (*_FIRST, *_EXTRA))

    def tokenizer_config(self) -> dict[str, object]:
        return {
            "additional_special_tokens": _EXTRA,
            "eos_token": "</s>",
            "extra_ids": 100,
            "model_max_length": self.tokenizer_limit(),
            "pad_token": "<pad>",
            "tokenizer_class": "T5Tokenizer",
            "unk_token": "<unk>",
        }

    def model(self, vocab_size: int) -> torch.nn.Module:
        config = T5Config(
            vocab_size=vocab_size,
            d_model=self.hidden,
            d_kv=self.head_size,
            d_ff=self.intermediate,
            num_layers=self.layers,
            num_decoder_layers=1 if self.decoder else None,
            num_heads=self.heads,
            relative_attention_num_buckets=self.buckets,
            relative_attention_max_distance=self.max_distance,
            feed_forward_proj=self.feed_forward,
        )
        return T5EncoderModel(config)

    def draw(self, name: str, values: np.ndarray) -> np.ndarray:
        kind = name.split(".")[-2]
        if "norm" in kind:
            return 1.0 + 0.25 * values
        if kind == "relative_attention_bias":
            return 1.2 * values
        if kind in ("shared", "embed_tokens"):
            return values
        # Nothing divides the scores, so queries and keys are small by themselves.
        spread = {"q": 1.2 * self.head_size**-0.25, "k": 1.2 * self.head_size**-0.25, "wi_0": 1.0, "wo": 2.0}
        return values * spread.get(kind, 1.5) / np.sqrt(values.shape[1])

    def stored(self, model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
        if not self.decoder:
            return None
        whole = T5ForConditionalGeneration(T5Config(**model.config.to_dict() | {"is_encoder_decoder": True}))
        generator = torch.Generator().manual_seed(7)
        drawn = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in whole.state_dict().items()}
        return drawn | {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}

    def edit_config(self, described: dict[str, object]) -> None:
        # The file describes the model that the encoder was taken from.
        described["is_encoder_decoder"] = True
        described["architectures"] = ["T5ForConditionalGeneration" if self.decoder else "T5EncoderModel"]
        if self.layout == "classic":
            described["n_positions"] = 512
            # Files of the day did not say these two.
            for name in ("is_gated_act", "dense_act_fn"):
                described.pop(name)

    def items(self) -> list[texts.Item]:
        plain = texts.for_limit(self.expected_limit(), frame=1)
        return [*plain, *texts.with_prompts(self.prompts, plain)] if self.prompts else plain

    def mistakes(self) -> dict[str, Mistake]:
        first = lambda model: encoder(model).encoder.block[0].layer[0].SelfAttention
        bias = lambda model: first(model).relative_attention_bias.weight
        norms = lambda model: [m for m in encoder(model).modules() if type(m).__name__ == "T5LayerNorm"]
        listed: dict[str, Mistake] = {
            "no relative bias": lambda model: mistakes.tensor(bias(model), torch.zeros_like),
            "left and right bias exchanged": lambda model: mistakes.tensor(
                bias(model), lambda rows: torch.roll(rows, self.buckets // 2, 0)
            ),
            "far tokens in a nearer bucket": lambda model: mistakes.attribute(
                [first(model)], "relative_attention_max_distance", self.max_distance * 3 // 4
            ),
            "scores scaled": lambda model: mistakes.tensor(
                first(model).q.weight, lambda weight: weight * self.head_size**-0.5
            ),
            "norms that subtract the mean": lambda model: mistakes.attribute(
                norms(model), "forward", lambda states: torch.nn.functional.layer_norm(states, states.shape[-1:])
            ),
        }
        if self.feed_forward == "gated-gelu":
            feed_forward = lambda model: [block.layer[1].DenseReluDense for block in encoder(model).encoder.block]
            listed["the other GELU"] = lambda model: mistakes.attribute(
                feed_forward(model), "act", mistakes.other_gelu("gelu_new")
            )
        if not self.include_prompt:
            listed["the prompt pooled"] = lambda model: mistakes.attribute([model[1]], "include_prompt", True)
        return listed


_INSTRUCTIONS = {
    "query": "Represent the question for retrieving documents: ",
    "passage": "Represent the document for retrieval: ",
    # Ends inside a word of the texts: the prompt is as long as its own tokens, whatever becomes of them.
    "cut": "the quick que",
}

FAMILIES = [
    T5("t5-relu-dense", 1401, layout="classic", dense=(Dense(24, "Identity", bias=False),), max_tokens=256),
    T5(
        "t5-instructor",
        1402,
        layout="classic",
        include_prompt=False,
        dense=(Dense(32, "Identity", bias=False),),
        prompts=_INSTRUCTIONS,
        max_tokens=160,
    ),
    T5(
        "t5-gated-gelu",
        1403,
        normalize=False,
        heads=3,
        head_size=16,
        buckets=24,
        max_distance=64,
        feed_forward="gated-gelu",
        max_tokens=128,
    ),
    T5("t5-whole-checkpoint", 1404, layout="classic", decoder=True, hidden=16, heads=2, layers=3, max_tokens=192),
]
