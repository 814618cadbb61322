"""The texts of minilm.json: what people really send to an embedding server, and what only a hostile one would."""

from __future__ import annotations

SENTENCES = """\
hello world
Hello, World!
The cat sat on the mat.
A feline was resting on a rug.
How do I reset my password?
I forgot my login credentials and cannot get into my account.
What is the capital of France?
Paris has been the capital of France for most of its history.
The stock market fell sharply on Monday after weak employment figures.
Shares dropped at the start of the week because fewer jobs were created than expected.
Water boils at 100 degrees Celsius at sea level.
An object in motion stays in motion unless a force acts on it.
Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.
The defendant shall pay all costs arising from the breach of this agreement.
Patients with a fever above 39 °C should drink plenty of fluids and rest.
He scored twice in the final ten minutes and won the match for his team.
Whisk the eggs, fold in the flour, and bake for 25 minutes at 180 degrees.
Could you please send me the invoice for last month?
This product broke after two days; I want my money back.
Best headphones I have ever owned, the battery lasts all week!
The train to the airport leaves every fifteen minutes from platform four.
Quantum computers use superposition and entanglement to process information.
To be, or not to be, that is the question.
no punctuation no capitals just a stream of words typed in a hurry
ALL CAPITALS LETTERS ARE SHOUTING
MiXeD cAsE iS jUsT lOwEr CaSe To ThIs MoDeL
query: how tall is the highest mountain
passage: The highest mountain above sea level is 8,849 metres tall.
Represent this sentence for searching relevant passages: tall mountains
antidisestablishmentarianism
pneumonoultramicroscopicsilicovolcanoconiosis
Donaudampfschifffahrtsgesellschaftskapitän
supercalifragilisticexpialidocious is not in any vocabulary
colour color, grey gray, theatre theater
its it's its' won't can't shouldn't've
I'd've thought y'all'd know
U.S.A. e.g. i.e. Ph.D. a.m. p.m.
state-of-the-art, well-known, twenty-one, co-operate
tomato basil mozzarella olive oil salt
error: connection refused (os error 111)
Laura is a DJ.
Michael Jackson
Metallica
x
I
""".splitlines()

CODE = [
    'fn main() { println!("hello"); }',
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name ORDER BY 2 DESC LIMIT 10;",
    "for (let i = 0; i < n; i++) { sum += a[i] ?? 0; }",
    '#include <stdio.h>\nint main(void) { return printf("%d\\n", 42) < 0; }',
    "git commit -am 'fix: off-by-one in parser' && git push --force-with-lease",
    '{"model": "all-MiniLM-L6-v2", "input": ["a", "b"], "n": null, "x": 1.5e-3}',
    '<div class="card"><a href="/about?x=1&y=2">About &amp; more</a></div>',
    "^(?:[a-z0-9]+(?:-[a-z0-9]+)*)\\.(?:com|org)$",
    "key: [value, 'quoted value', \"another\"] # yaml comment",
    "Traceback (most recent call last):\n  File \"x.py\", line 3, in <module>\nKeyError: 'id'",
    "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "0xDEADBEEF 0b1010 1_000_000 6.02e23 -0.0 NaN Infinity",
    "snake_case camelCase PascalCase kebab-case SCREAMING_SNAKE",
    "λx.λy.x y  ∀x∈ℝ: x² ≥ 0  ∃!y",
]

LANGUAGES = [
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Straßenbahnhaltestelle in Köln, Größe: 12 m²",
    "Le cœur a ses raisons que la raison ne connaît point.",
    "¿Dónde está la biblioteca? El niño comió piñas.",
    "Não há nada como um café à tarde em São Paulo.",
    "Perché no? È già così, città e virtù.",
    "Zażółć gęślą jaźń",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Blåbærgrød på Åland, smörgåsbord i Malmö",
    "İstanbul'da ışık ve Iğdır; büyük i harfi: İ",
    "Những con đường nhỏ ở Hà Nội rất đẹp.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "שלום עולם, מה שלומך היום?",
    "مرحبا بالعالم، كيف حالك؟",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "สวัสดีชาวโลก วันนี้อากาศดี",
    "你好，世界！今天天气很好。",
    "東京都の天気は晴れです。カタカナとひらがな。",
    "안녕하세요 세계, 오늘 날씨가 좋네요.",
    "გამარჯობა მსოფლიო",
    "ሰላም ለዓለም",
    "வணக்கம் உலகம்",
    "Mixed 混合 Смесь μίγμα خليط in one line",
    "full width ＡＢＣ１２３ and half width ｱｲｳ",
    "𠀀𠀁 rare ideographs beyond the first plane 𪜀",
]

