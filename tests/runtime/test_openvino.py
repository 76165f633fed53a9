"""Graphs of fixed shapes in OpenVINO, against ONNX Runtime, and retention bit for bit."""

# ruff: noqa: E402 - `needs` comes before the imports that it guards
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from extras import needs

needs("openvino")

from places import TESTS
from sandbox import run_alone
from small_bundle import content, learned_for, photo, small_bundle
from variants import variant

from prompt_tune.errors import GraphError, ProviderError
from prompt_tune.models.world import World
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.openvino import OpenvinoGraph

PHOTOS = [photo(90, 161), photo(301, 77, seed=1), *(photo(96, 96, seed=seed) for seed in range(2, 8))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(params=["slots", "slots-raw"])
def bundle(request: pytest.FixtureRequest, world: World, folder: Path) -> Path:
    return variant(world, folder, request.param)


def test_openvino_finds_what_onnx_runtime_finds(bundle: Path) -> None:
    own = learned_for(bundle, "e", "f", n_prompts=2, seed=3, guide_mode="own", thresholds=np.float32(0.01))
    labels: set[str] = set()
    here, there = (Detector(bundle, learned=[own], device=device) for device in ("openvino", "cpu"))
    assert (here.device, there.device) == ("openvino", "cpu")
    for found, wanted in zip(here.detect(PHOTOS), there.detect(PHOTOS), strict=True):
        assert found.vocabularies == wanted.vocabularies and sorted(found.class_names) == sorted(wanted.class_names)
        ours, theirs = _rows(found), _rows(wanted)  # scores that differ in the last bits may change places
        apart = np.abs(ours[:, None] - theirs).max(axis=2)  # (n, n)
        assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 0.02
        labels |= {*found.vocabularies}
    assert labels == {"original", "learned", "learned-2"}


def _rows(found: Detections) -> np.ndarray:
    """(n, 7): vocabulary and class by numbers far apart, the box, and the score in hundredths."""
    labels = [1000 * sorted(set(found.vocabularies)).index(label) for label in found.vocabularies]
    columns = (labels, 10 * found.class_ids, *found.boxes_xyxy.T, 100 * found.scores)
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def test_no_bit_of_an_original_detection_changes_with_what_is_loaded(bundle: Path) -> None:
    alone = Detector(bundle, use_bundled=False, device="openvino").detect(PHOTOS, original_conf=0.01)
    compared = 0
    for n_cls in (1, 20, 88):
        beside = learned_for(bundle, *(f"class {number}" for number in range(n_cls)), seed=n_cls)
        detector = Detector(bundle, use_bundled=False, learned=[beside], device="openvino")
        for one, before in zip(detector.detect(PHOTOS, original_conf=0.01), alone, strict=True):
            assert content(one.of("original")) == content(before.of("original"))
            compared += len(before)
    assert compared > 5_000


def test_threads_and_a_forked_child_get_the_same_bits(bundle: Path) -> None:
    detector = Detector(bundle, device="openvino", threads=1)
    alone = [content(found) for found in detector.detect(PHOTOS)]
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(detector.detect, PHOTOS * 3))
    assert [content(found) for (found,) in several] == alone * 3
    with multiprocessing.get_context("fork").Pool(1) as children:
        (found,) = children.apply(partial(_detect, detector), (PHOTOS[0],))
    assert content(found) == alone[0]


def _detect(detector: Detector, image: np.ndarray) -> list[Detections]:
    return detector.detect(image)


def test_graph_of_free_shapes_is_refused_with_the_cure(world: World, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ProviderError) as refusal:
        Detector(small_bundle(world, folder / "small-bundle"), device="openvino")
    assert str(refusal.value).endswith(
        "has free ones. Export the run with --slots 128, or as many classes as you need."
    )
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    with pytest.raises(GraphError, match=r"a\.onnx` cannot be compiled by OpenVINO: \S") as damage:
        OpenvinoGraph(tmp_path / "a.onnx")
    assert len(str(damage.value).splitlines()) == 1


def test_nothing_is_written_or_sent(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from small_bundle import photo\n"
        "from prompt_tune import Detector\n"
        "print(len(Detector(sys.argv[2], device='openvino').detect(photo(64, 64))[0]) > 0); time.sleep(3)"
    )
    outcome = run_alone(tmp_path / "alone", "-c", code, TESTS, bundle)
    assert (outcome.status, outcome.out, outcome.left, outcome.sockets) == (0, "True\n", [], [])
