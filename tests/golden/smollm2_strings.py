"""3,000 varied strings, the same on every machine: what a tokenizer may meet, odd spaces and scripts included."""

# ruff: noqa: RUF001

import random

PROSE = (
    "the of and to a in that it was his he with for as had you her not be is at on by which have or from this but all "
    "she they were my are me one their so an said them we who would been will no when there if more out up into do any "
    "your what has man could other than our some very time upon about may its only now like little then can made "
    "should did us such great before must two these see know over much down after first good men rivers unbelievably "
    "internationalization Shakespeare O'Brien don't we'll I'm they've he'd rock'n'roll co-operate e-mail naïve café"
)
WORDS = PROSE.split()
SCRIPTS = (
    "Größe Übung ß",
    "Čeština žluťoučký kůň",
    "Привет, мир",
    "Ελληνικά γλῶσσα",
    "שלום עולם",
    "مرحبا بالعالم ٣٤٥",
    "नमस्ते दुनिया १२३",
    "你好，世界",
    "日本語のテキスト",
    "한국어 문장",
    "ไทย",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "e\u0301 combining",
    "ﬁ ligature",
    "😀👍🏽",
    "👩‍👩‍👧‍👦 family",
    "🇫🇷",
    "½ ² ³ ¼ Ⅻ ⑦ 三十",
    "\u00a0nbsp\u2003em\u200bzero",
    "\ufeffbom",
    "\u2028line\u2029para",
)
SPACES = (" ", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\t\t", "\r\n", " \n ", "        ", "")
MARKS = (
    ",",
    ".",
    "!",
    "?",
    ";",
    ":",
    "--",
    "...",
    "'",
    '"',
    "''",
    "(",
    ")",
    "[",
    "]",
    "{}",
    "<",
    ">",
    "<|",
    "|>",
    "@",
    "#",
)
CODE = (
    "def f(x):\n    return x ** 2  # square\n",
    "for (int i = 0; i < 10; ++i) { a[i] += 1; }",
    '<div class="x">1</div>',
    "SELECT * FROM t WHERE id=42;",
    "https://example.org/a?b=1&c=%20",
    '{"k": [1, 2.5e-3, null]}',
    "$x^2 + y_1$",
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<file_sep>", "<|im_start|", "<empty_output>")


def number(rng: random.Random) -> str:
    digits = str(rng.randrange(10 ** rng.randint(1, 12)))
    return rng.choice((digits, f"{int(digits):,}", f"-{digits}", f"{digits}.{rng.randrange(100)}", f"{digits}th"))


def piece(rng: random.Random) -> str:
    word = rng.choice(WORDS)
    return rng.choices(
        (
            word,
            rng.choice((word.upper(), word.capitalize(), word + word)),
            number(rng),
            rng.choice(SCRIPTS),
            rng.choice(MARKS),
            rng.choice(CODE),
            rng.choice(SPECIAL),
            chr(rng.choice((rng.randrange(32, 127), rng.randrange(161, 0xD7FF), rng.randrange(0x10000, 0x1FFFF)))),
        ),
        weights=(50, 10, 14, 6, 10, 2, 2, 6),
    )[0]


def strings(count: int = 3000) -> list[str]:
    rng = random.Random(20_240_917)
    texts = [
        "",
        " ",
        "\n",
        "  1",
        "a  1",
        "a\n\n1",
        "x\t\t7",
        "½ ²",
        "1's",
        "0123456789",
        "<|im_start|>user\nhi<|im_end|>\n",
    ]
    while len(texts) < count:
        texts.append("".join(piece(rng) + rng.choice(SPACES) for _ in range(rng.randint(1, 14))))
    return texts
