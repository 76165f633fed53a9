"""What box offsets gain, and whether they ever hurt: offsets from a few training images, measured on validation images.

Run `prompt-tune fit ... --out run`, then `python tests/bench_boxes.py run`. The prompts are those of the run. Offsets
are fitted on draws of its training images, by the rule of `fit` and, beside it, without the choice by left-out images.
"""

import json
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from prompt_tune.config import RegionBudget
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.evaluation.box_offsets import fit_box_offsets
from prompt_tune.evaluation.metrics import average_precision
from prompt_tune.models.embeddings import load_run
from prompt_tune.models.world import World
from prompt_tune.run import RunFolder
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.offsets import move
from prompt_tune.tuning.caching import cache_regions
from prompt_tune.tuning.tasks import RegionTask, cut_at

Seen = list[tuple[Labels, Detections, np.ndarray]]  # labels, whole detections and frame of each image


@click.command()
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of the region cache. Default: the run's.")
@click.option("--shots", default=(1, 2, 3, 5, 10, 30), multiple=True, show_default=True, help="Training images.")
@click.option("--draws", default=20, show_default=True, help="Draws of images for each number.")
def main(run: Path, cache: Path | None, shots: tuple[int, ...], draws: int) -> None:
    """Print AP with the detector's own boxes, and how offsets change it."""
    _, world, original, learned = load_run(run, "cpu")
    config = json.loads(RunFolder(run).config.read_text())
    data = read_dataset(config["data"], seed=config["settings"]["seed"])
    guide = torch.tensor(original.embeddings).flatten(0, 1)
    size, folder = config["image_size"], cache or run / "regions"
    budget = RegionBudget(*config["settings"]["region_budget"])
    train = detections(world, guide, learned.embeddings, data.train.samples, folder, size, budget)
    val = detections(world, guide, learned.embeddings, data.val.samples, folder, size, None)
    names = tuple(learned.names)

    def measure(offsets: np.ndarray | None) -> np.ndarray:
        found = [cut_at(move(part, offsets), frame).distinct(learned.nms_iou_rows) for _, part, frame in val]
        measured = average_precision([labels for labels, _, _ in val], found, len(names))
        return np.array([measured.ap50, measured.ap])

    before = measure(None)
    table = Table("images", "AP50", "AP", "AP: least, most", "without the choice: AP", "least, most")
    table.add_row("0", f"{before[0]:.3f}", f"{before[1]:.3f}", "", "", "")
    rng = np.random.default_rng(0)
    for n in [*shots, len(train)]:
        gains: list[list[np.ndarray]] = [[], []]
        for _ in range(1 if n == len(train) else draws):
            picked = [train[i] for i in rng.permutation(len(train))[:n]]
            labels, found, frames = ([image[k] for image in picked] for k in range(3))
            fitted = fit_box_offsets(labels, found, frames, len(names))
            for kept, values in zip(gains, (fitted.values, fitted.medians), strict=True):
                kept.append(measure(values) - before)
        chosen, always = np.array(gains[0]), np.array(gains[1])  # (draws, 2) each
        table.add_row(
            str(n),
            f"{before[0] + chosen[:, 0].mean():.3f}",
            f"{before[1] + chosen[:, 1].mean():.3f}",
            f"{chosen[:, 1].min():+.3f}, {chosen[:, 1].max():+.3f}",
            f"{before[1] + always[:, 1].mean():.3f}",
            f"{always[:, 1].min():+.3f}, {always[:, 1].max():+.3f}",
        )
    Console(width=140).print(table)


def detections(
    world: World,
    guide: torch.Tensor,
    embeddings: np.ndarray,
    samples: tuple[Sample, ...],
    folder: Path,
    size: int,
    budget: RegionBudget | None,
) -> Seen:
    """What the classes find in images, before boxes are cut at the edges of the photos."""
    *_, cached = cache_regions(world, guide, samples, folder, image_size=size, budget=budget)
    task = RegionTask(world, cached, cached, size)
    labels, found = task.detect(embeddings, trained=True, whole=True)
    frames = [cached.frame_xyxy(i) for i in range(len(found))]
    return [(one, part, frame) for one, part, frame in zip(labels, found, frames, strict=True)]


if __name__ == "__main__":
    main()