SYMBOLS = [
    "😀",
    "I ❤️ pizza 🍕 and coffee ☕!",
    "👩‍👩‍👧‍👦 family, 👍🏽 thumbs, 🇩🇪🇫🇷 flags, 🏳️‍🌈",
    "🎉🎉🎉🎉🎉🎉🎉🎉🎉🎉",
    "!!!",
    "................................",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "?!?!?!?!?!?!?!?!",
    "-----BEGIN CERTIFICATE-----",
    "====== heading ======\n------ rule ------",
    "“Curly” ‘quotes’ — em dash – en dash … ellipsis • bullet",
    "© ® ™ § ¶ † ‡ ° ¹ ² ³ ½ ¼ ¾ ± × ÷",
    "€100, £80, ¥9000, $99.99, ₹500, ₿0.5",
    "→ ← ↑ ↓ ⇒ ⇔ ∞ ≈ ≠ ≤ ≥ ∑ ∏ ∫ √ ∂ ∇",
    "┌──┬──┐│  │  │└──┴──┘ ▓▒░",
    "ﬁ ligature ﬂ and ﬃ, Ⅳ roman, ① circled, ㎏ square",
    "1 22 333 4444 55555 666666 7777777 88888888",
    "3.14159265358979323846264338327950288419716939937510",
    "2024-02-29T23:59:60Z and 31/12/1999 at 11:59 pm",
    "+49 (0)30 1234567 ext. 89",
    "192.168.0.1:8080, ::1, fe80::1%eth0",
    "https://example.com/a/b/c.html?q=caf%C3%A9&lang=en#top",
    "user.name+tag@sub.example.co.uk",
    "C:\\Users\\Someone\\file.txt and /usr/local/bin",
]

ODD = [
    " ",
    "   leading and trailing   ",
    "\t\ttabs\tbetween\twords\t",
    "line one\nline two\r\nline three\rline four",
    "\n\n\n",
    "no\u00a0break\u2003em\u2009thin\u3000ideographic spaces",
    "zero\u200bwidth\u200cjoiners\u200d and\u2060 word\ufeff joiner",
    "soft\u00adhyphen and byte order mark \ufeff inside",
    "NUL \u0000 bell \u0007 escape \u001b[31mred\u001b[0m delete \u007f",
    "C1 controls \u0080\u0085\u009f and replacement \ufffd character",
    "right to left \u202eoverride\u202c and isolate \u2067marks\u2069",
    "private use \ue000\uf8ff and \U000f0000",
    "noncharacters \ufffe \uffff end",
    "line\u2028separator and paragraph\u2029separator",
    "e\u0301 vs \u00e9, a\u030a vs \u00e5, o\u0302\u0323 vs \u1ed9",
    "z\u0351\u036b\u0343a\u0363\u0351l\u0334g\u0337o\u0321 stacked marks",
    "\u0301 starts with a combining mark",
    "[SEP]",
    "[CLS] typed at the start and [SEP] at the end [SEP]",
    "a [MASK] word, [PAD] padding, [UNK] unknown, [unused1] unused",
    "[sep] lower case and [ SEP ] spaced and [SEP][SEP]",
    "<|endoftext|> </s> <s> <pad> are ordinary text here",
    "a" * 99,
    "a" * 100,
    "a" * 101,
    "word" + "\u0301" * 120 + " after",
    "##piece ##s # # hash",
    "1.2.3.4.5.6.7.8.9.0.1.2.3.4.5.6.7.8.9.0",
]

_PARAGRAPH = (
    "The lighthouse keeper climbed the narrow stairs each evening with a lamp in one hand and a logbook in the other. "
    "He wrote down the direction of the wind, the height of the waves and the names of the ships that passed, "
    "although nobody had ever asked to see what he wrote. On clear nights the beam reached the far side of the bay, "
    "where children counted its turns before they fell asleep. When fog came in he rang the bell by hand, once "
    "a minute. "
)

_REPORT = (
    "Section 4.2 Maintenance. Filters are to be replaced every 500 hours of operation or when the pressure drop "
    "exceeds 0.8 bar, whichever comes first. Before opening the housing, close valves V-12 and V-13 and wait until "
    "gauge P3 reads zero; residual pressure can cause severe injury. Record part number, serial number and date in "
    "the log. "
)

LONG = [
    _PARAGRAPH,
    _PARAGRAPH * 2,
    _PARAGRAPH * 3,
    _PARAGRAPH * 8,
    _REPORT * 2,
    _REPORT * 6,
    "the " * 253,
    "the " * 254,
    "the " * 255,
    "the " * 600,
    "embedding " * 400,
    "今天天气很好，我们去公园散步吧。" * 40,
    "Съешь же ещё этих мягких французских булок. " * 30,
    "😀😃😄😁" * 100,
    "[SEP] " * 300,
    "long words " + "electroencephalographically " * 60,
    "x" * 2000,
    "1234567890 " * 200,
    "if (x > 0) { return foo(bar[x], baz->qux); } else { x += 1; }\n" * 20,
    "\n".join(f"{n}. item number {n} costs {n * 3}.{n % 100:02d} euros" for n in range(1, 60)),
]


def all_texts() -> list[str]:
    """In one fixed order; the stored vectors follow it."""
    return [*SENTENCES, *CODE, *LANGUAGES, *SYMBOLS, *ODD, *LONG]
