"""The texts of the tiny models' vectors: known words, pieces, unknown characters, typed specials, long texts."""

from __future__ import annotations

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


def all_texts() -> list[str]:
    """In one fixed order; the stored vectors follow it."""
    return [*SHORT, *LONG, *EDGES]
