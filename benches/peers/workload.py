"""The texts every engine reads. Seeded, and disjoint from those that a peer's quantisation is calibrated on.

`mixed256` and the uniform ones are whole words of the vocabulary, so that their token counts are exact; `natural` is
prose (Python's own language reference, as the interpreter carries it), which no shortcut in a tokenizer can suit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import tokenizers

SEED = 256
COUNT = 256
MEDIAN_TOKENS = 40
SIGMA = 0.8
SHORTEST = 4
LONGEST = 512
# A word of the reference is about this many tokens, punctuation and code among them.
TOKENS_PER_WORD = 1.7
NATURAL_COUNT = 128
CALIBRATION_COUNT = 320


@dataclass(frozen=True)
class Workload:
    """Texts with their token ids, specials included; no engine sees another's."""

    name: str
    texts: list[str]
    ids: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def described(self) -> dict[str, int]:
        lengths = self.lengths
        return {"texts": len(lengths), "tokens": sum(lengths), "shortest": min(lengths), "longest": max(lengths)}


class Texts:
    """Workloads in the vocabulary of one BERT-like tokenizer (`tokenizer.json` of the folder)."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        words = sorted(word for word in self.tokenizer.get_vocab() if word.isascii() and word.isalpha())
        self.words = [word for word in words if len(word) > 2 and word == word.lower()]

    def named(self, name: str) -> Workload:
        """`mixed256`, `natural`, or `COUNTxTOKENS`."""
        if name == "mixed256":
            return self._of_words(name, lognormal_lengths(np.random.Generator(np.random.PCG64(SEED)), COUNT))
        if name == "natural":
            return self._of_texts(name, _prose(0, NATURAL_COUNT))
        count, tokens = map(int, name.split("x"))
        return self._of_words(name, [tokens] * count)

    def calibration(self) -> Workload:
        """Prose from other topics than `natural`."""
        return self._of_texts("calibration", _prose(1, CALIBRATION_COUNT))

    def _of_words(self, name: str, lengths: list[int]) -> Workload:
        generator = np.random.Generator(np.random.PCG64([SEED, len(lengths), sum(lengths)]))
        texts = [" ".join(generator.choice(self.words, length - 2)) for length in lengths]
        work = self._of_texts(name, texts)
        if work.lengths != lengths:
            raise AssertionError("a word of the vocabulary is not one token")
        return work

    def _of_texts(self, name: str, texts: list[str]) -> Workload:
        return Workload(name, texts, [encoding.ids for encoding in self.tokenizer.encode_batch(texts)])


def lognormal_lengths(generator: np.random.Generator, count: int, longest: int = LONGEST) -> list[int]:
    drawn = np.rint(generator.lognormal(np.log(MEDIAN_TOKENS), SIGMA, count)).astype(int)
    return np.clip(drawn, SHORTEST, longest).tolist()


def flops(config: dict[str, int], lengths: list[int]) -> float:
    """Multiplications and additions of a BERT encoder over texts of these lengths, without padding."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    linear = 2 * layers * (4 * hidden * hidden + 2 * hidden * inner)
    return float(sum(length * (linear + 4 * layers * hidden * length) for length in lengths))


def _prose(half: int, count: int) -> list[str]:
    """Consecutive words of every second topic of Python's language reference, in pieces of lognormal length."""
    generator = np.random.Generator(np.random.PCG64([SEED, half]))
    # Paragraphs of rules and of box-drawing characters are not prose.
    paragraphs = [
        paragraph
        for name in sorted(topics)[half::2]
        for paragraph in re.split(r"\n\s*\n", topics[name])
        if len(paragraph.split()) > 3 and sum(map(str.isalpha, paragraph)) > len(paragraph) // 2
    ]
    generator.shuffle(paragraphs)
    words = iter(" \n".join(paragraphs).split(" "))
    pieces = []
    # Clipped lower than the models' limit, because a word may be several tokens.
    for length in lognormal_lengths(generator, count, LONGEST // 2):
        piece = [word for word, _ in zip(words, range(max(2, round(length / TOKENS_PER_WORD))), strict=False)]
        pieces.append(" ".join(" ".join(piece).split()))
    if not all(pieces):
        raise AssertionError("the reference is too short for that many pieces")
    return pieces
