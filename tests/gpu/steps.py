"""The steps of the GPU check. Each returns plain JSON; `check.py` runs each in a process of its own.

`PYTHONPATH=tests python tests/gpu/steps.py NAME --out FOLDER [--provider cpu]` runs one.
"""

import json
import os
import platform
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import numpy as np
from gpu_parts import FULL, N_ORIGINAL, SMALL, Json, Parts
from vocabularies import unit_rows

from prompt_tune.files import replacing
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.providers import cuda_libraries, missing_libraries, open_session, quiet_onnxruntime
from prompt_tune.vocabulary.format import GRAPH_FILE

BOX_PX, SCORE = 0.5, 0.01  # how far CUDA may be from the CPU, and float16 from float32
CLOSE = 0.99  # share of the detections that must be that near, for a score at a threshold may fall to either side


def versions(parts: Parts, device: str) -> Json:
    """What is installed, and the card."""
    onnxruntime = quiet_onnxruntime()
    found: Json = {"python": platform.python_version(), "cores": os.cpu_count()}
    for name in ("prompt-tune", "torch", "ultralytics", "onnxruntime-gpu", "onnxruntime", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["providers"] = onnxruntime.get_available_providers()
    built_for = getattr(onnxruntime, "cuda_version", "")
    found["cuda of onnxruntime"] = built_for
    if device != "cpu":
        import torch

        onnxruntime.preload_dlls()
        found["missing libraries"] = missing_libraries(cuda_libraries(built_for))
        found |= {"cuda of torch": torch.version.cuda, "cudnn of torch": torch.backends.cudnn.version()}
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return found


def session(parts: Parts, device: str) -> Json:
    """The providers that a session really has, and from its profile what ran where and what was copied."""
    bundle = parts.bundle(parts.sizes.scales[0])
    real = open_session(bundle / GRAPH_FILE, device=device).get_providers()
    onnxruntime = quiet_onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        profiled = onnxruntime.InferenceSession(str(bundle / GRAPH_FILE), options, providers=real)
        profiled.run(None, _feed(parts, 2))
        events = json.loads(Path(profiled.end_profiling()).read_text())
    where: dict[str, Counter[str]] = {}
    for event in events:
        ran = event.get("args", {}).get("provider")
        if event.get("cat") == "Node" and ran and event["name"].endswith("_kernel_time"):
            where.setdefault(ran, Counter())[event["args"]["op_name"]] += 1
    on_cpu = dict(where.get("CPUExecutionProvider", {}))
    copies = sum(count for ops in where.values() for name, count in ops.items() if name.startswith("Memcpy"))
    nodes = {provider: sum(ops.values()) for provider, ops in where.items()}
    return {"providers": real, "nodes by provider": nodes, "nodes on the CPU": on_cpu, "copies": copies}


def retention(parts: Parts, device: str) -> Json:
    """Bits of original detections that change with learned classes beside them. The aim is 0 everywhere."""
    scale = parts.sizes.scales[0]
    detector = Detector(parts.bundle(scale), device=device, use_bundled=False)
    photos = parts.photos(max(parts.sizes.batches))
    alone = {batch: _bits(detector.detect(photos, batch=batch)) for batch in parts.sizes.batches}
    n_found = sum(len(one) for one in detector.detect(photos, batch=max(parts.sizes.batches)))
    compared, changed = 0, {}
    for n_cls in parts.sizes.learned:
        loaded = [parts.vocabulary(scale, n_cls, seed=1)]
        for label, vocabularies in (
            (f"{n_cls}", loaded),
            (f"{n_cls}, behind another", [parts.vocabulary(scale, 3, seed=2), *loaded]),
            (f"{n_cls}, before another", [*loaded, parts.vocabulary(scale, 3, seed=2)]),
        ):
            labels = [detector.load(vocabulary) for vocabulary in vocabularies]
            for batch in parts.sizes.batches:
                for order, used in (("", photos), (", reversed", photos[::-1])):
                    found = [one.of(ORIGINAL) for one in detector.detect(used, batch=batch)]
                    expected = alone[batch]
                    if order:  # an image stands elsewhere in its batch: compare with the same order alone
                        for name in labels:
                            detector.unload(name)
                        expected = _bits(detector.detect(used, batch=batch))
                        labels = [detector.load(vocabulary) for vocabulary in vocabularies]
                    compared += 1
                    if (bits := _changed(expected, _bits(found))) != 0:
                        changed[f"{label}, batch {batch}{order}"] = bits
            for name in labels:
                detector.unload(name)
    again = {batch: _changed(alone[batch], _bits(detector.detect(photos, batch=batch))) for batch in alone}
    return {
        "original detections": n_found,
        "comparisons": compared,
        "changed bits": changed,
        "changed bits when run again": sum(again.values()),
        "passed": n_found > 0 and not changed and not any(again.values()),
    }


def agreement(parts: Parts, device: str) -> Json:
    """The device against the CPU, and float16 against float32 on the device."""
    scale, photos = parts.sizes.scales[0], parts.photos(4)
    reference = Detector(parts.bundle(scale)).detect(photos)
    rows: Json = {}
    for name, half in (("float32", False), ("float16", True)):
        rows[name] = _compare(reference, Detector(parts.bundle(scale, half=half), device=device).detect(photos))
    return rows | {"passed": all(row["near"] >= CLOSE for row in rows.values())}


def speed(parts: Parts, device: str, scale: str) -> Json:
    """Median milliseconds and images a second: the whole `detect`, the graph alone, torch, and a baked graph."""
    import torch

    from prompt_tune.models.world import torch_device

    bundle, sizes = parts.bundle(scale), parts.sizes
    detector = Detector(bundle, device=device, use_bundled=False)
    half = Detector(parts.bundle(scale, half=True), device=device, use_bundled=False)
    where = torch_device(device)
    world = parts.world(scale, where)
    guide = torch.from_numpy(detector.vocabularies[ORIGINAL].embeddings.copy()).flatten(0, 1).to(where)
    weight, bias = world.fold(guide)

    def forward(images: np.ndarray) -> None:
        with torch.no_grad():
            head, _ = world.features(torch.from_numpy(images).to(where), guide)
            level = world.anchors(*images.shape[2:])[2]
            world.logits(head, level, weight, bias).sigmoid().max().item()

    rows: Json = {}
    for batch in sizes.batches:
        photos, images = parts.photos(batch), _images(parts, batch)
        calls: dict[str, Callable[[], object]] = {
            "detect": partial(detector.detect, photos, batch=batch),
            "detect, float16": partial(half.detect, photos, batch=batch),
            "graph alone": partial(detector.raw, images, original_conf=0.1),
            "torch forward pass": partial(forward, images),
        }
        rows[f"batch {batch}"] = _timed(calls, batch, sizes.rounds)
    baked = _baked(parts, scale)
    if baked is not None:
        images = _images(parts, 1)
        ran = open_session(baked, device=device)
        rows["batch 1"] |= _timed({"ultralytics' graph": lambda: ran.run(None, {"images": images})}, 1, sizes.rounds)
    return rows


def loading(parts: Parts, device: str) -> Json:
    """Milliseconds to load many classes, and detection by several threads while others load and unload."""
    scale, sizes = parts.sizes.scales[0], parts.sizes
    detector = Detector(parts.bundle(scale), device=device, use_bundled=False)
    photos = parts.photos(2)
    expected = _bits(detector.detect(photos))
    many = parts.vocabulary(scale, max(sizes.learned) + N_ORIGINAL, seed=5)
    seconds = []
    for _ in range(max(3, sizes.rounds // 3)):
        started = time.perf_counter()
        name = detector.load(many)
        seconds.append(time.perf_counter() - started)
        detector.unload(name)
    stop, calls = time.monotonic() + sizes.seconds, Counter[str]()
    problems: list[str] = []
    few = parts.vocabulary(scale, 7, seed=6)

    def look() -> None:
        while time.monotonic() < stop and not problems:
            found = [one.of(ORIGINAL) for one in detector.detect(photos)]
            if bits := _changed(expected, _bits(found)):
                problems.append(f"{bits} bits")
            calls["detect"] += 1

    def change(name: str) -> None:
        while time.monotonic() < stop and not problems:
            detector.load(few, name)
            detector.unload(name)
            calls["load"] += 1

    before = _memory_mb(device)
    threads = [threading.Thread(target=look) for _ in range(sizes.threads - 2)]
    threads += [threading.Thread(target=change, args=(f"few-{k}",)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "classes": len(many.names),
        "load, ms": round(1000 * statistics.median(seconds), 2),
        "threads": sizes.threads,
        "calls": dict(calls),
        "memory before, MB": before,
        "memory after, MB": _memory_mb(device),
        "problems": problems,
        "passed": not problems,
    }


def caching(parts: Parts, device: str) -> Json:
    """Images a second that the caching of `fit` takes, against a plain forward pass. The aim is 0.8 of it on a GPU."""
    import torch

    from prompt_tune.config import RegionBudget
    from prompt_tune.models.world import torch_device
    from prompt_tune.tuning.caching import FORWARD_BATCH, cache_regions

    sizes, where = parts.sizes, torch_device(device)
    world = parts.world(sizes.scales[0], where)
    guide = torch.from_numpy(_original_rows(parts)).to(where)
    samples = parts.labelled(sizes.images, 1)
    images = torch.from_numpy(_images(parts, FORWARD_BATCH))
    world.features(images.to(where), guide)[0].sum().item()
    rounds = max(1, len(samples) // FORWARD_BATCH)
    started = time.perf_counter()
    for _ in range(rounds):
        total = world.features(images.to(where), guide)[0].sum()
    total.item()
    plain = rounds * FORWARD_BATCH / (time.perf_counter() - started)
    with tempfile.TemporaryDirectory(dir=parts.folder) as cache:
        started = time.perf_counter()
        for _ in cache_regions(
            world, guide, samples, Path(cache), image_size=sizes.image_size, budget=RegionBudget(), views=1
        ):
            pass
        cached = len(samples) / (time.perf_counter() - started)
    return {
        "images": len(samples),
        "plain forward pass, images/s": round(plain, 1),
        "caching, images/s": round(cached, 1),
        "share": round(cached / plain, 3),
        "peak memory, MB": _memory_mb(device),
    }


def training(parts: Parts, device: str) -> Json:
    """Milliseconds of a whole update of `fit`, by the number of classes, and peak memory.

    An update is what `Trainer` does: a pass of the text tower, the loss of cached images, the way back and AdamW.
    """
    import torch

    from prompt_tune.config import FitConfig, RegionBudget
    from prompt_tune.models.context import PromptContext
    from prompt_tune.models.text_tower import TextTower
    from prompt_tune.models.world import torch_device
    from prompt_tune.tuning.caching import cache_regions
    from prompt_tune.tuning.tasks import RegionTask
    from prompt_tune.tuning.trainer import Trainer

    sizes, where = parts.sizes, torch_device(device)
    tower = TextTower.load(parts.tower, device=where)
    world = parts.world(sizes.scales[0], where)
    guide = torch.from_numpy(_original_rows(parts)).to(where)
    rows: Json = {}
    for n_cls in sizes.classes:
        with tempfile.TemporaryDirectory(dir=parts.folder) as folder:
            *_, cache = cache_regions(
                world,
                guide,
                parts.labelled(sizes.images // 8, n_cls),
                Path(folder),
                image_size=sizes.image_size,
                budget=RegionBudget(),
            )
            context = PromptContext(tower, [(f"thing {i}",) for i in range(n_cls)]).to(where)
            config = FitConfig(updates=max(2, sizes.rounds // 3), image_size=sizes.image_size)
            trainer = Trainer(RegionTask(world, cache, cache, sizes.image_size), context, config, select=False)
            trainer.run_epoch()  # the first one also prepares the images
            if where != "cpu":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            line = trainer.run_epoch()
            seconds = time.perf_counter() - started
        rows[f"{n_cls} classes"] = {
            "update, ms": round(1000 * seconds / trainer.n_updates, 2),
            "loss": round(line["loss"], 3),
            "peak memory, MB": _memory_mb(device, peak=True),
        }
    return rows


def _feed(parts: Parts, batch: int) -> dict[str, np.ndarray]:
    """The graph's inputs."""
    rows = _original_rows(parts)[:, None]
    limits = {"iou": 0.7, "original_conf": 0.1, "learned_conf": 0.1}
    return {"images": _images(parts, batch), "original": rows, "learned": rows[:7]} | {
        name: np.array([value], np.float32) for name, value in limits.items()
    }


def _original_rows(parts: Parts) -> np.ndarray:
    return unit_rows(N_ORIGINAL)


def _images(parts: Parts, batch: int) -> np.ndarray:
    """Letterboxed pictures: (b, 3, size, size) float32."""
    from prompt_tune.runtime.images import letterbox

    pixels = [letterbox(photo, parts.sizes.image_size)[0] for photo in parts.photos(batch)]
    return np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def _bits(found: Sequence[Detections]) -> list[tuple[bytes, ...]]:
    """All bits of the original detections of each image."""
    kept = [one.of(ORIGINAL) for one in found]
    return [(one.boxes_xyxy.tobytes(), one.scores.tobytes(), one.class_ids.tobytes()) for one in kept]


def _changed(before: list[tuple[bytes, ...]], after: list[tuple[bytes, ...]]) -> int:
    """The number of bits that differ; all of an array whose length does."""
    total = 0
    for one, other in zip(before, after, strict=True):
        for a, b in zip(one, other, strict=True):
            if len(a) != len(b):
                total += 8 * max(len(a), len(b))
            elif a != b:
                total += int(np.unpackbits(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).sum())
    return total


def _compare(reference: Sequence[Detections], found: Sequence[Detections]) -> Json:
    """The share of detections on both sides that have a partner of their class nearby, and the largest distances."""
    near = total = 0
    box = score = 0.0
    for one, other in zip(reference, found, strict=True):
        for mine, theirs in ((one, other), (other, one)):
            total += len(mine)
            for i in range(len(mine)):
                same = (theirs.class_ids == mine.class_ids[i]).nonzero()[0]
                far = np.abs(theirs.boxes_xyxy[same] - mine.boxes_xyxy[i]).max(axis=1, initial=0)
                off = np.abs(theirs.scores[same] - mine.scores[i])
                fits = (far <= BOX_PX) & (off <= SCORE)
                if fits.any():
                    best = int(np.argmin(np.where(fits, far + off, np.inf)))
                    near, box, score = near + 1, max(box, float(far[best])), max(score, float(off[best]))
    return {
        "detections": total,
        "near": round(near / total, 4) if total else 0.0,
        "largest distance of those, px": round(box, 4),
        "largest difference of score": round(score, 5),
    }


def _timed(calls: dict[str, Callable[[], object]], batch: int, rounds: int) -> Json:
    """Median milliseconds of each call and images a second; the calls take turns, after two that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {name: {"ms": round(1000 * each, 2), "images/s": round(batch / each, 1)} for name, each in medians.items()}


def _baked(parts: Parts, scale: str) -> Path | None:
    """Ultralytics' export with the original classes baked in; None if it cannot be made here."""
    from bench_runtime import _bake

    checkpoint = parts.folder / f"yolov8{scale}-worldv2.pt"
    try:
        return _bake(checkpoint, _original_rows(parts), 1, parts.sizes.image_size, parts.folder / f"baked-{scale}.onnx")
    except ImportError:  # ultralytics' exporter wants packages that may be missing
        return None


def _memory_mb(device: str, *, peak: bool = False) -> int:
    """Memory of this process in MB: on the card all that is in use there, else the resident memory."""
    if device == "cpu":
        key = "VmHWM:" if peak else "VmRSS:"
        return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) // 1000
    import torch

    if peak:
        return torch.cuda.max_memory_allocated() // 1_000_000
    free, total = torch.cuda.mem_get_info()
    return (total - free) // 1_000_000


STEPS: dict[str, Callable[[Parts, str], Json]] = {
    "versions": versions,
    "session": session,
    "retention": retention,
    "agreement": agreement,
    "loading": loading,
    "caching": caching,
    "training": training,
}


@click.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--provider", default="cuda")
def main(name: str, out: Path, provider: str) -> None:
    """Run the step NAME, and write FOLDER/NAME.json."""
    parts = Parts(out / "parts", SMALL if provider == "cpu" else FULL)
    parts.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    step, _, scale = name.partition(" ")
    found = speed(parts, provider, scale) if step == "speed" else STEPS[step](parts, provider)
    with replacing(out / f"{name}.json") as path:
        path.write_text(json.dumps(found | {"seconds": round(time.monotonic() - started, 1)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
