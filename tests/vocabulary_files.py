"""Vocabulary files, good and bad, with the verdict of each: every reader of the format must agree with it.

`python tests/vocabulary_files.py FOLDER` writes them and `verdicts.json`.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from bad_vocabulary_files import bad
from raw_vocabularies import golden_metadata, golden_tensors, header_of, raw_file, tensor, with_content, with_header
from vocabularies import golden, learned, unit_rows

from prompt_tune.vocabulary.vocabulary import guide_digest

SUFFIX = ".vocab.safetensors"


@dataclass(frozen=True)
class Case:
    """A file, and whether it is a vocabulary."""

    name: str
    content: bytes
    good: bool


def cases() -> list[Case]:
    """All files, each with a name of its own. The same in every process."""
    found = [Case(f"good-{name}", content, True) for name, content in good()]
    return found + [Case(name, content, False) for name, content in bad()]


def damaged(count: int, *, seed: int = 0) -> list[Case]:
    """Files with a few random bytes changed, inserted or removed. The verdict is that of `Vocabulary.load`."""
    rng = np.random.default_rng(seed)
    whole = [content for _, content in good() if len(content) < 20_000]
    found = []
    for number in range(count):
        content = bytearray(whole[rng.integers(len(whole))])
        header = 8 + int.from_bytes(content[:8], "little")
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(header if rng.random() < 0.7 else len(content)))
            how = rng.integers(5)
            if how == 0:
                content[place] ^= 1 << int(rng.integers(8))
            elif how == 1:
                content[place] = int(rng.choice(list(b'0123456789.-+eE{}[]",:\\\\ \x00\x7f\xff')))
            elif how == 2:
                del content[place]
            elif how == 3:
                content.insert(place, int(rng.integers(256)))
            else:
                piece = content[place : place + int(rng.integers(1, 40))]
                content[place:place] = piece
            header = min(header, len(content))
        if how >= 2 and rng.random() < 0.8:  # else almost all fail at the first step
            grown = len(content) - len(whole[0])
            content[:8] = struct.pack("<Q", max(0, min(header + grown - 8, len(content))))
        found.append(Case(f"damaged-{number}", bytes(content), False))
    return found


def good() -> Iterator[tuple[str, bytes]]:
    """What every reader takes: names and contents."""
    offsets = [[-0.4, 0, 0.1, 0], [0, 0.4, 0, -0.1]]
    changes: dict[str, Any]
    extras: dict[str, Any] = {"calibration": [[1, 0], [2, -0.5]], "nms_iou": [1, 0.5], "box_offsets": offsets}
    yield "golden", golden().to_bytes()
    yield "golden-with-content", with_content(golden_metadata(), golden_tensors())
    moves = golden_tensors() | {"box_offsets": tensor(offsets)}
    yield "offsets-without-content", raw_file(golden_metadata() | {"version": 2}, moves)
    for name, value in extras.items():
        changes = {name: np.array(value, np.float32)}
        yield name, replace(golden(), **changes).to_bytes()
    changes = {name: np.array(value, np.float32) for name, value in extras.items()}
    all_of_them = replace(golden(), **changes)
    yield "everything", all_of_them.to_bytes()
    yield "plain-for-any-detector", learned("a", kind="plain", detector="").to_bytes()
    yield "one-class", learned("a").to_bytes()
    yield "three-prompts", learned("a", "b", "c", n_prompts=3).to_bytes()
    yield from _with_background()
    own = unit_rows(2, 1)
    for kind, mode in (("original", "original"), ("learned", "own"), ("plain", "own"), ("original", "own")):
        made = learned("a", "b", kind=kind, guide_mode=mode, guide=guide_digest(own))
        yield f"{kind}-{mode}", made.to_bytes()
    names = (
        '"',
        "\\",
        "a b",
        "Ω\u200d",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "👨\u200d👩",
        "\ufeff",
        "\u00ad",
        "e\u0301",
        "é",
        "\u202eabc",
    )
    with_names = golden_metadata() | {"names": [*names]}
    rows = {"embeddings": tensor(unit_rows(len(names), 1)), "thresholds": tensor(np.full(len(names), 0.5))}
    yield "names", raw_file(with_names, rows)
    yield "names-with-content", with_content(with_names, rows)
    yield "thresholds-at-the-ends", raw_file(tensors=golden_tensors() | {"thresholds": tensor([0, 1])})
    yield "least-threshold", raw_file(tensors=golden_tensors() | {"thresholds": tensor([1e-45, 0.999999])})
    near = unit_rows(2, 1).astype(np.float64)
    for share in (1.00009, 0.99991):
        yield f"norm-{share}", raw_file(tensors=golden_tensors() | {"embeddings": tensor(near * share)})
    tensors = golden_tensors()
    yield "tensors-in-another-order", raw_file(tensors=dict(reversed(tensors.items())))
    text, data = header_of(raw_file())
    yield "header-with-spaces", with_header(text.rstrip() + b" " * 77, data)
    yield "header-without-spaces", with_header(text.rstrip(), data)
    yield "header-with-line-breaks", with_header(json.dumps(json.loads(text), indent=1).encode() + b"\n", data)
    entries = json.loads(text)
    yield "header-in-another-order", with_header(json.dumps(dict(reversed(entries.items()))).encode(), data)
    deep: Any = 1
    for _ in range(298):
        deep = [deep]
    for name, value in {
        "empty": {},
        "large": {"a": 1e308, "b": -1e308, "c": 10**300, "d": -7, "e": 1e-400, "f": -0.0},
        "deep": {"a": deep},
        "text": {"": '\u2028 \x00 \x7f \ud800 {["', "{": "}", "a\\": '"', "\ud83d\ude00": None, "t": True},
    }.items():
        yield f"provenance-{name}", raw_file(golden_metadata() | {"provenance": value})


def _with_background() -> Iterator[tuple[str, bytes]]:
    """Original vocabularies with rows that are no class."""
    rows, texts = unit_rows(3, 1), ("", " ", "\u3000", "background", "\u202e", '"\\', "é")
    fields: dict[str, Any] = {"kind": "original", "guide": guide_digest(rows)}
    for text in texts:
        yield f"background-{text!r}", learned("a", "b", "c", background=(("b", text),), **fields).to_bytes()
    two = (("<background>", ""), ("<background 2>", " "))
    yield "background-twice", learned("<background>", "a", "<background 2>", background=two, **fields).to_bytes()
    metadata = golden_metadata() | {"names": ["1", "0", "é"], "background": [["1", ""], ["0", ""]]} | fields
    tensors = {"embeddings": tensor(rows), "thresholds": tensor(np.full(3, 0.5))}
    yield "background-with-content", with_content(metadata, tensors)
    yield "background-without-content", raw_file(metadata | {"version": 2}, tensors)


def write(folder: Path, files: list[Case]) -> list[Path]:
    """Writes the files as numbers, which any disk takes; gives their places, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    places = []
    for number, case in enumerate(files):
        places.append(folder / f"{number}{SUFFIX}")
        places[-1].write_bytes(case.content)
    return places


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Write good and bad vocabulary files into FOLDER; verdicts.json there says which are good."""
    table = cases()
    verdicts = {
        place.name: {"name": case.name, "good": case.good}
        for place, case in zip(write(folder, table), table, strict=True)
    }
    (folder / "verdicts.json").write_text(json.dumps(verdicts, indent=1))
    click.echo(f"{len(table)} files, {sum(case.good for case in table)} of them good")


if __name__ == "__main__":
    main()
