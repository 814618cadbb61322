"""GTE's own encoder: BERT with rotary positions and a gated feed-forward without a bias in the gate.

transformers reads it as "gte"; the older repositories call it "new" and name remote code, so for such a folder the
oracle reads the same file beside a configuration that says "gte". Slowed-down rotations ("ntk") exist in the remote code
only: there the oracle's frequencies are replaced by the formula, https://kexue.fm/archives/9706.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import GteConfig, GteModel

import mistakes
import sentencepiece_unigram
import vocabulary
from family import Family, Mistake, drawn
from family_nomic import exchanged
from mistakes import encoder
from modules import write_json

_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
_CODE = "Alibaba-NLP/new-impl--"


@dataclass(frozen=True)
class Gte(Family):
    base: float = 160_000.0
    # As gte-base-en-v1.5: WordPiece, no token types, "new"; otherwise as snowflake-arctic-embed-m-v2.0.
    new: bool = False
    # Of "ntk" rotations; 1 = as they are.
    factor: float = 1.0

    def tokenizer(self) -> Tokenizer:
        if self.new:
            return vocabulary.tokenizer(vocabulary.entries(True), vocabulary.BERT, lowercase=True)
        pieces = sentencepiece_unigram.entries(_FIRST, ("<mask>",))
        return sentencepiece_unigram.tokenizer(pieces, "<unk>", ("<s>", "</s>"), (*_FIRST, "<mask>"))

    def tokenizer_config(self) -> dict[str, object]:
        names = (
            ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]") if self.new else ("<s>", "</s>", "<pad>", "<unk>", "<mask>")
        )
        kinds = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")
        return dict(zip(kinds, names, strict=True)) | {
            "model_max_length": self.tokenizer_limit(),
            "tokenizer_class": "BertTokenizer" if self.new else "XLMRobertaTokenizer",
        }

    def model(self, vocab_size: int) -> torch.nn.Module:
        config = GteConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=self.positions,
            type_vocab_size=0 if self.new else 1,
            pad_token_id=0 if self.new else 1,
            rope_parameters={"rope_type": "default", "rope_theta": self.base},
        )
        return GteModel(config)

    def draw(self, name: str, values: np.ndarray) -> np.ndarray:
        spread = {"gate_proj": 1.2, "up_proj": 1.2, "down_proj": 2.0}.get(name.split(".")[-2], 1.5)
        return drawn(values, name, spread)

    def edit_config(self, described: dict[str, object]) -> None:
        if self.layout != "classic":
            return
        described.pop("rope_parameters")
        described |= {
            "layer_norm_type": "layer_norm",
            "logn_attention_clip1": False,
            "logn_attention_scale": False,
            "pack_qkv": True,
            "position_embedding_type": "rope",
            "rope_scaling": {"factor": self.factor, "type": "ntk"} if self.factor > 1 else None,
            "rope_theta": self.base,
            "unpad_inputs": False,
            "use_memory_efficient_attention": False,
        }
        if not self.new:
            # Snowflake's copy of the code has the family's later names.
            described |= {
                "auto_map": {
                    "AutoConfig": "configuration_hf_alibaba_nlp_gte.GteConfig",
                    "AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel",
                },
                "unpad_inputs": "true",
                "use_memory_efficient_attention": "true",
            }
        if self.new:
            described |= {
                "architectures": ["NewModel"],
                "auto_map": {
                    "AutoConfig": _CODE + "configuration.NewConfig",
                    "AutoModel": _CODE + "modeling.NewModel",
                    "AutoModelForMaskedLM": _CODE + "modeling.NewForMaskedLM",
                },
                "model_type": "new",
            }

    def load(self, folder: Path) -> SentenceTransformer:
        if not self.new:
            return super().load(folder)
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / folder.name
            shutil.copytree(folder, copy)
            described = json.loads((folder / "config.json").read_text())
            described.pop("auto_map")
            described["rope_scaling"] = None
            write_json(copy / "config.json", described | {"architectures": ["GteModel"], "model_type": "gte"})
            model = super().load(copy)
        if self.factor > 1:
            encoder(model).rotary_emb.inv_freq = self.frequencies()
        return model

    def frequencies(self) -> torch.Tensor:
        size = self.hidden // self.heads
        exponents = torch.arange(0, size, 2).float() / size
        return 1.0 / ((self.base * self.factor) ** exponents) / self.factor ** (2 / size)

    def mistakes(self) -> dict[str, Mistake]:
        blocks = lambda model: [layer.mlp for layer in encoder(model).layers]
        plain = 1.0 / (self.base ** (torch.arange(0, self.hidden // self.heads, 2).float() * self.heads / self.hidden))
        slowed = {
            "rotations as fast as before": lambda model: mistakes.tensor(
                encoder(model).rotary_emb.inv_freq, lambda right: plain.to(right.dtype)
            )
        }
        return (slowed if self.factor > 1 else {}) | {
            "the other GELU": lambda model: mistakes.attribute(
                blocks(model), "act_fn", torch.nn.GELU(approximate="tanh")
            ),
            "gate and input exchanged": exchanged,
            "another rotary base": lambda model: mistakes.tensor(
                encoder(model).rotary_emb.inv_freq, lambda right: right ** (np.log(10_000.0) / np.log(self.base))
            ),
        }


FAMILIES = [
    Gte(
        "gte-new",
        1901,
        layout="classic",
        pooling="cls",
        normalize=False,
        positions=8192,
        max_tokens=256,
        base=5e5,
        new=True,
    ),
    Gte(
        "gte-new-ntk",
        1904,
        layout="classic",
        pooling="cls",
        positions=8192,
        max_tokens=256,
        base=2e4,
        new=True,
        factor=8.0,
    ),
    Gte("gte-classic-config", 1902, layout="classic", pooling="cls", positions=128, base=20_000.0),
    Gte("gte-current-config", 1903, positions=128, heads=2),
]
