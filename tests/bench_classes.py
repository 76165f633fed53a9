"""What many classes cost: the whole command `fit` at full size, for 64 classes and for LVIS's 1,203, in one run.

Run `python tests/bench_classes.py ../shared/data/raccoon --out FOLDER`. Photos get random boxes with random classes, so
that each class is labelled about once; weights are random too (see `full_size.py`). With the same FOLDER, a stopped run
continues.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import full_size
import numpy as np
from rich.console import Console
from rich.table import Table

from prompt_tune.files import replacing
from prompt_tune.runtime.image_files import find_images
from prompt_tune.vocabulary.names import read_classes

SEED = 0
BOXES = 20  # in a photo
AIM = 3.0  # at most this multiple of the time of the fewest classes


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--classes", default=(64, 1203), multiple=True, show_default=True, help="Numbers of classes.")
@click.option("--images", default=64, show_default=True, help="Training photos; a quarter as many for validation.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for all files. Default: a new one.")
def main(photos: Path, classes: tuple[int, ...], images: int, out: Path | None) -> None:
    """Run `fit` for each number of classes that the folder lacks, and print the table."""
    out = (out or Path(tempfile.mkdtemp(prefix="bench-classes-"))).resolve()
    tower = full_size.write_tower(out / "tower")
    model = full_size.write_checkpoint(out / "yolov8s-worldv2.pt", tower)
    table = Table("classes", "all of `fit`, s", "relative", "CPU s", "trained, s", "peak memory")
    first = None
    for n in classes:
        file = out / f"{n}-of-{images}.json"
        if not file.is_file():
            data = write_boxes(photos, n, images, out / f"data-{n}-{images}")
            command = [sys.executable, "-m", "prompt_tune", "fit", "--model", str(model), "--text-tower", tower]
            command += ["--data", str(data), "--views", "1", "--out", str(out / f"run-{n}-{images}")]
            measured = measure(command)
            with replacing(file) as path:
                path.write_text(json.dumps(measured))
        cell = json.loads(file.read_text())
        first = first or cell["seconds"]
        ratio = cell["seconds"] / first
        verdict = "" if n == classes[0] else f" (aim <= {AIM:g}: {'met' if ratio <= AIM else 'MISSED'})"
        row = (f"{cell['seconds']:.0f}", f"{ratio:.2f} x{verdict}", f"{cell['cpu']:.0f}", cell["trained"])
        table.add_row(f"{n:,}", *row, f"{cell['peak_mb']:,.0f} MB")
    Console(width=120).print(table)


def write_boxes(photos: Path, n_cls: int, n_images: int, folder: Path) -> Path:
    """A YOLO data set of photos, by links, with random boxes of the first LVIS classes, and its YAML."""
    rng = np.random.default_rng(SEED)
    found = find_images(photos)[: n_images + n_images // 4]
    ids = rng.permutation(np.arange(len(found) * BOXES) % n_cls).reshape(len(found), BOXES)
    for i, path in enumerate(found):
        split = "train" if i < n_images else "val"
        image = folder / "images" / split / path.name
        label = folder / "labels" / split / f"{path.stem}.txt"
        for place in (image, label):
            place.parent.mkdir(parents=True, exist_ok=True)
        image.unlink(missing_ok=True)
        image.symlink_to(path.resolve())
        sizes = rng.uniform(0.05, 0.4, (BOXES, 2))
        centres = rng.uniform(sizes / 2, 1 - sizes / 2)  # (n, 2), shares of the photo
        rows = np.concatenate([ids[i][:, None], centres, sizes], 1)
        label.write_text("".join(f"{int(row[0])} {' '.join(f'{x:.5f}' for x in row[1:])}\n" for row in rows))
    names = [prompts[0] for prompts in read_classes("lvis")][:n_cls]
    description = folder / "data.yaml"
    description.write_text(
        json.dumps({"path": str(folder), "train": "images/train", "val": "images/val", "names": names})
    )
    return description


def measure(command: list[str]) -> dict[str, object]:
    """Seconds, CPU seconds and peak memory of a command of the package, and what it says of the training."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        text = said.read()
    if status:
        raise click.ClickException(f"{' '.join(command)} failed:\n{text}")
    return {
        "seconds": time.perf_counter() - started,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1000,
        "trained": text.rpartition("trained in ")[2].partition(" s")[0],
    }


if __name__ == "__main__":
    main()
