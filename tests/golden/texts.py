"""The texts of the tiny models' vectors: known words, pieces, unknown characters, typed specials, long texts."""

from __future__ import annotations

from dataclasses import dataclass

SHORT = [
    "hello world",
    "Hello World",
    "the quick brown fox jumps over the lazy dog",
    "searching engines and servers",
    "a",
    "x = f(y) + 3.14159; // note",
    "naïve café, Größe, smørrebrød, Ångström",
    "αβγ δεζ: ωμέγα",
    "привет мир",
    "你好世界 東京都の天気",
    "unknown scripts: ქართული हिन्दी ไทย",
    "emoji 😀 and 👩‍👩‍👧 are unknown here",
    "typed [SEP] and [MASK] and [CLS] inside [PAD]",
    "   spread \t over\n\nlines \r\n and  tabs   ",
    "!!!???...---((()))",
    "1234567890 12,345.67 0x1f",
    "email@example.com http://example.com/path?key=value#part",
    "e\u0301 combining, a\u030a ring, o\u0308\u0323 two marks",
    "control\u0000 \u0007characters\u200b vanish\ufeff",
    "“quoted” — dash … €5 ≈ £4 ± 10 °",
    " ",
    "[SEP]",
]

# Longer than every limit in use (16, 64, 128 positions), so that the cut is part of the vectors.
LONG = [
    "the river by the mountain was green and the stone was white " * 12,
    "x" * 150,
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 6,
    "你好世界東京都学生電車" * 14,
    "one two first second third number value " * 2 + "[SEP] " * 30 + "the end of the story " * 20,
]

# Around a limit of 16 and of 64 positions: one below, exactly, one above, specials included.
EDGES = ["the " * count for count in (13, 14, 15, 61, 62, 63, 125, 126, 127)]


@dataclass(frozen=True)
class Item:
    """One text to embed. A long one is stored as a phrase and how often it is repeated."""

    text: str
    times: int = 1
    prompt_name: str | None = None
    prompt: str | None = None
    dimensions: int | None = None

    def whole(self) -> str:
        return self.text * self.times

    def stored(self) -> dict[str, object]:
        """The fields of the JSON that say what was asked for."""
        described: dict[str, object] = {
            "text": self.text if self.times == 1 else {"repeat": self.text, "times": self.times}
        }
        for name in ("prompt_name", "prompt", "dimensions"):
            if getattr(self, name) is not None:
                described[name] = getattr(self, name)
        return described


# Special tokens of any family, typed by a user: they become the token itself, also padding, as with the reference.
TYPED = [
    "typed <s> and </s> and <pad> and <mask> and <unk>",
    "<pad>",
    "<pad> <pad> padding first, then<pad>in the middle <pad>",
    "a   <mask>   b",
    "</s></s>",
    "[CLS] [SEP] [PAD] [MASK] [UNK]",
]


def for_limit(limit: int, frame: int = 2) -> list[Item]:
    """Short texts, typed specials, and texts around and far beyond a limit of tokens, `frame` specials included."""
    edges = [" ".join(["the"] * (limit - frame + difference)) for difference in (-1, 0, 1)]
    phrase = "the river by the mountain was green and the stone was white, "
    beyond = [phrase * (limit // 12 + 2), "hello world " * limit, "x?" * limit]
    return [Item(text) for text in ["", *SHORT, *TYPED, *edges, *beyond]]


def with_prompts(prompts: dict[str, str], plain: list[Item]) -> list[Item]:
    """Some of the texts again under each named prompt, and under a prompt that no file names."""
    chosen = [plain[index].text for index in (0, 1, 3, 7, 11, 21)] + ["ry documents", max(plain, key=_length).text]
    named = [Item(text, prompt_name=name) for name in prompts for text in chosen]
    return [*named, *(Item(text, prompt="Represent this one: ") for text in chosen[:3]), Item(chosen[0], prompt="")]


def _length(item: Item) -> int:
    return len(item.text)


def all_texts() -> list[str]:
    """In one fixed order; the stored vectors follow it."""
    return [*SHORT, *LONG, *EDGES]
