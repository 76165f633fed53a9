"""Conversion to and from AILab's `.npy` and ibaiGorordo's `.npz`, written here as those projects write them."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_command
from damage import damaged
from vocabularies import DETECTOR, TOWER, learned, refusal_of, unit_rows

from prompt_tune.errors import VocabularyError
from prompt_tune.vocabulary.foreign import convert, from_foreign, to_foreign
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

DEEP: object = []
for _ in range(100):
    DEEP = [DEEP]
NAMES = ("person", "traffic light", "Käfer")


@pytest.fixture
def original() -> Vocabulary:
    """The original vocabulary that files are converted for: it has "person" too, with the same embedding."""
    rows = np.concatenate([unit_rows(2, 1, seed=5), unit_rows(3, seed=1)[:1, None]])  # (3, 1, 512)
    return Vocabulary(
        ("car", "dog", "person"),
        rows,
        kind="original",
        detector=DETECTOR,
        text_tower=TOWER,
        guide=guide_digest(rows),
    )


def write_ailab(folder: Path, rows: np.ndarray, texts: object = None) -> Path:
    np.save(folder / "a.npy", rows)
    (folder / "a.json").write_text(json.dumps([[name] for name in NAMES] if texts is None else texts))
    return folder / "a.npy"


def write_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.npy")
    return folder / "a.npy"


def write_huge(folder: Path) -> Path:
    """A file whose header promises 4 PB."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1024), }"
    (folder / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return folder / "a.npy"


def write_ibai(folder: Path, rows: np.ndarray, **other: Any) -> Path:
    np.savez(folder / "b.npz", **({"class_embeddings": rows[None], "class_list": np.array(NAMES)} | other))
    return folder / "b.npz"


@pytest.mark.parametrize("write", [write_ailab, write_ibai])
def test_foreign_file_becomes_a_plain_vocabulary_for_the_original_one(
    write: Callable[..., Path], original: Vocabulary, tmp_path: Path
) -> None:
    rows = unit_rows(3, seed=1)
    vocabulary = from_foreign(write(tmp_path, rows), original)
    assert vocabulary.names == NAMES and vocabulary.kind == "plain"
    assert vocabulary.embeddings.tobytes() == rows.tobytes()
    assert (vocabulary.detector, vocabulary.text_tower, vocabulary.guide) == (DETECTOR, TOWER, original.digest)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_round_trips_are_bit_exact(suffix: str, original: Vocabulary, tmp_path: Path) -> None:
    ours = learned(*NAMES, seed=1)
    there = tmp_path / f"there{suffix}"
    to_foreign(ours, there)
    back = from_foreign(there, original, kind="learned")
    assert (back.names, back.embeddings.tobytes()) == (ours.names, ours.embeddings.tobytes())

    again = tmp_path / "again" / there.name
    to_foreign(back, again)
    if suffix == ".npy":
        assert again.read_bytes() == there.read_bytes()
        assert again.with_suffix(".json").read_bytes() == there.with_suffix(".json").read_bytes()
    else:  # a zip tells when it was made
        first, second = np.load(there), np.load(again)
        assert {key: first[key].tobytes() for key in first} == {key: second[key].tobytes() for key in second}


def test_written_npy_is_what_the_reparameterize_script_reads(tmp_path: Path) -> None:
    ours = learned(*NAMES)
    assert to_foreign(ours, tmp_path / "x.npy") == [tmp_path / "x.npy", tmp_path / "x.json"]
    rows = np.load(tmp_path / "x.npy")
    assert rows.dtype == np.float32 and rows.shape == (3, 512)
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == [["person"], ["traffic light"], ["Käfer"]]


def test_written_npz_is_what_read_class_embeddings_reads(tmp_path: Path) -> None:
    to_foreign(learned(*NAMES), tmp_path / "x.npz")
    data = np.load(tmp_path / "x.npz")
    assert data["class_embeddings"].dtype == np.float32 and data["class_embeddings"].shape == (1, 3, 512)
    assert data["class_list"].tolist() == list(NAMES)


def test_prompts_that_repeat_are_one_and_several_are_refused(tmp_path: Path) -> None:
    padded = Vocabulary(
        NAMES, learned(*NAMES).padded(3), kind="learned", detector=DETECTOR, text_tower=TOWER, guide="9" * 64
    )
    to_foreign(padded, tmp_path / "x.npy")
    assert np.array_equal(np.load(tmp_path / "x.npy"), padded.embeddings[:, 0])
    text = refusal_of(lambda: to_foreign(learned(*NAMES, n_prompts=2), tmp_path / "y.npy"))
    assert text.startswith("y.npy has room for one embedding per class, but 'person' has several prompts.")
    assert not (tmp_path / "y.npy").exists() and not (tmp_path / "y.json").exists()


def test_what_stays_behind_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        to_foreign(
            learned(*NAMES, calibration=np.ones((3, 2)), nms_iou=[0.5] * 3, box_offsets=np.zeros((3, 4))),
            tmp_path / "x.npz",
        )
    assert "no place for thresholds, calibration, nms_iou, box_offsets and digests" in caplog.text


def test_kind_original_is_its_own_guide(original: Vocabulary, tmp_path: Path) -> None:
    vocabulary = from_foreign(write_ailab(tmp_path, unit_rows(3, seed=1)), original, kind="original")
    assert vocabulary.guide == vocabulary.digest != original.digest


def test_embeddings_of_another_tower_are_refused_unless_they_are_tuned(original: Vocabulary, tmp_path: Path) -> None:
    path = write_ibai(tmp_path, unit_rows(3, seed=2))  # another "person"
    text = refusal_of(lambda: from_foreign(path, original))
    assert "'person' has a cosine of" in text and "--kind learned" in text
    assert from_foreign(path, original, kind="learned").kind == "learned"


def test_without_a_shared_name_one_line_says_that_nothing_was_checked(
    original: Vocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        from_foreign(write_ailab(tmp_path, unit_rows(3), [["a"], ["b", "bee"], ["c"]]), original)
    assert "was not checked" in caplog.text and "first text of each class" in caplog.text


def test_rows_of_float16_need_normalise(original: Vocabulary, tmp_path: Path) -> None:
    rows = unit_rows(3, seed=1)
    rows[1] *= 1.0005  # what a norm computed in float16 leaves
    path = write_ibai(tmp_path, rows)
    text = refusal_of(lambda: from_foreign(path, original))
    assert "'traffic light'" in text and text.endswith("Made in float16? Give --normalise.")
    vocabulary = from_foreign(path, original, normalise=True)
    assert np.abs(np.linalg.norm(vocabulary.embeddings, axis=-1) - 1).max() < 1e-6
    assert vocabulary.provenance["converted"]["normalised"] is True
    path = write_ibai(tmp_path, rows * 7)
    assert "takes norms within 0.01 of 1." in refusal_of(lambda: from_foreign(path, original, normalise=True))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda folder: folder / "nowhere.npy", "there is no such file"),
        (
            lambda folder: write_ailab(folder, unit_rows(3)[:, :256]),
            "must be float32 (n_cls, 512), from CLIP",
        ),
        (lambda folder: write_ailab(folder, unit_rows(3).astype(np.float16)), "Received: float16 (3, 512)."),
        (lambda folder: write_ailab(folder, unit_rows(1, 3)), "Received: float32 (1, 3, 512)."),
        (lambda folder: write_ailab(folder, unit_rows(2)), "Received: 3 names, 2 rows."),
        (lambda folder: write_ailab(folder, unit_rows(3) * np.nan), "must be finite"),
        (lambda folder: write_ailab(folder, unit_rows(3), ["a", "b", "c"]), "must hold class names"),
        (lambda folder: write_ailab(folder, unit_rows(3), [["a"], [], ["c"]]), "must hold class names"),
        (lambda folder: write_ailab(folder, unit_rows(3), [["a"], ["a"], ["c"]]), "Class names must be unique"),
        (
            lambda folder: write_ailab(folder, unit_rows(3), [["a"], ["exe.\u202egnp"], ["c"]]),
            "control the direction of text",
        ),
        (lambda folder: write_ailab(folder, unit_rows(3), DEEP), "is not a readable JSON file (it is nested more than"),
        (lambda folder: write_pipe(folder), "is a pipe, a socket or a device"),
        (lambda folder: write_huge(folder), "is not an array file of numbers, or is damaged"),
        (lambda folder: write_ibai(folder, unit_rows(2, 3)), "must be float32 (1, n_cls, 512)"),
        (lambda folder: write_ibai(folder, unit_rows(3), class_list=np.arange(3)), "`class_list` must be strings"),
        (lambda folder: write_ibai(folder, unit_rows(3), class_list=np.array(["a"])), "Received: 1 names, 3 rows."),
    ],
)
def test_bad_file_is_refused_with_a_reason(
    write: Callable[[Path], Path], reason: str, original: Vocabulary, tmp_path: Path
) -> None:
    path = write(tmp_path)
    assert reason in refusal_of(lambda: from_foreign(path, original))


