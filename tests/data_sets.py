"""A small data set in every format that is read, and what must come out of each.

`TRAIN` and `VAL` map an image's stem to its boxes (class, x1, y1, x2, y2, ignored) in pixels; an image without boxes is
background. The `write_*` functions write such splits and return what `read_dataset` takes.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from places import SHARED

from prompt_tune.datasets.samples import Split

SIZE_WH = (100, 80)
RACCOON = SHARED / "data" / "raccoon"

Boxes = dict[str, list[tuple[int, float, float, float, float, bool]]]
NAMES = ["lorry", "traffic light"]
TRAIN: Boxes = {
    "a": [(0, 10, 20, 50, 60, False), (1, 0, 0, 100, 80, False)],
    "b": [(1, 30, 10, 70, 40, False), (0, 5, 5, 25, 45, True)],
    "c": [],
}
VAL: Boxes = {"d": [(0, 20, 20, 40, 40, False)]}

# a caption and its boxes: (phrases of tokens_positive, x, y, width, height)
Phrases = list[tuple[list[str], float, float, float, float]]


def save_images(folder: Path, stems: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        colour = zlib.crc32(stem.encode()).to_bytes(4, "big")[:3]  # pictures differ, or they would be copies of one
        Image.new("RGB", SIZE_WH, tuple(colour)).save(folder / f"{stem}.png")


def write_yolo(root: Path, splits: dict[str, Boxes], **keys: object) -> Path:
    """An ultralytics data set; it has no way to say `ignore`, so that those boxes are left out."""
    for split, boxes in splits.items():
        save_images(root / "images" / split, list(boxes))
        labels = root / "labels" / split
        labels.mkdir(parents=True)
        for stem, rows in boxes.items():
            lines = [
                f"{c} {(x1 + x2) / 200} {(y1 + y2) / 160} {(x2 - x1) / 100} {(y2 - y1) / 80}"
                for c, x1, y1, x2, y2, ignored in rows
                if not ignored
            ]
            if lines:
                (labels / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    content = {"names": NAMES} | {split: f"images/{split}" for split in splits} | keys
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def coco_content(boxes: Boxes) -> dict[str, list[dict[str, object]]]:
    annotations = [
        {"image_id": image, "category_id": 10 * c + 7, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(ignored)}
        for image, rows in enumerate(boxes.values())
        for c, x1, y1, x2, y2, ignored in rows
    ]
    return {
        "images": [
            {"id": i, "file_name": f"{stem}.png", "width": SIZE_WH[0], "height": SIZE_WH[1]}
            for i, stem in enumerate(boxes)
        ],
        "annotations": [{"id": 100 + i, **annotation} for i, annotation in enumerate(annotations)],
        # out of order, as files have them: ids decide
        "categories": [{"id": 10 * c + 7, "name": NAMES[c], "supercategory": "things"} for c in (1, 0)],
    }


def write_coco(root: Path, splits: dict[str, Boxes]) -> Path:
    for split, boxes in splits.items():
        save_images(root / split, list(boxes))
        (root / f"{split}.json").write_text(json.dumps(coco_content(boxes)))
    content = {split: {"images": split, "annotations": f"{split}.json"} for split in splits}
    (root / "coco.yaml").write_text(yaml.safe_dump(content))
    return root / "coco.yaml"


def write_roboflow(root: Path, splits: dict[str, Boxes]) -> Path:
    for split, boxes in splits.items():
        folder = root / {"val": "valid"}.get(split, split)
        save_images(folder, list(boxes))
        content = coco_content(boxes)
        content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})  # as Roboflow does
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def write_voc(root: Path, splits: dict[str, Boxes], *, devkit: bool = False) -> Path:
    image_folder, xml_folder = ("JPEGImages", "Annotations") if devkit else ("images", "annotations")
    lists = root / "ImageSets" / "Main" if devkit else root
    first_pixel = 1 if devkit else 0
    lists.mkdir(parents=True, exist_ok=True)
    (root / xml_folder).mkdir(parents=True)
    for split, boxes in splits.items():
        save_images(root / image_folder, list(boxes))
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in boxes))
        for stem, rows in boxes.items():
            objects = "".join(
                f"<object><name>{NAMES[c]}</name><difficult>{int(ignored)}</difficult><bndbox><xmin>{x1 + first_pixel}"
                f"</xmin><ymin>{y1 + first_pixel}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
                for c, x1, y1, x2, y2, ignored in rows
            )
            size = f"<size><width>{SIZE_WH[0]}</width><height>{SIZE_WH[1]}</height></size>"
            (root / xml_folder / f"{stem}.xml").write_text(f"<annotation>{size}\n{objects}</annotation>")
    return root


def write_devkit(root: Path, splits: dict[str, Boxes]) -> Path:
    return write_voc(root, splits, devkit=True)


def check_split(split: Split, expected: Boxes, *, with_ignored: bool) -> None:
    assert [sample.path.stem for sample in split.samples] == list(expected)
    assert split.left_out == ()
    for sample in split.samples:
        rows = [row for row in expected[sample.path.stem] if with_ignored or not row[5]]
        assert sample.size_wh == SIZE_WH
        assert sample.labels.boxes_xyxy.shape == (len(rows), 4)
        assert sample.labels.boxes_xyxy.dtype == np.float32
        assert sample.labels.classes.dtype == np.int64
        assert sample.labels.ignore.dtype == bool
        np.testing.assert_allclose(
            sample.labels.boxes_xyxy, np.array([row[1:5] for row in rows]).reshape(-1, 4), atol=1e-4
        )
        assert sample.labels.classes.tolist() == [row[0] for row in rows]
        assert sample.labels.ignore.tolist() == [row[5] for row in rows]


def grounding_content(rows: list[tuple[str, str, Phrases]]) -> dict[str, Any]:
    """The JSON of rows (file name, caption, boxes), with the keys that the real files have."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (name, caption, boxes) in enumerate(rows):
        images.append(
            {
                "file_name": name,
                "height": SIZE_WH[1],
                "width": SIZE_WH[0],
                "id": i,
                "original_id": 7 * i,
                "caption": caption,
                "dataset_name": "mixed",
                "tokens_negative": [[0, len(caption)]],
            }
        )
        for phrases, *box in boxes:
            spans = [[caption.index(phrase), caption.index(phrase) + len(phrase)] for phrase in phrases]
            annotations.append(
                {
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "image_id": i,
                    "category_id": 1,
                    "id": 500 + len(annotations),
                    "bbox": box,
                    "tokens_positive": spans,
                    "segmentation": [[0, 0, 1, 1, 1, 0]],
                }
            )
    categories = [{"supercategory": "object", "id": 1, "name": "object"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def write_grounding(root: Path, rows: list[tuple[str, str, Phrases]], folder: str = "images") -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, _, _ in rows:
        Image.new("RGB", SIZE_WH).save(root / folder / name)
    (root / "final_set.json").write_text(json.dumps(grounding_content(rows)))
    return root / "final_set.json"
