"""What a detector refuses, in words: vocabularies, bundles, graphs, images and numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from small_bundle import learned_for, photo

from prompt_tune.errors import DataError, GraphError, PromptTuneError, VocabularyError
from prompt_tune.files import backup_of
from prompt_tune.runtime.detector import Detector


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"detector": "a" * 64}, "detector"),
        ({"guide": "a" * 64}, "guide"),
        ({"text_tower": "a" * 64}, "text tower"),
        ({"detector": "a" * 64, "kind": "plain"}, "detector"),
    ],
)
def test_vocabulary_made_for_something_else_is_refused_with_both_digests(
    fields: dict[str, Any], what: str, bundle: Path, detector: Detector, tmp_path: Path
) -> None:
    vocabulary = learned_for(bundle, "lorry", **fields)
    vocabulary.save(tmp_path / "other.vocab.safetensors")
    original = detector.vocabularies["original"]
    here = {"detector": original.detector, "guide": original.digest, "text tower": original.text_tower}[what]
    for source in (vocabulary, tmp_path / "other.vocab.safetensors"):
        with pytest.raises(VocabularyError) as refusal:
            detector.load(source)
        text = str(refusal.value)
        assert f"was made for {what} aaaaaaaaaaaa, but" in text and f"has {here[:12]}. Use a" in text
        assert "\n" not in text
    assert list(detector.vocabularies) == ["original", "learned"]


@pytest.mark.parametrize("name", ["detector.onnx", "original.vocab.safetensors", "learned.vocab.safetensors"])
def test_bundle_with_a_missing_part_is_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / name).unlink()
    with pytest.raises(GraphError, match=f"is not a complete bundle: it has no {name}. Make one: prompt-tune export"):
        Detector(tmp_path / "bundle")
    if name.startswith("learned"):
        assert list(Detector(tmp_path / "bundle", use_bundled=False).vocabularies) == ["original"]
    with pytest.raises(GraphError, match=r"it has no detector\.onnx"):
        Detector(tmp_path / "nowhere")


def drop_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def next_version(model: onnx.ModelProto) -> None:
    metadata = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps(metadata | {"version": 2})


def drop_digest(model: onnx.ModelProto) -> None:
    metadata = json.loads(model.metadata_props[0].value)
    del metadata["detector"]
    model.metadata_props[0].value = json.dumps(metadata)


def break_json(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = "{"


def rename_output(model: onnx.ModelProto) -> None:
    last = model.graph.node[-1]
    last.output[0] = model.graph.output[1].name = "boxes"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop_metadata, "is an ONNX graph, but not one of prompt-tune's"),
        (rename_output, "is an ONNX graph, but not one of prompt-tune's"),
        (next_version, "has version 2; this prompt-tune reads 1"),
        (drop_digest, "has damaged metadata"),
        (break_json, "has damaged metadata"),
    ],
)
def test_graph_that_is_not_ours_is_refused(
    change: Callable[[onnx.ModelProto], None], text: str, bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    model = onnx.load(bundle / "detector.onnx")
    change(model)
    onnx.save(model, tmp_path / "bundle" / "detector.onnx")
    with pytest.raises(GraphError) as refusal:
        Detector(tmp_path / "bundle")
    assert text in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("share", [0, 0.5])
def test_graph_that_is_cut_off_is_refused(share: float, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    whole = (bundle / "detector.onnx").read_bytes()
    (tmp_path / "bundle" / "detector.onnx").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(GraphError, match="cannot be loaded by ONNX Runtime"):
        Detector(tmp_path / "bundle")


def test_original_vocabulary_of_another_kind_or_detector_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    place = tmp_path / "bundle" / "original.vocab.safetensors"
    shutil.copy(bundle / "learned.vocab.safetensors", place)
    with pytest.raises(VocabularyError, match=r"must be of kind `original`\. Received: `learned`\."):
        Detector(tmp_path / "bundle")
    learned_for(bundle, "x", kind="original", detector="b" * 64, guide=learned_for(bundle, "x").digest).save(place)
    with pytest.raises(VocabularyError, match="was made for detector bbbbbbbbbbbb, but"):
        Detector(tmp_path / "bundle")


def test_original_vocabulary_as_a_learned_one_is_refused(bundle: Path, detector: Detector) -> None:
    place = bundle / "original.vocab.safetensors"
    for vocabulary, named in ((place, f"`{place}`"), (detector.vocabularies["original"], "The vocabulary")):
        with pytest.raises(VocabularyError) as refusal:
            detector.load(vocabulary, "again")
        assert str(refusal.value) == (
            f"{named} is of kind `original`: it guides a detector, and a bundle has its own. Load a vocabulary of kind "
            "`learned` or `plain`."
        )
    with pytest.raises(VocabularyError, match="is of kind `original`"):
        Detector(bundle, learned=[place])


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (None, r"Received: NoneType\. `cv2\.imread` returns None for a file that it cannot read: check the path\."),
        (b"\xff\xd8", r"Received: bytes\. Decode it first: PIL\.Image\.open\(io\.BytesIO\(data\)\)\."),
        (torch.zeros(3, 8, 8), r"Received: Tensor\. Convert it first\."),
        (iter([]), r"Received: list_iterator\."),
        (7, r"Received: int\."),
        (np.zeros((8, 8, 3)), r"must be uint8 \(height, width, 3\)\. Received: float64 \(8, 8, 3\)\. Convert it"),
        (np.zeros((8, 8), np.uint8), r"Received: uint8 \(8, 8\)\."),
        (np.zeros((2, 8, 8, 3), np.uint8), r"Received: uint8 \(2, 8, 8, 3\)\. .* give several images as a list"),
        (np.zeros((8, 0, 3), np.uint8), r"Received: uint8 \(8, 0, 3\)\."),
        (Image.new("F", (8, 8)), r"A PIL image has 32-bit pixels of unknown range\."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_image_of_another_kind_is_refused(detector: Detector, image: Any, reason: str) -> None:
    for images in (image, [image], [photo(8, 8), image]):
        with pytest.raises(DataError, match=reason) as refusal:
            detector.detect(images, batch=2)
        assert "\n" not in str(refusal.value)


def test_images_that_cannot_be_read_are_refused(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8 no picture")
    for name in ("none.jpg", "damaged.jpg"):
        with pytest.raises(DataError, match=name):
            detector.detect(tmp_path / name)


def test_bundle_that_lies_beside_its_place_is_named(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, backup_of(tmp_path / "bundle"))
    with pytest.raises(GraphError, match=r"rename .*/\.bundle\.prompt-tune-backup to get the old one"):
        Detector(tmp_path / "bundle")


def test_numbers_out_of_range_are_refused(bundle: Path, detector: Detector) -> None:
    image = photo(32, 32)
    for options in (
        {"iou": 1.5},
        {"original_conf": -0.1},
        {"learned_conf": float("nan")},
        {"batch": 0},
        {"batch": 1025},
    ):
        with pytest.raises(PromptTuneError, match=f"`{next(iter(options))}` must be"):
            detector.detect(image, **options)
    for threads in (-1, 1025, 10**14):
        with pytest.raises(
            PromptTuneError, match=rf"^`threads` must be from 0 \(all cores\) to 1024\. .*: {threads}\.$"
        ):
            Detector(bundle, threads=threads)
    for size in (100, 0, -32):
        with pytest.raises(PromptTuneError, match=rf"`image_size` must be a multiple of 32\. Received: {size}\."):
            Detector(bundle, image_size=size)


def test_graph_that_fails_says_on_what(detector: Detector) -> None:
    with pytest.raises(GraphError, match=r"ONNX Runtime failed on images \(1, 3, 33, 96\)"):
        detector.raw(np.zeros((1, 3, 33, 96), np.float32))
