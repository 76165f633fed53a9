"""Speed and memory of `fit`, compared with a plain pass of the detector and with ultralytics' fine-tuning in one run.

Run `python tests/bench_fit.py [--scale tiny|photos|full] [--images N] [--out FOLDER]`. With the same FOLDER, a stopped
run continues. Each part has its own process, so that memory and settings of one do not affect another.
"""

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import version
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import full_size
import numpy as np
from fine_tuning import DEFAULT_EPOCHS, fine_tune
from PIL import Image

from prompt_tune.config import IMAGE_SIZE, FitConfig
from prompt_tune.datasets.sample import write_sample
from prompt_tune.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from prompt_tune.datasets.samples import Sample
    from prompt_tune.models.world import World

SEED = 0
ROUNDS = 3  # plain pass and caching take turns; medians are compared
GROWTH = 4  # factor of the number of images when memory is compared
CACHING_AIM = 1.15  # at most this multiple of the plain pass
TRAINING_AIM = 3.0  # at most this multiple of the plain pass, at full size
SPEEDUP_AIM = 20.0  # fine-tuning takes at least this multiple of the complete fit, on tiny
CACHE_MB_AIM = 1.0  # per image and view at 640 pixels
WHOLE_AIMS = ((1000, 1.25), (0, 1.6))  # all of `fit` over a plain pass, from so many training photos

Json = dict[str, Any]


@click.command()
@click.option(
    "--scale", type=click.Choice(["tiny", "photos", "full"]), default="tiny", show_default=True, help="Model size."
)
@click.option("--images", default=100, show_default=True, help="Number of training images.")
@click.option("--photos", type=click.Path(path_type=Path), help="Pascal VOC folder of photos, for photos and full.")
@click.option("--model", help="The detector, for photos.")
@click.option("--text-tower", help="Its text tower, for photos.")
@click.option("--epochs", default=DEFAULT_EPOCHS, show_default=True, help="Epochs of the fine-tuning. 0: none.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for all files. Default: a new one.")
def main(
    scale: str,
    images: int,
    photos: Path | None,
    model: str | None,
    text_tower: str | None,
    epochs: int,
    out: Path | None,
) -> None:
    """Measure, and print every figure with its aim."""
    import torch

    if photos and scale == "tiny":
        raise click.UsageError("--photos goes with --scale photos or full.")
    if scale == "photos" and not (photos and model):
        raise click.UsageError("--scale photos needs --photos and --model.")
    out = (out or Path(tempfile.mkdtemp(prefix="bench-fit-"))).resolve()
    protocol = {
        "scale": scale,
        "images": images,
        "photos": str(photos.resolve()) if photos else None,
        "fine_tuning_epochs": epochs if scale == "tiny" else 0,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{p: version(p) for p in ("torch", "ultralytics", "open_clip_torch", "numpy", "pillow")},
        "seed": SEED,
        "rounds": ROUNDS,
    }
    parts = Parts(out, protocol)
    click.echo(f"Folder: {out}")
    click.echo(f"Protocol: {json.dumps(protocol)}")
    click.echo(
        "Warm-up: one batch before the first timed pass; imports before every timing. Plain pass and caching alternate."
    )
    if scale == "tiny":
        _tiny(parts, images, epochs)
    elif scale == "photos" and photos and model:
        _photos(parts, images, photos, model, text_tower)
    else:
        _full(parts, images, photos)


class Parts:
    """The measurements so far. A part that the folder already has is not measured again."""

    def __init__(self, out: Path, protocol: Json) -> None:
        self.out, self.file = out, out / "results.json"
        self.done: Json = {"protocol": protocol}
        if self.file.is_file():
            self.done = json.loads(self.file.read_text())
            if self.done["protocol"] != protocol:
                raise click.ClickException(f"{out} holds results of another protocol. Give another --out.")

    def measure(self, name: str, function: Callable[..., Json], *arguments: object) -> Json:
        """The result of `function(*arguments)`, from a new process or from an earlier run."""
        if name in self.done:
            click.echo(f"({name}: from an earlier run in this folder)")
        else:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                self.done[name] = process.submit(function, *arguments).result()
            with replacing(self.file) as path:
                path.write_text(json.dumps(self.done, indent=1) + "\n")
        return self.done[name]

    def sample_set(self, n_images: int) -> Path:
        """The custom job of the sample set, with this many images in each split."""
        folder = self.out / f"sample-{n_images}"
        data = folder / "custom" / "custom.yaml"
        if not (folder / "complete").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            write_sample(folder, n_images=n_images, seed=SEED)
            (folder / "complete").touch()
        return data


