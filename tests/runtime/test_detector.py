"""The runtime on a real graph: what it finds, what it keeps apart, what it refuses."""

import shutil
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from small_bundle import IMAGE_SIZE, content, learned_for, photo, with_background
from vocabularies import refusal_of

from prompt_tune.contract import LEAST_SCORE
from prompt_tune.errors import DataError, PromptTuneError, VocabularyError
from prompt_tune.runtime import detector as runtime
from prompt_tune.runtime.boxes import distinct
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import ImageInput, letterbox
from prompt_tune.runtime.providers import device_of
from prompt_tune.vocabulary.vocabulary import Vocabulary

N_ANCHORS = sum((IMAGE_SIZE // stride) ** 2 for stride in (8, 16, 32))


def network_input(image: np.ndarray) -> np.ndarray:
    """(1, 3, h, w) float32 in 0..1."""
    return np.ascontiguousarray(letterbox(image, IMAGE_SIZE)[0].transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def graph_rows(bundle: Path, image: np.ndarray, original: np.ndarray, learned: np.ndarray) -> list[np.ndarray]:
    """The graph's two tables, by a session that is not the runtime's, at threshold 0."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle / "detector.onnx", options, providers=["CPUExecutionProvider"])
    feed = {"images": network_input(image), "original": original, "learned": learned}
    feed |= {name: np.array([v], np.float32) for name, v in (("iou", 0.7), ("original_conf", 0), ("learned_conf", 0))}
    tables: list[np.ndarray] = session.run(None, feed)
    return tables


def counted_batches(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of images of every call of the graph."""
    sizes: list[int] = []
    run = detector._session.run

    def counted(network_input: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(network_input.shape()[0])
        return run(network_input, *arguments, **options)

    monkeypatch.setattr(detector._session, "run", counted)
    return sizes


@pytest.mark.parametrize(("height", "width"), [(60, 150), (200, 90), (IMAGE_SIZE, IMAGE_SIZE)])
def test_detections_are_the_graphs_rows_in_original_pixels(
    bundle: Path, detector: Detector, height: int, width: int
) -> None:
    image = photo(height, width)
    parts = [detector.vocabularies[label] for label in ("original", "learned")]
    tables = graph_rows(bundle, image, parts[0].embeddings, parts[1].embeddings)
    (found,) = detector.detect(image)
    assert found.size_wh == (width, height)
    scale = IMAGE_SIZE / max(height, width)  # worked out without Letterbox: centred, a pixel of rounding at most
    pad = np.array([(IMAGE_SIZE - width * scale) / 2, (IMAGE_SIZE - height * scale) / 2] * 2)
    for label, part, rows in zip(("original", "learned"), parts, tables, strict=True):
        rows = rows[rows[:, 5] > part.thresholds[rows[:, 6].astype(int)]]
        boxes = np.clip((rows[:, 1:5] - pad) / scale, 0, [width, height] * 2)
        mine = found.of(label)
        area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        assert 0 < len(mine) <= len(rows)
        assert abs(len(mine) - area.sum()) <= 0.05 * len(rows)  # slivers at the edge fall on either side by rounding
        rows, boxes = rows[np.isin(rows[:, 5], mine.scores)], boxes[np.isin(rows[:, 5], mine.scores)]
        np.testing.assert_array_equal(mine.scores, rows[:, 5])
        np.testing.assert_array_equal(mine.class_ids, rows[:, 6])
        np.testing.assert_allclose(mine.boxes_xyxy, boxes, atol=1.0 / scale)
        assert mine.class_names == tuple(part.names[index] for index in mine.class_ids)
    assert found.vocabularies == tuple(sorted(found.vocabularies, key=lambda label: label != "original"))
    assert (found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all()
    assert found.boxes_xyxy.min() >= 0
    assert (found.boxes_xyxy.max(axis=0) <= [width, height, width, height]).all()
    assert found.boxes_xyxy.dtype == found.scores.dtype == np.float32


def test_images_one_or_many_arrays_or_paths_give_the_same(detector: Detector, tmp_path: Path) -> None:
    images = [photo(60, 150, seed=1), photo(130, 70, seed=2), photo(96, 96, seed=3)]
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    expected = [content(detector.detect(image)[0]) for image in images]
    assert len(set(expected)) == 3
    assert [content(found) for found in detector.detect(images)] == expected
    assert [content(found) for found in detector.detect(paths)] == expected
    assert [content(found) for found in detector.detect([paths[0], images[1], str(paths[2])])] == expected
    assert content(detector.detect(str(paths[1]))[0]) == expected[1]
    assert detector.detect([]) == []


def test_several_detectors_in_one_process_do_not_disturb_each_other(bundle: Path) -> None:
    images = [photo(60, 90, seed=seed) for seed in range(4)]
    expected = [content(found) for found in Detector(bundle, threads=1).detect(images)]
    detectors = [Detector(bundle, threads=1) for _ in range(3)]
    detectors[1].unload("learned")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda detector: detector.detect(images), detectors * 3))
    for k, parts in enumerate(found):
        if k % 3 == 1:
            assert all(set(part.vocabularies) <= {"original"} for part in parts)
        else:
            assert [content(part) for part in parts] == expected
    del detectors[0], detectors[0]
    assert [content(part) for part in detectors[0].detect(images)] == expected


def test_batch_whose_scores_are_too_many_goes_in_parts(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Detector(bundle, threads=1)
    images = [photo(60, 90, seed=seed) for seed in range(5)]
    singly, sizes = detector.detect(images), counted_batches(detector, monkeypatch)
    n_rows = sum(len(part.names) * part.n_prompts for part in detector.vocabularies.values())
    assert n_rows == 80 + 2 * 3
    monkeypatch.setattr(runtime, "MAX_SCORES", 2 * N_ANCHORS * n_rows)
    for one, other in zip(singly, detector.detect(images, batch=4), strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    assert sizes == [2, 2, 2]
    monkeypatch.setattr(runtime, "MAX_SCORES", 1)
    detector.detect(images[:2], batch=2)
    assert sizes[3:] == [1, 1]


@pytest.mark.parametrize(("n_prompts", "expected"), [(1, [4, 4]), (2, [2, 2, 2]), (8, [1] * 5)])
@pytest.mark.parametrize("guide_mode", ["original", "own"])
def test_scores_of_all_prompts_count_towards_the_cap(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, n_prompts: int, expected: list[int], guide_mode: str
) -> None:
    """Memory goes by rows of embeddings: a class scores once for each prompt before the maximum is taken."""
    names = [f"thing {number}" for number in range(200)]
    many = learned_for(bundle, *names, n_prompts=n_prompts, guide_mode=guide_mode, thresholds=np.float32(1))
    detector = Detector(bundle, learned=[many], use_bundled=False, threads=1)
    sizes = counted_batches(detector, monkeypatch)
    rows_of_one_prompt = 200 + (80 if guide_mode == "original" else 0)
    monkeypatch.setattr(runtime, "MAX_SCORES", 4 * N_ANCHORS * rows_of_one_prompt)
    detector.detect([photo(60, 90, seed=seed) for seed in range(5)], batch=5, hide=["original:*"])
    assert sizes[:: 1 if guide_mode == "original" else 2] == expected


def test_batches_keep_images_apart(detector: Detector) -> None:
    images = [photo(60, 150, seed=1), photo(130, 70, seed=2), photo(96, 96, seed=3)]
    singly, together = detector.detect(images), detector.detect(images, batch=2)
    for one, other in zip(singly, together, strict=True):
        assert (one.size_wh, one.class_names) == (other.size_wh, other.class_names)
        assert one.vocabularies == other.vocabularies
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-2)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_bits_depend_on_the_size_of_the_batch_and_not_on_what_is_beside_an_image(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [photo(60 + 10 * seed, 90, seed=seed) for seed in range(5)]
    sizes = counted_batches(detector, monkeypatch)
    expected = [content(detector.detect(image, batch=4)[0]) for image in images]  # each with three grey ones
    assert len(set(expected)) == 5 and min(len(found) for found in detector.detect(images)) > 0
    for order in ([0, 1, 2, 3, 4], [4, 2, 0], [3, 3, 3, 1], [1, 4, 3, 2, 0, 2, 1]):
        found = detector.detect([images[number] for number in order], batch=4)
        assert [content(one) for one in found] == [expected[number] for number in order]
    assert sizes == [4] * 5 + [1] * 5 + [4] * (2 + 1 + 1 + 2)


def test_original_detections_are_bit_identical_with_anything_loaded(bundle: Path) -> None:
    images = [photo(70, 110, seed=4), photo(120, 50, seed=5)]
    detector = Detector(bundle, use_bundled=False, threads=1)
    batch = np.concatenate([network_input(image) for image in images])
    before, nothing = detector.raw(batch)
    found_before = detector.detect(images)
    assert len(before) > 500 and nothing.shape == (0, 7)
    assert all(set(found.vocabularies) == {"original"} for found in found_before)

    calibration = np.tile(np.array([2, 1], np.float32), (3, 1))
    detector.load(learned_for(bundle, "a", "b", "c", n_prompts=4, calibration=calibration), "calibrated")
    detector.load(learned_for(bundle, *(f"many {number}" for number in range(500))), "many")
    detector.load(learned_for(bundle, "own", guide_mode="own", thresholds=np.float32(0)), "own")
    after, learned = detector.raw(batch)
    assert after.tobytes() == before.tobytes()
    assert len(np.unique(learned[:, 6])) == 503
    for was, found in zip(found_before, detector.detect(images), strict=True):
        assert content(found.of("original")) == content(was)
        assert set(found.vocabularies) == {"original", "calibrated", "many", "own"}

    for name in ("many", "calibrated", "own"):
        detector.unload(name)
    assert [content(found) for found in detector.detect(images)] == [content(found) for found in found_before]


def test_several_vocabularies_come_out_apart(bundle: Path) -> None:
    image = photo(96, 96)
    shelf = learned_for(bundle, "forklift", "crate", "pallet", n_prompts=2, seed=11)
    alone = {}
    for label, vocabulary in (("learned", None), ("shelf", shelf)):
        detector = Detector(bundle, use_bundled=vocabulary is None, threads=1)
        if vocabulary is not None:
            detector.load(vocabulary, label)
        alone[label] = detector.detect(image)[0].of(label)
    both = Detector(bundle, threads=1)
    both.load(shelf, "shelf")
    (found,) = both.detect(image)
    assert both.classes[80:] == (
        *(("learned", name) for name in ("gizmo", "forklift")),
        *(("shelf", name) for name in ("forklift", "crate", "pallet")),
    )
    for label, expected in alone.items():
        mine = found.of(label)
        assert len(mine) > 0
        assert mine.class_names == expected.class_names
        np.testing.assert_array_equal(mine.class_ids, expected.class_ids)
        np.testing.assert_allclose(mine.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(mine.boxes_xyxy, expected.boxes_xyxy, atol=1e-2)
    assert "forklift" in found.of("learned").class_names and "forklift" in found.of("shelf").class_names


def test_each_class_has_its_own_threshold_unless_told_otherwise(bundle: Path) -> None:
    names, image = [f"thing {number}" for number in range(10)], photo(96, 96)
    thresholds = np.array([0.05, 0.1, 0.2, 0.3, 1.0] * 2, np.float32)
    (vocabulary, everything) = (
        learned_for(bundle, *names, thresholds=t) for t in (thresholds, np.zeros(10, np.float32))
    )
    detector = Detector(bundle, use_bundled=False, learned=[vocabulary], threads=1)
    (found,) = detector.detect(image)
    (all_of_them,) = Detector(bundle, use_bundled=False, learned=[everything], threads=1).detect(image)
    of_learned = all_of_them.of("learned")
    expected = of_learned.select(of_learned.scores > thresholds[of_learned.class_ids])
    assert content(found.of("learned")) == content(expected)
    assert {0, 1, 2, 3} <= set(expected.class_ids) and not {4, 9} & set(expected.class_ids)
    assert found.of("original").scores.min() > np.float32(0.3)

    (found,) = detector.detect(image, original_conf=0.7, learned_conf=0.15)
    assert found.of("original").scores.min() > np.float32(0.7)
    expected = of_learned.select(of_learned.scores > np.float32(0.15))
    assert content(found.of("learned")) == content(expected)
    assert {4, 9} <= set(expected.class_ids)
    assert len(detector.detect(image, original_conf=1, learned_conf=1)[0]) == 0
    assert len(detector.detect(image, iou=0.1)[0]) < len(detector.detect(image)[0])


def test_class_with_a_limit_of_overlap_is_suppressed_at_it_and_no_other(bundle: Path) -> None:
    names, image = [f"thing {number}" for number in range(4)], photo(96, 96)
    limits = np.array([0.3, 1, 0.5, 1], np.float32)
    loose, tight = (learned_for(bundle, *names, thresholds=np.float32(0.05), nms_iou=n) for n in (None, limits))
    (before,) = Detector(bundle, use_bundled=False, learned=[loose], threads=1).detect(image)
    detector = Detector(bundle, use_bundled=False, learned=[tight], threads=1)
    (found,) = detector.detect(image)
    assert content(found.of("original")) == content(before.of("original"))
    rows = graph_rows(bundle, image, detector.vocabularies["original"].embeddings, tight.embeddings)[1]
    rows = rows[rows[:, 5] > np.float32(0.05)]
    kept = distinct(rows[:, 1:5], rows[:, 5], rows[:, 6].astype(int), limits)
    ours = found.of("learned")
    assert ours.scores.tobytes() == rows[kept, 5].tobytes()
    all_of_them = before.of("learned")
    for k in range(4):
        n_left, n_before = (int((part.class_ids == k).sum()) for part in (ours, all_of_them))
        assert 0 < n_left < n_before if limits[k] < 1 else n_left == n_before > 0
    assert content(detector.detect(image, iou=0.7)[0]) == content(before)  # a number of the caller's is for all


def test_limit_of_overlap_holds_for_a_vocabulary_that_guides_itself(bundle: Path) -> None:
    image = photo(96, 96)
    loose, tight = (
        learned_for(bundle, "one", "two", guide_mode="own", thresholds=np.float32(0.05), nms_iou=n)
        for n in (None, np.array([0.3, 1], np.float32))
    )
    before, found = (
        Detector(bundle, use_bundled=False, learned=[part], threads=1).detect(image)[0].of("learned")
        for part in (loose, tight)
    )
    counts = [np.bincount(part.class_ids, minlength=2).tolist() for part in (before, found)]
    assert 0 < counts[1][0] < counts[0][0] and counts[0][1] == counts[1][1] > 0


@pytest.mark.parametrize(("scale", "shift"), [(2.0, 1.5), (0.5, -0.5), (1.0, 0.0), (1.0, 3.0)])
def test_calibration_acts_on_scores_before_thresholds(bundle: Path, scale: float, shift: float) -> None:
    names, image, limit = [f"thing {number}" for number in range(10)], photo(96, 96), np.float32(0.2)
    plain = learned_for(bundle, *names)
    guide = Vocabulary.load(bundle / "original.vocab.safetensors").embeddings
    rows = graph_rows(bundle, image, guide, plain.embeddings)[1]
    calibration = np.array([[scale, shift], [1, 0]] * 5, np.float32)  # every other class
    calibrated = learned_for(bundle, *names, thresholds=np.full(10, limit), calibration=calibration)
    detector = Detector(bundle, use_bundled=False, learned=[calibrated], threads=1)
    found = detector.detect(image)[0].of("learned")

    odds = (rows[:, 5].astype(np.float64) / (1 - rows[:, 5].astype(np.float64))) ** scale * np.exp(shift)
    even = rows[:, 6] % 2 == 0
    expected = np.where(even, odds / (1 + odds), rows[:, 5])
    assert (even & (expected > limit)).sum() > 5 and (~even & (expected > limit)).sum() > 5
    np.testing.assert_allclose(found.scores, expected[expected > limit], atol=1e-6)
    np.testing.assert_array_equal(found.class_ids, rows[expected > limit, 6])
    np.testing.assert_array_equal(found.scores[found.class_ids % 2 == 1], rows[~even & (rows[:, 5] > limit), 5])


def test_guide_mode_own_is_the_graph_with_that_guide(bundle: Path) -> None:
    image = photo(96, 96)
    own = learned_for(bundle, "one", "two", n_prompts=2, guide_mode="own", thresholds=np.float32(0))
    detector = Detector(bundle, use_bundled=False, threads=1)
    assert detector.load(own, "own") == "own"
    found = detector.detect(image, learned_conf=0.0)[0].of("own")
    rows, _ = graph_rows(bundle, image, own.embeddings, np.zeros((0, 1, 512), np.float32))
    assert len(found) == len(rows) > 0
    by_file = detector.detect(image)[0].of("own")  # a file's threshold of 0 lets nothing through below the floor
    assert len(by_file) == (rows[:, 5] > np.float32(LEAST_SCORE)).sum() < len(rows)
    np.testing.assert_array_equal(found.scores, rows[:, 5])
    guided = learned_for(bundle, "one", "two", n_prompts=2, thresholds=np.float32(0))
    other = Detector(bundle, use_bundled=False, learned=[guided], threads=1).detect(image)[0].of("learned")
    assert np.abs(np.sort(found.scores)[-5:] - np.sort(other.scores)[-5:]).max() > 1e-3  # the guide matters


def test_show_and_hide_choose_classes(bundle: Path) -> None:
    image = photo(96, 96)
    detector = Detector(bundle, threads=1)
    detector.load(learned_for(bundle, "forklift", seed=11), "shelf")
    detector.load(learned_for(bundle, "own", guide_mode="own", thresholds=np.float32(0)), "own")
    (everything,) = detector.detect(image)

    def keys(found: Detections) -> set[tuple[str, str]]:
        return set(zip(found.vocabularies, found.class_names, strict=True))

    both = {("learned", "forklift"), ("shelf", "forklift")}
    for show, hide, expected in (
        (["forklift"], None, both),
        (["shelf:forklift"], None, {("shelf", "forklift")}),
        (["forklift", "gizmo"], ["shelf:*"], {("learned", "forklift"), ("learned", "gizmo")}),
        (None, ["original:*", "own"], both | {("learned", "gizmo")}),
        (["own:own"], None, {("own", "own")}),
        ([], None, set()),
    ):
        (found,) = detector.detect(image, show=show, hide=hide)
        assert keys(found) == expected
        kept = np.array([key in expected for key in zip(everything.vocabularies, everything.class_names, strict=True)])
        assert content(found) == content(everything.select(kept))
    with pytest.raises(VocabularyError, match=r"^No loaded class is named 'forklif'\. Near: forklift, "):
        detector.detect(image, show=["forklif"])
    with pytest.raises(VocabularyError, match="No loaded class is named 'zzz'"):
        detector.detect(image, hide=["zzz"])


def test_labels_come_from_files_names_or_are_counted(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "trucks.vocab.safetensors"
    vocabulary = learned_for(bundle, "lorry")
    vocabulary.save(file)
    detector = Detector(bundle, learned=[file, vocabulary, vocabulary], threads=1)
    assert list(detector.vocabularies) == ["original", "learned", "trucks", "learned-2", "learned-3"]
    assert detector.load(file, "again") == "again"
    with pytest.raises(VocabularyError, match="cannot be loaded as `trucks`: another vocabulary has that label"):
        detector.load(str(file))
    with pytest.raises(VocabularyError, match="cannot be loaded as `original`"):
        detector.load(vocabulary, "original")
    detector.unload("trucks")
    assert detector.load(file) == "trucks"
    with pytest.raises(VocabularyError, match=r"No learned vocabulary `original` is loaded\. Loaded: learned, "):
        detector.unload("original")
    shutil.copy(file, tmp_path / "learned.vocab.safetensors")
    with pytest.raises(VocabularyError, match=r"cannot be loaded as `learned`: .* Give it another one \(NAME=FILE\)"):
        Detector(bundle, learned=[f"learned={tmp_path / 'learned.vocab.safetensors'}"], threads=1)
    alone = Detector(bundle, learned=[tmp_path / "learned.vocab.safetensors"], use_bundled=False, threads=1)
    assert alone.vocabularies["learned"].names == ("lorry",)


def test_vocabularies_change_while_threads_detect(bundle: Path) -> None:
    detector = Detector(bundle, use_bundled=False, threads=1)
    extra = learned_for(bundle, "lorry", n_prompts=2)
    image = photo(64, 96)
    without = content(detector.detect(image)[0])
    detector.load(extra, "extra")
    with_extra = content(detector.detect(image)[0])
    assert with_extra != without
    seen: list[tuple[object, ...]] = []
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            detector.unload("extra")
            detector.load(extra, "extra")

    swapper = threading.Thread(target=swap)

    def work() -> None:
        seen.extend(content(detector.detect(image)[0]) for _ in range(8))

    workers = [threading.Thread(target=work) for _ in range(3)]
    swapper.start()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stop.set()
    swapper.join()
    assert len(seen) == 24
    assert set(seen) <= {without, with_extra}


def test_load_of_1203_classes_takes_milliseconds(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "many.vocab.safetensors"
    learned_for(bundle, *(f"a class with a name {number}" for number in range(1203))).save(file)
    detector = Detector(bundle, threads=1)
    session = detector._session
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        detector.load(file)
        seconds.append(time.perf_counter() - start)
        detector.unload("many")
    median = statistics.median(seconds)
    with capsys.disabled():
        print(f" load of 1203 classes: median {1000 * median:.1f} ms", end="")
    assert median < 0.05  # the aim is 0.01; a busy machine needs more
    assert detector._session is session


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_device_is_the_one_that_really_runs(device: str, bundle: Path) -> None:
    detector = Detector(bundle, device=device, threads=1)
    assert detector.device == device_of(detector._session._session)
    assert device == "auto" or detector.device == device


def test_plain_vocabulary_for_any_detector_and_guide_is_taken(bundle: Path, detector: Detector) -> None:
    label = detector.load(learned_for(bundle, "lorry", kind="plain", detector="", guide="a" * 64))
    assert "lorry" in detector.detect(photo(64, 96))[0].of(label).class_names


def test_pil_images_give_what_their_files_give(detector: Detector, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.fromarray(photo(60, 150)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        (found,) = detector.detect(opened)
        assert content(found) == content(detector.detect(tmp_path / "a.png")[0])
        assert found.size_wh == (60, 150) and len(found) > 0
        assert [content(one) for one in detector.detect([opened, photo(60, 150)])] == [
            content(found),
            content(detector.detect(photo(60, 150))[0]),
        ]


def test_bgr_says_that_arrays_and_only_arrays_are_opencvs(detector: Detector, tmp_path: Path) -> None:
    Image.fromarray(photo(60, 150)).save(tmp_path / "a.png")
    right = content(detector.detect(photo(60, 150))[0])
    opencv = np.ascontiguousarray(photo(60, 150)[:, :, ::-1])
    assert content(detector.detect(opencv)[0]) != right
    images: list[ImageInput] = [opencv, tmp_path / "a.png", Image.fromarray(photo(60, 150))]
    assert [content(found) for found in detector.detect(images, bgr=True)] == [right] * 3


def test_conf_is_for_all_classes_and_the_narrower_ones_override_it(detector: Detector) -> None:
    def lowest(**confs: float) -> dict[str, float]:
        (found,) = detector.detect(photo(60, 90), **confs)  # type: ignore[arg-type]
        return {label: min(one.score for one in found if one.vocabulary == label) for label in set(found.vocabularies)}

    def content_of(**confs: float) -> tuple[object, ...]:
        return content(detector.detect(photo(60, 90), **confs)[0])  # type: ignore[arg-type]

    assert set(lowest(conf=0.01)) == {"original", "learned"}
    assert min(lowest(conf=0.01).values()) > 0.01
    assert content_of(conf=0.01) == content_of(original_conf=0.01, learned_conf=0.01)
    assert content_of(conf=0.01, learned_conf=1) == content_of(original_conf=0.01, learned_conf=1)
    assert content_of(conf=1, learned_conf=0.01) == content_of(original_conf=1, learned_conf=0.01)
    with pytest.raises(PromptTuneError, match=r"`conf` must be from 0 to 1\. Received: 25\."):
        detector.detect(photo(60, 90), conf=25)


def test_repr_is_one_line_that_says_what_it_detects(detector: Detector, bundle: Path) -> None:
    assert repr(detector) == (
        f"<Detector {str(bundle)!r}, cpu, float32, {IMAGE_SIZE} px: original (80 classes), learned (2 classes)>"
    )


def test_image_size_is_the_bundles_or_the_callers(bundle: Path, detector: Detector) -> None:
    image = photo(200, 200)
    assert detector.image_size == IMAGE_SIZE
    larger = Detector(bundle, image_size=160, threads=1)
    assert len(larger.detect(image)[0]) > len(detector.detect(image)[0]) > 0


def test_detector_and_vocabulary_come_from_the_package() -> None:
    import prompt_tune

    assert prompt_tune.Detector is Detector and prompt_tune.Vocabulary is Vocabulary


def test_background_row_guides_and_scores_and_is_never_shown(bundle: Path, tmp_path: Path) -> None:
    images = [photo(60, 150, seed=1), photo(96, 96, seed=3)]
    plain = Detector(bundle, threads=1)
    before = plain.detect(images, conf=0.2)
    row = int(np.bincount(np.concatenate([found.of("original").class_ids for found in before])).argmax())
    marked = Detector(with_background(bundle, tmp_path / "marked", row), threads=1)
    hidden = ("original", plain.vocabularies["original"].names[row])
    assert marked.classes == tuple(key for key in plain.classes if key != hidden)
    for options in ({"conf": 0.2}, {}, {"conf": 0.2, "show": ["original:*"]}):
        for one, other in zip(plain.detect(images, **options), marked.detect(images, **options), strict=True):
            rest = [key != hidden for key in zip(one.vocabularies, one.class_names, strict=True)]
            assert content(one[rest]) == content(other)  # every other detection keeps every bit
    assert sum(key == hidden for found in before for key in zip(found.vocabularies, found.class_names, strict=True)) > 0
    tables = [one.raw(network_input(images[0])) for one in (plain, marked)]
    assert tables[0][0].tobytes() == tables[1][0].tobytes()  # it scores in the graph, which `verify` compares
    with pytest.raises(VocabularyError, match="No loaded class is named"):
        marked.detect(images, show=[hidden[1]])
    twin = learned_for(tmp_path / "marked", hidden[1], seed=2)  # the mark hides, not the name
    label = marked.load(twin)
    found = marked.detect(images, conf=0.2, show=[hidden[1]])
    assert {key for part in found for key in part.vocabularies} == {label}
    assert "original (79 classes)" in repr(marked)


def test_files_of_several_runs_are_loaded_side_by_side(bundle: Path, tmp_path: Path) -> None:
    places = []
    for run in ("night", "day"):
        (tmp_path / run).mkdir()
        places.append(tmp_path / run / "learned.vocab.safetensors")
        learned_for(bundle, run).save(places[-1])
    detector = Detector(bundle, learned=[places[0], f"sun={places[1]}"], threads=1)
    assert list(detector.vocabularies) == ["original", "learned", "night", "sun"] and detector.bundled == "learned"
    assert detector.load(f"again={places[0]}") == "again" and detector.load(places[0], "and again") == "and again"
    with pytest.raises(VocabularyError) as refusal:
        detector.load(places[0])
    assert "cannot be loaded as `night`" in str(refusal.value) and "NAME=FILE" in str(refusal.value)
    assert Detector(bundle, use_bundled=False, learned=places, threads=1).bundled is None


def test_overlap_is_a_view_that_removes_no_row(bundle: Path) -> None:
    """Twins of the original classes lie on their boxes, with their scores."""
    detector = Detector(bundle, use_bundled=False, threads=1)
    original, images = detector.vocabularies["original"], [photo(60, 150, seed=1), photo(96, 96, seed=3)]
    twins = replace(
        learned_for(bundle, *original.names), embeddings=original.embeddings, thresholds=original.thresholds - 0.1
    )
    detector.load(twins, "twins")
    kept = detector.detect(images)
    how: Literal["learned", "score"]
    for how in ("learned", "score"):
        for before, found in zip(kept, detector.detect(images, overlap=how), strict=True):
            assert content(before) == content(replace(found, hidden=None)) and before.hidden is None
            assert found.hidden is not None and set(found.shown.vocabularies) == {"twins"}
    (found,) = detector.detect(images[0], overlap="learned", hide=["twins:*"])  # what is not there hides nothing
    assert found.hidden is not None and not found.hidden.any() and len(found) > 0
    assert content(replace(found, hidden=None)) == content(kept[0].of("original"))
    with pytest.raises(PromptTuneError, match="`overlap` must be one of"):
        detector.detect(images[0], overlap="both")  # type: ignore[arg-type]


def test_vocabularies_that_do_not_fit_into_memory_are_refused(bundle: Path) -> None:
    large = Detector(bundle, image_size=4096, use_bundled=False)
    n_original, limit = len(large.classes), 2**29 // (512**2 + 256**2 + 128**2)
    fitting = learned_for(bundle, *(f"n {i}" for i in range(limit - n_original)))
    large.load(fitting)
    one = learned_for(bundle, "one more")
    assert refusal_of(lambda: large.load(one, "one")) == (
        f"The vocabulary cannot be loaded: with it, {limit + 1:,} prompts are compared with an image at once (classes, "
        f"times the most prompts of a class). At 4096 px, at most {limit:,} fit into memory. Unload other "
        "vocabularies, or split this one."
    )
    assert list(large.vocabularies) == ["original", "learned"]


def test_letterboxed_image_gives_what_the_image_gives(detector: Detector, bundle: Path) -> None:
    images = [photo(60, 90), photo(90, 60, seed=1)]
    ready = [detector.letterboxed(image) for image in images]
    for batch in (1, 2):
        found = [content(one) for one in detector.detect(ready, batch=batch)]
        assert found == [content(one) for one in detector.detect(images, batch=batch)]
    assert content(detector.detect(ready[0])[0]) == content(detector.detect(images[0])[0])
    turned = detector.letterboxed(images[0][:, :, ::-1], bgr=True)
    assert np.array_equal(turned.pixels, ready[0].pixels) and turned.placed.size_wh == (90, 60)
    other = Detector(bundle, image_size=IMAGE_SIZE * 2, threads=1)
    with pytest.raises(DataError, match=r"must fit the detector's input of 192 px. Received: \(96, 96\)"):
        other.detect(ready[0])


def test_vocabulary_takes_the_place_of_another_in_one_step(bundle: Path) -> None:
    detector = Detector(bundle, threads=1)
    night, day = (learned_for(bundle, "crane", seed=seed) for seed in (1, 2))
    assert detector.load(night, "shift", replace=True) == "shift"
    detector.load(day, "shift", replace=True)
    assert list(detector.vocabularies) == ["original", "learned", "shift"]
    assert detector.vocabularies["shift"] is day
    for label in ("shift", "original"):
        with pytest.raises(VocabularyError, match="another vocabulary has that label"):
            detector.load(night, label, replace=label == "original")
