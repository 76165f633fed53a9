"""What `fit --tile` gains on small objects, beside `detect --slice` alone: three ways, measured on test photos.

    python tests/bench_tile.py --out /tmp/tile
    python tests/bench_tile.py --out /tmp/tile --model coco-n

`tiny` sees pictures of scenes of the sample set; a checkpoint sees small raccoons among pieces of background. Each way
is a bundle as it is deployed, with the thresholds that its fit has chosen on the validation photos.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from places import SHARED
from rich.console import Console
from rich.table import Table
from small_objects import write_mosaics, write_pasted

from prompt_tune.config import FitConfig
from prompt_tune.datasets.reading import read_split
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.evaluation.matching import match_classes
from prompt_tune.evaluation.metrics import average_precision
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.slices import Slices, detect_sliced
from prompt_tune.tuning import tiles
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs

COCO_N = SHARED / "models" / "coco-n"
LEAST = 0.001  # score of what AP is measured on


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--model", type=click.Choice(["tiny", "coco-n"]), default="tiny", show_default=True)
@click.option("--images", nargs=3, type=int, default=(30, 24, 24), show_default=True, help="Train, val and test.")
@click.option("--side", type=int, help="Scenes or pictures beside each other in a photo; default: 3 or 8.")
@click.option("--tile", type=int, help="Side of a slice; default: that of the network's input.")
@click.option("--empty", multiple=True, type=float, default=(1.0,), show_default=True, help="`tiles.EMPTY` to try.")
@click.option("--seed", default=0, show_default=True)
def main(
    out: Path,
    model: str,
    images: tuple[int, int, int],
    side: int | None,
    tile: int | None,
    empty: tuple[float, ...],
    seed: int,
) -> None:
    """Fit with and without tiles, and print AP, recall and false alarms of each way on the test photos."""
    data = (
        write_mosaics(out / "data", images, side or 3, seed=seed)
        if model == "tiny"
        else write_pasted(out / "data", images, side or 8, seed=seed)
    )
    tower = None if model == "tiny" else f"local-dir:{COCO_N / 'tower'}"
    place = model if model == "tiny" else str(COCO_N / "detector.pt")
    slices = Slices(tile or (256 if model == "tiny" else 640))
    runs = {"plain": 0.0} | {f"tiled, {share:g} empty" if len(empty) > 1 else "tiled": share for share in empty}
    table = Table("fit", "detect", "AP", "AP50", "recall", "precision", "false alarms", "fit s", "report AP50")
    for name, share in runs.items():
        tiles.EMPTY = share
        config = FitConfig(tile=0 if name == "plain" else slices.size, seed=seed)
        run = out / name.replace(", ", "-").replace(" ", "-")
        started = time.perf_counter()
        result = fit(FitInputs(place, data, text_tower=tower, cache=out / "regions"), run, config=config)
        seconds = time.perf_counter() - started
        export_bundle(run, out / f"bundle-{run.name}")
        for way in (None, slices) if name == "plain" else (slices,):
            figures = measure(out / f"bundle-{run.name}", data, way)
            row = [f"{figures[key]:.3f}" for key in ("ap", "ap50", "recall", "precision")]
            alarms = f"{figures['false_alarms']:.0f}"
            label = "whole" if way is None else f"--slice {way.size}"
            table.add_row(name, label, *row, alarms, f"{seconds:.0f}", f"{result.ap50:.3f}")
            print(json.dumps({"fit": name, "detect": label, "tiling": str(result.tiling)} | figures), flush=True)
    Console(width=130).print(table)


def measure(bundle: Path, data: Path, slices: Slices | None) -> dict[str, float]:
    """The figures of the learned vocabulary on the test photos."""
    names, split = read_split(data, "test")
    detector = Detector(bundle)
    label = str(detector.bundled)
    labels, founds = [], []
    for sample in split.samples:
        options: dict[str, Any] = {"show": [f"{label}:*"], "conf": LEAST}
        if slices is None:
            found = detector.detect([sample.path], **options)[0]
        else:
            found = detect_sliced(detector, sample.path, slices, **options)
        labels.append(sample.labels)
        founds.append(found)
    metrics = average_precision(labels, founds, len(names))
    thresholds = detector.vocabularies[label].thresholds
    kept = [found.select(found.scores > thresholds[found.class_ids]) for found in founds]
    correct = [part.correct for part in match_classes(labels, kept, len(names))]
    objects, hits = sum(map(len, labels)), int(sum(part.sum() for part in correct))
    shown = sum(map(len, correct))
    return {
        "ap": metrics.ap,
        "ap50": metrics.ap50,
        "recall": hits / objects,
        "precision": hits / max(1, shown),
        "false_alarms": float(shown - hits),
        "objects": float(np.int64(objects)),
    }


if __name__ == "__main__":
    main()
