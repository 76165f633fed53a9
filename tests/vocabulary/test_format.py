import errno
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT
from raw_vocabularies import golden_metadata, golden_tensors, raw_file
from vocabularies import DETECTOR, GUIDE, TOWER, golden, learned, refusal_of

from prompt_tune.errors import VocabularyError
from prompt_tune.files import MAX_METADATA_BYTES
from prompt_tune.vocabulary.format import MAX_FILE_BYTES
from prompt_tune.vocabulary.vocabulary import Vocabulary

GOLDEN_SHA256_WITH_OFFSETS = "e5b6a550cfde0c5e8be9f6b6664bedefdd2bf1ecf9ee9f37a938cf4dabb713b7"
GOLDEN_SHA256 = "55d03ded9a3bf7c1162328cdabab3db5f385d53ad6b23aaa7fd62b2408b756c2"
DAMAGED = (
    "its content does not have the digest that it states: it was damaged or changed. Copy or build the file again."
)


def refusal_of_file(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "some.vocab.safetensors"
    path.write_bytes(content)
    text = refusal_of(lambda: Vocabulary.load(path))
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


# The file: what is in it, byte for byte


def content_by_hand(offsets: np.ndarray | None = None) -> dict[str, Any]:
    """The keys of a version 2 file with the digest of its content, worked out by hand from docs/formats.md."""
    texts = ",".join(f'"{text}"' for text in ("learned", "original", DETECTOR, TOWER, GUIDE))
    shapes = '["embeddings",[2,2,512]],["thresholds",[2]]'
    data = b"".join(data for _, _, data in golden_tensors().values())
    if offsets is not None:
        shapes, data = f'["box_offsets",[2,4]],{shapes}', offsets.tobytes() + data
    text = f'[["lorry","Käfer"],{texts},[{shapes}]]'
    return {"version": 2, "content": hashlib.sha256(text.encode("utf-8") + data).hexdigest()}


def test_file_of_golden_vocabulary_is_what_the_format_says() -> None:
    assert golden().to_bytes() == raw_file()
    assert hashlib.sha256(golden().to_bytes()).hexdigest() == GOLDEN_SHA256


def test_load_of_any_flipped_bit_of_a_tensor_is_refused(tmp_path: Path) -> None:
    vocabulary = learned("a", "b", calibration=[[2, 1], [1, 0]], nms_iou=0.5 * np.ones(2), box_offsets=np.zeros((2, 4)))
    whole = vocabulary.to_bytes()
    begin = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(0)
    for place in [*range(begin, begin + 48), *rng.integers(begin, len(whole), 150), len(whole) - 1]:
        flipped = bytes([whole[place] ^ 1 << int(rng.integers(8))])
        text = refusal_of_file(tmp_path, whole[:place] + flipped + whole[place + 1 :])
        assert text == DAMAGED


@pytest.mark.parametrize(
    "changes",
    [
        {"names": ["lorry", "Kafer"]},
        {"names": ["Käfer", "lorry"]},
        {"kind": "plain"},
        {"detector": "e" * 64},
        {"text_tower": "e" * 64},
        {"guide": "e" * 64},
        {"content": "0" * 64},
        {"content": ""},
        {"content": None},
        {"content": ["0" * 64]},
        {"names": "\ud800"},
    ],
)
def test_load_of_content_with_another_digest_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    content = raw_file(golden_metadata() | content_by_hand() | changes)
    assert refusal_of_file(tmp_path, content) == DAMAGED


def test_content_digest_does_not_cover_the_provenance(tmp_path: Path) -> None:
    path = tmp_path / "a.vocab.safetensors"
    path.write_bytes(raw_file(golden_metadata() | content_by_hand() | {"provenance": {}}))
    assert Vocabulary.load(path).provenance == {}
    assert "a file with a `content` digest has version 2" in refusal_of_file(
        tmp_path, raw_file(golden_metadata() | content_by_hand() | {"version": 1})
    )


def test_file_with_optional_tensors_holds_them_sorted_by_name(tmp_path: Path) -> None:
    calibration, nms_iou = np.array([[1, 0], [2, -0.5]], np.float32), np.array([0.5, 0.6], np.float32)
    tensors = {"calibration": ("F32", (2, 2), calibration.tobytes()), **golden_tensors()}
    tensors = dict(sorted((tensors | {"nms_iou": ("F32", (2,), nms_iou.tobytes())}).items()))
    assert replace(golden(), calibration=calibration, nms_iou=nms_iou).to_bytes() == raw_file(tensors=tensors)
    path = tmp_path / "a.vocab.safetensors"
    path.write_bytes(raw_file(tensors=tensors))
    loaded = Vocabulary.load(path)
    assert loaded.calibration is not None and np.array_equal(loaded.calibration, calibration)
    assert loaded.nms_iou is not None and np.array_equal(loaded.nms_iou, nms_iou)


def test_file_with_box_offsets_is_version_2(tmp_path: Path) -> None:
    offsets = np.array([[-0.05, 0, 0.1, 0], [0, 0.4, 0, -0.4]], np.float32)
    tensors = {"box_offsets": ("F32", (2, 4), offsets.tobytes()), **golden_tensors()}
    saved = replace(golden(), box_offsets=offsets)
    without = raw_file(golden_metadata() | {"version": 2}, tensors=tensors)
    assert saved.to_bytes() == raw_file(golden_metadata() | content_by_hand(offsets), tensors=tensors) != without
    assert hashlib.sha256(saved.to_bytes()).hexdigest() == GOLDEN_SHA256_WITH_OFFSETS
    (tmp_path / "without.vocab.safetensors").write_bytes(without)
    assert Vocabulary.load(tmp_path / "without.vocab.safetensors").to_bytes() == saved.to_bytes()
    saved.save(tmp_path / "a.vocab.safetensors")
    loaded = Vocabulary.load(tmp_path / "a.vocab.safetensors")
    assert loaded.box_offsets is not None and np.array_equal(loaded.box_offsets, offsets)
    assert replace(loaded, box_offsets=None).to_bytes() == golden().to_bytes()  # version 1 again


def test_file_of_same_content_has_same_bytes_however_it_was_made(tmp_path: Path) -> None:
    one, two = tmp_path / "one.vocab.safetensors", tmp_path / "two.vocab.safetensors"
    golden().save(one)
    other_order = replace(golden(), provenance={"metrics": {"ap50": 0.875}, "seed": 0})
    columns = np.asfortranarray(golden().embeddings.astype(np.float64))
    replace(other_order, names=["lorry", "Käfer"], embeddings=columns, thresholds=[0.25, 0.5]).save(two)  # type: ignore[arg-type]
    assert one.read_bytes() == two.read_bytes()
    Vocabulary.load(one).save(two)
    assert one.read_bytes() == two.read_bytes()


def test_file_of_same_content_has_same_bytes_in_every_process() -> None:
    code = "import sys; sys.path.insert(0, 'tests'); from vocabularies import golden; print(golden().to_bytes().hex())"
    for seed in ("0", "1"):  # Python's and Rust's hash order must not matter
        hexed = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert bytes.fromhex(hexed) == golden().to_bytes()


def test_load_of_saved_file_gives_everything_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.vocab.safetensors"  # the folder is made
    saved = learned(
        "lorry", "car", n_prompts=3, thresholds=[0.1, 0.9], calibration=[[2, 1], [1, 0]], provenance={"é": [1.5]}
    )
    saved.save(path)
    loaded = Vocabulary.load(str(path))
    assert loaded.names == ("lorry", "car") and loaded.n_prompts == 3
    assert loaded.embeddings.tobytes() == saved.embeddings.tobytes()
    assert loaded.thresholds.tolist() == [np.float32(0.1), np.float32(0.9)]
    assert loaded.calibration is not None and loaded.calibration.tolist() == [[2, 1], [1, 0]]
    assert (loaded.kind, loaded.guide_mode, loaded.detector) == ("learned", "original", DETECTOR)
    assert (loaded.text_tower, loaded.guide) == (TOWER, GUIDE) and dict(loaded.provenance) == {"é": [1.5]}
    assert os.listdir(path.parent) == [path.name]


# The file: what is refused


def test_load_of_no_file_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing.vocab.safetensors"
    assert refusal_of(lambda: Vocabulary.load(missing)) == f"{missing}: there is no such file. Check the path."
    assert refusal_of(lambda: Vocabulary.load(tmp_path)).endswith("and this is not a file.")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    assert refusal_of(lambda: Vocabulary.load(tmp_path / "pipe")).endswith("and this is not a file.")


def test_load_of_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.vocab.safetensors"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # a hole: takes no room
    assert f"at most {MAX_FILE_BYTES} bytes. Received: {MAX_FILE_BYTES + 1}." in refusal_of(
        lambda: Vocabulary.load(path)
    )


def test_load_of_unreadable_file_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path = tmp_path / "secret.vocab.safetensors"
    golden().save(path)
    path.chmod(0)
    assert "not safetensors, or damaged" in refusal_of(lambda: Vocabulary.load(path))


def test_load_of_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = golden().to_bytes()
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    for end in [*range(header_end + 9), *range(header_end + 9, len(whole), 61), len(whole) - 1]:
        text = refusal_of_file(tmp_path, whole[:end])
        assert "not safetensors, or damaged or cut short (" in text and "Copy or build the file again." in text, end


@pytest.mark.parametrize(
    "content",
    [b"", b"not a vocabulary at all", b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00." + bytes(100), b"\xff" * 64],
)
def test_load_of_foreign_bytes_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "not safetensors, or damaged or cut short (" in refusal_of_file(tmp_path, content)


def test_load_of_file_with_bytes_after_its_end_is_refused(tmp_path: Path) -> None:
    assert "not safetensors, or damaged or cut short (" in refusal_of_file(tmp_path, golden().to_bytes() + b"x")


def metadata_with(**changes: Any) -> bytes:
    return raw_file(golden_metadata() | changes)


def metadata_as(text: str, **others: str) -> bytes:
    return raw_file(header={"__metadata__": {"prompt-tune": text} | others})


def without(key: str) -> bytes:
    return raw_file({name: value for name, value in golden_metadata().items() if name != key})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (raw_file(header={"__metadata__": {}}), "its metadata has no key `prompt-tune`. Copy or build the file again."),
        (raw_file(header={"__metadata__": {"format": "pt"}}), "its metadata has no key `prompt-tune`."),
        (
            metadata_as("{}", format="pt"),
            "its metadata must have no key but `prompt-tune`. Received: ['format', 'prompt-tune']. Copy or build",
        ),
        (metadata_as("{"), "its metadata is not JSON ("),
        (metadata_as(""), "its metadata is not JSON ("),
        (metadata_as('{"version": 1, "version": 1}'), "its metadata is not JSON (a key stands twice)"),
        (metadata_as("[" * 100_000), "its metadata is not JSON ("),
        (metadata_as("[1]"), "its metadata must be a JSON object."),
        (metadata_as("{}"), "its metadata has no `version`."),
        (metadata_with(version=3), "format version 3; this prompt-tune reads versions 1 and 2. Update prompt-tune."),
        (metadata_with(version=3, future=True), "format version 3; this prompt-tune reads versions 1 and 2."),
        (metadata_with(version="1"), "format version '1'; this prompt-tune reads versions 1 and 2."),
        (metadata_with(version=True), "format version True; this prompt-tune reads versions 1 and 2."),
        (metadata_with(version=1.0), "format version 1.0; this prompt-tune reads versions 1 and 2."),
        (without("names"), "its metadata lacks names. Build the file again."),
        (without("kind"), "its metadata lacks kind."),
        (without("guide_mode"), "its metadata lacks guide_mode."),
        (without("detector"), "its metadata lacks detector."),
        (without("text_tower"), "its metadata lacks text_tower."),
        (without("guide"), "its metadata lacks guide."),
        (without("provenance"), "its metadata lacks provenance."),
        (metadata_with(date="today"), "its metadata has unknown keys: ['date']. Update prompt-tune."),
        (metadata_with(names="ab"), "`names` must be a list of class names. Received: 'ab'."),
        (metadata_with(names=None), "`names` must be a list of class names. Received: None."),
        (metadata_with(names={"a": 0, "b": 1}), "`names` must be a list of class names."),
        (metadata_with(names=[]), "A vocabulary must have at least one class."),
        (metadata_with(names=["lorry", 7]), "Class names must be text; class 1 is 7."),
        (metadata_with(names=["lorry", ""]), "The name of class 1 is empty."),
        (metadata_with(names=["lorry", "lorry"]), "Class names must be unique; classes 0 and 1 are both 'lorry'."),
        (metadata_with(names=["lorry", "\x1b[2J"]), "Class names must not have control characters"),
        (metadata_with(names=["lorry"]), "`embeddings` must be (1, n_prompts, 512). Received: (2, 2, 512)."),
        (metadata_with(kind="trained"), "`kind` must be one of original, learned, plain. Received: 'trained'."),
        (metadata_with(kind=["learned"]), "`kind` must be one of original, learned, plain."),
        (metadata_with(guide_mode="joint"), "`guide_mode` must be one of original, own. Received: 'joint'."),
        (metadata_with(detector=""), "`detector` must be a SHA-256 digest, 64 hex digits. Received: ''."),
        (metadata_with(detector="D" * 64), "`detector` must be a SHA-256 digest"),
        (metadata_with(text_tower=None), "`text_tower` must be a SHA-256 digest, 64 hex digits. Received: None."),
        (metadata_with(guide="9" * 63), "`guide` must be a SHA-256 digest"),
        (metadata_with(guide="9" * 64 + "\n"), "`guide` must be a SHA-256 digest"),
        (metadata_with(kind="original"), "`guide` must be the vocabulary's own digest if the kind is `original` or"),
        (metadata_with(guide_mode="own"), "`guide` must be the vocabulary's own digest if"),
        (metadata_with(kind="plain", text_tower=""), "`text_tower` must be a SHA-256 digest"),
        (metadata_with(provenance=[]), "`provenance` must be a JSON object. Received: list."),
        (metadata_with(provenance={"ap50": float("nan")}), "its metadata is not JSON (a number is not finite: NaN)"),
        (metadata_as(json.dumps(golden_metadata()).replace("0.875", "1e999")), "(a number is not finite: 1e999)"),
    ],
)
def test_load_of_bad_metadata_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in refusal_of_file(tmp_path, content)


