"""Files that are no vocabularies, or damaged ones: what every reader must refuse."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from raw_vocabularies import golden_metadata, golden_tensors, header_of, raw_file, tensor, with_content, with_header
from vocabularies import golden, learned, unit_rows

from prompt_tune.vocabulary.format import SINCE
from prompt_tune.vocabulary.vocabulary import guide_digest


def bad() -> Iterator[tuple[str, bytes]]:
    """Names, each different, and contents."""
    for kind in (_cut, _headers, _entries, _metadata, _values, _names, _background, _flipped):
        for number, (name, content) in enumerate(kind()):
            yield f"{kind.__name__[1:]}-{number}-{name}", content


def _cut() -> Iterator[tuple[str, bytes]]:
    whole = golden().to_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for end in (
        0,
        1,
        7,
        8,
        9,
        40,
        start - 1,
        start,
        start + 1,
        start + 4096,
        len(whole) - 8,
        len(whole) - 4,
        len(whole) - 1,
    ):
        yield f"at-{end}", whole[:end]
    yield "longer", whole + b"\x00"
    yield "twice", whole + whole
    for content in (
        b"not a vocabulary at all",
        b"PK\x03\x04" + bytes(100),
        b"\x80\x02}q\x00." + bytes(100),
        b"\xff" * 64,
    ):
        yield "foreign", content
    yield "zeros", bytes(4096)


def _headers() -> Iterator[tuple[str, bytes]]:
    text, data = header_of(raw_file())
    length = len(text)
    for wrong in (0, 1, length - 1, length + 1, length + 8, 2**31, 2**53, 2**63, 2**64 - 1):
        yield f"length-{wrong}", with_header(text, data, length=wrong)
    plain = text.decode().rstrip()
    yield "bom", with_header(b"\xef\xbb\xbf" + text, data)
    yield "space-before", with_header(b" " + text, data)
    yield "nul-after", with_header(text + b"\x00", data)
    yield "utf-16", with_header(plain.encode("utf-16-le"), data)
    yield "latin-1", with_header(plain.replace("__metadata__", "__metadat\u00e4__").encode("latin-1"), data)
    yield "list", with_header(b"[" + text + b"]", data)
    yield "null", with_header(b"null", data)
    yield "empty", with_header(b"{}", data)
    yield "comma", with_header(plain[:-1].encode() + b",}", data)
    yield "comment", with_header(plain.encode() + b"//", data)
    entry = json.dumps(json.loads(plain)["thresholds"])
    yield "tensor-twice", with_header((plain[:-1] + f',"thresholds":{entry}}}').encode(), data)
    escaped = '"\\u0074hresholds"'
    yield "tensor-twice-escaped", with_header((plain[:-1] + f",{escaped}:{entry}}}").encode(), data)
    metadata = json.dumps(json.loads(plain)["__metadata__"])
    yield "metadata-twice", with_header((plain[:-1] + f',"__metadata__":{metadata}}}').encode(), data)
    yield "dtype-twice", with_header(plain.replace('"dtype":"F32"', '"dtype":"F32","dtype":"F32"', 1).encode(), data)
    yield (
        "key-twice",
        with_header(plain.replace('"prompt-tune":', '"prompt-tune":"{}","prompt-tune":', 1).encode(), data),
    )


def _entries() -> Iterator[tuple[str, bytes]]:
    def header(**changes: Any) -> bytes:
        entry = {"dtype": "F32", "shape": [2], "data_offsets": [8192, 8200]} | changes
        return raw_file(header={"thresholds": {key: value for key, value in entry.items() if value != "absent"}})

    assert header() == raw_file()
    for dtype in ("F16", "BF16", "F64", "I32", "U32", "I64", "BOOL", "f32", "F32 ", "", None, 32, ["F32"], "absent"):
        yield f"dtype-{dtype}", header(dtype=dtype)
    shape: Any
    for shape in (
        [2.0],
        [-2],
        [True],
        ["2"],
        [None],
        [[2]],
        "2",
        2,
        None,
        [],
        [2, 1],
        [1, 2],
        [1],
        [3],
        [0],
        [2, 0],
        {},
        "absent",
    ):
        yield f"shape-{shape}", header(shape=shape)
    offsets: Any
    for offsets in (
        *([8192.0, 8200], [8192, 8200.0], [8200, 8192], [8188, 8196], [8196, 8204], [8191, 8199], [0, 8], [8192, 8196]),
        *([8192], [8192, 8200, 8208], [], [-8, 0], [True, 8200], ["8192", "8200"], None, 8192, "absent", {}),
        *([8192, 2**63], [2**64, 2**64 + 8], [None, None], [[8192], [8200]], [8192, 8192]),
    ):
        yield f"offsets-{offsets}", header(data_offsets=offsets)
    yield "more", header(note="x")
    entry: Any
    for entry in (None, [], "F32", 7, {}):
        yield f"entry-{entry}", raw_file(header={"thresholds": entry})
    text, data = header_of(raw_file())
    for old, new in (
        (b"[0,8192]", b"[-0,8192]"),
        (b"[0,8192]", b"[0e0,8192]"),
        (b"[0,8192]", b"[0,8.192e3]"),
        (b"[0,8192]", b"[00,8192]"),
        (b"[8192,8200]", b"[8192,NaN]"),
        (b"[2,2,512]", b"[2,2,5.12e2]"),
        (b"[2,2,512]", b"[true,2,512]"),
        (b"[2,2,512]", b"[2," + b"9" * 400 + b",512]"),
        (b"[2,2,512]", b"[2," + b"9" * 5000 + b",512]"),
    ):
        assert old in text
        yield f"number-{new[:20].decode()}", with_header(text.replace(old, new), data)
    gap = dict(json.loads(text))
    gap["thresholds"] = gap["thresholds"] | {"data_offsets": [8196, 8204]}
    yield "gap", with_header(json.dumps(gap).encode(), data + bytes(4))
    both = golden_tensors()
    for dtype, size in (("F16", 2), ("BF16", 2), ("F64", 8)):
        halves = both | {"embeddings": (dtype, (2, 2, 512), bytes(2048 * size))}
        yield f"embeddings-{dtype}", raw_file(tensors=halves)
    yield (
        "f16-with-the-length-of-f32",
        raw_file(tensors=both | {"embeddings": ("F16", (2, 4, 512), both["embeddings"][2])}),
    )
    yield "unknown-tensor", raw_file(tensors=both | {"ctx": tensor([1])})
    yield "unknown-empty-tensor", raw_file(tensors=both | {"ctx": tensor(np.zeros(0))})
    yield "proto", raw_file(tensors=both | {"__proto__": tensor([1])})
    yield "constructor", raw_file(tensors=both | {"constructor": tensor([1])})
    for name in both:
        yield f"no-{name}", raw_file(tensors={key: value for key, value in both.items() if key != name})


def _metadata() -> Iterator[tuple[str, bytes]]:
    for block in (
        {},
        {"format": "pt"},
        {"prompt-tune": "{}", "format": "pt"},
        None,
        [],
        ["prompt-tune"],
        "prompt-tune",
        7,
    ):
        yield f"block-{block}", raw_file(header={"__metadata__": block})
    value: Any
    for value in (None, {}, [], 7, golden_metadata()):
        yield f"no-text-{type(value).__name__}", raw_file(header={"__metadata__": {"prompt-tune": value}})
    whole = json.dumps(golden_metadata(), sort_keys=True)
    texts = {
        "empty": "",
        "cut": whole[:-1],
        "list": f"[{whole}]",
        "number": "1",
        "nothing": "{}",
        "twice": whole[:-1] + ', "version": 1}',
        "twice-escaped": whole[:-1] + ', "\\u0076ersion": 1}',
        "twice-inside": whole.replace('"seed": 0', '"seed": 0, "seed": 0'),
        "twice-in-a-list": whole.replace('"seed": 0', '"a": [{"b": 1, "c": 2, "b": 1}]'),
        "nan": whole.replace("0.875", "NaN"),
        "infinity": whole.replace("0.875", "-Infinity"),
        "too-large": whole.replace("0.875", "1e999"),
        "many-digits": whole.replace("0.875", "9" * 310),
        "digits-without-end": whole.replace("0.875", "9" * 100_000),
        "deep": whole.replace("0.875", "[" * 299 + "]" * 299),
        "too-deep-to-recurse": whole.replace("0.875", "[" * 100_000 + "]" * 100_000),
        "deep-objects": whole.replace("0.875", '{"a":' * 100_000 + "1" + "}" * 100_000),
        "bom": "\ufeff" + whole,
        "version-float": whole.replace('"version": 1', '"version": 1.0'),
        "version-exponent": whole.replace('"version": 1', '"version": 1e0'),
        "version-large": whole.replace('"version": 1', '"version": ' + "9" * 5000),
        "single-quotes": whole.replace('"', "'"),
        "too-long": whole + " " * 2**24,
    }
    for name, text in texts.items():
        yield f"text-{name}", raw_file(header={"__metadata__": {"prompt-tune": text}})
    for key in golden_metadata():
        yield f"no-{key}", raw_file({name: value for name, value in golden_metadata().items() if name != key})
    changes: dict[str, list[Any]] = {
        "version": [0, 2, 3, -1, "1", True, None, [1], {}],
        "kind": ["trained", "", None, ["learned"], "Learned", "original", 1, {}],
        "guide_mode": ["joint", "", None, "own", ["original"], 0],
        "detector": ["", "D" * 64, "9" * 63, "9" * 65, "9" * 64 + "\n", "g" * 64, None, 7, ["9" * 64]],
        "text_tower": ["", "D" * 64, "9" * 63, None, 7],
        "guide": ["", "D" * 64, "9" * 63, "9" * 64 + "\n", None, {}],
        "provenance": [[], None, "", 0, "{}"],
        "date": ["today"],
        "constructor": [1],
        "content": ["0" * 64],  # in version 1
    }
    for key, values in changes.items():
        for value in values:
            yield f"{key}-{str(value)[:12]}", raw_file(golden_metadata() | {key: value})
    yield "plain-without-tower", raw_file(golden_metadata() | {"kind": "plain", "text_tower": ""})


def _values() -> Iterator[tuple[str, bytes]]:
    def changed(name: str, place: tuple[int, ...], value: float, **fields: Any) -> bytes:
        array = {
            "embeddings": golden().embeddings,
            "thresholds": golden().thresholds,
            "calibration": np.array([[1, 0], [2, -0.5]], np.float32),
            "nms_iou": np.array([1, 0.5], np.float32),
            "box_offsets": np.zeros((2, 4), np.float32),
        }[name].copy()
        array[place] = value
        version = {"version": SINCE.get(name, 1)}
        return raw_file(golden_metadata() | version | fields, golden_tensors() | {name: tensor(array)})

    nan, inf = float("nan"), float("inf")
    wrong: dict[str, list[float]] = {
        "embeddings": [nan, inf, -inf, 0.02, 1.5, 3e38, -2],
        "thresholds": [nan, inf, -inf, -1e-6, 1.0001, 7],
        "nms_iou": [nan, inf, 0, -0.5, 1.0001],
        "box_offsets": [nan, inf, -inf, 0.401, -0.401, 1],
    }
    for name, values in wrong.items():
        for value in values:
            place: tuple[int, ...] = {"embeddings": (1, 0, 3), "box_offsets": (1, 2)}.get(name, (1,))
            yield f"{name}-{value}", changed(name, place, value)
    for place, value in (((0, 0), 0), ((0, 0), -1), ((1, 0), nan), ((0, 0), inf), ((0, 1), nan), ((1, 1), -inf)):
        yield f"calibration-{place}-{value}", changed("calibration", place, value)
    own = guide_digest(golden().embeddings)
    yield "original-with-offsets", changed("box_offsets", (0, 0), 0.1, kind="original", guide=own)
    yield "offsets-in-version-1", changed("box_offsets", (0, 0), 0.1, version=1)
    for share in (1.00012, 0.99988, 0):
        rows = tensor(unit_rows(2, 1).astype(np.float64) * share)
        yield f"norm-{share}", raw_file(tensors=golden_tensors() | {"embeddings": rows})
    half = tensor(unit_rows(2, 1, seed=3).astype(np.float16) * np.float16(1.001))
    yield "rounded-to-float16", raw_file(tensors=golden_tensors() | {"embeddings": half})
    shapes: dict[str, list[tuple[int, ...]]] = {
        "embeddings": [
            (2, 512),
            (2, 2, 1, 512),
            (3, 2, 512),
            (1, 2, 512),
            (2, 0, 512),
            (2, 2, 256),
            (2, 2, 1024),
            (0, 2, 512),
            (),
        ],
        "thresholds": [(), (1,), (3,), (0,), (2, 1), (1, 2)],
        "calibration": [(), (2,), (2, 1), (1, 2), (3, 2), (4,), (2, 2, 1)],
        "nms_iou": [(), (1,), (3,), (2, 1)],
        "box_offsets": [(), (2,), (2, 3), (4, 2), (8,), (1, 4)],
    }
    for name, sizes in shapes.items():
        for size in sizes:
            filled = np.full(size, 0.3, np.float32)
            if name == "embeddings" and size and size[-1]:
                filled = np.full(size, size[-1] ** -0.5, np.float32)  # unit rows of another shape
            fields = golden_metadata() | {"version": SINCE.get(name, 1)}
            yield f"{name}-{size}", raw_file(fields, golden_tensors() | {name: tensor(filled)})
    for kind, mode in (("original", "original"), ("learned", "own"), ("plain", "own")):
        other = golden_metadata() | {
            "kind": kind,
            "guide_mode": mode,
            "guide": own[:-1] + ("0" if own[-1] != "0" else "1"),
        }
        yield f"guide-of-{kind}-{mode}", raw_file(other)


def _names() -> Iterator[tuple[str, bytes]]:
    for names in (
        *("ab", None, 7, True, [], {}, {"lorry": 0, "car": 1}, ["lorry"], ["lorry", "car", "van"], ["lorry", "lorry"]),
        *(["lorry", ""], ["lorry", " "], ["lorry", "\u3000\u00a0"], ["lorry", 7], ["lorry", None], ["lorry", ["car"]]),
        *(["lorry", "a\nb"], ["lorry", "\x1b[2J"], ["lorry", "\x00"], ["lorry", "a\x7f"], ["lorry", "\x85"]),
        *(["lorry", "a\u2028"], ["lorry", "\u2029"], ["lorry", "\ud800"], ["lorry", "a\udfff"], ["lorry", "\t"]),
    ):
        yield ascii(names)[:30], raw_file(golden_metadata() | {"names": names})


def _background() -> Iterator[tuple[str, bytes]]:
    guide = guide_digest(golden().embeddings)
    original = golden_metadata() | {"kind": "original", "guide": guide, "version": 2}
    value: Any
    for value in (
        *(None, [], {}, "", "lorry", 1, True, {"Käfer": " "}, ["Käfer", " "], [["Käfer"]], [["Käfer", " ", " "]]),
        *([["Käfer", None]], [["Käfer", 1]], [[1, " "]], [["car", " "]], [["Käfer", " "], ["Käfer", " "]]),
        *([["Käfer", " "], ["lorry", " "]], [["lorry", " "], ["Käfer", " "]], [["Käfer", "\n"]], [["Käfer", "\ud800"]]),
        *([["Käfer", "\u2028"]], [["Käfer", "\x7f"]], [{"Käfer": " "}], [[["Käfer"], " "]], [None], [[]]),
    ):
        yield ascii(value)[:40], raw_file(original | {"background": value})
    marked = original | {"background": [["Käfer", " "]]}
    yield "in-version-1", raw_file(marked | {"version": 1})
    yield "learned", raw_file(golden_metadata() | {"version": 2, "background": [["Käfer", " "]]})
    yield "plain", raw_file(golden_metadata() | {"version": 2, "kind": "plain", "background": [["Käfer", " "]]})
    whole = golden_metadata() | {"kind": "original", "guide": guide, "background": [["Käfer", " "]]}
    for value in ([["lorry", " "]], [["Käfer", ""]]):
        yield f"other-{value[0]}", with_content(whole, golden_tensors(), background=value)
    unmarked = {key: value for key, value in whole.items() if key != "background"}
    yield "mark-added", with_content(unmarked, golden_tensors(), background=[["Käfer", " "]])
    entries = json.loads(header_of(with_content(whole, golden_tensors()))[0])
    fields = json.loads(entries["__metadata__"]["prompt-tune"])
    del fields["background"]
    yield "mark-removed", raw_file(fields, golden_tensors())


def _flipped() -> Iterator[tuple[str, bytes]]:
    offsets = np.array([[-0.05, 0, 0.1, 0], [0, 0.1, 0, -0.1]], np.float32)
    whole = learned("a", "b", box_offsets=offsets, nms_iou=np.full(2, 0.5), calibration=[[1, 0], [2, 1]]).to_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    places = [
        *rng.integers(start, len(whole), 60).tolist(),
        *rng.integers(start, start + 56, 20).tolist(),
        len(whole) - 1,
    ]
    for place in places:
        flipped = bytes([whole[place] ^ 1 << int(rng.integers(8))])
        yield f"bit-at-{place}", whole[:place] + flipped + whole[place + 1 :]
    tensors = golden_tensors()
    changes: dict[str, Any] = {
        "names": ["lorry", "Kafer"],
        "kind": "plain",
        "detector": "e" * 64,
        "text_tower": "e" * 64,
        "guide": "e" * 64,
        "content": "0" * 64,
    }
    for key, value in changes.items():
        yield f"other-{key}", with_content(golden_metadata(), tensors, **{key: value})
    for value in ("", None, 7, ["0" * 64], "F" * 64):
        yield f"content-{value}"[:20], with_content(golden_metadata(), tensors, content=value)
    yield "content-in-version-1", with_content(golden_metadata(), tensors, version=1)
    swapped = golden_metadata() | {"names": ["Käfer", "lorry"]}
    yield "names-swapped", with_content(golden_metadata(), tensors, names=swapped["names"])
    yield "version-2-without-a-reason", raw_file(golden_metadata() | {"version": 2})
