"""Grounding sets in MDETR's JSON: what of an image must not be a negative of the learned classes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_sets import SIZE_WH, Phrases, grounding_content, write_grounding

from prompt_tune.datasets.grounding import CaptionedImage, ignored_regions, read_grounding, read_grounding_yaml
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.replay import name_pattern
from prompt_tune.datasets.samples import Reason
from prompt_tune.errors import DataError

WHOLE = (0.0, 0.0, 100.0, 80.0)
CLASSES = (("forklift",), ("traffic light", "stop signal"))


def regions(image: CaptionedImage) -> set[tuple[int, tuple[float, ...]]]:
    """(class, box) of what is ignored."""
    labelled = ignored_regions(image, [name_pattern(prompts) for prompts in CLASSES])
    assert all(row.ignore for row in labelled.rows)
    assert len({(row.class_id, row.box_xyxy) for row in labelled.rows}) == len(labelled.rows)
    assert labelled.declared_wh == (SIZE_WH if labelled.rows else None)
    return {(row.class_id, row.box_xyxy) for row in labelled.rows}


@pytest.mark.parametrize(
    ("caption", "boxes", "expected"),
    [
        ("", [], set()),
        ("a dog", [(["a dog"], 1, 2, 3, 4)], set()),
        ("a red forklift", [(["a red forklift"], 10, 20, 30, 40)], {(0, (10, 20, 40, 60))}),
        (  # another phrase's box is a negative
            "A man. Two Forklifts.",
            [(["A man"], 1, 2, 3, 4), (["Two Forklifts"], 10, 20, 30, 40), (["Two Forklifts"], 50, 20, 30, 40)],
            {(0, (10, 20, 40, 60)), (0, (50, 20, 80, 60))},
        ),
        (  # a span that covers a part of the name only
            "the stop signal",
            [(["signal"], 10, 20, 30, 40)],
            {(1, (10, 20, 40, 60))},
        ),
        (  # a name in pieces: only the joined phrase has it
            "traffic and its light",
            [(["traffic", "light"], 10, 20, 30, 40)],
            {(1, (10, 20, 40, 60))},
        ),
        ("a man at a forklift", [(["a man"], 1, 2, 3, 4)], {(0, WHOLE)}),
        ("a forklift", [([], 1, 2, 3, 4)], {(0, WHOLE)}),
        (  # the second one has no box: it may be anywhere
            "a forklift. one more forklift",
            [(["a forklift"], 10, 20, 30, 40)],
            {(0, (10, 20, 40, 60)), (0, WHOLE)},
        ),
        (  # one class with a box, the other without
            "a forklift under a traffic light",
            [(["a forklift"], 10, 20, 30, 40)],
            {(0, (10, 20, 40, 60)), (1, WHOLE)},
        ),
        ("a forklift", [(["a forklift"], -10, 20, 500, 40)], {(0, (0, 20, 100, 60))}),
        ("a forklift", [(["a forklift"], 10, 20, 0, 40)], {(0, WHOLE)}),
        ("a forklift", [(["a forklift"], 300, 20, 30, 40)], {(0, WHOLE)}),
    ],
)
def test_ignored_regions_are_what_names_a_class(
    tmp_path: Path, caption: str, boxes: Phrases, expected: set[tuple[int, tuple[float, ...]]]
) -> None:
    (image,) = read_grounding(write_grounding(tmp_path, [("a.png", caption, boxes)]))
    assert image.path == tmp_path / "images" / "a.png"
    assert regions(image) == expected


def test_read_grounding_captions_of_one_image_are_merged(tmp_path: Path) -> None:
    rows: list[tuple[str, str, Phrases]] = [
        ("b.png", "a forklift", [(["forklift"], 10, 20, 30, 40)]),
        ("a.png", "a dog", []),
        ("b.png", "the yellow forklift", [(["yellow forklift"], 10, 20, 30, 40)]),
        ("b.png", "a traffic light", [(["light"], 50, 10, 5, 20)]),
    ]
    first, second = read_grounding(write_grounding(tmp_path, rows))
    assert (first.path.name, len(first.captions), regions(first)) == ("a.png", 1, set())
    assert (second.path.name, len(second.captions)) == ("b.png", 3)
    assert regions(second) == {(0, (10, 20, 40, 60)), (1, (50, 10, 55, 30))}


def test_read_grounding_finds_the_images_beside_the_file_or_where_the_yaml_says(tmp_path: Path) -> None:
    row: list[tuple[str, str, Phrases]] = [("a.png", "a dog", []), ("b.png", "a cat", [])]
    inside = write_grounding(tmp_path / "inside", row, folder=".")
    assert read_grounding(inside)[0].path.parent == tmp_path / "inside"
    beside = write_grounding(tmp_path / "beside", row)
    (beside.parent / "images" / "a.png").unlink()  # people have a part of the images
    assert read_grounding(beside)[0].path.parent == tmp_path / "beside" / "images"
    elsewhere = write_grounding(tmp_path / "elsewhere", row, folder="photos")
    with pytest.raises(
        DataError, match=r"none of its 2 images is in .*images` or in .*the first: `a\.png`.* two lines"
    ):
        read_grounding(elsewhere)
    description = tmp_path / "elsewhere" / "set.yaml"
    entries = {"images": "photos", "grounding": "final_set.json"}
    assert read_grounding_yaml(description, entries)[0].path == tmp_path / "elsewhere" / "photos" / "a.png"
    with_path = {"path": str(tmp_path / "elsewhere"), **entries}
    assert read_grounding_yaml(tmp_path / "set.yaml", with_path)[0].path.is_file()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train": "images"}, "has grounding, images, path. Received: train"),
        ({"images": None}, r"must have `images: FOLDER` and `grounding: FILE.json`. Received for `images`: None"),
        ({"grounding": ["a.json"]}, r"Received for `grounding`: \['a.json'\]"),
        ({"grounding": "gone.json"}, r"there is no `.*gone\.json`"),
        ({"images": "gone"}, r"there is no `.*gone`"),
    ],
)
def test_read_grounding_yaml_bad_description_raises(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    write_grounding(tmp_path, [("a.png", "a dog", [])])
    entries = {"images": "images", "grounding": "final_set.json"} | keys
    with pytest.raises(DataError, match=message):
        read_grounding_yaml(tmp_path / "set.yaml", entries)


def test_read_grounding_bad_file_raises_one_line(tmp_path: Path) -> None:
    good = grounding_content([("a.png", "a forklift", [(["forklift"], 1, 2, 3, 4)]), ("b.png", "a dog", [])])

    def edited(key: str, position: int, **values: object) -> dict[str, Any]:
        copy = json.loads(json.dumps(good))
        copy[key][position] |= values
        return dict(copy)

    def without(key: str, name: str) -> dict[str, Any]:
        copy = json.loads(json.dumps(good))
        del copy[key][0][name]
        return dict(copy)

    cases: list[tuple[object, str]] = [
        ([], "must have a list `images` of objects"),
        ({"images": good["images"]}, "must have a list `annotations` of objects"),
        (good | {"images": []}, "has no images"),
        (good | {"images": [1]}, "must have a list `images` of objects"),
        (without("images", "caption"), r"image 0: an image of a grounding set has .* a `caption`\. \(COCO"),
        (without("images", "id"), "image number 1: an image of a grounding set has an `id`"),
        (without("images", "file_name"), "image 0: an image of a grounding set"),
        (without("images", "height"), "image 0: `width` and `height` must be pixels above 0. Received: 100, None"),
        (edited("images", 1, id=0), "image 0: an image of a grounding set has an `id` of its own"),
    ]
    file = write_grounding(tmp_path, [("a.png", "a forklift", []), ("b.png", "a dog", [])])
    for case, message in cases:
        file.write_text(json.dumps(case))
        with pytest.raises(DataError, match=message) as caught:
            for image in read_grounding(file):
                regions(image)
        assert "\n" not in str(caught.value)
    file.write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        read_grounding(file)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bbox": None}, r"image 0, annotation 500: `bbox` must be .* Received: None"),
        ({"bbox": [1, 2, float("nan"), 4]}, "`bbox` must be"),
        ({"tokens_positive": None}, r"`tokens_positive` must be .* Received: None"),
        ({"tokens_positive": [2, 10]}, "`tokens_positive` must be"),
        ({"tokens_positive": [[2, 11]]}, r"span \[2, 11\] is not in its caption of 10 characters"),
        ({"tokens_positive": [[-1, 3]]}, r"the span \[-1, 3\] is not"),
        ({"tokens_positive": [[5, 3]]}, r"the span \[5, 3\] is not"),
    ],
)
def test_ignored_regions_bad_annotation_is_left_out_and_its_object_may_be_anywhere(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    file = write_grounding(tmp_path, [("a.png", "a forklift", [(["forklift"], 1, 2, 3, 4)])])
    content = json.loads(file.read_text())
    content["annotations"][0] |= values
    file.write_text(json.dumps(content))
    (image,) = read_grounding(file)
    assert regions(image) == {(0, WHOLE)}
    (entry,) = ignored_regions(image, [name_pattern(["forklift"])]).left_out
    assert entry.reason == Reason.ROW and re.search(message, entry.what) and "\n" not in entry.what


@pytest.mark.parametrize("image_id", [None, 9, [9]])
def test_read_grounding_annotation_without_an_image_is_told(
    tmp_path: Path, image_id: object, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_grounding(tmp_path, [("a.png", "a forklift", [(["forklift"], 1, 2, 3, 4)])])
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = image_id
    file.write_text(json.dumps(content))
    assert [len(caption.annotations) for image in read_grounding(file) for caption in image.captions] == [0]
    (told,) = caplog.messages
    assert f"no image for 1 annotation, left out. The first: annotation 500, image {image_id!r}" in told


@pytest.mark.parametrize("name", ["sub\\\\A.png", "sub/%61.png", "SUB/a.PNG"])
def test_read_grounding_image_is_found_in_another_spelling(tmp_path: Path, name: str) -> None:
    (tmp_path / "images/sub").mkdir(parents=True)
    file = write_grounding(tmp_path, [("sub/a.png", "a forklift", []), ("._a.png", "a dog", [])])
    file.write_text(file.read_text().replace("sub/a.png", name), "utf-8-sig")
    assert [image.path for image in read_grounding(file)] == [tmp_path / "images/sub/a.png"]


def test_read_dataset_of_a_grounding_set_says_what_it_is_for(tmp_path: Path) -> None:
    write_grounding(tmp_path, [("a.png", "a dog", [])])
    (tmp_path / "set.yaml").write_text(yaml.safe_dump({"images": "images", "grounding": "final_set.json"}))
    with pytest.raises(DataError, match=r"set\.yaml` describes a grounding set, .* Give this file to `--replay`"):
        read_dataset(tmp_path / "set.yaml")