def test_files_with_pickles_cut_short_or_of_the_other_kind_are_refused(original: Vocabulary, tmp_path: Path) -> None:
    path = write_ailab(tmp_path, unit_rows(3))
    whole = path.read_bytes()
    np.save(path, np.array([{"a": 1}], object))  # needs a pickle
    assert "is not an array file of numbers, or is damaged" in refusal_of(lambda: from_foreign(path, original))
    path.write_bytes(whole[:-9])
    assert "is not an array file of numbers, or is damaged" in refusal_of(lambda: from_foreign(path, original))
    path.write_bytes(b"")
    assert "is not an array file of numbers, or is damaged" in refusal_of(lambda: from_foreign(path, original))
    path.write_bytes(write_ibai(tmp_path, unit_rows(3)).read_bytes())
    assert "If it is an .npz, rename it." in refusal_of(lambda: from_foreign(path, original))
    other = tmp_path / "other.npz"
    other.write_bytes(whole)
    assert "If it is a .npy, rename it." in refusal_of(lambda: from_foreign(other, original))
    np.savez(other, embeddings=unit_rows(3))
    assert "lacks class_embeddings, class_list; it has: embeddings." in refusal_of(
        lambda: from_foreign(other, original)
    )


def test_convert_finds_its_direction_and_refuses_what_does_not_fit(original: Vocabulary, tmp_path: Path) -> None:
    npy, ours = write_ailab(tmp_path, unit_rows(3, seed=1)), tmp_path / "ours.vocab.safetensors"
    original.save(tmp_path / "original.vocab.safetensors")
    assert convert(npy, ours, original=tmp_path) == [ours]  # a bundle's folder
    out = tmp_path / "out.npz"
    for action, reason in (
        (lambda: convert(npy, ours), "Give --original"),
        (lambda: convert(npy, ours, original=ours), "must be a vocabulary of kind `original`"),
        (lambda: convert(npy, out), "Received: a.npy, out.npz."),
        (lambda: convert(ours, ours), "Received: ours.vocab.safetensors, ours.vocab.safetensors."),
        (lambda: convert(ours, out, classes=npy), "contains its class names"),
        (lambda: convert(ours, out, normalise=True), "are for reading"),
        (lambda: convert(npy, ours, original=tmp_path, classes=tmp_path / "no.json"), "No class names: there is no"),
    ):
        assert reason in refusal_of(action)
    assert not out.exists()


