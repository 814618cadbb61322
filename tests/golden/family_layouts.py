"""Folders whose files do not agree, or are not all there: what transformers and sentence-transformers make of them.

The class that `tokenizer_config.json` names has the last word about case, accents, spaces and special tokens, whatever
`tokenizer.json` says; older repositories have a list of words in its place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import texts
from family_bert import Bert
from family_roberta import Roberta
from modules import write_json

_SMALL = {"hidden": 16, "heads": 4, "intermediate": 32, "layers": 1}
_CASES = ["The Quick Brown Fox and foxes", "ÄÖÜ ÉCOLE Ångström É", "東京都 THE 中文 hello你好", "[mask] [MASK] the[SEP]"]


@dataclass(frozen=True)
class Layout(Bert):
    class_decides = True

    # What tokenizer_config.json says besides the usual.
    said: dict[str, object] = field(default_factory=dict)
    word_list: bool = False
    lower_case_first: bool = False

    def tokenizer_config(self) -> dict[str, object]:
        return super().tokenizer_config() | self.said

    def items(self) -> list[texts.Item]:
        return [*texts.for_limit(self.expected_limit()), *(texts.Item(text) for text in _CASES)]

    def finish(self, folder: Path) -> None:
        if self.word_list:
            described = json.loads((folder / "tokenizer.json").read_text())
            (folder / "tokenizer.json").unlink()
            words = sorted(described["model"]["vocab"], key=described["model"]["vocab"].get)
            (folder / "vocab.txt").write_text("".join(word + "\n" for word in words), encoding="utf-8")
            write_json(folder / "added_tokens.json", {"fox": words.index("fox")})
        if self.lower_case_first:
            settings = json.loads((folder / "sentence_bert_config.json").read_text())
            write_json(folder / "sentence_bert_config.json", settings | {"do_lower_case": True})


@dataclass(frozen=True)
class PrefixSpace(Roberta):
    class_decides = True

    def tokenizer_config(self) -> dict[str, object]:
        return super().tokenizer_config() | {"add_prefix_space": True}


FAMILIES = [
    Layout(
        "tokenizer-config-decides",
        9101,
        layout="classic",
        said={
            "do_lower_case": False,
            "strip_accents": True,
            "tokenize_chinese_chars": False,
            "additional_special_tokens": ["fox"],
        },
        **_SMALL,
    ),
    Layout(
        "word-list", 9102, layout="classic", word_list=True, said={"strip_accents": False}, pooling="cls", **_SMALL
    ),
    Layout("lower-case-first", 9103, layout="classic", lowercase=False, lower_case_first=True, **_SMALL),
    PrefixSpace("roberta-prefix-space", 9104, layout="classic", **_SMALL),
]
