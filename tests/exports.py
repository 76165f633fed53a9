"""The small data set of `data_sets.py` as annotation tools write it: one function per tool and format.

Each writes `splits` below a folder and returns what `read_dataset` takes. Layouts, keys and their order are those of
the tools' own exporters (CVAT 2.80, Label Studio SDK 2.1, labelme 6.3, FiftyOne 1.22, Roboflow's export in 2026).
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from data_sets import NAMES, SIZE_WH, Boxes, coco_content, save_images, write_voc

Writer = Callable[[Path, dict[str, Boxes]], Path]
W, H = SIZE_WH
ROBOFLOW = {"train": "train", "val": "valid", "test": "test"}
CVAT = {"train": "Train", "val": "Validation", "test": "Test"}  # subsets of a CVAT project
IDENTIFIERS = ("/m/07r04", "/m/015qff")  # of Open Images, for `NAMES`


def yolo_lines(rows: list[tuple[int, float, float, float, float, bool]]) -> str:
    """Label rows; the format cannot say `ignore`, so that those boxes are left out."""
    return "".join(
        f"{c} {(x1 + x2) / 2 / W:.6f} {(y1 + y2) / 2 / H:.6f} {(x2 - x1) / W:.6f} {(y2 - y1) / H:.6f}\n"
        for c, x1, y1, x2, y2, ignored in rows
        if not ignored
    )


def cvat_coco(root: Path, splits: dict[str, Boxes]) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split, boxes in splits.items():
        save_images(root / "images" / CVAT[split], list(boxes))
        content: dict[str, Any] = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": {"contributor": ""}}
        content |= coco_content(boxes)
        for annotation in content["annotations"]:
            annotation |= {"segmentation": [], "attributes": {"occluded": False, "rotation": 0.0}}
        (root / f"annotations/instances_{CVAT[split]}.json").write_text(json.dumps(content))
    return root


def cvat_voc(root: Path, splits: dict[str, Boxes]) -> Path:
    """Images in a subfolder, as the task had them. Coordinates are edges, unlike those of the devkit."""
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (root / "Annotations/cam 1").mkdir(parents=True)
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\n")
    for split, boxes in splits.items():
        save_images(root / "JPEGImages/cam 1", list(boxes))
        (lists / f"{CVAT[split]}.txt").write_text("".join(f"cam 1/{stem}\n" for stem in boxes))
        for stem, rows in boxes.items():
            objects = "".join(
                f"<object><name>{NAMES[c]}</name><truncated>0</truncated><occluded>0</occluded><difficult>{int(ignored)}"
                f"</difficult><bndbox><xmin>{x1:.2f}</xmin><ymin>{y1:.2f}</ymin><xmax>{x2:.2f}</xmax><ymax>{y2:.2f}"
                "</ymax></bndbox><attributes><attribute><name>rotation</name><value>0.0</value></attribute></attributes>"
                "</object>"
                for c, x1, y1, x2, y2, ignored in rows
            )
            (root / f"Annotations/cam 1/{stem}.xml").write_text(
                f"<annotation><folder></folder><filename>cam 1/{stem}.png</filename><source><database>"
                f"Unknown</database></source><size><width>{W}</width><height>{H}</height><depth></depth></size><segmented>0</segmented>"
                f"{objects}</annotation>"
            )
    return root


def cvat_yolo(root: Path, splits: dict[str, Boxes]) -> Path:
    """Ultralytics YOLO: lists whose lines begin with `data/`, which is no folder."""
    for split, boxes in splits.items():
        save_images(root / "images" / CVAT[split], list(boxes))
        (root / f"{CVAT[split]}.txt").write_text("".join(f"data/images/{CVAT[split]}/{s}.png\n" for s in boxes))
        (root / "labels" / CVAT[split]).mkdir(parents=True)
        for stem, rows in boxes.items():
            (root / "labels" / CVAT[split] / f"{stem}.txt").write_text(yolo_lines(rows))
    content = {CVAT[split]: f"{CVAT[split]}.txt" for split in splits}
    (root / "data.yaml").write_text(yaml.safe_dump({**content, "names": dict(enumerate(NAMES)), "path": "."}))
    return root


def cvat_yolo_11(root: Path, splits: dict[str, Boxes]) -> Path:
    """YOLO 1.1, the Darknet layout."""
    for split, boxes in splits.items():
        name = ROBOFLOW[split]
        save_images(root / f"obj_{name}_data", list(boxes))
        (root / f"{name}.txt").write_text("".join(f"data/obj_{name}_data/{stem}.png\n" for stem in boxes))
        for stem, rows in boxes.items():
            (root / f"obj_{name}_data/{stem}.txt").write_text(yolo_lines(rows))
    (root / "obj.names").write_text("".join(f"{name}\n" for name in NAMES))
    (root / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    return root


def cvat_xml(root: Path, splits: dict[str, Boxes]) -> Path:
    """CVAT for images 1.1."""
    entries: list[str] = []
    for split, boxes in splits.items():
        save_images(root / "images" / CVAT[split], list(boxes))
        for stem, rows in boxes.items():
            shapes = "".join(
                f'<box label="{NAMES[c]}" source="manual" occluded="0" xtl="{x1:.2f}" ytl="{y1:.2f}" xbr="{x2:.2f}" '
                f'ybr="{y2:.2f}" z_order="0"></box>'
                for c, x1, y1, x2, y2, ignored in rows
                if not ignored
            )
            entries.append(
                f'<image id="{len(entries)}" name="{stem}.png" subset="{CVAT[split]}" task_id="3" width="{W}" '
                f'height="{H}">{shapes}</image>'
            )
    (root / "annotations.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task>'
        f"<id>3</id></task></meta>{''.join(entries)}</annotations>"
    )
    return root


def label_studio_coco(root: Path, splits: dict[str, Boxes]) -> Path:
    boxes = splits["train"]
    save_images(root / "images", list(boxes))
    content: dict[str, Any] = coco_content(boxes)
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    content["categories"] = [{"id": 10 * c + 7, "name": name} for c, name in enumerate(NAMES)]
    for annotation in content["annotations"]:
        annotation |= {"segmentation": [], "ignore": 0, "area": 1.0}
    (root / "result.json").write_text(json.dumps(content | {"info": {"contributor": "Label Studio"}}, indent=2))
    return root


def label_studio_yolo(root: Path, splits: dict[str, Boxes]) -> Path:
    boxes = splits["train"]
    save_images(root / "images", list(boxes))
    (root / "labels").mkdir()
    for stem, rows in boxes.items():
        (root / f"labels/{stem}.txt").write_text(yolo_lines(rows))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    (root / "notes.json").write_text(json.dumps({"categories": [{"id": i, "name": n} for i, n in enumerate(NAMES)]}))
    return root


def label_studio_region(
    name: str, box: tuple[float, float, float, float], number: int = 0, **more: Any
) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    pixels = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
    value: dict[str, Any] = {key: 100 * size / (H if key in ("y", "height") else W) for key, size in pixels.items()}
    value |= {"rotation": 0, "rectanglelabels": [name]}
    return {
        "original_width": W,
        "original_height": H,
        "image_rotation": 0,
        "value": value,
        "id": f"r{number}",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "origin": "manual",
    } | more


def label_studio_task(number: int, image: str, regions: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    annotation = {
        "id": 10 + number,
        "completed_by": 1,
        "result": regions,
        "was_cancelled": False,
        "ground_truth": False,
    }
    task = {"id": number, "annotations": [annotation], "file_upload": "x", "drafts": [], "predictions": []}
    return task | {"data": {"image": image}, "meta": {}, "inner_id": number} | more


def label_studio_json(root: Path, splits: dict[str, Boxes]) -> Path:
    """Uploaded files, whose names got a prefix in Label Studio, beside the user's own files."""
    boxes = splits["train"]
    save_images(root / "photos", list(boxes))
    tasks = [
        label_studio_task(
            number,
            f"/data/upload/3/0f{number:06x}-{stem}.png",
            [label_studio_region(NAMES[row[0]], row[1:5], i) for i, row in enumerate(rows) if not row[5]],
        )
        for number, (stem, rows) in enumerate(boxes.items(), start=1)
    ]
    (root / "project-3-at-2026-11-28-01-46-0a1b2c3d.json").write_text(json.dumps(tasks))
    return root