def test_vocab_convert_on_the_command_line(
    original: Vocabulary, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    npy, ours = write_ailab(tmp_path, unit_rows(3, seed=1)), tmp_path / "ours.vocab.safetensors"
    original.save(tmp_path / "o.vocab.safetensors")
    done = run_command(capfd, "vocab", "convert", npy, ours, "--original", tmp_path / "o.vocab.safetensors")
    assert (done.status, done.out) == (0, f"Wrote {ours}.\n")
    done = run_command(capfd, "vocab", "convert", ours, tmp_path / "x.npy", "--classes", tmp_path / "texts.json")
    assert (done.status, done.out) == (0, f"Wrote {tmp_path / 'x.npy'} and {tmp_path / 'texts.json'}.\n")
    assert (tmp_path / "x.npy").read_bytes() == npy.read_bytes()
    done = run_command(capfd, "vocab", "convert", npy, ours)
    assert done.status == 1 and done.err.startswith("Error: ") and "Give --original" in done.err


@pytest.mark.timeout(60)
def test_damaged_array_files_are_refused_in_one_line(original: Vocabulary, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_ailab(tmp_path, unit_rows(3, seed=1))
    write_ibai(tmp_path, unit_rows(3, seed=1))
    files = {suffix: (tmp_path / name).read_bytes() for suffix, name in ((".npy", "a.npy"), (".npz", "b.npz"))}
    refused = 0
    for number in range(400):
        suffix = (".npz", ".npy")[number % 2]
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(damaged(files[suffix], rng))
        (tmp_path / f"{number}.json").write_text((tmp_path / "a.json").read_text())
        try:
            from_foreign(path, original)
        except VocabularyError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 200


def test_archive_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(
    original: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is that of vocabulary files, 2.25 GiB; a smaller one stands in for it here."""
    monkeypatch.setattr("prompt_tune.vocabulary.foreign.MAX_FILE_BYTES", 1_000_000)
    path = tmp_path / "b.npz"
    np.savez_compressed(path, class_embeddings=unit_rows(3)[None], class_list=np.array(NAMES), more=np.zeros(2_000_000))
    assert path.stat().st_size < 100_000
    text = refusal_of(lambda: from_foreign(path, original))
    assert text.startswith(f"{path}: at most 1,000,000 bytes are read. It has 16,00") and text.endswith(". Split it.")
    np.save(tmp_path / "a.npy", np.zeros((600, 512), np.float32))
    assert "at most 1,000,000 bytes are read. It has 1,228," in refusal_of(
        lambda: from_foreign(tmp_path / "a.npy", original)
    )


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_pipe_is_refused_at_once(original: Vocabulary, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(VocabularyError, match="is a pipe, a socket or a device"):
        from_foreign(tmp_path / name, original)


@pytest.mark.parametrize("text", [" ", ""])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_blank_text_is_a_background_row_of_an_original_vocabulary_only(
    suffix: str, text: str, original: Vocabulary, tmp_path: Path
) -> None:
    """YOLO-World's authors end a vocabulary with [" "]."""
    rows, texts = unit_rows(3, seed=1), ["person", "traffic light", text]
    if suffix == ".npy":
        source = write_ailab(tmp_path, rows, [[name] for name in texts])
    else:
        source = write_ibai(tmp_path, rows, class_list=np.array(texts))
    read = from_foreign(source, original, kind="original")
    assert read.names == ("person", "traffic light", "<background>") and read.background == (("<background>", text),)
    assert read.embeddings.tobytes() == rows.tobytes() and read.guide == read.digest
    reason = refusal_of(lambda: from_foreign(source, original))
    assert reason.endswith("Give every class a name. Is it a background row? Only --kind original has such rows.")
    there = tmp_path / f"there{suffix}"
    to_foreign(read, there)
    if suffix == ".npy":
        assert json.loads(there.with_suffix(".json").read_text()) == [[name] for name in texts]
    else:
        assert np.load(there)["class_list"].tolist() == texts


def write_bound(folder: Path, rows: np.ndarray, **other: Any) -> Path:
    """As `save_prompt_embeddings` of ultralytics 8.4 writes it."""
    fields = {"embeddings": rows[None], "names": np.array(NAMES), "model": np.array("yoloe-11s")} | other
    np.savez_compressed(folder / "c.npz", **fields)
    return folder / "c.npz"


def test_file_that_ultralytics_saved_is_read(original: Vocabulary, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="ultralytics needs it")
    import torch

    from prompt_tune.models.ultralytics import quiet_import

    rows = unit_rows(3, seed=1)
    model = quiet_import("ultralytics").YOLOE("yoloe-11n.yaml")
    model.set_classes(list(NAMES), torch.tensor(rows[None]))
    saved = model.save_prompt_embeddings(tmp_path / "saved.npz")
    read = from_foreign(saved, original)
    assert (read.names, read.kind, read.guide) == (NAMES, "plain", original.digest)
    assert read.embeddings.tobytes() == rows.tobytes()
    assert read.provenance["converted"]["model"] == "yoloe-11n"


def test_file_for_one_model_must_share_a_name(
    original: Vocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = unit_rows(3, seed=1)
    assert from_foreign(write_bound(tmp_path, rows), original).names == NAMES  # both have "person"
    other = write_bound(tmp_path, unit_rows(3, seed=2))
    assert "'person' has a cosine of" in refusal_of(lambda: from_foreign(other, original))
    apart = write_bound(tmp_path, rows, names=np.array(["a", "b", "c"]))
    text = refusal_of(lambda: from_foreign(apart, original))
    assert "was saved for 'yoloe-11s', and shares no name with the original vocabulary" in text
    with caplog.at_level(logging.INFO):
        assert from_foreign(apart, original, kind="learned").names == ("a", "b", "c")
    assert "was saved for 'yoloe-11s'. Its text tower was not checked." in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"names": np.array([1, 2, 3])}, "`names` must be strings (n_cls,). Received: int64 (3,)."),
        ({"model": np.array(["a"])}, "`model` must be a string. Received: <U1 (1,)."),
        ({"model": np.array(7)}, "`model` must be a string."),
        ({"names": np.array(["a"])}, "must have the same number of classes. Received: 1 names, 3 rows."),
        ({"embeddings": np.zeros((1, 3, 256), np.float32)}, "Received: float32 (1, 3, 256)."),
        ({"more": np.zeros(1)}, "lacks class_embeddings, class_list; it has: embeddings, names, model, more."),
    ],
)
def test_file_that_ultralytics_could_not_have_saved_is_refused(
    changes: dict[str, Any], reason: str, original: Vocabulary, tmp_path: Path
) -> None:
    assert reason in refusal_of(lambda: from_foreign(write_bound(tmp_path, unit_rows(3, seed=1), **changes), original))
