"""Damaged vocabulary files: each is refused with a `VocabularyError` of one line, or is a valid vocabulary.

python tests/stress/fuzz_vocabularies.py --cases 1000000 --seed 1
"""

import json
import random
import re
import struct
import sys
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from stress.cases import FaultError, check_error, fuzz
from stress.mutate import HOSTILE, json_text, mutate_bytes, mutate_json
from vocabularies import golden, learned, unit_rows

from prompt_tune.errors import VocabularyError
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

DTYPES = ("F32", "F16", "BF16", "F64", "I32", "U8", "BOOL", "F8_E4M3", "", "f32", 7)
FLOATS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 2.0, 1e-40, 3e38, 1.0001, 0.5)
DIGEST = re.compile("[0-9a-f]{64}")


def check(rng: random.Random, folder: Path) -> str:
    """One file."""
    data = damaged(rng)
    path = folder / "case.vocab.safetensors"
    path.write_bytes(data)
    try:
        found = Vocabulary.load(path)
    except VocabularyError as error:
        check_error(error)
        return "refused"
    check_valid(found)
    again = found.to_bytes()
    path.write_bytes(again)
    if Vocabulary.load(path).to_bytes() != again:
        raise FaultError("a vocabulary that is not the same when it is saved and loaded")
    return "taken, the same content" if again in bases() else "taken, valid"


def check_valid(found: Vocabulary) -> None:
    """The rules of docs/formats.md, written a second time."""
    rows = found.embeddings.astype(np.float64)
    n_cls = len(found.names)
    norms = np.sqrt((rows**2).sum(-1))
    rules = {
        "names": n_cls > 0 and len(set(found.names)) == n_cls and all(name.strip() for name in found.names),
        "embeddings": found.embeddings.shape == (n_cls, found.n_prompts, 512) and found.embeddings.dtype == np.float32,
        "unit norm": bool((np.abs(norms - 1) < 1.1e-4).all()),
        "thresholds": found.thresholds.shape == (n_cls,)
        and bool(((found.thresholds >= 0) & (found.thresholds <= 1)).all()),
        "kind": found.kind in ("original", "learned", "plain") and found.guide_mode in ("original", "own"),
        "digests": all(DIGEST.fullmatch(part) for part in (found.text_tower, found.guide, found.detector) if part),
        "detector": bool(found.detector) or found.kind == "plain",
        "provenance": isinstance(found.provenance, dict),
    }
    if found.kind == "original" or found.guide_mode == "own":
        rules["guide"] = found.guide == guide_digest(found.embeddings)
    if (part := found.calibration) is not None:
        rules["calibration"] = part.shape == (n_cls, 2) and bool(np.isfinite(part).all() and (part[:, 0] > 0).all())
    if (part := found.nms_iou) is not None:
        rules["nms_iou"] = part.shape == (n_cls,) and bool(((part > 0) & (part <= 1)).all())
    if (part := found.box_offsets) is not None:
        rules["box_offsets"] = part.shape == (n_cls, 4) and bool((np.abs(part) <= np.float32(0.4)).all())
    marked = [name for name, _ in found.background]
    rules["background"] = marked == [name for name in found.names if name in marked] and len(marked) < n_cls
    rules["kind with background"] = not marked or found.kind == "original"
    if broken := [name for name, kept in rules.items() if not kept]:
        raise FaultError(f"a vocabulary was taken that breaks the rules of {', '.join(broken)}")


@cache
def bases() -> tuple[bytes, ...]:
    """Valid files of every kind."""
    rows = unit_rows(3, 1, seed=1)
    common: dict[str, Any] = {"detector": "a" * 64, "text_tower": "b" * 64}
    return tuple(
        vocabulary.to_bytes()
        for vocabulary in (
            golden(),
            learned(
                *("forklift", "K\u00e4fer", "\u81ea\u884c\u8eca"),
                n_prompts=2,
                calibration=np.array([[1, 0], [1.5, -2], [0.5, 1]], np.float32),
                nms_iou=np.array([1, 0.5, 0.7], np.float32),
                box_offsets=np.full((3, 4), 0.1, np.float32),
            ),
            learned("one"),
            Vocabulary(("a", "b", "c"), rows, kind="original", guide=guide_digest(rows), **common),
            Vocabulary(("a", "b", "c"), rows, kind="learned", guide_mode="own", guide=guide_digest(rows), **common),
            Vocabulary(("a", "b", "c"), rows, kind="plain", detector="", text_tower="b" * 64, guide="c" * 64),
        )
    )


def damaged(rng: random.Random) -> bytes:
    """A file with one kind of damage, or two."""
    data = rng.choice(bases())
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(8)
    if kind <= 1:
        return mutate_bytes(rng, data)
    if kind == 2:  # of the header alone, with its true length
        changed = mutate_bytes(rng, header)
        return struct.pack("<Q", len(changed)) + changed + body
    content = json.loads(header)
    if kind == 3:  # the table of tensors
        content = _retabled(rng, content)
    elif kind == 4:
        content = mutate_json(rng, content)
    elif kind <= 6:  # our own fields
        fields = mutate_json(rng, json.loads(content["__metadata__"]["prompt-tune"]))
        content["__metadata__"]["prompt-tune"] = json_text(fields)
    else:
        body = _repainted(rng, content, bytearray(body))
    text = json_text(content).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        body = mutate_bytes(rng, body)
    return struct.pack("<Q", len(text)) + text + body


def _retabled(rng: random.Random, content: dict[str, Any]) -> dict[str, Any]:
    """Other types, shapes, places and names of tensors."""
    names = [name for name in content if name != "__metadata__"]
    name = rng.choice(names)
    tensor = content[name]
    kind = rng.randrange(6)
    if kind == 0:
        tensor["dtype"] = rng.choice(DTYPES)
    elif kind == 1:
        shape = tensor["shape"]
        tensor["shape"] = rng.choice(
            (shape[::-1], [*shape, 1], [1, *shape], shape[:-1], [0], [2**40, 2**40], [-1], HOSTILE)
        )
    elif kind == 2:
        tensor["data_offsets"] = rng.choice(([0, 0], [0, 2**63], [8, 4], [-4, 4], [1, 5], [], [0, 4, 8]))
    elif kind == 3:
        content[rng.choice((*names, "extra", "embedding", "", "\x00"))] = content.pop(name)
    elif kind == 4:
        del content[name]
    else:
        content["__metadata__"][rng.choice(("extra", "format", ""))] = "pt"
    return content


def _repainted(rng: random.Random, content: dict[str, Any], body: bytearray) -> bytes:
    """Other numbers in a tensor."""
    name = rng.choice([name for name in content if name != "__metadata__"])
    first, last = content[name]["data_offsets"]
    values = np.frombuffer(bytes(body[first:last]), "<f4").copy()
    part = slice(None) if rng.random() < 0.3 else rng.randrange(len(values))
    if rng.random() < 0.5:
        values[part] = rng.choice(FLOATS)
    else:
        with np.errstate(all="ignore"):
            values[part] = values[part] * np.float32(rng.choice((0.5, 0.99, 1.00001, 1.001, -1, 1e30)))
    body[first:last] = values.tobytes()
    return bytes(body)


if __name__ == "__main__":
    sys.exit(fuzz(__doc__, check, cases=10_000))
