"""NomicBERT: BERT with rotary positions, gated SiLU and no biases.

The repositories of nomic-ai say their shape in GPT-2's words and name remote code; transformers has the architecture
natively since version 5 and reads those tensors by a table of its own (fc11 is the product's other factor, fc12 the one
that passes the activation; Wqkv holds queries, keys, values in this order). It ignores GPT-2's words, so for such a
folder the oracle reads the same weights beside a configuration in its own words.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import NomicBertConfig, NomicBertModel

import mistakes
import texts
import vocabulary
from family import Family, Mistake, drawn
from mistakes import encoder
from modules import write_json

_CODE = "nomic-ai/nomic-bert-2048--"


@dataclass(frozen=True)
class Nomic(Family):
    base: float = 1000.0
    hub_config: bool = True

    def tokenizer(self) -> Tokenizer:
        return vocabulary.tokenizer(vocabulary.entries(True), vocabulary.BERT, lowercase=True)

    def tokenizer_config(self) -> dict[str, object]:
        described = vocabulary.bert_tokenizer_config("BertTokenizer", self.tokenizer_limit())
        return {"clean_up_tokenization_spaces": True} | described

    def model(self, vocab_size: int) -> torch.nn.Module:
        return NomicBertModel(NomicBertConfig(**self._shape(vocab_size)))

    def _shape(self, vocab_size: int) -> dict[str, object]:
        return {
            # The table is padded to a multiple of 64 rows, which the tokenizer does not use up.
            "vocab_size": -(-vocab_size // 64) * 64,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.base},
        }

    def draw(self, name: str, values: np.ndarray) -> np.ndarray:
        spread = {"gate_proj": 1.2, "up_proj": 1.2, "down_proj": 2.0}.get(name.split(".")[-2], 1.5)
        return drawn(values, name, spread)

    def edit_config(self, described: dict[str, object]) -> None:
        if not self.hub_config:
            return
        kept = {name: described[name] for name in ("model_type", "torch_dtype", "type_vocab_size", "vocab_size")}
        described.clear()
        described |= kept | {
            "activation_function": "swiglu",
            "architectures": ["NomicBertModel"],
            "attn_pdrop": 0.0,
            "auto_map": {
                "AutoConfig": _CODE + "configuration_hf_nomic_bert.NomicBertConfig",
                "AutoModel": _CODE + "modeling_hf_nomic_bert.NomicBertModel",
                "AutoModelForMaskedLM": _CODE + "modeling_hf_nomic_bert.NomicBertForPreTraining",
            },
            "bos_token_id": None,
            "causal": False,
            "dense_seq_output": True,
            "embd_pdrop": 0.0,
            "eos_token_id": None,
            "fused_bias_fc": True,
            "fused_dropout_add_ln": True,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-12,
            "max_trained_positions": 2048,
            "mlp_fc1_bias": False,
            "mlp_fc2_bias": False,
            "n_embd": self.hidden,
            "n_head": self.heads,
            "n_inner": self.intermediate,
            "n_layer": self.layers,
            "n_positions": self.positions,
            "pad_vocab_size_multiple": 64,
            "parallel_block": False,
            "parallel_block_tied_norm": False,
            "prenorm": False,
            "qkv_proj_bias": False,
            "reorder_and_upcast_attn": False,
            "resid_pdrop": 0.0,
            "rotary_emb_base": self.base,
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "rotary_scaling_factor": None,
            "scale_attn_by_inverse_layer_idx": False,
            "scale_attn_weights": True,
            "summary_activation": None,
            "summary_first_dropout": 0.0,
            "summary_proj_to_labels": True,
            "summary_type": "cls_index",
            "summary_use_proj": True,
            "transformers_version": "4.34.0",
            "use_cache": True,
            "use_flash_attn": True,
            "use_rms_norm": False,
            "use_xentropy": True,
        }

    def load(self, folder: Path) -> SentenceTransformer:
        if not self.hub_config:
            return super().load(folder)
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / folder.name
            shutil.copytree(folder, copy)
            described = json.loads((folder / "config.json").read_text())
            own = NomicBertConfig(**self._shape(described["vocab_size"]))
            write_json(copy / "config.json", own.to_dict() | {"architectures": ["NomicBertModel"]})
            return super().load(copy)

    def items(self) -> list[texts.Item]:
        plain = texts.for_limit(self.expected_limit())
        return [*plain, *texts.with_prompts(self.prompts, plain)] if self.prompts else plain

    def mistakes(self) -> dict[str, Mistake]:
        blocks = lambda model: [layer.mlp for layer in encoder(model).layers]
        frequencies = lambda model: encoder(model).rotary_emb.inv_freq
        return {
            "gate and input exchanged": exchanged,
            "GELU as the gate": lambda model: mistakes.attribute(blocks(model), "act_fn", torch.nn.GELU()),
            "another rotary base": lambda model: mistakes.tensor(
                frequencies(model), lambda right: right ** (np.log(10_000.0) / np.log(self.base))
            ),
            "no token types": lambda model: mistakes.tensor(
                encoder(model).embeddings.token_type_embeddings.weight, torch.zeros_like
            ),
        }


@contextmanager
def exchanged(model: SentenceTransformer) -> Iterator[None]:
    """The factor that passes the activation in place of the other."""
    block = encoder(model).layers[0].mlp
    gate, up = block.gate_proj, block.up_proj
    with mistakes.attribute([block], "gate_proj", up), mistakes.attribute([block], "up_proj", gate):
        yield


_PROMPTS = {
    "query": "search_query: ",
    "document": "search_document: ",
    "clustering": "clustering: ",
    "classification": "classification: ",
}

FAMILIES = [
    # As nomic-embed-text-v1.5, with a limit beyond 512 tokens.
    Nomic("nomic-hub", 1601, layout="classic", normalize=False, positions=8192, max_tokens=600, prompts=_PROMPTS),
    Nomic(
        "nomic-current-config", 1602, layers=3, heads=2, intermediate=48, positions=128, base=500.0, hub_config=False
    ),
]
