"""A tiny SentencePiece Unigram vocabulary and the tokenizer.json that converters make of such a model.

Real files carry SentencePiece's normaliser as a compiled table (a double-array trie and the replacements); a small one
is built here in the same format, because every XLM-RoBERTa and T5 tokenizer goes through that code.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence

from tokenizers import Tokenizer

import vocabulary

SPACE = "\u2581"


def entries(first: Sequence[str], last: Sequence[str]) -> list[tuple[str, float]]:
    """Pieces with their scores in id order. Irregular scores: no two ways to cut a text may weigh the same."""
    characters = [chr(code) for code in range(33, 127)]
    characters += vocabulary.LATIN + vocabulary.GREEK + vocabulary.CYRILLIC + vocabulary.CJK + vocabulary.SYMBOLS
    words = dict.fromkeys([word for word in vocabulary.WORDS if len(word) > 1])
    endings = [ending.removeprefix("##") for ending in vocabulary.ENDINGS]
    scored = {name: 0.0 for name in first}
    pieces = [SPACE, *(SPACE + word for word in words), *endings, *(word for word in words if len(word) > 4)]
    pieces += [SPACE + letter for letter in "aistnrlo"]
    for index, piece in enumerate(dict.fromkeys(pieces)):
        scored.setdefault(piece, -3.0 - 0.0173 * index - 0.00021 * (index * index % 97))
    for index, character in enumerate(characters):
        scored.setdefault(character, -11.0 - 0.0131 * index - 0.00017 * (index * index % 89))
    return [*scored.items(), *((name, 0.0) for name in last)]


def tokenizer(
    pieces: list[tuple[str, float]], unknown: str, frame: tuple[str | None, str], typed: Sequence[str]
) -> Tokenizer:
    """XLM-RoBERTa's pipeline; T5's differs in the frame and in the typed specials only."""
    names = [name for name, _ in pieces]
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            vocabulary.added_token(names.index(name), name, lstrip=name == "<mask>")
            for name in sorted(typed, key=names.index)
        ],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(NORMALISED)},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": vocabulary.template(names, *frame),
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": names.index(unknown), "vocab": pieces, "byte_fallback": False},
    }
    return Tokenizer.from_str(json.dumps(described))


# A few of the replacements of the real table: widths, ligatures, spaces, controls, composition.
NORMALISED = {
    **{chr(0xFF01 + index): chr(0x21 + index) for index in range(94)},
    **dict.fromkeys("\t\n\r\u00a0\u2003\u2009\u3000\u200b\ufeff", " "),
    **dict.fromkeys((chr(code) for code in (*range(1, 9), 0x7F)), ""),
    "ﬁ": "fi",
    "ﬂ": "fl",
    "…": "...",
    "²": "2",
    "™": "TM",
    "e\u0301": "é",
    "a\u030a": "å",
    "o\u0308": "ö",
}


def charsmap(replacements: dict[str, str]) -> str:
    """SentencePiece's compiled form: the trie's size in bytes, its units, then the replacements, zero-terminated."""
    texts = b""
    trie: dict[int, dict] = {}
    for key, replacement in sorted(replacements.items()):
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = len(texts)
        texts += replacement.encode() + b"\0"
    units = _double_array(trie)
    packed = struct.pack(f"<{len(units)}I", *units)
    return base64.b64encode(struct.pack("<I", len(packed)) + packed + texts).decode("ascii")


def _double_array(trie: dict[int, dict]) -> list[int]:
    """Units of a double-array trie: a node's children lie at `base ^ label`, its value at `base` itself."""
    has_value, is_value = 1 << 8, 1 << 31
    units: dict[int, int] = {}
    taken = {0}

    def place(node: dict, at: int, label: int) -> None:
        # Offsets below 2^21 are stored as they are; a base must leave every child's place free.
        base = next(base for base in range(1, 1 << 20) if all(base ^ child not in taken for child in node))
        taken.update(base ^ child for child in node)
        units[at] = (at ^ base) << 10 | (has_value if 0 in node else 0) | label
        for child, below in node.items():
            if child == 0:
                units[base] = is_value | below
            else:
                place(below, base ^ child, child)

    place(trie, 0, 0)
    return [units.get(index, 0) for index in range(max(units) + 1)]
