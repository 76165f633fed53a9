"""The detector in float16: near to float32, the same to vocabularies, original bits kept, refused where it is off."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from bundles import learned_for_tiny, original_vocabulary
from vocabularies import unit_rows

from prompt_tune.datasets.sample import custom_scene
from prompt_tune.deployment.graph import DetectorGraph, export_graph
from prompt_tune.deployment.half import MAX_BOX_PX, MAX_SCORE, export_half_graph, half_differences, half_world
from prompt_tune.errors import GraphError
from prompt_tune.evaluation.verify import changed_bits
from prompt_tune.models.world import World
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import letterbox
from prompt_tune.vocabulary.format import GRAPH_FILE, ORIGINAL_FILE

SIZE = 256


@pytest.fixture(scope="module")
def tiny() -> World:
    return World.load("tiny")


@pytest.fixture(scope="module")
def bundle(tiny: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float16 bundle without a learned vocabulary."""
    folder = tmp_path_factory.mktemp("half")
    original = original_vocabulary()
    original.save(folder / ORIGINAL_FILE)
    embeddings = original.embeddings
    export_half_graph(tiny, folder / GRAPH_FILE, image_size=SIZE, original=embeddings, learned=embeddings[:2])
    return folder


def test_half_graph_says_so_and_has_weights_of_half_the_size(bundle: Path, tiny: World, tmp_path: Path) -> None:
    model = onnx.load(bundle / GRAPH_FILE)
    metadata = json.loads(model.metadata_props[0].value)
    assert (metadata["precision"], metadata["detector"]) == ("float16", tiny.digest)
    export_graph(tiny, tmp_path / "full.onnx", image_size=SIZE)
    assert (bundle / GRAPH_FILE).stat().st_size < 0.6 * (tmp_path / "full.onnx").stat().st_size
    types = {i.name: i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)}
    assert set(types.values()) == {onnx.TensorProto.FLOAT}


def test_half_graph_convolves_in_float16_and_scores_and_suppresses_in_float32(bundle: Path) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle / GRAPH_FILE))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    convolutions = [types[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
    # the only one in float32 is the sum over a box side's distribution
    assert convolutions.count(onnx.TensorProto.FLOAT16) > 40 and convolutions.count(onnx.TensorProto.FLOAT) == 1
    suppressions = [node for node in model.graph.node if node.op_type == "NonMaxSuppression"]
    assert len(suppressions) == 2
    assert {types[name] for node in suppressions for name in node.input[:2]} == {onnx.TensorProto.FLOAT}
    softmax = [types[node.input[0]] for node in model.graph.node if node.op_type == "Softmax"]
    assert softmax == [onnx.TensorProto.FLOAT]  # of the box sides


def test_half_detections_are_those_of_float32_within_the_limits(bundle: Path, tiny: World, tmp_path: Path) -> None:
    original = original_vocabulary()
    export_graph(tiny, tmp_path / GRAPH_FILE, image_size=SIZE)
    original.save(tmp_path / ORIGINAL_FILE)
    half, full = (Detector(folder, use_bundled=False, threads=1) for folder in (bundle, tmp_path))
    matched = 0
    for index in range(4, 10):  # the export looked at the four before
        image = np.asarray(custom_scene(0, "test", index).image)
        (one,), (other,) = half.detect(image), full.detect(image)
        for box, score, name in zip(other.boxes_xyxy, other.scores, other.class_names, strict=True):
            if score < 0.25 + MAX_SCORE:
                continue  # may fall on either side of the threshold
            same = np.array(one.class_names) == name
            distance = np.abs(one.boxes_xyxy[same] - box).max(axis=1)
            assert distance.min() <= MAX_BOX_PX
            assert abs(one.scores[same][distance.argmin()] - score) <= MAX_SCORE
            matched += 1
        assert any(
            not np.array_equal(a, b) for a, b in ((one.scores, other.scores), (one.boxes_xyxy, other.boxes_xyxy))
        )
    assert matched > 10


def test_original_detections_of_a_half_graph_with_anything_loaded_are_bit_identical(bundle: Path) -> None:
    detector = Detector(bundle, use_bundled=False, threads=2)
    pixels = [letterbox(np.asarray(custom_scene(0, "test", index).image), SIZE)[0] for index in range(2)]
    images = np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    before, nothing = detector.raw(images)
    assert len(before) > 50 and not len(nothing)
    for n_cls, n_prompts in ((1, 1), (7, 4), (1123, 1)):
        names = tuple(f"{n_cls} {i}" for i in range(n_cls))
        detector.load(learned_for_tiny(names, unit_rows(n_cls, n_prompts)), str(n_cls))
        after, learned = detector.raw(images)
        assert changed_bits(before, after) == 0
        assert after.tobytes() == before.tobytes() and learned.shape[1] == 7


def test_half_copy_leaves_the_detector_as_it_was(tiny: World) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    images, guide = (
        torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)),
        torch.from_numpy(unit_rows(3, 2)),
    )
    with torch.no_grad():
        expected = DetectorGraph(tiny).raw(images, guide, guide[:1])
        half = half_world(tiny)
        found = DetectorGraph(half).raw(images, guide, guide[:1])
        again = DetectorGraph(tiny).raw(images, guide, guide[:1])
    assert half.digest == tiny.digest
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.model.state_dict().items())
    for one, other, third in zip(expected, again, found, strict=True):
        assert torch.equal(one, other)
        assert third.dtype == torch.float32 and not torch.equal(one, third)


def test_weights_that_float16_is_not_exact_enough_for_are_refused(world: World, tmp_path: Path) -> None:
    embeddings = unit_rows(80, 1)
    path = tmp_path / "detector.onnx"
    path.write_bytes(b"before")
    with pytest.raises(GraphError) as refusal:  # random weights make rounding errors grow from layer to layer
        export_half_graph(world, path, image_size=128, original=embeddings, learned=embeddings[:1])
    text = str(refusal.value)
    assert "In float16, boxes of this detector move by" in text and "Export without --half." in text
    assert "\n" not in text
    assert [file.name for file in tmp_path.iterdir()] == ["detector.onnx"] and path.read_bytes() == b"before"


def test_differences_of_a_float32_graph_are_rounding_errors(tiny: World, tmp_path: Path) -> None:
    export_graph(tiny, tmp_path / "full.onnx", image_size=SIZE)
    embeddings = original_vocabulary().embeddings
    box_px, score = half_differences(
        tiny, tmp_path / "full.onnx", image_size=SIZE, original=embeddings, learned=embeddings[:0]
    )
    assert 0 <= box_px < 1e-3 and 0 <= score < 1e-5
