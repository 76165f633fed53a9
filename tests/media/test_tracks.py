"""Tracks: who keeps which number from frame to frame, and where the numbers are written."""

# ruff: noqa: E402 - `needs` comes before the imports that it guards
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip
from commands import run_command
from extras import needs
from small_bundle import content, photo, small_bundle

from prompt_tune.models.world import World

needs("trackers")

from prompt_tune.media.labels import Coco, Csv, JsonLines
from prompt_tune.media.sources import Frame
from prompt_tune.media.tracks import LOST_FRAMES, Tracks
from prompt_tune.runtime.detections import Detections

BLANK = np.zeros((100, 200, 3), np.uint8)
CLASSES = (("original", "car"), ("learned", "car"), ("learned", "van"))


def frame(number: int | None, name: str = "clip.mp4") -> Frame:
    return Frame(name, BLANK, number, None if number is None else number / 25)


def found(*rows: tuple[str, int, int]) -> Detections:
    """Squares of 20 pixels: vocabulary, class id, left edge. The scores are low, as a class's own threshold may be."""
    names = {"original": ("car",), "learned": ("car", "van")}
    return Detections(
        boxes_xyxy=np.array([(left, 10, left + 20, 30) for _, _, left in rows], np.float32).reshape(-1, 4),
        scores=np.linspace(0.1, 0.2, len(rows), dtype=np.float32),
        class_ids=np.array([class_id for _, class_id, _ in rows], np.int64),
        class_names=tuple(names[label][class_id] for label, class_id, _ in rows),
        vocabularies=tuple(label for label, _, _ in rows),
        size_wh=(200, 100),
    )


def ids(result: Detections) -> list[int]:
    assert result.track_ids is not None and result.track_ids.dtype == np.int64
    return result.track_ids.tolist()


def test_each_class_of_each_vocabulary_counts_for_itself_and_no_row_is_removed() -> None:
    tracks, seen = Tracks(), []
    for number in range(4):
        left, right = 10 + 3 * number, 150 - 3 * number
        rows = [("original", 0, left), ("original", 0, right), ("learned", 0, left), ("learned", 1, right)]
        given = found(*(rows if number % 2 else rows[::-1]))
        result = tracks.follow(frame(number), given)
        assert content(result) == content(given)
        seen.append(ids(result) if number % 2 else ids(result)[::-1])
    assert seen[0] == [0, 0, 0, 0]  # the first frame: nothing is confirmed yet
    assert sorted(seen[1][:2]) == [1, 2] and seen[1][2:] == [1, 1]
    assert seen[1] == seen[2] == seen[3]


def test_learned_rows_change_no_number_of_original_ones() -> None:
    alone, together = Tracks(), Tracks()
    for number in range(6):
        rows = [("original", 0, 10 + 4 * number), ("original", 0, 100), ("original", 0, 160 - 20 * number)]
        learned = [("learned", 0, 10 + 4 * number), ("learned", 1, 60)]
        one = alone.follow(frame(number), found(*rows))
        both = together.follow(frame(number), found(*rows, *learned))
        assert ids(one) == ids(both)[:3]
    assert sorted(ids(both)[3:]) == [1, 1]


@pytest.mark.parametrize(("gap", "number"), [(5, 1), (LOST_FRAMES + 5, 2)])
def test_a_lost_object_keeps_its_number_for_a_while(gap: int, number: int) -> None:
    tracks = Tracks()
    for index in range(3):
        tracks.follow(frame(index), found(("learned", 0, 50)))
    for index in range(gap):
        assert ids(tracks.follow(frame(3 + index), found())) == []
    tracks.follow(frame(3 + gap), found(("learned", 0, 50)))
    assert ids(tracks.follow(frame(4 + gap), found(("learned", 0, 50)))) == [number]


def test_each_video_begins_anew_and_images_have_no_numbers() -> None:
    tracks = Tracks()
    for name in ("a.mp4", "b.mp4"):
        assert ids(tracks.follow(frame(0, name), found(("learned", 0, 50)))) == [0]
        assert ids(tracks.follow(frame(1, name), found(("learned", 0, 50)))) == [1]
    assert tracks.follow(frame(None), found(("learned", 0, 50))).track_ids is None


def test_numbers_are_in_every_format(tmp_path: Path) -> None:
    tracks, lines = Tracks(), io.StringIO()
    with Coco(tmp_path, CLASSES) as coco, Csv(tmp_path, has_tracks=True) as table:
        for number in range(2):
            result = tracks.follow(frame(number), found(("learned", 0, 50)))
            for sink in (coco, table, JsonLines(lines)):
                sink.write(frame(number), result)
    document = json.loads((tmp_path / "detections.json").read_text())
    assert [row["track_id"] for row in document["annotations"]] == [None, 1]
    rows = list(csv.DictReader((tmp_path / "detections.csv").open()))
    assert [row["track_id"] for row in rows] == ["", "1"]
    written = [json.loads(line)["detections"][0]["track_id"] for line in lines.getvalue().splitlines()]
    assert written == [None, 1]
    assert [one.track_id for one in result[result.scores > 0]] == [1]


def test_command_tracks_a_video(
    world: World, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = small_bundle(world, tmp_path_factory.getbasetemp() / "small-bundle")
    clip = write_clip(tmp_path / "clip.mp4", [photo(60, 90)] * 3)
    options = [clip, "--show", "forklift", "--threads", 1, "--save", "coco", "--save", "csv", "--out"]
    assert run_command(capfd, "detect", bundle, *options, tmp_path / "plain").status == 0
    done = run_command(capfd, "detect", bundle, *options, tmp_path / "out", "--track")
    assert done.status == 0, done.err
    plain, tracked = (
        json.loads((tmp_path / name / "detections.json").read_text())["annotations"] for name in ("plain", "out")
    )
    assert [{k: v for k, v in row.items() if k != "track_id"} for row in tracked] == plain and "track_id" not in plain[
        0
    ]
    numbers = {image: [row["track_id"] for row in tracked if row["image_id"] == image] for image in (1, 3)}
    assert set(numbers[1]) == {None}
    third = [number for number in numbers[3] if number]
    assert third and len(set(third)) == len(third)
