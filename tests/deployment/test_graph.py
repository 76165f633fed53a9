"""The exported graph in ONNX Runtime: against torch on shapes that were not traced, and retention bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch

from prompt_tune.contract import INPUTS, MAX_PER_CLASS, OUTPUTS
from prompt_tune.deployment.graph import CHECKED_SHAPES, TRACED_SHAPE, check_graph, export_graph
from prompt_tune.errors import GraphError
from prompt_tune.models.suppression import suppress
from prompt_tune.models.world import World

Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def graph(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "detector.onnx"
    export_graph(world, path, image_size=320)
    return path


@pytest.fixture(scope="module")
def session(graph: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2  # more than one: retention must not hang on the order of work
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def rows(n: int, n_prompts: int = 1, *, seed: int) -> Array:
    values = np.random.default_rng(seed).standard_normal((n, n_prompts, 512), dtype=np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def images(batch: int, height: int, width: int) -> Array:
    return np.random.default_rng(height + width).random((batch, 3, height, width), dtype=np.float32)


def run(
    session: onnxruntime.InferenceSession, pixels: Array, original: Array, learned: Array, *, conf: float = 0.05
) -> tuple[Array, Array]:
    thresholds = [np.array([value], np.float32) for value in (0.6, conf, conf)]
    original_rows, learned_rows = session.run(
        None, dict(zip(INPUTS, (pixels, original, learned, *thresholds), strict=True))
    )
    return original_rows, learned_rows


def test_inputs_and_outputs_are_the_contract(graph: Path, session: onnxruntime.InferenceSession, world: World) -> None:
    model = onnx.load(graph)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert {i.name: (i.type, i.shape) for i in session.get_inputs()} == {
        "images": ("tensor(float)", ["batch", 3, "height", "width"]),
        "original": ("tensor(float)", ["n_original", "n_prompts", 512]),
        "learned": ("tensor(float)", ["n_learned", "n_learned_prompts", 512]),
        "iou": ("tensor(float)", [1]),
        "original_conf": ("tensor(float)", [1]),
        "learned_conf": ("tensor(float)", [1]),
    }
    assert {o.name: (o.type, o.shape) for o in session.get_outputs()} == {
        "original_detections": ("tensor(float)", ["n_original_detections", 7]),
        "learned_detections": ("tensor(float)", ["n_learned_detections", 7]),
    }
    assert [property_.key for property_ in model.metadata_props] == ["prompt-tune"]
    assert json.loads(model.metadata_props[0].value) == {
        "version": 1,
        "detector": world.digest,
        "strides": [8, 16, 32],
        "embed_dim": 512,
        "image_size": 320,
        "precision": "float32",
    }


def test_export_twice_writes_the_same_bytes_once_each_weight(world: World, graph: Path, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in world.model.state_dict().items()}
    export_graph(world, tmp_path / "again.onnx", image_size=320)
    assert (tmp_path / "again.onnx").read_bytes() == graph.read_bytes()
    assert all(torch.equal(tensor, before[name]) for name, tensor in world.model.state_dict().items())
    assert not any(module.training for module in world.model.modules())
    large = [bytes(i.raw_data) for i in onnx.load(graph).graph.initializer if len(i.raw_data) > 1024]
    assert len(large) == len(set(large))
    assert str(Path.cwd()).encode() not in graph.read_bytes()


def test_shapes_that_are_checked_were_not_traced() -> None:
    for shape in CHECKED_SHAPES:
        assert all(size != traced for size, traced in zip(shape[:6], TRACED_SHAPE[:6], strict=True))


@pytest.mark.parametrize(
    ("batch", "height", "width", "n_original", "n_prompts", "n_learned", "n_learned_prompts"),
    [(1, 32, 32, 1, 1, 0, 1), (1, 160, 96, 80, 1, 6, 1), (4, 64, 128, 2, 3, 1, 5), (2, 224, 64, 11, 2, 0, 4)],
)
def test_detections_on_untraced_shapes_equal_torch(
    session: onnxruntime.InferenceSession,
    world: World,
    batch: int,
    height: int,
    width: int,
    n_original: int,
    n_prompts: int,
    n_learned: int,
    n_learned_prompts: int,
) -> None:
    pixels = images(batch, height, width)
    original = rows(n_original, n_prompts, seed=1)
    learned = rows(n_learned, n_learned_prompts, seed=2)
    got = run(session, pixels, original, learned)

    # an independent way to the same rows: World's features, one vocabulary at a time, anchors in rows
    head, boxes = world.features(torch.from_numpy(pixels), torch.from_numpy(original).flatten(0, 1))
    level = world.anchors(height, width)[2]
    for table, vocabulary in zip(got, (original, learned), strict=True):
        embeddings = torch.from_numpy(vocabulary)
        logits = world.logits(head, level, *world.fold(embeddings.flatten(0, 1)))
        scores = logits.unflatten(2, embeddings.shape[:2]).amax(3).sigmoid()  # (b, A, n_cls)
        n_kept = sum(len(suppress(b, s, conf=0.05, iou=0.6)[0]) for b, s in zip(boxes, scores, strict=True))
        matched = 0
        for row in table:
            image, index = int(row[0]), int(row[6])
            distance = (boxes[image] - torch.from_numpy(row[1:5])).abs().amax(dim=1)
            near = distance < 1e-3 * max(height, width)
            assert (scores[image, near, index] - row[5]).abs().min() < 1e-5 + 1e-3 * row[5]
            matched += 1
        assert abs(matched - n_kept) <= 0.01 * n_kept  # a box at a threshold may fall on its other side
        assert n_kept > 0 or not len(vocabulary)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (3, 96, 160), (2, 192, 32)])
def test_original_detections_with_any_learned_rows_are_bit_identical(
    session: onnxruntime.InferenceSession, batch: int, height: int, width: int
) -> None:
    pixels, original = images(batch, height, width), rows(80, seed=3)
    without, nothing = run(session, pixels, original, rows(0, seed=0), conf=0.001)
    assert len(without) > 100 and nothing.shape == (0, 7)
    for n_learned, n_prompts in [(1, 1), (7, 4), (1123, 1)]:
        after, learned = run(session, pixels, original, rows(n_learned, n_prompts, seed=n_learned), conf=0.001)
        assert after.tobytes() == without.tobytes()
        assert len(np.unique(learned[:, 6])) == n_learned  # they are really there


def test_learned_detections_beside_other_learned_classes_are_the_same(session: onnxruntime.InferenceSession) -> None:
    pixels, original, learned = images(1, 96, 96), rows(20, seed=3), rows(9, seed=4)
    _, alone = run(session, pixels, original, learned[:4])
    _, together = run(session, pixels, original, learned)
    np.testing.assert_allclose(together[together[:, 6] < 4], alone, rtol=1e-5, atol=1e-5)


def test_prompts_that_repeat_change_nothing(session: onnxruntime.InferenceSession) -> None:
    pixels, original, learned = images(2, 64, 96), rows(6, 2, seed=5), rows(3, 2, seed=6)
    plain = run(session, pixels, original, learned)
    padded = run(session, pixels, original[:, [0, 1, 0, 1, 0]], learned[:, [0, 1, 1]])
    assert len(plain[0]) and len(plain[1])
    assert plain[0].tobytes() == padded[0].tobytes()
    assert plain[1].tobytes() == padded[1].tobytes()


def test_class_scores_the_maximum_over_its_prompts(session: onnxruntime.InferenceSession) -> None:
    pixels, original, learned = images(1, 64, 64), rows(6, seed=5), rows(1, 3, seed=6)
    _, joint = run(session, pixels, original, learned, conf=0.0)
    _, apart = run(session, pixels, original, learned.reshape(3, 1, 512), conf=0.0)
    assert joint[0, 5] == pytest.approx(max(apart[apart[:, 6] == index, 5].max() for index in range(3)), rel=1e-6)


def test_guide_when_another_changes_learned_scores(session: onnxruntime.InferenceSession) -> None:
    pixels, learned = images(1, 64, 64), rows(4, seed=7)
    _, one = run(session, pixels, rows(80, seed=8), learned)
    _, other = run(session, pixels, rows(80, seed=9), learned)
    assert np.abs(np.sort(one[:, 5])[-8:] - np.sort(other[:, 5])[-8:]).max() > 0.01


def test_rows_are_sorted_by_image_class_and_falling_score(session: onnxruntime.InferenceSession) -> None:
    table, _ = run(session, images(3, 96, 64), rows(5, seed=1), rows(0, seed=1))
    order = np.lexsort((-table[:, 5], table[:, 6], table[:, 0]))
    np.testing.assert_array_equal(order, np.arange(len(table)))
    assert set(table[:, 0]) == {0.0, 1.0, 2.0}


def test_thresholds_are_a_vocabularys_own_and_strict(session: onnxruntime.InferenceSession) -> None:
    feed = dict(zip(INPUTS[:3], (images(1, 64, 64), rows(5, seed=1), rows(5, seed=1)), strict=True))
    values = {"iou": [0.6], "original_conf": [0.3], "learned_conf": [0.1]}
    original, learned = session.run(None, feed | {name: np.array(v, np.float32) for name, v in values.items()})
    assert original[:, 5].min() > 0.3
    assert 0.1 < learned[:, 5].min() < 0.3
    np.testing.assert_array_equal(learned[learned[:, 5] > 0.3], original)


def test_detections_of_a_class_and_image_stop_at_the_limit(session: onnxruntime.InferenceSession) -> None:
    feed = dict(zip(INPUTS[:3], (images(2, 160, 160), rows(2, seed=1), rows(3, seed=2)), strict=True))
    values = {"iou": [1.0], "original_conf": [0.0], "learned_conf": [0.0]}
    original, learned = session.run(None, feed | {name: np.array(v, np.float32) for name, v in values.items()})
    for table, n_classes in ((original, 2), (learned, 3)):
        keys, counts = np.unique(table[:, [0, 6]], axis=0, return_counts=True)
        assert len(keys) == 2 * n_classes
        assert set(counts) == {MAX_PER_CLASS}


def test_check_of_a_graph_with_another_weight_fails(graph: Path, world: World, tmp_path: Path) -> None:
    check_graph(world, graph)
    model = onnx.load(graph)
    weight = next(i for i in model.graph.initializer if i.name == "head.matrix")
    weight.raw_data = (onnx.numpy_helper.to_array(weight) * np.float32(1.05)).tobytes()
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(GraphError, match="original scores differ from torch's on input"):
        check_graph(world, tmp_path / "changed.onnx")


def test_check_of_a_graph_that_suppresses_otherwise_fails(graph: Path, world: World, tmp_path: Path) -> None:
    model = onnx.load(graph)
    nodes: Any = [node for node in model.graph.node if node.op_type == "NonMaxSuppression"]
    nodes[1].input[3] = "original_conf"  # the learned classes' suppression takes a threshold for an overlap
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(GraphError, match="learned_detections differ from torch's on input"):
        check_graph(world, tmp_path / "changed.onnx")


@pytest.mark.parametrize("content", [b"", b"this is no graph", None])
def test_check_of_a_file_that_is_no_graph_fails(content: bytes | None, world: World, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "detector.onnx").write_bytes(content)
    with pytest.raises(GraphError, match="is not a valid ONNX graph"):
        check_graph(world, tmp_path / "detector.onnx")


def test_export_of_a_detector_that_computes_nonsense_leaves_what_was_there(checkpoint: Path, tmp_path: Path) -> None:
    world = World.load(checkpoint)
    world.model.model[0].conv.weight.fill_(float("nan"))  # as a training that diverged leaves it
    (tmp_path / "detector.onnx").write_bytes(b"before")
    with pytest.raises(GraphError, match="boxes differ from torch's"):
        export_graph(world, tmp_path / "detector.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["detector.onnx"]
    assert (tmp_path / "detector.onnx").read_bytes() == b"before"


def test_outputs_are_named_in_order(session: onnxruntime.InferenceSession) -> None:
    assert tuple(output.name for output in session.get_outputs()) == OUTPUTS
