"""Labels for any number of images, on one machine or a cluster: `prompt_tune.cluster.label`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from prompt_tune.contract import MOST_BATCH
from prompt_tune.errors import PromptTuneError
from prompt_tune.media.annotate import provenance
from prompt_tune.progress import Progress, silent
from prompt_tune.runtime.detections import ORIGINAL, choose_classes
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.image_files import Places
from prompt_tune.runtime.slices import Slices
from prompt_tune.services.arrow import arrow_module
from prompt_tune.services.items import Item, find_items
from prompt_tune.services.labelling import Job, Part
from prompt_tune.services.local import run_local
from prompt_tune.services.ray_engine import run_ray
from prompt_tune.services.results import Results, digest, end, part_name
from prompt_tune.vocabulary.vocabulary import Vocabulary

BATCH = 8  # images at once: on two cores, 20 % faster than one by one
PART = 500  # images of a Parquet file
NAMED = 20  # errors that a result names
Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Labelled:
    """What `label` did.

    Attributes:
        images: Number of images that got a row, with those that cannot be read.
        before: Number of images that had a row already.
        failed: Number of images that cannot be read. Their rows say why.
        detections: Number of detections.
        errors: The first few errors.
    """

    images: int
    before: int
    failed: int
    detections: int
    errors: tuple[str, ...]


def label(
    bundle: str | Path,
    source: Places,
    out: str | Path,
    *,
    engine: Engine = "local",
    address: str = "auto",
    workers: int | None = None,
    learned: Sequence[str | Path | Vocabulary] = (),
    use_bundled: bool = True,
    device: str | int = "cpu",
    iou: float | None = None,
    original_conf: float | None = None,
    learned_conf: float | None = None,
    show: Sequence[str] | None = None,
    hide: Sequence[str] | None = None,
    image_size: int | None = None,
    slices: Slices | None = None,
    batch: int = BATCH,
    part: int = PART,
    threads: int = 0,
    recursive: bool = True,
    progress: Progress = silent,
) -> Labelled:
    """Detect in all images of a source, and write one row for each to Parquet files of one schema, `rows.schema`.

    The rows have the bits of `Detector.detect`, or with `slices` of `detect_sliced`, with the same `batch`, on the same
    device. An image that cannot be read is a row with an error. A call that is killed, or whose workers are, loses at
    most the files that were not finished; the same call again does what is missing, and no image twice. Call it once at
    a time for each `out`.

    Args:
        bundle: Folder of `prompt-tune export`. All workers need it at this path.
        source: See `items.find_items`. All workers need it at these paths.
        out: Folder for the results, which all workers share. One of an earlier call goes on.
        engine: "local": this machine. "ray": a Ray cluster.
        address: For "ray", see `ray_engine.run_ray`.
        workers: Number of detectors. By default, 1 on "local", and on "ray" as many as the cluster has room for.
        learned: See `Detector`. Workers get these vocabularies from this process.
        use_bundled: Whether to load the bundle's learned vocabulary.
        device: Where each detector runs. On "ray", a GPU is "cuda": each worker gets one of its own.
        iou: See `Detector.detect`, as for the next four.
        original_conf: Threshold of the original vocabulary.
        learned_conf: Threshold of all other vocabularies.
        show: Classes to write.
        hide: Classes not to write.
        image_size: See `Detector`.
        slices: How images are also looked at in slices, see `detect_sliced`. By default, only as a whole.
        batch: Images that go through the network at once, see `Detector.detect`; with `slices`, windows of an image.
        part: Images of a Parquet file: what a kill can cost each worker.
        threads: CPU threads of each worker. 0: on "local", an equal share of the cores; on "ray", one.
        recursive: Whether folders are read with their subfolders.
        progress: Called with (stage, done, total, note).

    Returns:
        What was done.

    Raises:
        DataError: A source has no images, or `out` has rows that were made with other settings, or cannot be written.
        PromptTuneError: A number is out of range, a package is missing, or a worker failed.
    """
    for what, number in (("batch", batch), ("part", part), ("workers", 1 if workers is None else workers)):
        if number < 1:
            raise PromptTuneError(f"`{what}` must be at least 1. Received: {number}.")
    if batch > MOST_BATCH:
        raise PromptTuneError(f"`batch` must be from 1 to {MOST_BATCH}. Received: {batch}.")
    if engine not in ("local", "ray"):
        raise PromptTuneError(f"`engine` must be `local` or `ray`. Received: {engine!r}.")
    arrow_module()  # before anything is done, since it may be missing
    bundle, out = Path(bundle).absolute(), Path(out).absolute()
    detector = Detector(bundle, learned=learned, use_bundled=use_bundled, image_size=image_size, threads=1)
    choose_classes(detector.classes, show=show, hide=hide)
    limits = {"iou": iou, "original_conf": original_conf, "learned_conf": learned_conf}
    names = {"show": None if show is None else list(show), "hide": list(hide or ())}
    cuts = {"slice": slices and slices.size, "slice_overlap": slices and slices.overlap}
    results = Results(out)
    run = results.begin(
        {
            "version": 1,
            "batch": batch,
            **names,
            **cuts,
            "classes": [list(key) for key in detector.classes],
            "info": {**provenance(detector), **limits, **(cuts if slices else {})},
        }
    )
    try:
        seen = results.done()
        before = len(seen)
        items = _new(find_items(source, recursive=recursive, without=out), seen, progress)
        parts = list(_parts(items, part))
        beside = {key: one for key, one in detector.vocabularies.items() if key != ORIGINAL}
        job = Job(bundle, beside, device, image_size, threads, batch, slices, {**limits, **names}, run)
        total = sum(len(one.items) for one in parts)
        images = failed = detections = 0
        errors: list[str] = []
        progress("label", 0, total, "")
        running = run_ray(job, parts, workers, address) if engine == "ray" else run_local(job, parts, workers or 1)
        for done in running:
            images, failed, detections = images + done.images, failed + done.failed, detections + done.detections
            errors += done.errors[: NAMED - len(errors)]
            progress("label", images, total, "")
    finally:
        end(run)
    return Labelled(images, before, failed, detections, tuple(errors))


def _new(items: Iterable[Item], seen: set[bytes], progress: Progress) -> Iterator[tuple[int, Item]]:
    """The items that have no row yet, each once, with their numbers in the whole list."""
    for number, item in enumerate(items):
        if number and number % 1000 == 0:
            progress("list", number, None, "")
        if (key := digest(item.path)) not in seen:
            seen.add(key)
            yield number, item


def _parts(numbered: Iterator[tuple[int, Item]], size: int) -> Iterator[Part]:
    """Items in parts of one size; the last may be smaller.

    What a killed run leaves out are whole parts, so the next run makes the same ones.
    """
    while part := list(islice(numbered, size)):
        items = [item for _, item in part]
        yield Part(part_name(part[0][0], [item.path for item in items]), items)
