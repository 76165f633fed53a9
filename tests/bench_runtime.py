"""Latency of the runtime, compared with ultralytics' ONNX export of the same checkpoint and classes.

Run `python tests/bench_runtime.py [--classes N ...] [--batch N ...] [--quick] [--out FOLDER]`. With the same FOLDER, a
stopped run continues. Ours has the first 80 classes as original vocabulary and the others as a learned one. The engines
of a row take turns in one process. With `--apart`, each has its own process, one after another, for rows that need much
memory. Thresholds are set so that about 100 detections per picture pass.
"""

import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import full_size
import numpy as np
from small_bundle import photo
from vocabularies import TOWER, unit_rows

from prompt_tune.files import replacing

SEED = 0
CLASSES, BATCHES = (80, 100, 1203, 10_000), (1, 8)
N_ORIGINAL = 80
PHOTO_HW = (720, 1280)
WARM_UP = 2  # calls of each engine before the first timed one
DETECTIONS = 100  # per picture
IOU, MAX_DET = 0.7, 300  # ultralytics' defaults for prediction
BAKED_AIM = 1.0  # ours over the baked graph in the predictor, end to end, at 100 classes
GROWTH_AIM = 1.5  # 80 original and 1,123 learned classes over 80 original ones
ENGINES = ("ours", "predictor", "bare")
AGREEING = 0.95  # share of the baked graph's detections that ours must also find if both have the same guide
STAGES = ("pre", "network", "post", "total")

Json = dict[str, Any]
Timed = tuple[dict[str, float], list[np.ndarray]]  # seconds of each stage; for each image (n, 6): box, score, class
Engine = Callable[[list[np.ndarray], float], Timed]  # takes RGB pictures and a threshold