def label_studio_min(root: Path, splits: dict[str, Boxes]) -> Path:
    boxes = splits["train"]
    save_images(root / "photos", list(boxes))
    tasks = []
    for number, (stem, rows) in enumerate(boxes.items(), start=1):
        regions = [label_studio_region(NAMES[row[0]], row[1:5]) for row in rows if not row[5]]
        labels = [region["value"] | {"original_width": W, "original_height": H} for region in regions]
        task = {"image": f"/data/local-files/?d=photos/{stem}.png", "id": number, "annotator": 1, "annotation_id": 5}
        tasks.append(task | ({"label": labels} if labels else {}))
    (root / "project.json").write_text(json.dumps(tasks))
    return root


def roboflow_voc(root: Path, splits: dict[str, Boxes]) -> Path:
    for split, boxes in splits.items():
        folder = root / ROBOFLOW[split]
        save_images(folder, list(boxes))
        for stem, rows in boxes.items():
            objects = "".join(
                f"<object><name>{NAMES[c]}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>"
                f"{int(ignored)}</difficult><occluded>0</occluded><bndbox><xmin>{x1}</xmin><xmax>{x2}</xmax><ymin>{y1}"
                f"</ymin><ymax>{y2}</ymax></bndbox></object>"
                for c, x1, y1, x2, y2, ignored in rows
            )
            (folder / f"{stem}.xml").write_text(
                f"<annotation><folder></folder><filename>{stem}.png</filename><path>{stem}.png</path><source><database>"
                f"roboflow.com</database></source><size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
                f"<segmented>0</segmented>{objects}</annotation>"
            )
    return root