def test_load_of_metadata_over_the_limit_is_refused(tmp_path: Path) -> None:
    content = metadata_with(provenance={"notes": "x" * MAX_METADATA_BYTES})
    assert f"metadata must fit in {MAX_METADATA_BYTES} bytes of JSON. Received: " in refusal_of_file(tmp_path, content)


def tensors_with(**changes: tuple[str, tuple[int, ...], bytes] | None) -> bytes:
    tensors: dict[str, Any] = golden_tensors() | changes
    return raw_file(tensors={name: tensor for name, tensor in tensors.items() if tensor is not None})


def floats(*shape: int, value: float = 0.0, at: tuple[int, ...] | None = None) -> tuple[str, tuple[int, ...], bytes]:
    """Golden embeddings where the shape is theirs, else the value everywhere; `value` goes to `at` alone if given."""
    array = golden().embeddings.copy() if at is not None else np.full(shape, value, np.float32)
    if at is not None:
        array[at] = value
    return "F32", shape, array.tobytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tensors_with(embeddings=None), "it lacks the tensors embeddings. Build the file again."),
        (tensors_with(thresholds=None), "it lacks the tensors thresholds."),
        (raw_file(tensors={}), "it lacks the tensors embeddings, thresholds."),
        (tensors_with(ctx=floats(1)), "it has unknown tensors: ['ctx']. Update prompt-tune."),
        (
            tensors_with(embeddings=("F16", (2, 2, 512), bytes(4096))),
            "`embeddings` must be float32 (F32). Received: F16.",
        ),
        (
            tensors_with(embeddings=("BF16", (2, 2, 512), bytes(4096))),
            "`embeddings` must be float32 (F32). Received: BF16.",
        ),
        (tensors_with(thresholds=("F64", (2,), bytes(16))), "`thresholds` must be float32 (F32). Received: F64."),
        (tensors_with(embeddings=floats(2, 512)), "`embeddings` must be (2, n_prompts, 512). Received: (2, 512)."),
        (tensors_with(embeddings=floats(2, 2, 1, 512)), "Received: (2, 2, 1, 512)."),
        (tensors_with(embeddings=floats(3, 2, 512)), "Received: (3, 2, 512)."),
        (tensors_with(embeddings=floats(2, 0, 512)), "Received: (2, 0, 512)."),
        (tensors_with(embeddings=floats(2, 2, 256)), "Received: (2, 2, 256)."),
        (
            tensors_with(embeddings=floats(2, 2, 512, value=np.nan, at=(1, 0, 3))),
            "must be finite; those of 'Käfer' are not",
        ),
        (
            tensors_with(embeddings=floats(2, 2, 512, value=np.inf, at=(0, 1, 3))),
            "must be finite; those of 'lorry' are not",
        ),
        (
            tensors_with(embeddings=floats(2, 2, 512, value=-1.5, at=(1, 1, 511))),
            "must have unit L2 norm (within 0.0001); those of 'Käfer' have values from 1 to 1.5. Divide each row",
        ),
        (tensors_with(embeddings=floats(2, 2, 512)), "those of 'lorry' have values from 0 to 0."),
        (tensors_with(embeddings=floats(2, 2, 512, value=3e38, at=(0, 0, 5))), "must have unit L2 norm"),
        (tensors_with(thresholds=floats()), "`thresholds` must have one number per class. Received: a scalar."),
        (
            tensors_with(thresholds=floats(2, 1)),
            "`thresholds` must be 2 numbers from 0 to 1, one per class. Received: shape (2, 1)",
        ),
        (tensors_with(thresholds=floats(3)), "Received: shape (3,)"),
        (tensors_with(thresholds=floats(0)), "Received: shape (0,), no values."),
        (
            tensors_with(thresholds=floats(2, value=1.5)),
            "from 0 to 1, one per class. Received: shape (2,), values from 1.5 to 1.5.",
        ),
        (tensors_with(thresholds=floats(2, value=np.nan)), "values from nan to nan."),
        (tensors_with(calibration=floats(2)), "`calibration` must be (2, 2) finite numbers"),
        (tensors_with(calibration=floats(2, 2, value=np.inf)), "`calibration` must be (2, 2) finite numbers"),
        (
            tensors_with(calibration=floats(2, 2)),
            "a scale above 0 and a shift for each class. Received: shape (2, 2), values f",
        ),
        (
            tensors_with(nms_iou=floats(3, value=0.5)),
            "must be 2 numbers above 0 and at most 1, one per class.",
        ),
        (tensors_with(nms_iou=floats(2)), "Received: shape (2,), values from 0 to 0."),
        (
            metadata_with(version=2),
            "format version 2, but with its tensors a file has version 1. Build the file again.",
        ),
        (tensors_with(box_offsets=floats(2, 4)), "format version 1, but with its tensors a file has version 2."),
        (tensors_with(nms_iou=floats(2, value=1.25)), "Received: shape (2,), values from 1.25 to 1.25."),
        (tensors_with(nms_iou=floats(2, value=np.nan)), "`nms_iou` must be 2 numbers above 0"),
    ],
)
def test_load_of_bad_tensors_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in refusal_of_file(tmp_path, content)


