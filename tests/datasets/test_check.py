"""A data set looked over: counts, copies and odd boxes, each made on purpose."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prompt_tune.datasets.check import Oddity, _pairs, check_dataset, shown_samples
from prompt_tune.datasets.sample import write_sample
from prompt_tune.errors import DataError

SIZE = (200, 100)


def write(folder: Path, images: dict[str, list[str]]) -> Path:
    """An ultralytics data set: label lines by path below images/, such as "train/a"; boxes in pixels of `SIZE`."""
    for number, (name, lines) in enumerate(images.items()):
        image, label = folder / "images" / f"{name}.png", folder / "labels" / f"{name}.txt"
        image.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)).save(image)
        label.write_text("".join(f"{line}\n" for line in lines))
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog, owl]\n")
    return folder / "data.yaml"


def box(name: int, left: float, top: float, right: float, bottom: float) -> str:
    """A label line of a box in pixels."""
    x, y, width, height = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    return f"{name} {x / SIZE[0]} {y / SIZE[1]} {width / SIZE[0]} {height / SIZE[1]}"


def test_counts_are_those_of_the_files(tmp_path: Path) -> None:
    data = write(
        tmp_path,
        {
            "train/a": [box(0, 10, 10, 50, 50), box(0, 60, 10, 100, 50), box(1, 120, 20, 160, 60)],
            "train/b": [box(0, 10, 10, 90, 90), "5x 1 2 3"],
            "train/c": [],
            "val/d": [box(1, 10, 10, 50, 50)],
        },
    )
    (tmp_path / "images/train/broken.png").write_bytes(b"nothing")
    found, dataset = check_dataset(data, image_size=400)
    train, val = found.splits["train"], found.splits["val"]
    assert (train.images, train.boxes, train.background, train.ignored) == (3, 4, 1, 0)
    assert (val.images, val.boxes, val.background, val.left_out) == (1, 1, 0, ())
    assert sorted(line.split(":")[0] for line in train.left_out) == ["bad label row", "unreadable image"]
    assert [(row.name, row.train_boxes, row.train_images, row.val_boxes) for row in found.classes] == [
        *(("cat", 3, 2, 0), ("dog", 1, 1, 1), ("owl", 0, 0, 0))
    ]
    assert [row.side for row in found.classes] == [80.0, 80.0, None]  # 40 of 200 pixels, at 400
    assert (found.kind, found.held_out, found.few, found.image_sizes) == ("yolo", False, False, (SIZE,) * 3)
    assert (found.odd, found.copies, found.leaked, found.unreadable) == ((), (), 0, ())
    assert found.hints == (
        "Fewer than 10 training images show: cat, dog.",
        "No training image shows: owl. Such a class cannot be learned.",
    )
    assert len(dataset.train.samples) == 3


def test_odd_boxes_are_named_with_what_is_odd(tmp_path: Path) -> None:
    data = write(
        tmp_path,
        {
            "train/a": [box(0, 0, 0, 200, 98)],
            "train/b": [box(1, 10, 10, 190, 18)],
            "train/c": [box(1, 50, 50, 60, 51.9)],
            "train/d": [box(0, 10, 10, 60, 60), box(0, 10, 10, 60, 58), box(2, 10, 10, 60, 60), box(1, 12, 10, 60, 60)],
            "val/e": [box(0, 10, 10, 60, 60), box(0, 70, 10, 120, 60), box(2, 70, 10, 120, 60)],
        },
    )
    found, _ = check_dataset(data, image_size=400)
    rows = [(Path(row.image).stem, row.split, row.oddity, row.name, row.note) for row in found.odd]
    assert rows == [
        ("a", "train", Oddity.WHOLE, "cat", "98% of it"),
        ("b", "train", Oddity.SLIVER, "dog", "180.0 x 8.0 pixels"),
        ("c", "train", Oddity.SPECK, "dog", "20.0 x 3.8 pixels there"),
        ("d", "train", Oddity.TWICE, "cat", "IoU 0.96"),
        ("d", "train", Oddity.RIVAL, "owl", "IoU 1.00 with 'cat'"),  # once, though it lies on two
        ("d", "train", Oddity.RIVAL, "dog", "IoU 0.96 with 'cat'"),
        ("e", "val", Oddity.RIVAL, "owl", "IoU 1.00 with 'cat'"),
    ]
    assert found.odd[0].box_xyxy == (0.0, 0.0, 200.0, 98.0)


def test_boxes_on_each_other_are_found_among_many(tmp_path: Path) -> None:
    """A grid of boxes beside each other has none; one of them is there twice, with another on it."""
    grid = [box(0, x, y, x + 3, y + 3) for x in range(0, 196, 4) for y in range(0, 96, 4)]
    more = [box(0, 100, 48, 102.9, 51), box(1, 100, 48, 103, 51), box(2, 10, 10, 20, 20)]
    found, _ = check_dataset(write(tmp_path, {"train/a": grid + more, "val/b": grid[:1]}), image_size=3200)
    assert [(row.oddity, row.name, row.note) for row in found.odd] == [
        (Oddity.TWICE, "cat", "IoU 0.97"),
        (Oddity.RIVAL, "dog", "IoU 1.00 with 'cat'"),
    ]


def test_an_image_may_have_a_hundred_thousand_boxes() -> None:
    """All pairs at once would take 80 GB for each array."""
    x, y = np.meshgrid(np.arange(400), np.arange(250))
    corners = np.stack([x.ravel(), y.ravel()], 1) * 10.0
    boxes = np.concatenate([corners, corners + 8], 1).astype(np.float32)
    boxes[77_777] = boxes[5] + np.array([0, 0, 0, 0.5], np.float32)
    assert [(row, other, round(iou, 2)) for row, other, iou in _pairs(boxes, np.zeros(len(boxes), int))] == [
        (77_777, 5, 0.94)
    ]


def test_copies_are_grouped_and_those_in_val_counted(tmp_path: Path) -> None:
    line = [box(0, 10, 10, 60, 60)]
    data = write(tmp_path, {name: line for name in ("train/a", "train/b", "train/c", "val/d", "val/e")})
    content = (tmp_path / "images/train/a.png").read_bytes()
    for copy in ("train/b", "val/e"):
        (tmp_path / f"images/{copy}.png").write_bytes(content)
    found, _ = check_dataset(data)
    assert [[Path(path).stem for path in group] for group in found.copies] == [["a", "b", "e"]]
    assert found.leaked == 1
    assert any("copies of training images" in hint for hint in found.hints)
    assert any("No training image is background" in hint for hint in found.hints)


def test_image_that_is_damaged_behind_its_header_is_found(tmp_path: Path) -> None:
    line = [box(0, 10, 10, 60, 60)]
    data = write(tmp_path, {name: line for name in ("train/a", "train/b", "val/c")})
    damaged = tmp_path / "images/train/b.png"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
    damaged.write_bytes(content)
    steps: list[tuple[int, int | None]] = []
    found, _ = check_dataset(data, progress=lambda stage, done, total, note: steps.append((done, total)))
    assert len(found.unreadable) == 1 and "b.png" in found.unreadable[0]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(DataError, match=r"b\.png"):
        check_dataset(data, strict=True)


def test_set_without_val_is_read_as_fit_reads_it(tmp_path: Path) -> None:
    line = [box(0, 10, 10, 60, 60)]
    data = write(tmp_path, {f"train/{n}": line for n in range(8)})
    data.write_text("train: images/train\nnames: [cat]\n")
    found, _ = check_dataset(data)
    assert found.few and not found.held_out and list(found.splits) == ["train"] and found.splits["train"].images == 8


def test_shown_images_show_every_class_that_there_is(tmp_path: Path) -> None:
    images = {f"train/{n:02d}": [box(0, 10, 10, 60, 60)] for n in range(30)}
    images["train/17"] = [box(2, 10, 10, 60, 60), box(1, 80, 10, 120, 60)]
    images["train/05"] = []
    data = write(tmp_path, images | {"val/a": [box(0, 10, 10, 60, 60)]})
    _, dataset = check_dataset(data)
    shown = [sample.path.stem for sample in shown_samples(dataset, 10)]
    assert len(shown) == 10 and "17" in shown and "05" not in shown and shown == sorted(shown)
    assert int(shown[-1]) > 20  # from the whole set
    assert [sample.path.stem for sample in shown_samples(dataset, 1)] == ["17"]
    assert len(shown_samples(dataset, 100)) == 29


def test_sample_set_has_what_it_is_drawn_with(tmp_path: Path) -> None:
    custom, _ = write_sample(tmp_path / "set", n_images=12)
    found, _ = check_dataset(custom, image_size=256)
    assert {name: split.images for name, split in found.splits.items()} == {"train": 12, "val": 12}
    assert len(found.classes) == 6 and found.copies == () and found.leaked == 0
    boxes = found.to_json()["splits"]["train"]["boxes"]
    assert (
        boxes
        == sum(row.train_boxes for row in found.classes)
        == sum(len(path.read_text().splitlines()) for path in (tmp_path / "set/custom/labels/train").glob("*.txt"))
    )
