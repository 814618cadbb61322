"""A tiny byte-level BPE vocabulary, as GPT-2's: all 256 bytes, and merges that build the words letter by letter."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

import vocabulary

_EXTRA = "é ß ü ñ µ € — α β ω п р и в е т 你 好 世 界 東 京 !! ?? -- ... :// .com =".split()


def merges() -> list[tuple[str, str]]:
    """For each word, its letters joined from the left, with and without the space before it."""
    splitter = ByteLevel(add_prefix_space=False, use_regex=False)
    joined: dict[tuple[str, str], None] = {}
    endings = [ending.removeprefix("##") for ending in vocabulary.ENDINGS]
    for word in [*(" " + word for word in vocabulary.WORDS), "the", "hello", "query", *endings, *_EXTRA]:
        [(letters, _)] = splitter.pre_tokenize_str(word)
        for end in range(1, len(letters)):
            joined.setdefault((letters[:end], letters[end]))
    return list(joined)


def entries(first: Sequence[str], last: Sequence[str]) -> list[str]:
    pieces = [*first, *sorted(ByteLevel.alphabet()), *(left + right for left, right in merges()), *last]
    return list(dict.fromkeys(pieces))


def tokenizer(tokens: list[str], typed: Sequence[str], parts: tuple[dict[str, object], dict[str, object]]) -> Tokenizer:
    return build(described(tokens, typed, parts))


def build(whole: dict[str, object]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(whole))


def described(
    tokens: list[str], typed: Sequence[str], parts: tuple[dict[str, object], dict[str, object]]
) -> dict[str, object]:
    """The file of such a tokenizer; `parts` are what comes after and what before the pieces."""
    post_processor, pre_tokenizer = parts
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            vocabulary.added_token(tokens.index(name), name, lstrip=name in ("<mask>", "[MASK]"))
            for name in sorted(typed, key=tokens.index)
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [list(pair) for pair in merges()],
        },
    }