@click.command()
@click.option(
    "--classes", type=int, multiple=True, default=CLASSES, show_default=True, help="Numbers of classes, one row each."
)
@click.option(
    "--batch", type=int, multiple=True, default=BATCHES, show_default=True, help="Numbers of pictures, one row each."
)
@click.option("--size", default=640, show_default=True, help="Side of the network's input in pixels.")
@click.option("--rounds", default=15, show_default=True, help="Timed calls of each engine. Medians are compared.")
@click.option("--scale", default="s", show_default=True, help="Scale of ultralytics' yolov8-worldv2.yaml.")
@click.option(
    "--quick", is_flag=True, help="A quick run: scale n, 160 pixels, 80 and 100 classes, batch 1 and 2, 3 rounds."
)
@click.option("--apart", is_flag=True, help="Keep only one engine in memory; they do not take turns.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for all files. Default: a new one.")
def main(
    classes: tuple[int, ...],
    batch: tuple[int, ...],
    size: int,
    rounds: int,
    scale: str,
    quick: bool,
    apart: bool,
    out: Path | None,
) -> None:
    """Measure, and print one line per row and engine, then the ratios with their aims."""
    if quick:
        classes, batch, size, rounds, scale = (80, 100), (1, 2), 160, 3, "n"
    if min(classes) < N_ORIGINAL:
        raise click.UsageError(f"--classes must be at least {N_ORIGINAL}.")
    out = (out or Path(tempfile.mkdtemp(prefix="bench-runtime-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    protocol = {
        "scale": scale,
        "size": size,
        "rounds": rounds,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{p: version(p) for p in ("torch", "ultralytics", "onnxruntime-gpu", "numpy")},
        "seed": SEED,
    }
    click.echo(f"Folder: {out}")
    click.echo(f"Protocol: {json.dumps(protocol)}")
    click.echo(
        f"Random weights and classes; {PHOTO_HW[1]} x {PHOTO_HW[0]} pictures in memory; {WARM_UP} calls of each engine "
        "before the timed ones, which take turns. pre: from pictures to the network's input; network: ONNX Runtime, "
        "in ours with suppression; post: the rest, in theirs with suppression. Median milliseconds per call. ratio: "
        "the total of ours over that of the engine."
    )
    results = _read(out / "results.json", protocol)
    click.echo(f"{'classes':>8}{'batch':>6}  {'engine':<10}" + "".join(f"{s:>9}" for s in (*STAGES, "ratio", "found")))
    for n_cls in classes:
        confs: dict[str, float] = {}
        for n_images in sorted(batch):
            row = f"{n_cls} x {n_images}"
            if row not in results["rows"]:
                measured: Json = {}
                for names in [(name,) for name in ENGINES] if apart else [ENGINES]:
                    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                        done = process.submit(measure_row, out, scale, n_cls, n_images, size, rounds, names, confs)
                        try:
                            measured |= done.result()
                        except BrokenProcessPool:
                            if not apart:
                                raise
                            measured |= dict.fromkeys(names)  # killed: out of memory
                results["rows"][row] = measured
                with replacing(out / "results.json") as path:
                    path.write_text(json.dumps(results, indent=1) + "\n")
            confs = confs or {name: mine["conf"] for name, mine in results["rows"][row].items() if mine}
            _print_row(n_cls, n_images, results["rows"][row])
    _print_aims(results["rows"], batch)


def measure_row(
    out: Path,
    scale: str,
    n_cls: int,
    n_images: int,
    size: int,
    rounds: int,
    names: tuple[str, ...],
    confs: dict[str, float],
) -> Json:
    """Measure some engines, which take turns.

    Args:
        out: Folder of checkpoints, graphs and bundles.
        scale: Of ultralytics' yolov8-worldv2.yaml.
        n_cls: Number of classes.
        n_images: Pictures per call.
        size: Side of the network's input in pixels.
        rounds: Timed calls of each engine.
        names: The engines.
        confs: Their thresholds for fewer pictures, if known. The search starts near them.

    Returns:
        For each engine, median milliseconds of each stage, `conf`, its threshold, and `found`, detections per picture.
    """
    images = [photo(*PHOTO_HW, seed=SEED + k) for k in range(n_images)]
    embeddings = unit_rows(n_cls, seed=SEED)
    checkpoint = _checkpoint(out, scale)
    baked = _bake(checkpoint, embeddings, n_images, size, out / f"baked-{n_cls}-{n_images}.onnx")
    bundle = _bundle(checkpoint, embeddings, size, out / f"bundle-{n_cls}")
    loaders: dict[str, Callable[[], Engine]] = {
        "ours": lambda: _ours(bundle),
        "predictor": lambda: _predictor(baked, size),
        "bare": lambda: _bare(baked, size),
    }
    engines = {name: loaders[name]() for name in names}
    row: Json = {}
    for name, engine in engines.items():
        conf = _threshold(engine, images, near=confs.get(name))
        for _ in range(WARM_UP):
            engine(images, conf)
        row[name] = {"conf": conf}
    timed: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    found: dict[str, list[np.ndarray]] = {}
    for _ in range(rounds):
        for name, engine in engines.items():
            seconds, found[name] = engine(images, row[name]["conf"])
            timed[name].append(seconds)
    for name, calls in timed.items():
        row[name] |= {stage: 1000 * statistics.median(call[stage] for call in calls) for stage in STAGES}
        row[name]["found"] = sum(map(len, found[name])) / n_images
    if n_cls == N_ORIGINAL and names == ENGINES:  # more classes guide the baked graph differently
        small = [photo(3 * size // 4, size, seed=SEED + k) for k in range(n_images)]  # so that none resizes them
        _check_agreement(engines, small, max(row[name]["conf"] for name in ENGINES))
    return row


def _checkpoint(out: Path, scale: str) -> Path:
    """A random YOLO-World v2 as ultralytics saves it. An existing file is kept."""
    tower = full_size.write_tower(out / "tower")
    return full_size.write_checkpoint(out / f"yolov8{scale}-worldv2.pt", tower, scale=scale)


def _bake(checkpoint: Path, embeddings: np.ndarray, batch: int, size: int, path: Path) -> Path:
    """Ultralytics' ONNX export with classes baked in, as `set_classes` and `export` make it, without a download.

    It is not simplified, because that needs a package that ultralytics would install. Static shapes are its default.
    """
    import torch

    from prompt_tune.models import ultralytics

    if path.is_file():
        return path
    exporter = ultralytics.quiet_import("ultralytics.engine.exporter")
    model: Any = ultralytics.load_checkpoint(checkpoint)
    model.names = {i: f"class {i}" for i in range(len(embeddings))}
    model.txt_feats = torch.from_numpy(embeddings)[None]  # (1, n_cls, 512)
    model.model[-1].nc = len(embeddings)
    model.pt_path = str(path.with_name(f"in-work-{path.stem}.pt"))
    settings = {"format": "onnx", "imgsz": size, "batch": batch, "simplify": False, "opset": 17, "device": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about traced sizes: this graph has one size
        Path(exporter.Exporter(overrides=settings)(model=model)).replace(path)
    return path


def _bundle(checkpoint: Path, embeddings: np.ndarray, size: int, folder: Path) -> Path:
    """Our bundle: the first classes are original, the others learned."""
    from prompt_tune.deployment.graph import export_graph
    from prompt_tune.models.world import World
    from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

    if (folder / "detector.onnx").is_file():
        return folder
    world = World.load(checkpoint)
    rows = embeddings[:, None]  # (n_cls, 1, 512)
    guide = guide_digest(rows[:N_ORIGINAL])
    for kind, part, first in (("original", rows[:N_ORIGINAL], 0), ("learned", rows[N_ORIGINAL:], N_ORIGINAL)):
        if len(part):
            names = tuple(f"class {first + i}" for i in range(len(part)))
            origin: Json = {"kind": kind, "detector": world.digest, "text_tower": TOWER, "guide": guide}
            folder.mkdir(parents=True, exist_ok=True)
            Vocabulary(names, part, **origin).save(folder / f"{kind}.vocab.safetensors")
    export_graph(world, folder / "detector.onnx", image_size=size)
    return folder


def _ours(bundle: Path) -> Engine:
    """`Detector.detect`. The time in the graph session counts as the network's."""
    from prompt_tune.runtime.detector import Detector

    detector = Detector(bundle, use_bundled=(bundle / "learned.vocab.safetensors").is_file())
    run, calls = detector._session.run, []

    def timed_run(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        tables = run(*arguments, **options)
        calls.append((started, time.perf_counter()))
        return tables

    detector._session.run = timed_run  # type: ignore[method-assign]

    def engine(images: list[np.ndarray], conf: float) -> Timed:
        calls.clear()
        started = time.perf_counter()
        found = detector.detect(images, original_conf=conf, learned_conf=conf, batch=len(images))
        ended = time.perf_counter()
        tables = []
        for one in found:
            numbers = one.class_ids + N_ORIGINAL * (np.array(one.vocabularies, dtype=object) != "original")
            tables.append(np.column_stack((one.boxes_xyxy, one.scores, numbers)))  # (n, 6)
        network = sum(last - first for first, last in calls)  # several if memory is short
        after = ended - calls[-1][1]
        return {
            "pre": ended - started - network - after,
            "network": network,
            "post": after,
            "total": ended - started,
        }, tables

    return engine


def _predictor(path: Path, size: int) -> Engine:
    """Ultralytics' own way: `YOLO(file)(pictures)`."""
    from prompt_tune.models import ultralytics

    model: Any = ultralytics.quiet_import("ultralytics").YOLO(str(path), task="detect")

    def engine(images: list[np.ndarray], conf: float) -> Timed:
        bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]  # the order that it takes; not timed
        options = {"imgsz": size, "iou": IOU, "max_det": MAX_DET, "device": "cpu", "batch": len(bgr), "verbose": False}
        started = time.perf_counter()
        results = model.predict(bgr, conf=conf, **options)
        total = time.perf_counter() - started
        speed = {stage: len(images) * results[0].speed[stage] / 1000 for stage in ("preprocess", "inference")}
        pre, network = speed["preprocess"], speed["inference"]
        tables = [result.boxes.data.numpy() for result in results]  # (n, 6)
        return {"pre": pre, "network": network, "post": total - pre - network, "total": total}, tables

    return engine


def _bare(path: Path, size: int) -> Engine:
    """ONNX Runtime alone, with ultralytics' letterbox and suppression around it."""
    import onnxruntime
    import torch

    from prompt_tune.models import ultralytics

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    letterbox = ultralytics.quiet_import("ultralytics.data.augment").LetterBox((size, size), auto=False)
    suppress = ultralytics.quiet_import("ultralytics.utils.nms").non_max_suppression
    scale_boxes = ultralytics.quiet_import("ultralytics.utils.ops").scale_boxes

    def engine(images: list[np.ndarray], conf: float) -> Timed:
        started = time.perf_counter()
        pixels = np.stack([letterbox(image=image) for image in images]).transpose(0, 3, 1, 2)  # (b, 3, size, size)
        pixels = np.ascontiguousarray(pixels, np.float32) / np.float32(255)
        first = time.perf_counter()
        (output,) = session.run(None, {"images": pixels})  # (b, 4 + n_cls, A)
        last = time.perf_counter()
        tables = []
        for image, rows in zip(images, suppress(torch.from_numpy(output), conf, IOU, max_det=MAX_DET), strict=True):
            rows[:, :4] = scale_boxes((size, size), rows[:, :4], image.shape)
            tables.append(rows.numpy())  # (n, 6)
        return _stages(started, first, last, time.perf_counter()), tables

    return engine


def _stages(started: float, first: float, last: float, ended: float) -> dict[str, float]:
    """Seconds of each stage, from the times at which they end."""
    return {"pre": first - started, "network": last - first, "post": ended - last, "total": ended - started}


def _threshold(engine: Engine, images: list[np.ndarray], near: float | None) -> float:
    """The score that about `DETECTIONS` per picture exceed. The search descends: suppression is slow below it."""

    def count(logit: float) -> float:
        return sum(map(len, engine(images, _sigmoid(logit))[1])) / len(images)

    low = high = 10.0 if near is None else float(np.log(near / (1 - near))) + 2
    while count(low) < DETECTIONS and low > -10:
        low, high = low - 1, low
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (low, middle) if count(middle) < DETECTIONS else (middle, high)
    return _sigmoid(low)


def _sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def _check_agreement(engines: dict[str, Engine], images: list[np.ndarray], conf: float) -> None:
    """With the same guide, ours must find what the baked graph finds: within 1 pixel and 0.001, with the same class."""
    ours, *others = (engines[name](images, conf)[1] for name in ENGINES)
    for name, theirs in zip(ENGINES[1:], others, strict=True):
        near = total = 0
        for mine, other in zip(ours, theirs, strict=True):
            for row in other:
                close = np.abs(mine[:, :4] - row[:4]).max(axis=1) < 1
                near += bool((close & (np.abs(mine[:, 4] - row[4]) < 0.001) & (mine[:, 5] == row[5])).any())
                total += 1
        if not total or near < AGREEING * total:
            raise click.ClickException(f"Only {near} of {total} detections of the baked graph ({name}) are among ours.")


def _read(path: Path, protocol: Json) -> Json:
    """The measurements of an earlier run in this folder."""
    if not path.is_file():
        return {"protocol": protocol, "rows": {}}
    results: Json = json.loads(path.read_text())
    if results["protocol"] != protocol:
        raise click.ClickException(f"{path.parent} holds results of another protocol. Give another --out.")
    return results


def _print_row(n_cls: int, n_images: int, row: Json) -> None:
    """Print one line per engine, with the ratio of our total to its total."""
    for name in ENGINES:
        mine = row[name]
        if mine is None:
            click.echo(f"{n_cls:>8}{n_images:>6}  {name:<10} killed: out of memory")
            continue
        figures = "".join(f"{mine[stage]:>9.1f}" for stage in STAGES)
        ratio = f"{row['ours']['total'] / mine['total']:.2f}" if row["ours"] else "-"
        click.echo(f"{n_cls:>8}{n_images:>6}  {name:<10}{figures}{ratio:>9}{mine['found']:>9.0f}")


def _print_aims(rows: Json, batches: tuple[int, ...]) -> None:
    """Print two ratios with their aims, if their rows were measured."""
    for n_images in batches:
        one, few, many = (rows.get(f"{n_cls} x {n_images}") for n_cls in (80, 100, 1203))
        if few:
            for name in ENGINES[1:]:
                ratio = few["ours"]["total"] / few[name]["total"]
                _print_aim(f"batch {n_images}: ours / baked ({name}), 100 classes", ratio, BAKED_AIM)
        if one and many:
            ratio = many["ours"]["total"] / one["ours"]["total"]
            _print_aim(f"batch {n_images}: 80 original + 1,123 learned / 80", ratio, GROWTH_AIM)


def _print_aim(what: str, ratio: float, aim: float) -> None:
    click.echo(f"{what:<56}{ratio:>6.2f} (aim <= {aim:g}: {'met' if ratio <= aim else 'MISSED'})")


if __name__ == "__main__":
    main()
