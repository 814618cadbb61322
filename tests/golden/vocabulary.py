"""The WordPiece vocabulary of the tiny models.

A few hundred entries: the five special tokens, every printable ASCII character and its continuation, some characters
of other scripts, whole words and word endings. Small enough that a model stays below 300 KB, rich enough that a text
exercises whole words, pieces, single characters and unknown characters.
"""

from __future__ import annotations

import json

from tokenizers import Tokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

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


def entries(extra_scripts: bool) -> list[str]:
    """Every entry in id order. Without the other scripts the list is short, for models whose matrices are wide."""
    printable = [chr(code) for code in range(33, 127)]
    result = [*SPECIALS, *printable, *("##" + character for character in printable)]
    if extra_scripts:
        foreign = LATIN + GREEK + CYRILLIC
        result += [*foreign, *("##" + character for character in foreign), *CJK, *SYMBOLS]
    # Some words and endings are single letters that the printable characters already brought.
    return list(dict.fromkeys([*result, *WORDS, *ENDINGS]))


def tokenizer(tokens: list[str], *, lowercase: bool) -> Tokenizer:
    """BERT's own pipeline over these entries: normaliser, splitter, WordPiece, `[CLS] text [SEP]`."""
    specials = [
        {
            "id": tokens.index(name),
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name in SPECIALS
    ]
    frame = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    end = {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*frame, end],
            "pair": [*frame, end, *second],
            "special_tokens": {
                name: {"id": name, "ids": [tokens.index(name)], "tokens": [name]} for name in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: index for index, token in enumerate(tokens)},
        },
    }
    return Tokenizer.from_str(json.dumps(described))