def _tiny(parts: Parts, images: int, epochs: int) -> None:
    """Measure `tiny` on the sample set, its memory, and the fine-tuning."""
    config = FitConfig(seed=SEED)
    data = parts.sample_set(images)
    caching = parts.measure("caching", measure_caching, "tiny", "tiny", data, parts.out / "caching", 256)
    fitted = parts.measure("fit", measure_fit, "tiny", None, data, parts.out / "fit", config)
    _print_caching(caching, 256)
    _print_fit(fitted, caching, None)
    more = parts.sample_set(GROWTH * images)
    grown = parts.measure("fit, more images", measure_fit, "tiny", None, more, parts.out / "fit-more", config)
    _print(f"peak memory, {images} images", f"{fitted['peak_mb']:.0f} MB")
    _print(f"peak memory, {GROWTH * images} images", f"{grown['peak_mb']:.0f} MB")
    if epochs:
        _print_fine_tuning(parts.measure("fine-tuning", fine_tune, data, parts.out / "fine-tuning", epochs), fitted)


def _photos(parts: Parts, images: int, photos: Path, model: str, tower: str | None) -> None:
    """Measure the command `fit`, start-up and report included, against a plain pass over all that it caches."""
    data = noisy_copies(photos, images, parts.out / f"photos-{images}")
    passed = parts.measure("plain pass", measure_plain, model, tower, data)
    command = [sys.executable, "-m", "prompt_tune", "fit", "--model", model, "--data", str(data), "--views", "1"]
    command += ["--text-tower", tower] if tower else []
    fitted = parts.measure("whole fit", measure_command, command, parts.out / "run")
    click.echo(f"{passed['images']} images, {images} of them for training, one view, {FitConfig().epochs} epochs")
    aim = next(aim for least, aim in WHOLE_AIMS if images >= least)
    for key, what in (("seconds", "elapsed"), ("cpu", "of the CPU")):
        _print(f"plain pass, seconds {what}", f"{passed[key]:.1f}")
        _print(f"all of fit, seconds {what}", f"{fitted[key]:.1f}", fitted[key] / passed[key], "the plain pass", aim)
    click.echo(f"  {fitted['last_line']}")


def noisy_copies(source: Path, n_images: int, folder: Path) -> Path:
    """A Pascal VOC folder with so many training photos: those of another one, and copies of them with noise.

    Validation photos are copied as often.
    """
    if (folder / "val.txt").is_file():
        return folder
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    stems = {name: (source / f"{name}.txt").read_text().split() for name in ("train", "val")}
    for name, own in stems.items():
        written = []
        for k in range(round(len(own) * n_images / len(stems["train"]))):
            stem = own[k % len(own)]
            written.append(f"{stem}-{k // len(own)}")
            with Image.open(next((source / "images").glob(f"{stem}.*"))) as image:
                pixels = np.asarray(image.convert("RGB"), np.float32)
            if k >= len(own):
                pixels = (pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{written[-1]}.jpg", quality=95)
            shutil.copyfile(source / "annotations" / f"{stem}.xml", folder / "annotations" / f"{written[-1]}.xml")
        (folder / f"{name}.txt").write_text("\n".join(written) + "\n")
    return folder


def measure_plain(model: str, tower: str | None, data: Path) -> Json:
    """Seconds of a plain pass over training and validation images, loading of the detector left out."""
    import torch

    from prompt_tune.datasets.reading import read_dataset
    from prompt_tune.models.embeddings import default_tower, original_vocabulary
    from prompt_tune.models.text_tower import TextTower
    from prompt_tune.models.world import World
    from prompt_tune.tuning.caching import FORWARD_BATCH

    world = World.load(model)
    vocabulary = original_vocabulary(world, TextTower.load(tower or default_tower(model)), None)
    guide = torch.tensor(vocabulary.embeddings).flatten(0, 1)  # (n_cls * n_prompts, 512)
    dataset = read_dataset(data, seed=SEED)
    samples = [*dataset.train.samples, *dataset.val.samples]
    _plain_pass(world, guide, samples[:FORWARD_BATCH], IMAGE_SIZE)
    started, cpu = time.perf_counter(), time.process_time()
    _plain_pass(world, guide, samples, IMAGE_SIZE)
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "images": len(samples),
    }