def roboflow_yolo(root: Path, splits: dict[str, Boxes]) -> Path:
    for split, boxes in splits.items():
        save_images(root / ROBOFLOW[split] / "images", list(boxes))
        (root / ROBOFLOW[split] / "labels").mkdir()
        for stem, rows in boxes.items():
            (root / ROBOFLOW[split] / f"labels/{stem}.txt").write_text(yolo_lines(rows))
    content = {split: f"../{ROBOFLOW[split]}/images" for split in splits} | {"nc": 2, "names": NAMES}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    (root / "README.roboflow.txt").write_text("made by Roboflow")
    return root


def roboflow_darknet(root: Path, splits: dict[str, Boxes]) -> Path:
    for split, boxes in splits.items():
        folder = root / ROBOFLOW[split]
        save_images(folder, list(boxes))
        (folder / "_darknet.labels").write_text("\n".join(NAMES))
        for stem, rows in boxes.items():
            (folder / f"{stem}.txt").write_text(yolo_lines(rows))
    return root


def roboflow_csv(root: Path, splits: dict[str, Boxes]) -> Path:
    """TensorFlow Object Detection CSV; an image without boxes has no line."""
    for split, boxes in splits.items():
        folder = root / ROBOFLOW[split]
        save_images(folder, list(boxes))
        with open(folder / "_annotations.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
            for stem, rows in boxes.items():
                table.writerows([f"{stem}.png", W, H, NAMES[c], *box] for c, *box, ignored in rows if not ignored)
    return root


def roboflow_retinanet(root: Path, splits: dict[str, Boxes]) -> Path:
    for split, boxes in splits.items():
        folder = root / ROBOFLOW[split]
        save_images(folder, list(boxes))
        lines = [
            f"{stem}.png,{','.join(map(str, box))},{NAMES[c]}\n"
            for stem, rows in boxes.items()
            for c, *box, ignored in rows
            if not ignored
        ]
        (folder / "_annotations.csv").write_text(
            "".join(lines) + "".join(f"{s}.png,,,,,\n" for s in boxes if not boxes[s])
        )
        (folder / "_classes.csv").write_text("".join(f"{name},{i}\n" for i, name in enumerate(NAMES)))
    return root


def roboflow_keras(root: Path, splits: dict[str, Boxes]) -> Path:
    for split, boxes in splits.items():
        folder = root / ROBOFLOW[split]
        save_images(folder, list(boxes))
        lines = [
            " ".join([f"{stem}.png", *(",".join(map(str, (*box, c))) for c, *box, ignored in rows if not ignored)])
            for stem, rows in boxes.items()
        ]
        (folder / "_annotations.txt").write_text("\n".join(lines))
        (folder / "_classes.txt").write_text("\n".join(NAMES))
    return root


def roboflow_createml(root: Path, splits: dict[str, Boxes]) -> Path:
    for split, boxes in splits.items():
        folder = root / ROBOFLOW[split]
        save_images(folder, list(boxes))
        content = [
            {
                "image": f"{stem}.png",
                "annotations": [
                    {
                        "label": NAMES[c],
                        "coordinates": {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1},
                    }
                    for c, x1, y1, x2, y2, ignored in rows
                    if not ignored
                ],
            }
            for stem, rows in boxes.items()
        ]
        (folder / "_annotations.createml.json").write_text(json.dumps(content))
    return root


def labelme_shape(label: str, points: list[list[float]], kind: str = "rectangle") -> dict[str, Any]:
    shape = {"label": label, "points": points, "group_id": None, "description": "", "shape_type": kind}
    return shape | {"flags": {}, "mask": None}


def labelme_content(name: str, shapes: list[dict[str, Any]]) -> dict[str, Any]:
    content = {"version": "6.3.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": "iVBORw0KGgo="}
    return content | {"imageHeight": H, "imageWidth": W}


def labelme(root: Path, splits: dict[str, Boxes]) -> Path:
    """Each JSON file beside its image; a rectangle has two corners in any order."""
    for split, boxes in splits.items():
        folder = root / split
        save_images(folder, list(boxes))
        for stem, rows in boxes.items():
            shapes = [
                labelme_shape(NAMES[c], [[x2, y1], [x1, y2]]) for c, x1, y1, x2, y2, ignored in rows if not ignored
            ]
            (folder / f"{stem}.json").write_text(json.dumps(labelme_content(f"{stem}.png", shapes), indent=2))
    return root


def fiftyone_samples(root: Path, splits: dict[str, Boxes]) -> Path:
    """FiftyOneDataset: all splits together, told apart by tags."""
    samples = []
    for split, boxes in splits.items():
        save_images(root / "data", list(boxes))
        for stem, rows in boxes.items():
            detections = [
                {
                    "_id": {"$oid": "5f"},
                    "_cls": "Detection",
                    "attributes": {},
                    "tags": [],
                    "label": NAMES[c],
                    "bounding_box": [x1 / W, y1 / H, (x2 - x1) / W, (y2 - y1) / H],
                    "iscrowd": int(ignored),
                }
                for c, x1, y1, x2, y2, ignored in rows
            ]
            field = {"_cls": "Detections", "detections": detections} if detections else None
            sample = {
                "_id": {"$oid": "60"},
                "filepath": f"data/{stem}.png",
                "_media_type": "image",
                "ground_truth": field,
            }
            samples.append(sample | {"tags": ["validation" if split == "val" else split], "metadata": None})
    (root / "samples.json").write_text(json.dumps({"samples": samples}))
    (root / "metadata.json").write_text(json.dumps({"name": "set", "sample_fields": []}))
    return root


def fiftyone_detections(root: Path, splits: dict[str, Boxes]) -> Path:
    """FiftyOneImageDetectionDataset, one folder per split."""
    for split, boxes in splits.items():
        save_images(root / split / "data", list(boxes))
        labels = {
            stem: [
                {"label": c, "bounding_box": [x1 / W, y1 / H, (x2 - x1) / W, (y2 - y1) / H]}
                for c, x1, y1, x2, y2, ignored in rows
                if not ignored
            ]
            or None
            for stem, rows in boxes.items()
        }
        (root / split / "labels.json").write_text(json.dumps({"classes": NAMES, "labels": labels}))
    return root


def fiftyone_coco(root: Path, splits: dict[str, Boxes]) -> Path:
    for split, boxes in splits.items():
        save_images(root / split / "data", list(boxes))
        content = {"info": {"description": "Exported from FiftyOne"}, "licenses": []} | coco_content(boxes)
        (root / split / "labels.json").write_text(json.dumps(content))
    return root


def fiftyone_yolo(root: Path, splits: dict[str, Boxes]) -> Path:
    """YOLOv5Dataset: the YAML has the path of the machine that exported it."""
    for split, boxes in splits.items():
        save_images(root / "images" / split, list(boxes))
        (root / "labels" / split).mkdir(parents=True)
        for stem, rows in boxes.items():
            (root / "labels" / split / f"{stem}.txt").write_text(yolo_lines(rows))
    content = {"names": dict(enumerate(NAMES)), "path": "/home/someone/export"}
    (root / "dataset.yaml").write_text(yaml.safe_dump(content | {split: f"./images/{split}/" for split in splits}))
    return root


def fiftyone_yolo4(root: Path, splits: dict[str, Boxes]) -> Path:
    boxes = splits["train"]
    save_images(root / "data", list(boxes))
    for stem, rows in boxes.items():
        (root / f"data/{stem}.txt").write_text(yolo_lines(rows))
    (root / "obj.names").write_text("\n".join(NAMES))
    (root / "images.txt").write_text("".join(f"data/{stem}.png\n" for stem in boxes))
    return root


def fiftyone_voc(root: Path, splits: dict[str, Boxes]) -> Path:
    write_voc(root, {"train": splits["train"]})
    (root / "images").rename(root / "data")
    (root / "annotations").rename(root / "labels")
    (root / "train.txt").unlink()
    return root


def fiftyone_cvat(root: Path, splits: dict[str, Boxes]) -> Path:
    """CVATImageDataset."""
    cvat_xml(root, {"train": splits["train"]})
    (root / "images/Train").rename(root / "data")
    (root / "images").rmdir()
    (root / "annotations.xml").rename(root / "labels.xml")
    return root


def lvis(root: Path, splits: dict[str, Boxes]) -> Path:
    """LVIS v1: addresses instead of file names, no `iscrowd`, and COCO's folders of images."""
    for split, boxes in splits.items():
        save_images(root / f"{split}2017", list(boxes))
        content: dict[str, Any] = coco_content(boxes)
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{image.pop('file_name')}"
            image |= {"neg_category_ids": [], "not_exhaustive_category_ids": [], "license": 1}
        kept = [entry for entry in content["annotations"] if not entry.pop("iscrowd")]
        content["annotations"] = [entry | {"segmentation": [[1, 2, 3, 4, 5, 6]]} for entry in kept]
        for category in content["categories"]:
            del category["supercategory"]
            category |= {"synset": "x.n.01", "synonyms": ["x"], "def": "x", "frequency": "f"}
        (root / f"lvis_v1_{split}.json").write_text(json.dumps({"info": {}} | content))
    return root


def open_images(root: Path, splits: dict[str, Boxes]) -> Path:
    """The files as they are downloaded; every image with a box, since Open Images says nothing of others."""
    columns = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    names = {"train": "oidv6-train", "val": "validation", "test": "test"}
    for split, boxes in splits.items():
        save_images(root / split, [stem for stem in boxes if boxes[stem]])
        lines = [
            f"{stem},xclick,{IDENTIFIERS[c]},1,{x1 / W},{x2 / W},{y1 / H},{y2 / H},0,0,{int(ignored)},0,0"
            for stem, rows in boxes.items()
            for c, x1, y1, x2, y2, ignored in rows
        ]
        elsewhere = f"0123456789abcdef,xclick,{IDENTIFIERS[0]},1,0.1,0.2,0.1,0.2,0,0,0,0,0"
        (root / f"{names[split]}-annotations-bbox.csv").write_text("\n".join([columns, *lines, elsewhere]) + "\n")
    classes = [("/m/011k07", "Tortoise"), *zip(IDENTIFIERS, NAMES, strict=True)]
    (root / "class-descriptions-boxable.csv").write_text("".join(f"{key},{name}\n" for key, name in classes))
    return root


def fiftyone_open_images(root: Path, splits: dict[str, Boxes]) -> Path:
    """As FiftyOne's zoo downloads Open Images."""
    for split, boxes in splits.items():
        open_images(root / split, {"train": boxes})
        folder = root / split
        (folder / "train").rename(folder / "data")
        (folder / "labels").mkdir()
        (folder / "metadata").mkdir()
        (folder / "oidv6-train-annotations-bbox.csv").rename(folder / "labels/detections.csv")
        (folder / "class-descriptions-boxable.csv").rename(folder / "metadata/classes.csv")
    return root


# Which splits each can have, and whether it can say that a box is to be ignored
WRITERS: dict[str, tuple[Writer, bool, bool]] = {
    writer.__name__: (writer, has_val, can_ignore)
    for writer, has_val, can_ignore in (
        (cvat_coco, True, True),
        (cvat_voc, True, True),
        (cvat_yolo, True, False),
        (cvat_yolo_11, True, False),
        (cvat_xml, True, False),
        (label_studio_coco, False, True),
        (label_studio_yolo, False, False),
        (label_studio_json, False, False),
        (label_studio_min, False, False),
        (roboflow_voc, True, True),
        (roboflow_yolo, True, False),
        (roboflow_darknet, True, False),
        (roboflow_csv, True, False),
        (roboflow_retinanet, True, False),
        (roboflow_keras, True, False),
        (roboflow_createml, True, False),
        (labelme, True, False),
        (fiftyone_samples, True, True),
        (fiftyone_detections, True, False),
        (fiftyone_coco, True, True),
        (fiftyone_yolo, True, False),
        (fiftyone_yolo4, False, False),
        (fiftyone_voc, False, True),
        (fiftyone_cvat, False, False),
        (lvis, True, False),
        (open_images, True, True),
        (fiftyone_open_images, True, True),
    )
}
