"""Which way of learning is best: our methods and the baselines on the same images, and what the original classes keep.

Run `python tests/bench_methods.py [--out FOLDER] [--seeds 3] [--workers 2]`. With the same FOLDER, a stopped run
continues: only the missing cells are measured. It prints every method at 1 to 100 images per class, and shared context
on names that it was not trained on.
"""

import json
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
from few_shot import COUNTS, KNOWN, UNKNOWN, Job
from methods import Method, measure, measure_new_names
from rich.console import Console
from rich.progress import track
from rich.table import Table

from prompt_tune.files import replacing

SHOTS = (1, 5, 10, 30, 100)
VIEWS = 4
TUNING = {10: 100, 100: 60}  # images per class: epochs of ultralytics' fine-tuning; one seed, because it takes long
METHODS = (
    Method("plain names", "plain"),
    Method("best of 7 templates", "template"),
    Method("mean of 7 templates", "templates"),
    Method("context (default)"),
    Method("context, 16 vectors", settings={"context_length": 16}),
    Method("context, shared", settings={"class_specific": False}),
    Method("context, name in front", settings={"token_position": "front"}),
    Method("context, name in the middle", settings={"token_position": "middle"}),
    Method("context from 'a photo of a'", settings={"initial_words": "a photo of a"}),
    Method("context, 4 prompts a class", settings={"prompts_per_class": 4}),
    Method("context, 4 views", settings={"views": VIEWS}),
    Method("context, teacher 0.5", settings={"teacher_weight": 0.5}),
    Method("context, teacher 4", settings={"teacher_weight": 4.0}),
    Method("context, stand-ins 3", settings={"stand_ins": 3.0}),
    Method("context, stand-ins 10", settings={"stand_ins": 10.0}),
    Method("context, replay 1:1", replay="replay"),
    Method("context, replay 3:1", replay="replay", ratio=3),
    Method("context, replay 3:1 of the job's scenes", replay="job replay", ratio=3),
    Method("context, guide own", guide="own"),
    Method("context, guide joint", guide="joint"),
    Method("free embeddings", "free", {"learning_rate": 0.002}),
    *(Method("fine-tuning of all weights", "weights", {"epochs": epochs}) for epochs in TUNING.values()),
)
UNTRAINED = ("plain", "template", "templates")
NEW_NAMES = (
    Method("plain names", "plain"),
    Method("mean of 7 templates", "templates"),
    Method("shared context", settings={"class_specific": False}),
    Method("shared context from 'a photo of a'", settings={"class_specific": False, "initial_words": "a photo of a"}),
    Method("shared context, teacher 0.5", settings={"class_specific": False, "teacher_weight": 0.5}),
    Method("shared context, teacher 4", settings={"class_specific": False, "teacher_weight": 4.0}),
    Method("shared context, teacher 32", settings={"class_specific": False, "teacher_weight": 32.0}),
)
NEW_SHOTS = 30  # images per class of the half that is trained

Json = dict[str, Any]
Cell = tuple[str, Method, int, int]  # table, method, images per class, seed


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Folder for all files. Default: a new one.")
@click.option("--seeds", default=3, show_default=True, help="Number of draws of images and initial values.")
@click.option("--shots", default=list(SHOTS), multiple=True, show_default=True, help="Numbers of images per class.")
@click.option("--only", help="Only methods whose name contains this.")
@click.option("--workers", default=2, show_default=True, help="Cells measured at the same time, each on one thread.")
@click.option("--fine-tuning/--no-fine-tuning", default=True, show_default=True, help="Fine-tuning takes an hour.")
def main(out: Path | None, seeds: int, shots: Sequence[int], only: str | None, workers: int, fine_tuning: bool) -> None:
    """Measure the cells that are missing in the folder, and print the tables."""
    out = (out or Path(tempfile.mkdtemp(prefix="bench-methods-"))).resolve()
    packages = {name: version(name) for name in ("torch", "ultralytics", "open_clip_torch", "numpy")}
    protocol = {"scenes": COUNTS, "seeds": seeds, "python": platform.python_version(), **packages}
    click.echo(f"Folder: {out}\nProtocol: {json.dumps(protocol)}")
    cells = [cell for cell in _cells(seeds, shots, fine_tuning) if only is None or only in cell[1].name]
    missing = [cell for cell in cells if not _file(out, cell).is_file()]
    if missing:
        kinds = {cell[0] for cell in missing}
        for table in sorted(kinds):
            if table == "methods":
                job_of(out, table).prepare(views=VIEWS, guided=True)
            else:
                job_of(out, table).prepare(("pool", "val", "test"))
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
            done = pool.map(_run, [out] * len(missing), missing)
            for _ in track(done, total=len(missing), description="cells"):
                pass
    console = Console(width=160)
    _print_methods(console, out, [cell for cell in cells if cell[0] == "methods"], shots)
    for table in ("known", "unknown"):
        _print_new_names(console, out, [cell for cell in cells if cell[0] == table], table)


