"""Inputs bound to the device: the same bits as a plain call, and uploaded once."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from forged import forged_graph
from small_bundle import IMAGE_SIZE, small_bundle
from vocabularies import unit_rows

from prompt_tune.contract import INPUTS, OUTPUTS
from prompt_tune.errors import GraphError, ProviderError
from prompt_tune.models.world import World
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.session import GraphSession


@pytest.fixture(scope="module")
def graph(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(world, tmp_path_factory.getbasetemp() / "small-bundle") / "detector.onnx"


def plain_session(graph: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("batch", "n_learned", "n_prompts"), [(1, 0, 1), (1, 5, 2), (3, 40, 1)])
def test_bound_call_gives_the_bits_of_a_plain_one(graph: Path, batch: int, n_learned: int, n_prompts: int) -> None:
    session = GraphSession(graph, threads=1)
    assert session.device == "cpu" and session.metadata["image_size"] == IMAGE_SIZE
    images = np.random.default_rng(batch).random((batch, 3, 96, 64), dtype=np.float32)
    vocabularies = unit_rows(20, 1), unit_rows(n_learned, n_prompts, seed=1)
    numbers = (0.6, 0.05, 0.1)
    uploaded = [session.upload(array) for array in (images, *vocabularies)]
    bound = session.run(*uploaded, iou=0.6, original_conf=0.05, learned_conf=0.1)
    again = session.run(*uploaded, iou=0.6, original_conf=0.05, learned_conf=0.1)
    feed = dict(zip(INPUTS, (images, *vocabularies, *(np.array([n], np.float32) for n in numbers)), strict=True))
    for table, other, expected in zip(bound, again, plain_session(graph).run(list(OUTPUTS), feed), strict=True):
        assert table.dtype == np.float32 and table.shape == expected.shape
        assert table.tobytes() == other.tobytes() == expected.tobytes()
    assert len(bound[0]) > 20


def test_upload_on_the_cpu_copies_nothing(graph: Path) -> None:
    array = unit_rows(3, 2)
    value = GraphSession(graph, threads=1).upload(array)
    assert value.data_ptr() == array.ctypes.data
    assert value.device_name() == "cpu"


def test_vocabulary_on_the_gpu_stays_there_and_gives_the_same(graph: Path) -> None:
    try:
        session = GraphSession(graph, device="cuda")
    except ProviderError:
        pytest.skip("no NVIDIA GPU with CUDA libraries here")
    value = session.upload(unit_rows(3, 2))
    assert (session.device, value.device_name()) == ("cuda", "cuda")
    assert session.upload(unit_rows(0, 1)).device_name() == "cpu"
    image = np.random.default_rng(0).integers(0, 256, (90, 96, 3), dtype=np.uint8)
    (gpu,), (cpu,) = (Detector(graph.parent, device=device).detect(image) for device in ("cuda", "cpu"))
    assert abs(len(gpu) - len(cpu)) <= 0.02 * len(cpu)  # a box at a threshold may fall on its other side
    np.testing.assert_allclose(np.sort(gpu.scores)[-50:], np.sort(cpu.scores)[-50:], atol=1e-3)


def test_embeddings_are_uploaded_once_a_load_and_shared_by_all_images(graph: Path) -> None:
    detector = Detector(graph.parent, threads=1)
    uploads: list[tuple[int, ...]] = []
    upload = detector._session.upload

    def counted(array: np.ndarray) -> onnxruntime.OrtValue:
        uploads.append(array.shape)
        return upload(array)

    detector._session.upload = counted  # type: ignore[method-assign]
    detector.load(detector.vocabularies["learned"], "again")
    assert uploads == [(4, 3, 512)]
    uploads.clear()
    image = np.zeros((50, 60, 3), np.uint8)
    detector.detect([image] * 3, batch=2)
    assert uploads == [(2, 3, IMAGE_SIZE, IMAGE_SIZE)] * 2  # the second batch is filled up


def test_call_that_fails_says_on_what(graph: Path) -> None:
    session = GraphSession(graph, threads=1)
    arrays = np.zeros((1, 3, 33, 96), np.float32), unit_rows(2, 1), unit_rows(0, 1)
    with pytest.raises(GraphError, match=r"ONNX Runtime failed on images \(1, 3, 33, 96\)"):
        session.run(*map(session.upload, arrays), iou=0.7, original_conf=0.1, learned_conf=0.1)


@pytest.mark.parametrize(
    ("rows", "whole"),
    [
        ([], True),
        ([[0, 1, 2, 3, 4, 0.5, 1]], True),
        ([[0, 1, 2, 3, 4, 0.5, 1]] * 300 + [[1, 1, 2, 3, 4, 0.5, 1]] * 300, True),
        ([[0, 1, 2, 3, 4, 0.5, 1]] * 301, False),
        ([[0, 1, 2, 3, 4, 0.5, 2]], False),  # no such class
        ([[0, 1, 2, 3, 4, 0.5, -1]], False),
        ([[2, 1, 2, 3, 4, 0.5, 0]], False),  # no such image
        ([[np.nan, 1, 2, 3, 4, 0.5, 0]], False),
        ([[0, 1, 2, 3, 4, 0.5, np.nan]], False),
        ([[0, 1, 2, 3, 4, 0.5]], False),
        ([[0, 1, 2, 3, 4, 0.5, 0, 0]], False),
    ],
)
def test_rows_that_no_graph_of_ours_gives_are_refused(rows: list[list[float]], whole: bool, tmp_path: Path) -> None:
    path = forged_graph(tmp_path / "detector.onnx", rows=rows)
    session = GraphSession(path, threads=1)
    arrays = np.zeros((2, 3, 64, 64), np.float32), unit_rows(2, 1), unit_rows(2, 1)
    uploaded = [session.upload(array) for array in arrays]
    numbers: dict[str, Any] = {"iou": 0.7, "original_conf": 0.1, "learned_conf": 0.1}
    if whole:
        assert session.run(*uploaded, **numbers)[0].shape == (len(rows), 7)
        return
    with pytest.raises(GraphError) as refusal:
        session.run(*uploaded, **numbers)
    assert str(refusal.value) == (
        f"`{path}` gives what no graph of prompt-tune gives: at most 300 rows of 7 numbers per class and image. Export "
        "the run again."
    )
