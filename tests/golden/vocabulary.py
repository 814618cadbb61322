"""The WordPiece vocabulary of the tiny models.

A few hundred entries: the five special tokens, every printable ASCII character and its continuation, some characters
of other scripts, whole words and word endings. Small enough that a model stays below 300 KB, rich enough that a text
exercises whole words, pieces, single characters and unknown characters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tokenizers import Tokenizer


@dataclass(frozen=True)
class Specials:
    """Which entries frame a text, and which are recognised when a user types them. `first` opens the vocabulary."""

    first: tuple[str, ...]
    start: str
    end: str
    unknown: str
    mask: str
    typed: tuple[str, ...]


BERT = Specials(
    ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    start="[CLS]",
    end="[SEP]",
    unknown="[UNK]",
    mask="[MASK]",
    typed=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
)
# The pieces are BERT's, the frame is RoBERTa's, and both kinds of unknown token exist.
MPNET = Specials(
    ("<s>", "<pad>", "</s>", "<unk>"),
    start="<s>",
    end="</s>",
    unknown="[UNK]",
    mask="<mask>",
    typed=("<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"),
)

LATIN = "ßæøåñçéèêëíîïóôöúûüýþðÆØÅÉÖÜ"
GREEK = "αβγδεζηθικλμνξοπρσςτυφχψω"
CYRILLIC = "абвгдежзиклмнопрстуя"
CJK = "中文字日本語山川水火木金土人大小上下天地你好世界東京都学生電車気一二三"
SYMBOLS = "°±²³µ·×÷€£¥§©®™–—…“”‘’•→≈≤≥∞√∑"

WORDS = """
the of and to in is was for on that with as by at from it an be this are or which not have had were but one all
you can has there been if more when will would who so no two time world hello search engine query document text
vector model server data memory light water fire stone river mountain city street house garden bread music paper
machine learning language translation weather winter summer morning night small large quick brown fox jumps
over lazy dog green blue red white black first second third year day week people children story history number
science computer network program function return value error file system user key index
""".split()

ENDINGS = "##s ##ed ##ing ##er ##est ##ly ##ness ##tion ##able ##al ##ment ##ful ##less ##ity ##ize ##ous ##en".split()


def entries(extra_scripts: bool, specials: Specials = BERT) -> list[str]:
    """Every entry in id order. Without the other scripts the list is short, for models whose matrices are wide."""
    printable = [chr(code) for code in range(33, 127)]
    result = [*specials.first, *printable, *("##" + character for character in printable)]
    if extra_scripts:
        foreign = LATIN + GREEK + CYRILLIC
        result += [*foreign, *("##" + character for character in foreign), *CJK, *SYMBOLS]
    # Some words and endings are single letters that the printable characters already brought.
    return list(dict.fromkeys([*result, *WORDS, *ENDINGS, specials.unknown, specials.mask]))


def tokenizer(tokens: list[str], specials: Specials, *, lowercase: bool) -> Tokenizer:
    """BERT's own pipeline over these entries: normaliser, splitter, WordPiece, and the frame around a text."""
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        # A mask of RoBERTa's kind takes the spaces before it along.
        "added_tokens": [
            added_token(tokens.index(name), name, lstrip=name == "<mask>")
            for name in sorted(specials.typed, key=tokens.index)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template(tokens, specials.start, specials.end),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": specials.unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: index for index, token in enumerate(tokens)},
        },
    }
    return Tokenizer.from_str(json.dumps(described))


def added_token(index: int, content: str, *, lstrip: bool = False) -> dict[str, object]:
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": lstrip,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def template(tokens: list[str], start: str | None, end: str) -> dict[str, object]:
    """`start text end`, or only `text end`; for pairs as BERT has it, which nobody here uses."""
    frame = [{"SpecialToken": {"id": start, "type_id": 0}}] if start else []
    frame += [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": end, "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": frame,
        "pair": [*frame, *second],
        "special_tokens": {
            name: {"id": name, "ids": [tokens.index(name)], "tokens": [name]} for name in (start, end) if name
        },
    }


def bert_tokenizer_config(tokenizer_class: str, limit: int, lowercase: bool = True) -> dict[str, object]:
    """`tokenizer_config.json` beside BERT's pieces and special tokens."""
    return {
        "cls_token": "[CLS]",
        "do_lower_case": lowercase,
        "mask_token": "[MASK]",
        "model_max_length": limit,
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": tokenizer_class,
        "unk_token": "[UNK]",
    }
