"""Vocabulary files written by hand, byte for byte, without the package's own writer."""

import json
import struct
from typing import Any

import numpy as np
from vocabularies import DETECTOR, GUIDE, TOWER, golden

from prompt_tune.vocabulary.format import content_digest

Tensor = tuple[str, tuple[int, ...], bytes]  # dtype, shape, data


def raw_file(
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
    header: dict[str, Any] | None = None,
) -> bytes:
    """A safetensors file written by hand.

    Args:
        metadata: What the one metadata key holds.
        tensors: name -> (dtype, shape, bytes), in order.
        header: Entries to put in, or in the place of others.
    """
    tensors = golden_tensors() if tensors is None else tensors
    entries: dict[str, Any] = {
        "__metadata__": {"prompt-tune": json.dumps(metadata or golden_metadata(), sort_keys=True)}
    }
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(entries | (header or {}), separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return with_header(text, b"".join(data for _, _, data in tensors.values()))


def with_header(text: bytes, data: bytes, *, length: int | None = None) -> bytes:
    """A file with this header, and a length of the header of one's choice."""
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def header_of(content: bytes) -> tuple[bytes, bytes]:
    """Header and data of a file."""
    start = 8 + int.from_bytes(content[:8], "little")
    return content[8:start], content[start:]


def golden_metadata() -> dict[str, Any]:
    """That of `golden` in version 1."""
    return {
        "version": 1,
        "names": ["lorry", "Käfer"],
        "kind": "learned",
        "guide_mode": "original",
        "detector": DETECTOR,
        "text_tower": TOWER,
        "guide": GUIDE,
        "provenance": {"seed": 0, "metrics": {"ap50": 0.875}},
    }


def golden_tensors() -> dict[str, Tensor]:
    """Those of `golden`."""
    vocabulary = golden()
    return {"embeddings": tensor(vocabulary.embeddings), "thresholds": tensor(vocabulary.thresholds)}


def tensor(values: Any, dtype: str = "F32") -> Tensor:
    """Float32 numbers under a type of one's choice."""
    array = np.asarray(values, np.float32)
    return dtype, array.shape, array.tobytes()


def with_content(metadata: dict[str, Any], tensors: dict[str, Tensor], **changes: Any) -> bytes:
    """A version 2 file with the digest of its content, and changes that the digest does not know of."""
    arrays = {name: np.frombuffer(data, "<f4").reshape(shape) for name, (_, shape, data) in tensors.items()}
    content = {"version": 2, "content": content_digest(metadata, arrays)}
    return raw_file(metadata | content | changes, tensors)