def test_load_of_any_flipped_header_byte_is_refused_or_valid(tmp_path: Path) -> None:
    whole = golden().to_bytes()
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    path = tmp_path / "flipped.vocab.safetensors"
    for place in range(header_end):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            assert Vocabulary.load(path).embeddings.shape == (2, 2, 512)  # a digit of a digest, a letter of a name
        except VocabularyError:
            continue


# Written whole or not at all


def test_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.vocab.safetensors"
    golden().save(path)
    code = """if True:
        import resource, signal, sys
        sys.path.insert(0, "tests")
        from vocabularies import learned
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # a full disk, for this process
        try:
            learned(*map(str, range(100))).save(sys.argv[1])
        except Exception as error:
            print(type(error).__name__, error)
    """
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"VocabularyError Cannot write {path}: {os.strerror(errno.EFBIG)}. Choose another place or make room.\n"
    )
    assert path.read_bytes() == golden().to_bytes()
    assert os.listdir(tmp_path) == [path.name]


def test_save_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    assert "Cannot write" in refusal_of(lambda: golden().save(tmp_path / "folder"))
    assert os.listdir(tmp_path) == ["folder"]
    (tmp_path / "file").write_text("")
    assert "Cannot write" in refusal_of(lambda: golden().save(tmp_path / "file" / "a.vocab.safetensors"))


def test_save_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.vocab.safetensors"
    code = """if True:
        import sys
        sys.path.insert(0, "tests")
        from vocabularies import learned
        one, two = (learned(*map(str, range(2000)), seed=seed) for seed in (1, 2))
        one.save(sys.argv[1])
        print("begun", flush=True)
        while True:
            two.save(sys.argv[1])
            one.save(sys.argv[1])
    """
    either = {learned(*map(str, range(2000)), seed=seed).digest for seed in (1, 2)}
    for delay in (0.0, 0.013, 0.031):
        with subprocess.Popen(
            [sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        assert Vocabulary.load(path).digest in either


def test_save_of_metadata_over_the_limit_writes_nothing(tmp_path: Path) -> None:
    vocabulary = learned("lorry", provenance={"notes": "x" * MAX_METADATA_BYTES})
    assert "must fit in" in refusal_of(lambda: vocabulary.save(tmp_path / "a.vocab.safetensors"))
    assert os.listdir(tmp_path) == []
