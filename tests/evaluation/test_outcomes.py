"""Hits, misses and false alarms, worked out by hand, and the pictures of them."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prompt_tune.evaluation.outcomes import Example, Judged, Labels, judge, outcome
from prompt_tune.report.pictures import TILE_PIXELS, picture, pictures
from prompt_tune.runtime.detections import Detections

NAMES = ("gizmo", "widget")


def found(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int64),
        tuple(NAMES[k] for k in classes),
        ("learned",) * len(classes),
        (200, 100),
    )


def labels(boxes: list[list[float]], classes: list[int], ignore: list[bool] | None = None) -> Labels:
    return Labels(
        Path("photo.jpg"),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, np.int64),
        np.array(ignore or [False] * len(classes), bool),
    )


@pytest.fixture
def judged() -> Judged:
    """Two gizmos and a widget; the second gizmo is found below 0.5 only."""
    detections = found(
        [[0, 0, 10, 10], [0, 0, 10, 8], [50, 0, 60, 10], [100, 50, 110, 60], [30, 30, 40, 40], [0, 0, 10, 10]],
        [0.9, 0.95, 0.3, 0.6, 0.7, 0.2],
        [0, 0, 0, 0, 0, 1],
    )
    return judge(detections, labels([[0, 0, 10, 10], [50, 0, 60, 10], [31, 30, 41, 40]], [0, 0, 1]))


def test_judge_without_labels_or_detections_is_empty() -> None:
    nothing = judge(found([], [], []), labels([], []))
    assert nothing.iou.shape == (0, 0) and not len(nothing.label)
    lost = judge(found([], [], []), labels([[0, 0, 10, 10]], [0]))
    result = outcome([lost], 0, NAMES, 0.5, n_best=3)
    assert (result.objects, result.hits, result.misses, result.false_alarms) == (1, 0, 1, 0)
    assert result.precision is None and result.recall == 0 and result.best_misses[0].note == "nothing found here"
    assert outcome([nothing], 0, NAMES, 0.5, n_best=3).recall is None


def test_judge_gives_an_object_to_its_surest_detection_alone(judged: Judged) -> None:
    assert judged.label.tolist() == [-1, 0, 1, -1, -1, -1]
    assert judged.counts.all()


def test_outcome_counts_at_the_threshold_and_says_why(judged: Judged) -> None:
    result = outcome([judged], 0, NAMES, 0.5, n_best=2)
    assert (result.objects, result.hits, result.misses, result.false_alarms) == (2, 1, 1, 3)
    assert result.precision == 1 / 4 and result.recall == 1 / 2
    assert [example.note for example in result.best_hits] == ["score 0.950, IoU 0.80"]
    assert [example.note for example in result.best_misses] == ["score 0.300, needs 0.500"]
    assert result.best_misses[0].found_xyxy == (50, 0, 60, 10)
    assert [e.note for e in result.best_false_alarms] == [
        "score 0.900, second box (IoU 1.00)",
        "score 0.700, on a widget",
    ]
    everywhere = outcome([judged], 0, NAMES, 0.5, n_best=9).best_false_alarms
    assert everywhere[2].note == "score 0.600, nothing labelled here"
    np.testing.assert_allclose(result.recalls, [0.5, 0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(result.precisions, [1, 1 / 2, 1 / 3, 1 / 4, 2 / 5])


def test_ignored_labels_make_neither_misses_nor_false_alarms() -> None:
    judged = judge(found([[0, 0, 10, 10]], [0.9], [0]), labels([[0, 0, 10, 9]], [0], [True]))
    result = outcome([judged], 0, NAMES, 0.5, n_best=3)
    assert (result.objects, result.hits, result.misses, result.false_alarms) == (0, 0, 0, 0)


def test_picture_shows_the_crop_with_detection_and_label_drawn_apart() -> None:
    image = Image.new("RGB", (400, 200), (90, 90, 90))
    image.paste((250, 250, 0), (300, 100, 340, 140))
    example = Example(Path("photo.jpg"), (300, 100, 340, 140), (310, 110, 330, 130), (), "score 0.900, IoU 0.25")
    got = picture(image, example, "gizmo", "hit")
    assert (got.width, got.height) == (TILE_PIXELS, TILE_PIXELS)
    assert got.alt == "gizmo, hit in photo.jpg: score 0.900, IoU 0.25"
    head, content = got.src.split(",")
    tile = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == "data:image/jpeg;base64" and tile.format == "JPEG" and tile.size == (TILE_PIXELS, TILE_PIXELS)
    bare = picture(image, Example(Path("photo.jpg"), None, (310, 110, 330, 130), (), ""), "gizmo", "false alarm")
    assert bare.src != got.src
    pixels = np.asarray(tile).reshape(-1, 3).astype(int)
    assert ((pixels - (250, 250, 0)).__abs__().max(1) < 40).any()  # the object is in the crop


def test_detection_shows_between_the_dashes_of_a_box_on_top_of_it() -> None:
    box = (300, 100, 340, 140)
    got = picture(Image.new("RGB", (400, 200)), Example(Path("a.jpg"), box, box, (), ""), "gizmo", "collision")
    tile = Image.open(io.BytesIO(base64.b64decode(got.src.split(",")[1])))
    pixels = np.asarray(tile).astype(int)
    coloured = (pixels.max(axis=2) - pixels.min(axis=2)) > 80
    assert coloured.sum() > 100  # the solid box
    assert (pixels.min(axis=2) > 150).sum() > 100  # the dashes


def test_pictures_read_each_image_once_and_name_what_is_gone(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    one, two, lost = (Example(tmp_path / name, None, (0, 0, 9, 9), (), name) for name in ("a.png", "a.png", "b.png"))
    assert pictures([]) == ({}, ())
    drawn, unread = pictures([(one, "gizmo", "hit"), (lost, "gizmo", "hit"), (two, "widget", "false alarm")])
    assert set(drawn) == {one, two}
    assert drawn[two].alt == "widget, false alarm in a.png: a.png" and drawn[one].src != drawn[two].src
    assert len(unread) == 1 and "b.png" in unread[0]


def test_picture_of_an_image_smaller_than_the_crop_is_whole() -> None:
    image = Image.new("RGB", (40, 20))
    got = picture(image, Example(Path("a.jpg"), (0, 0, 40, 20), None, (), "nothing found here"), "gizmo", "miss")
    assert (got.width, got.height) == (TILE_PIXELS, TILE_PIXELS // 2)