def measure_command(command: Sequence[str], run: Path) -> Json:
    """Seconds of a command of the package that writes a run folder, from its start to its end."""
    shutil.rmtree(run, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run([*command, "--out", str(run)], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu, "last_line": done.stdout.strip().splitlines()[0]}


def _full(parts: Parts, images: int, photos: Path | None) -> None:
    """Measure YOLO-World s with a ViT-B/32 tower at 640 pixels, with random weights."""
    config = FitConfig(seed=SEED)
    tower = full_size.write_tower(parts.out / "tower")
    model = full_size.write_checkpoint(parts.out / "yolov8s-worldv2.pt", tower)
    data = _some_photos(photos, images, parts.out / "photos") if photos else parts.sample_set(images)
    caching = parts.measure("caching", measure_caching, model, tower, data, parts.out / "caching", 640)
    fitted = parts.measure("fit", measure_fit, model, tower, data, parts.out / "fit", config)
    _print_caching(caching, 640)
    _print_fit(fitted, caching, TRAINING_AIM)
    _print("peak memory of fit", f"{fitted['peak_mb']:.0f} MB")


def _some_photos(source: Path, n_images: int, folder: Path) -> Path:
    """A Pascal VOC folder with the first images of the train.txt of another one, and its complete val.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("images", "annotations"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to((source / name).resolve())
    stems = (source / "train.txt").read_text().split()
    if len(stems) < n_images:
        raise click.ClickException(f"{source} has {len(stems)} training images. Received: --images {n_images}.")
    (folder / "train.txt").write_text("\n".join(stems[:n_images]) + "\n")
    shutil.copyfile(source / "val.txt", folder / "val.txt")
    return folder


def measure_caching(model: str | Path, tower: str, data: Path, folder: Path, image_size: int) -> Json:
    """Seconds of plain passes and cachings of the training images, which take turns, and MB per cached image."""
    import torch

    from prompt_tune.config import RegionBudget
    from prompt_tune.datasets.reading import read_dataset
    from prompt_tune.models.embeddings import original_vocabulary
    from prompt_tune.models.text_tower import TextTower
    from prompt_tune.models.world import World
    from prompt_tune.tuning.caching import FORWARD_BATCH, cache_regions
    from prompt_tune.tuning.regions import RegionCache

    shutil.rmtree(folder, ignore_errors=True)  # not between the rounds, because it keeps the file system busy
    world = World.load(model)
    vocabulary = original_vocabulary(world, TextTower.load(tower), None)
    guide = torch.tensor(vocabulary.embeddings).flatten(0, 1)  # (n_cls * n_prompts, 512)
    samples = read_dataset(data, seed=SEED).train.samples
    _plain_pass(world, guide, samples[:FORWARD_BATCH], image_size)
    plain, caching = [], []
    cache, head = RegionCache([]), torch.zeros(0)
    for k in range(ROUNDS):
        started = time.perf_counter()
        head = _plain_pass(world, guide, samples, image_size)
        plain.append(time.perf_counter() - started)
        started = time.perf_counter()
        place = folder / str(k)
        for growing in cache_regions(world, guide, samples, place, image_size=image_size, budget=RegionBudget()):
            cache = growing
        caching.append(time.perf_counter() - started)
    regions = cache.load(len(samples) - 1)
    # up to float16 and the order of sums: the caching fills its last batch, so that batch has another size
    if not torch.allclose(regions.head, head[regions.anchor], rtol=2e-3, atol=2e-3):
        raise RuntimeError("The cache does not hold the features of the plain pass.")
    size = sum(file.stat().st_size for views in cache.files for file in views)
    return {
        "plain": statistics.median(plain),
        "caching": statistics.median(caching),
        "all_plain": plain,
        "all_caching": caching,
        "images": len(samples),
        "classes": len(guide),
        "mb_an_image": size / len(samples) / 1e6,
    }


def _plain_pass(world: "World", guide: "Tensor", samples: "Sequence[Sample]", image_size: int) -> "Tensor":
    """Run the detector over all images, read and batched as the caching does, and return the last one's features."""
    import torch

    from prompt_tune.runtime.images import letterbox, read_rgb
    from prompt_tune.tuning.caching import FORWARD_BATCH

    def read(first: int) -> np.ndarray:
        batch = samples[first : first + FORWARD_BATCH]
        return np.stack([letterbox(read_rgb(sample.path), image_size)[0] for sample in batch])  # (b, size, size, 3)

    firsts = range(0, len(samples), FORWARD_BATCH)
    head = torch.zeros(0)
    with ThreadPoolExecutor(1) as reader:
        ahead = [reader.submit(read, first) for first in firsts[:2]]
        for k in range(len(firsts)):
            images = torch.from_numpy(ahead.pop(0).result()).permute(0, 3, 1, 2).float() / 255  # (b, 3, size, size)
            if k + 2 < len(firsts):
                ahead.append(reader.submit(read, firsts[k + 2]))
            head = world.features(images, guide)[0][-1]  # (A, c3)
    return head


def measure_fit(model: str | Path, tower: str | None, data: Path, run: Path, config: FitConfig) -> Json:
    """Seconds of `fit` in total and by stage, its accuracy, and its peak memory."""
    from prompt_tune.models import ultralytics
    from prompt_tune.tuning.fit import fit
    from prompt_tune.tuning.job import FitInputs

    for name in ("ultralytics.nn.tasks", "ultralytics.utils.tal"):
        ultralytics.quiet_import(name)
    for name in ("open_clip", "faster_coco_eval", "matplotlib.figure"):
        __import__(name)
    shutil.rmtree(run, ignore_errors=True)
    started = time.perf_counter()
    result = fit(FitInputs(model, data, text_tower=tower), run, config=config)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "cache": result.seconds["cache"],
        "train": result.seconds["train"],
        "epochs": config.epochs,
        "epoch": result.epoch,
        "ap": result.ap,
        "ap50": result.ap50,
        "peak_mb": _peak_mb(),
    }


