"""Data sets learned one after another and loaded together: the protocol of incremental open-vocabulary detection.

Run `python tests/bench_sequence.py FOLDER_OF_DATA_SETS --model yolov8s-worldv2.pt --shots 1,3,5,10,all --seeds 3`, with
`--coco COCO.yaml` for the AP of the original classes. Each subfolder is a data set that `fit` reads, such as those of
ODinW-13 or RF100-VL in Roboflow's COCO layout. Each is learned as a vocabulary of its own, beside the same original
vocabulary; at the end all are loaded together. ZiRa (arXiv 2403.01680) and DitHub (arXiv 2503.09271) measure in this
way; k images are drawn for each class as for GLIP (arXiv 2112.03857). `--sample-jobs` writes three small jobs for
`tiny` into the folder. With the same --out, a stopped run continues.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml
from rich.console import Console
from rich.table import Table
from subsets import write_subset

from prompt_tune.config import FitConfig
from prompt_tune.datasets.reading import read_dataset, read_split
from prompt_tune.datasets.sample import CLASSES, write_sample
from prompt_tune.datasets.samples import Sample
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.errors import DataError
from prompt_tune.evaluation.metrics import average_precision
from prompt_tune.evaluation.verify import verify
from prompt_tune.files import replacing
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs

LOWEST = 0.001  # of detections that count for average precision
SAME_BOX_IOU = 0.5  # of boxes of two vocabularies that stand for one object: the higher score keeps it
Json = dict[str, Any]


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", required=True, help="As for `fit`.")
@click.option("--text-tower", help="As for `fit`.")
@click.option("--shots", default="1,3,5,10,all", show_default=True, help="Images of each class that are learned from.")
@click.option("--seeds", default=3, show_default=True, help="Number of draws.")
@click.option("--coco", type=click.Path(path_type=Path), help="Labels of the original classes.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for all files. Default: a new one.")
@click.option("--sample-jobs", is_flag=True, help="First write three sample jobs for `tiny` into the folder.")
@click.option("--setting", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of `fit`, as JSON.")
@click.option("--device", default="cpu", show_default=True)
def main(
    folder: Path,
    model: str,
    text_tower: str | None,
    shots: str,
    seeds: int,
    coco: Path | None,
    out: Path | None,
    sample_jobs: bool,
    settings: tuple[str, ...],
    device: str,
) -> None:
    """Learn and measure what is missing in the folder of results, and print the table."""
    out = (out or Path(tempfile.mkdtemp(prefix="bench-sequence-"))).resolve()
    if sample_jobs and not folder.exists():
        _write_sample_jobs(folder)
    places = sorted(path for path in folder.resolve().iterdir() if path.is_dir() and path.name != "scenes")
    chosen = {name: json.loads(value) for name, _, value in (text.partition("=") for text in settings)}
    rows: list[Json] = []
    for shot in shots.split(","):
        for seed in range(seeds if shot != "all" else 1):
            file = out / f"{shot}-{seed}.json"
            if not file.is_file():
                learner = Learner(model, text_tower, out, device, FitConfig(seed=seed, **chosen))
                result = run(places, learner, shot, seed, coco)
                with replacing(file) as path:
                    path.write_text(json.dumps(result, indent=1))
            rows.append({"shot": shot, "seed": seed, **json.loads(file.read_text())})
        _print(rows, [place.name for place in places])
    (out / "table.json").write_text(json.dumps(rows, indent=1))
    click.echo(f"{out / 'table.json'}")


class Learner:
    """Fits data sets with the same model and settings."""

    def __init__(self, model: str, text_tower: str | None, out: Path, device: str, config: FitConfig) -> None:
        """See `fit`."""
        self.model, self.text_tower, self.out, self.device, self.config = model, text_tower, out, device, config

    def learn(self, data: Path, name: str) -> Path:
        """The run folder of a data set; a run that is there is continued."""
        folder = self.out / "runs" / name
        inputs = FitInputs(self.model, data, text_tower=self.text_tower, cache=self.out / "cache")
        fit(inputs, folder, config=self.config, device=self.device, resume=(folder / "config.json").is_file())
        return folder


def run(places: Sequence[Path], learner: Learner, shot: str, seed: int, coco: Path | None) -> Json:
    """Learn all data sets, load them together, and measure.

    Returns:
        `alone` and `together`: AP of each data set with its vocabulary alone, and with all loaded, where a box keeps
        only the class with the highest score; `others`: detections of other vocabularies above their thresholds for
        each 1,000 of its images. `original_before`, `original_after` and `bits`, if there are labels.
    """
    runs = []
    for place in places:
        name = f"{place.name}-{shot}-{seed}"
        data = place if shot == "all" else _drawn(place, int(shot), seed, learner.out / "data" / name)
        runs.append(learner.learn(data, name))
    bundle = learner.out / "bundle"
    if not bundle.exists():
        export_bundle(runs[0], bundle)
    labels = [place.name for place in places]
    detector = Detector(bundle, use_bundled=False)
    for label, folder in zip(labels, runs, strict=True):
        detector.load(folder / "learned.vocab.safetensors", label)
    result: Json = {"alone": {}, "together": {}, "others": {}}
    for label, place in zip(labels, places, strict=True):
        names, samples = _test_images(place)
        n_cls = len(names)
        alone, together, others = [], [], 0
        for sample in samples:
            (found,) = detector.detect(sample.path, learned_conf=LOWEST, hide=[f"{ORIGINAL}:*"])
            alone.append(found.of(label))
            together.append(_one_class_a_box(found).of(label))
            above = [row for row in found if row.vocabulary != label and row.score > _threshold(detector, row)]
            others += len(above)
        truth = [sample.labels for sample in samples]
        result["alone"][label] = average_precision(truth, alone, n_cls).ap
        result["together"][label] = average_precision(truth, together, n_cls).ap
        result["others"][label] = 1000 * others / len(samples)
    if coco is not None:
        learned = [folder / "learned.vocab.safetensors" for folder in runs[1:]]
        renamed = [
            _renamed(file, learner.out / "named" / f"{label}.vocab.safetensors")
            for label, file in zip(labels[1:], learned, strict=True)
        ]
        checked = verify(
            bundle, [sample.path for sample in read_split(coco, "val")[1].samples], learned=renamed, data=coco
        )
        result |= {
            "original_before": checked.original_ap_before,
            "original_after": checked.original_ap_after,
            "bits": checked.original_bits_changed,
        }
    return result


def _threshold(detector: Detector, row: Any) -> float:
    return float(detector.vocabularies[row.vocabulary].thresholds[row.class_id])


def _renamed(file: Path, place: Path) -> Path:
    """A link to a vocabulary file whose name is its label."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(file)
    return place


