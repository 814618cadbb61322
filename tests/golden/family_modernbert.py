"""ModernBERT: rotary positions with two bases, local and global layers, gated GELU, norms before each block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import ModernBertConfig, ModernBertModel

import byte_level
import mistakes
import texts
import vocabulary
from family import Family, Mistake, random_tensors
from mistakes import encoder

_LAST = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
# Runs of spaces are entries of their own, added but not special.
_SPACES = tuple(" " * count for count in (4, 3, 2))


@dataclass(frozen=True)
class ModernBert(Family):
    window: int = 128
    # Every n-th layer sees everything; None = `layer_types` says it, as version 5 writes it.
    global_every: int | None = 3
    layer_types: tuple[str, ...] = ()
    global_base: float = 160_000.0
    local_base: float = 10_000.0

    def tokenizer(self) -> Tokenizer:
        tokens = byte_level.entries(("<|endoftext|>", "<|padding|>"), (*_SPACES, *_LAST))
        splitter = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        typed = ("<|padding|>", "<|endoftext|>", *_LAST)
        frame = vocabulary.template(tokens, "[CLS]", "[SEP]")
        described = byte_level.described(tokens, typed, (frame, splitter))
        described["normalizer"] = {"type": "NFC"}
        described["added_tokens"] += [
            vocabulary.added_token(tokens.index(spaces), spaces) | {"normalized": True, "special": False}
            for spaces in _SPACES
        ]
        described["added_tokens"].sort(key=lambda added: added["id"])
        return byte_level.build(described)

    def tokenizer_config(self) -> dict[str, object]:
        return {
            "clean_up_tokenization_spaces": True,
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": self.tokenizer_limit(),
            "pad_token": "[PAD]",
            "sep_token": "[SEP]",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "[UNK]",
        }

    def model(self, vocab_size: int) -> torch.nn.Module:
        special = {"pad_token_id": vocab_size - 2, "bos_token_id": vocab_size - 4, "eos_token_id": vocab_size - 3}
        every = self.global_every or 1
        types = ["sliding_attention" if layer % every else "full_attention" for layer in range(self.layers)]
        bases = {"full_attention": self.global_base, "sliding_attention": self.local_base}
        config = ModernBertConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.positions,
            local_attention=self.window,
            layer_types=list(self.layer_types) or types,
            rope_parameters={name: {"rope_type": "default", "rope_theta": base} for name, base in bases.items()},
            **special,
            cls_token_id=special["bos_token_id"],
            sep_token_id=special["eos_token_id"],
        )
        return ModernBertModel(config)

    def draw(self, name: str, values: np.ndarray) -> np.ndarray:
        if "norm" in name:
            return 1.0 + 0.25 * values
        if "embeddings" in name:
            return values
        spread = {"attn.Wqkv.weight": 1.5, "attn.Wo.weight": 1.2, "mlp.Wi.weight": 1.2, "mlp.Wo.weight": 2.0}
        return values * spread[".".join(name.split(".")[-3:])] / np.sqrt(values.shape[1])

    def edit_config(self, described: dict[str, object]) -> None:
        if self.prefix:
            described["architectures"] = ["ModernBertForMaskedLM"]
        if self.global_every is None:
            return
        for name in ("layer_types", "rope_parameters"):
            described.pop(name)
        described |= {
            "global_attn_every_n_layers": self.global_every,
            "global_rope_theta": self.global_base,
            "gradient_checkpointing": False,
            "layer_norm_eps": 1e-05,
            "local_rope_theta": self.local_base,
            # Files say so, and nothing of the kind is there.
            "position_embedding_type": "absolute",
            "reference_compile": False,
            "repad_logits_with_grad": False,
        }

    def surplus(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        if not self.prefix:
            return {}
        return random_tensors({"head.dense.weight": (32, 32), "head.norm.weight": (32,), "decoder.bias": (40,)})

    def items(self) -> list[texts.Item]:
        plain = texts.for_limit(self.expected_limit())
        return [*plain, *texts.with_prompts(self.prompts, plain)] if self.prompts else plain

    def mistakes(self) -> dict[str, Mistake]:
        own = lambda model: encoder(model)
        rotary = lambda model: encoder(model).rotary_emb
        blocks = lambda model: [layer.mlp for layer in encoder(model).layers]
        local, wide = "sliding_attention_inv_freq", "full_attention_inv_freq"
        half = self.intermediate
        return {
            "the other GELU": lambda model: mistakes.attribute(blocks(model), "act", mistakes.other_gelu("gelu")),
            "gate and input exchanged": lambda model: mistakes.tensor(
                blocks(model)[0].Wi.weight, lambda rows: torch.roll(rows, half, 0)
            ),
            "no window": lambda model: mistakes.attribute([own(model).config], "local_attention", 1 << 20),
            "a window one too small": lambda model: mistakes.attribute(
                [own(model).config], "local_attention", self.window - 2
            ),
            "a window to each side instead of in all": lambda model: mistakes.attribute(
                [own(model).config], "local_attention", self.window * 2
            ),
            "the global base everywhere": lambda model: mistakes.tensor(
                getattr(rotary(model), local), lambda _: getattr(rotary(model), wide)
            ),
            "the local base everywhere": lambda model: mistakes.tensor(
                getattr(rotary(model), wide), lambda _: getattr(rotary(model), local)
            ),
            "a norm in front of the first attention": lambda model: mistakes.attribute(
                [own(model).layers[0]], "attn_norm", own(model).layers[0].mlp_norm
            ),
        }


FAMILIES = [
    # As gte-modernbert-base: the first token, not normalised, f16, the default window.
    ModernBert(
        "modernbert-cls",
        1501,
        layout="classic",
        pooling="cls",
        normalize=False,
        layers=4,
        heads=2,
        intermediate=48,
        positions=512,
        max_tokens=320,
        storage=torch.float16,
    ),
    # As modernbert-embed-base: mean, normalised, prompts; stored with the prefix of a model with a head.
    ModernBert(
        "modernbert-prefixed-mean",
        1502,
        layout="classic",
        layers=3,
        intermediate=48,
        positions=128,
        window=16,
        global_every=2,
        global_base=80_000.0,
        local_base=500.0,
        prefix="model.",
        prompts={"query": "search_query: ", "document": "search_document: "},
    ),
    ModernBert(
        "modernbert-current-config",
        1503,
        layers=4,
        heads=2,
        intermediate=40,
        positions=160,
        window=20,
        global_every=None,
        layer_types=("sliding_attention", "full_attention", "sliding_attention", "full_attention"),
        global_base=40_000.0,
        local_base=1_000.0,
    ),
]