def _peak_mb() -> float:
    """Peak resident memory of this process. `getrusage` would count that of the parent before the exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def _print(what: str, value: str, ratio: float | None = None, of: str = "", aim: float | None = None) -> None:
    """Print a figure, its ratio to another, and the largest ratio that is aimed at."""
    line = f"{what:<36}{value:>12}"
    if ratio is not None:
        line += f"   {ratio:.2f} x {of}"
    if ratio is not None and aim is not None:
        line += f" (aim <= {aim:g}: {'met' if ratio <= aim else 'MISSED'})"
    click.echo(line)


def _print_caching(caching: Json, image_size: int) -> None:
    """Print the plain pass, the caching, and the size of the cache."""
    plain, ours = (", ".join(f"{seconds:.2f}" for seconds in caching[f"all_{name}"]) for name in ("plain", "caching"))
    click.echo(
        f"{caching['images']} training images at {image_size} px, guide of {caching['classes']} classes. Rounds of the "
        f"plain pass: {plain} s; of the caching: {ours} s"
    )
    ratio, megabytes = caching["caching"] / caching["plain"], caching["mb_an_image"]
    aimed = (megabytes, "1 MB", CACHE_MB_AIM) if image_size == 640 else ()
    _print("plain pass, median", f"{caching['plain']:.2f} s")
    _print("caching of one view, median", f"{caching['caching']:.2f} s", ratio, "the plain pass", CACHING_AIM)
    _print("training cache per image and view", f"{megabytes:.3f} MB", *aimed)


def _print_fit(fitted: Json, caching: Json, aim: float | None) -> None:
    """Print the stages of `fit` and its total."""
    ratio = fitted["train"] / caching["plain"]
    _print("fit: caching, training + validation", f"{fitted['cache']:.2f} s")
    _print(f"fit: training, {fitted['epochs']} epochs", f"{fitted['train']:.2f} s", ratio, "the plain pass", aim)
    _print("fit: total, with loading", f"{fitted['seconds']:.2f} s")
    click.echo(f"  validation AP {fitted['ap']:.3f}, AP50 {fitted['ap50']:.3f}, in epoch {fitted['epoch']}")


def _print_fine_tuning(tuned: Json, fitted: Json) -> None:
    """Print the seconds of fine-tuning until its best validation AP and until that of `fit`."""
    lines = tuned["epochs"]
    seconds = list(accumulate(line["seconds"] for line in lines))
    best = max(range(len(lines)), key=lambda i: lines[i]["ap"])
    ratio = seconds[best] / fitted["seconds"]
    verdict = f"(aim >= {SPEEDUP_AIM:g}: {'met' if ratio >= SPEEDUP_AIM else 'MISSED'})"
    _print("fine-tuning to its best AP", f"{seconds[best]:.1f} s", ratio, f"all of fit {verdict}")
    click.echo(
        f"  validation AP {lines[best]['ap']:.3f}, AP50 {lines[best]['ap50']:.3f}, in epoch {best + 1} of {len(lines)} "
        f"at {statistics.median(line['seconds'] for line in lines):.2f} s"
    )
    for key, name in (("ap", "AP"), ("ap50", "AP50")):
        reached = next((i for i, line in enumerate(lines) if line[key] >= fitted[key]), None)
        if reached is None:
            _print(f"fine-tuning to the {name} of fit", "never")
        else:
            ratio = seconds[reached] / fitted["seconds"]
            of = f"all of fit, epoch {reached + 1}"
            _print(f"fine-tuning to the {name} of fit", f"{seconds[reached]:.1f} s", ratio, of)


if __name__ == "__main__":
    main()