def _one_class_a_box(found: Detections) -> Detections:
    """The detections without those on whose box another vocabulary's class has a higher score."""
    labels = np.array(found.vocabularies)
    overlap = box_iou(found.boxes_xyxy, found.boxes_xyxy) >= SAME_BOX_IOU  # (n, n)
    beaten = overlap & (labels[:, None] != labels) & (found.scores[:, None] < found.scores)
    return found.select(np.flatnonzero(~beaten.any(1)))


def _test_images(place: Path) -> tuple[tuple[str, ...], tuple[Sample, ...]]:
    """Classes and images to measure on: `test` where there is one, otherwise `val`."""
    try:
        names, split = read_split(place, "test")
    except DataError:  # whatever is wrong with `test`, `val` decides
        names, split = read_split(place, "val")
    return names, split.samples


def _drawn(place: Path, shots: int, seed: int, folder: Path) -> Path:
    """An ultralytics data set of images drawn until `shots` of them show each class, without validation images."""
    data = read_dataset(place)
    samples, n_cls = data.train.samples, len(data.names)
    seen, chosen = np.zeros(n_cls, int), []
    for i in np.random.default_rng([seed, shots]).permutation(len(samples)):
        there = np.unique(samples[i].labels.classes[~samples[i].labels.ignore])
        if (seen[there] < shots).any():
            chosen.append(samples[i])
            seen[there] += 1
    for number, sample in enumerate(sorted(chosen, key=lambda sample: sample.path)):
        image = folder / "images" / f"{number:04}{sample.path.suffix}"
        label = folder / "labels" / f"{number:04}.txt"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not image.is_symlink():
            os.symlink(sample.path.resolve(), image)
        size = np.array(sample.size_wh * 2, np.float64)
        boxes = sample.labels.boxes_xyxy / size  # (n, 4)
        rows = [
            f"{k} {(a + c) / 2:.8f} {(b + d) / 2:.8f} {c - a:.8f} {d - b:.8f}\n"
            for k, (a, b, c, d) in zip(sample.labels.classes, boxes, strict=True)
        ]
        label.write_text("".join(rows))
    (folder / "data.yaml").write_text(yaml.safe_dump({"train": "images", "names": list(data.names)}))
    return folder / "data.yaml"


def _write_sample_jobs(folder: Path) -> None:
    """Three jobs of two classes each, on the same scenes, and original scenes in `scenes`."""
    custom, _ = write_sample(folder / "scenes", n_images=100)
    names = list(CLASSES)
    for number in range(3):
        write_subset(custom, folder / f"job-{number + 1}", names[2 * number : 2 * number + 2])


def _print(rows: Sequence[Json], labels: Sequence[str]) -> None:
    """A row for each number of images: means over draws, in per cent."""
    table = Table(
        "images of a class", "mean AP alone", "all loaded", "original AP before", "after", "harmonic mean", "bits"
    )
    for shot in dict.fromkeys(row["shot"] for row in rows):
        own = [row for row in rows if row["shot"] == shot]
        alone, together = (
            100 * np.mean([[row[key][label] for label in labels] for row in own]) for key in ("alone", "together")
        )
        cells = [shot, f"{alone:.1f}", f"{together:.1f}"]
        if "original_after" in own[0]:
            before, after = (100 * np.mean([row[f"original_{key}"] for row in own]) for key in ("before", "after"))
            bits = sum(row["bits"] for row in own)
            cells += [f"{before:.1f}", f"{after:.1f}", f"{2 * alone * after / (alone + after):.1f}", str(bits)]
        table.add_row(*cells)
    Console(width=130).print(table)
    each = Table(
        "data set",
        *(f"{shot}: alone / all loaded / others per 1,000" for shot in dict.fromkeys(row["shot"] for row in rows)),
    )
    for label in labels:
        cells = []
        for shot in dict.fromkeys(row["shot"] for row in rows):
            own = [row for row in rows if row["shot"] == shot]
            a, t, o = (np.mean([row[key][label] for row in own]) for key in ("alone", "together", "others"))
            cells.append(f"{100 * a:.1f} / {100 * t:.1f} / {o:.0f}")
        each.add_row(label, *cells)
    Console(width=130).print(each)


if __name__ == "__main__":
    main()
