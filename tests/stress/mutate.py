"""Mutations of bytes, JSON and text that break readers."""

import copy
import json
import random
import struct
from typing import Any

EDGES = (0, 1, 2, 7, 8, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
MARK = "@@{}@@"  # stands in JSON for a text that `json.dumps` cannot write
RAW = {  # what takes its place
    "digits": "9" * 5000,
    "exponent": "1e999",
    "minus": "-",
    "deep": "[" * 5000 + "]" * 5000,
    "deeper": '{"a":' * 100_000,
    "unfinished": '"abc',
    "escape": '"\\u12"',
    "twice": '{"a": 1, "a": 2}',
    "nan": "NaN",
    "infinity": "-Infinity",
    "comment": "1 // one",
}
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, 1e-320),
    *("", " ", "a", "0", "1", "nan", "a" * 300, "a" * 70_000, "\x00", "\n", "\x1b[31m", "\u202e", "\u200b", "\ud800"),
    *("../../etc/passwd", "~nouser/x", "/dev/zero", "=1+1", "%s%n", "{0}", "<b>", "\U0001f600"),
    *([], {}, [[]], [None], [1, 2], {"a": 1}, {"": ""}),
    *(MARK.format(name) for name in RAW),
)
TOKENS = (
    *("nan", "inf", "-inf", "1e400", "1e-400", "-1", "0", "1", "2", "9" * 400, "9" * 5000, "0x10", "1_0", "\u0661"),
    *(
        "",
        "a",
        "a" * 100_000,
        "\x00",
        "\ufeff",
        "\u2028",
        "1,5",
        "0 0",
        "\t",
        "#",
        "'",
        '"',
        "[",
        "{",
        "&a",
        "*a",
        "!!",
    ),
    *(
        "!!python/object:os.system",
        "2001-01-01",
        "0b_",
        "~",
        "~nouser",
        "../..",
        "/dev/zero",
        "<!ENTITY",
        "&lt;",
        "]]>",
    ),
)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Other bytes: flipped, replaced, inserted, removed, repeated, cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        # half of the changes are near the beginning, where headers are
        at = rng.randrange(min(len(out), 256) if rng.random() < 0.5 else len(out)) if out else 0
        length = min(rng.choice((1, 1, 2, 4, 8, 16, 64, 1024)), max(len(out) - at, 0))
        kind = rng.randrange(9)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at] = rng.choice((0, 9, 10, 32, 34, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            out[at : at + length] = rng.randbytes(length)
        elif kind == 3:
            out[at:at] = rng.randbytes(length or 1)
        elif kind == 4:
            del out[at : at + length]
        elif kind == 5:
            out[at:at] = out[at : at + length]
        elif kind == 6:
            del out[at:]
        elif kind == 7:
            number = rng.choice(EDGES)
            form = rng.choice("BHIQ")
            packed = struct.pack(rng.choice("<>") + form, number % 2 ** (8 * struct.calcsize(form)))
            out[at : at + len(packed)] = packed
        else:
            out[at : at + length] = bytes([rng.choice((0, 255, 32))]) * length
    return bytes(out)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """A copy with one to three hostile values, or with entries that are missing, doubled or added."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _mutated(rng, value)
    return value


def json_text(value: Any) -> str:
    """JSON, with the marks of `HOSTILE` replaced by what they stand for."""
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(f'"{MARK.format(name)}"', raw)
    return text


def mutate_text(rng: random.Random, text: str) -> str:
    """A text with one to three words or lines replaced, inserted, doubled or removed."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        lines = text.split("\n")
        row = rng.randrange(len(lines))
        words = lines[row].split(" ")
        kind, token = rng.randrange(6), rng.choice(TOKENS)
        if kind <= 1:
            words[rng.randrange(len(words))] = token
        elif kind == 2:
            words.insert(rng.randrange(len(words) + 1), token)
        elif kind == 3:
            del words[rng.randrange(len(words))]
        lines[row] = " ".join(words)
        if kind == 4:
            lines.insert(row, rng.choice((lines[rng.randrange(len(lines))], token)))
        elif kind == 5:
            del lines[row]
        text = "\n".join(lines)
    return text


def _mutated(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key, kind = rng.choice(list(value)), rng.random()
        if kind < 0.1:
            del value[key]
        elif kind < 0.2:
            value[rng.choice([part for part in HOSTILE if isinstance(part, str)])] = value[key]
        else:
            value[key] = _mutated(rng, value[key])
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        at, kind = rng.randrange(len(value)), rng.random()
        if kind < 0.15:
            del value[at]
        elif kind < 0.3:
            value.insert(at, value[at])
        else:
            value[at] = _mutated(rng, value[at])
        return value
    if isinstance(value, str) and value and rng.random() < 0.3:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(("", "\x00", "g", "\u202e", " ", "\ud800")) + value[at + 1 :]
    return copy.deepcopy(rng.choice(HOSTILE))  # or a later change would be in every later case