@cache
def job_of(out: Path, table: str) -> Job:
    """The job of a table: all six unknown names, or names of which one half is trained. A process caches it."""
    if table == "methods":
        return Job(out / "six", UNKNOWN)
    looks = KNOWN if table == "known" else UNKNOWN
    return Job(out / table, looks, n_taught=len(looks) // 2)


def _cells(seeds: int, shots: Sequence[int], fine_tuning: bool) -> Iterable[Cell]:
    """All cells, with fine-tuning first because it takes longest."""
    if fine_tuning:
        for images, epochs in sorted(TUNING.items(), reverse=True):
            method = next(m for m in METHODS if m.kind == "weights" and m.settings["epochs"] == epochs)
            if images in shots:
                yield ("methods", method, images, 0)
    slow = [method for method in METHODS if method.guide != "original"]
    for seed in range(seeds):  # the outer loop, so that a benchmark that is stopped has complete draws
        for table in ("known", "unknown"):
            yield from ((table, m, NEW_SHOTS, seed) for m in NEW_NAMES if seed == 0 or m.kind not in UNTRAINED)
        for method in METHODS:
            if method.kind in UNTRAINED:
                yield from [("methods", method, shots[0], seed)] if seed == 0 else []
            elif method.kind != "weights" and method not in slow:
                yield from (("methods", method, images, seed) for images in shots)
    for seed in range(seeds):
        yield from (("methods", method, images, seed) for method in slow for images in shots)


def _file(out: Path, cell: Cell) -> Path:
    """The file with the result of a cell."""
    table, method, images, seed = cell
    name = "".join(c if c.isalnum() or c == "." else "-" for c in method.name)
    return out / "cells" / f"{table}_{name}_{images}_{seed}.json"


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _run(out: Path, cell: Cell) -> None:
    """Measure a cell and write its result."""
    table, method, images, seed = cell
    job, file = job_of(out, table), _file(out, cell)
    if table == "methods":
        result = measure(job, method, images, seed, out / "learned" / file.with_suffix(".npz").name)
    else:
        result = measure_new_names(job, method, images, seed)
    with replacing(file) as path:
        path.write_text(json.dumps({"method": method.name, "images a class": images, "seed": seed, **result}) + "\n")


def _results(out: Path, cells: Sequence[Cell], method: Method, images: int) -> list[Json]:
    """The results of a method at a number of images that exist so far, one per seed."""
    files = [_file(out, cell) for cell in cells if (cell[1].name, cell[2]) == (method.name, images)]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def _mean(results: Sequence[Json], key: str, show: Callable[[float], str] = "{:.3f}".format) -> str:
    """Mean and standard deviation over the seeds."""
    values = [result[key] for result in results if result.get(key) is not None]
    if not values:
        return "-"
    mean = show(statistics.mean(values))
    if len(values) == 1:
        return mean
    spread = show(statistics.stdev(values))
    return f"{mean} ±{spread[1:] if spread.startswith('0.') else spread}"


def _print_methods(console: Console, out: Path, cells: Sequence[Cell], shots: Sequence[int]) -> None:
    """Tables of AP50 and AP by images per class; then one table of the other measurements for each number of images."""
    methods = list(dict.fromkeys(cell[1].name for cell in cells))
    by_name = {method.name: method for method in METHODS}
    order = [method.name for method in METHODS]
    for key, title in (("ap50", "AP50"), ("ap", "AP")):
        table = Table("", *(f"{images}" for images in shots), title=f"{title} on the test images, by images per class")
        for name in sorted(methods, key=order.index):
            untrained = by_name[name].kind in UNTRAINED
            rows = [_results(out, cells, by_name[name], shots[0] if untrained else images) for images in shots]
            table.add_row(name, *(_mean(row, key) for row in rows))
        console.print(table)
    for images in shots:
        alarms = ("false alarms / 1,000", "at threshold 0.25")
        kept = ("AP50, NMS at 0.7", "original AP before", "after", "bits changed")
        head = (*kept, *alarms, "seconds", "parameters")
        table = Table("", *head, title=f"At {images} images per class")
        for name in sorted(methods, key=order.index):
            untrained = by_name[name].kind in UNTRAINED
            row = _results(out, cells, by_name[name], shots[0] if untrained else images)
            whole = "{:,.0f}".format
            table.add_row(
                name,
                _mean(row, "ap50_loose"),
                _mean(row, "original_before"),
                _mean(row, "original_after"),
                _mean(row, "bits", whole),
                _mean(row, "false_alarms", whole),
                _mean(row, "alarms_at_default", whole),
                _mean(row, "seconds", "{:.1f}".format),
                f"{row[0]['parameters']:,}" if row else "-",
            )
        console.print(table)


def _print_new_names(console: Console, out: Path, cells: Sequence[Cell], kind: str) -> None:
    """A table of AP50 on the half of the names that was trained, on the other half, and their harmonic mean."""
    if not cells:
        return
    table = Table("", "trained half", "new half", "harmonic mean", title=f"AP50 on names {kind} to the tower")
    for method in NEW_NAMES:
        row = _results(out, cells, method, NEW_SHOTS)
        table.add_row(method.name, *(_mean(row, key) for key in ("base", "new", "harmonic")))
    console.print(table)


if __name__ == "__main__":
    main()
