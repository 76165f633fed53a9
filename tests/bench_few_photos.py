"""How well `fit` learns from few photos, with its defaults: AP50 and AP on photos that it never saw.

Run `python tests/bench_few_photos.py ../shared/data/raccoon --model ../shared/models/coco-n/detector.pt --text-tower
local-dir:../shared/models/coco-n/tower`. It draws training photos of a Pascal VOC folder, calls `fit` on them alone,
and measures the runs on the folder's own validation photos. With the same --out, a stopped run continues.
"""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from prompt_tune.config import FitConfig
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.samples import Sample
from prompt_tune.evaluation.validate import validate_run
from prompt_tune.files import replacing
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs


@click.command()
@click.argument("data", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", required=True)
@click.option("--text-tower")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for all files. Default: a new one.")
@click.option("--shots", default=(1, 3, 5, 10, 30), multiple=True, show_default=True, help="Numbers of photos.")
@click.option("--draws", default=3, show_default=True, help="Draws of photos for each number.")
@click.option("--setting", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of `fit`, as JSON.")
def main(
    data: Path,
    model: str,
    text_tower: str | None,
    out: Path | None,
    shots: tuple[int, ...],
    draws: int,
    settings: tuple[str, ...],
) -> None:
    """Measure the cells that are missing in the folder, and print the table."""
    out = (out or Path(tempfile.mkdtemp(prefix="bench-few-"))).resolve()
    chosen = {name: json.loads(value) for name, _, value in (text.partition("=") for text in settings)}
    table = Table(
        f"photos of {data.name}", "AP50, mean of draws (each)", "AP", "expected by `fit`: AP50", "seconds of a fit"
    )
    for n in shots:
        cells = []
        for draw in range(draws):
            name = "-".join((f"{n}", f"{draw}", *(f"{key}={value}" for key, value in sorted(chosen.items()))))
            file = out / "cells" / f"{name}.json"
            if not file.is_file():
                cell = measure(data, model, text_tower, out, n, draw, FitConfig(**chosen))
                with replacing(file) as path:
                    path.write_text(json.dumps(cell))
            cells.append(json.loads(file.read_text()))
        ap50, ap, expected, seconds = (np.array([cell[key] for cell in cells]) for key in KEYS)
        each = " ".join(f"{value:.3f}" for value in ap50)
        row = (f"{ap50.mean():.3f} ({each})", f"{ap.mean():.3f}", f"{expected.mean():.3f}", f"{seconds.mean():.0f}")
        table.add_row(str(n), *row)
        Console(width=140).print(table)


KEYS = ("ap50", "ap", "expected", "seconds")


def measure(
    data: Path, model: str, text_tower: str | None, out: Path, n: int, draw: int, config: FitConfig
) -> dict[str, Any]:
    """Draw photos, fit, and measure on the validation photos."""
    train = read_dataset(data).train.samples
    order = np.random.default_rng([draw, 77]).permutation(len(train))
    folder = Path(tempfile.mkdtemp(dir=out))
    write_voc_part([train[i] for i in sorted(order[:n])], data, folder / "data")
    started = time.perf_counter()
    inputs = FitInputs(model, folder / "data", text_tower=text_tower, cache=out / "cache")
    result = fit(inputs, folder / "run", config=config)
    seconds = time.perf_counter() - started
    learned = validate_run(folder / "run", data).learned
    assert learned is not None
    measured = asdict(learned)
    return {"ap50": measured["ap50"], "ap": measured["ap"], "expected": result.ap50, "seconds": seconds}


def write_voc_part(samples: list[Sample], data: Path, folder: Path) -> None:
    """A Pascal VOC folder of some photos of another one, by links."""
    for kind in ("images", "annotations"):
        (folder / kind).mkdir(parents=True)
    for sample in samples:
        (folder / "images" / sample.path.name).symlink_to(sample.path.resolve())
        label = data / "annotations" / f"{sample.path.stem}.xml"
        (folder / "annotations" / label.name).symlink_to(label.resolve())


if __name__ == "__main__":
    main()
