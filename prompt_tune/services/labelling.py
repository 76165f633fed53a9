"""What every worker of a labelling job does, on whatever engine: read a part's images, detect, write its rows."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_tune.errors import DataError
from prompt_tune.runtime.batches import detect_in_batches
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import Letterboxed, Picture
from prompt_tune.runtime.slices import Slices
from prompt_tune.services.items import Item, read_items
from prompt_tune.services.results import begin_part, write_part
from prompt_tune.services.rows import Row
from prompt_tune.vocabulary.vocabulary import Vocabulary
from prompt_tune.wording import counted

AHEAD = 2  # images that are read before they are cut into slices: each is in memory with all of its pixels
NAMED = 5  # errors of one part that are told at once; all of them stand in the rows


@dataclass(frozen=True)
class Job:
    """What all workers of a job share. It can be pickled.

    Attributes:
        bundle: Folder of `prompt-tune export`.
        learned: All vocabularies beside the original one, by label.
        device: Where the graph runs, see `Detector`.
        image_size: Side in pixels of the network's input, or None.
        threads: CPU threads of each worker. 0 means all cores.
        batch: See `Detector.detect`.
        slices: How images are also looked at in slices, or None.
        options: `iou`, `original_conf`, `learned_conf`, `show`, `hide` of `Detector.detect`.
        run: Folder of this run, from `Results.begin`.
    """

    bundle: Path
    learned: Mapping[str, Vocabulary]
    device: str | int
    image_size: int | None
    threads: int
    batch: int
    slices: Slices | None
    options: Mapping[str, Any]
    run: Path


@dataclass(frozen=True)
class Part:
    """Images that become one Parquet file, with its name."""

    name: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Done:
    """What one part was.

    Attributes:
        images: Number of images, with those that cannot be read.
        failed: Number of images that cannot be read.
        detections: Number of detections.
        errors: The first few errors.
    """

    images: int
    failed: int
    detections: int
    errors: tuple[str, ...]


def begin(job: Job, part: Part) -> None:
    """Note that a part is given to a worker: one that ends its workers must not end every new one too.

    Raises:
        DataError: See `results.begin_part`.
        PromptTuneError: Too many workers died with this part.
    """
    begin_part(job.run, part.name, f"the {counted(len(part.items), 'image')} from `{part.items[0].path}` on")


class Worker:
    """A detector that labels one part after another. It is loaded for the first of them."""

    def __init__(self, job: Job) -> None:
        """Prepare a worker.

        Args:
            job: What to label with.
        """
        self._job = job
        self._detector: Detector | None = None
        self._pool = ThreadPoolExecutor(job.threads or os.cpu_count(), "read")

    def label(self, part: Part) -> Done:
        """Label the images of a part and write its file.

        Raises:
            DataError: The file cannot be written, or another run took the place of this one.
            PromptTuneError: See `Detector`, or ONNX Runtime fails.
        """
        job = self._job
        detector = self._detector = self._detector or _load(job)
        rows: dict[str, Row] = {item.path: Row.damaged(item.path, "") for item in part.items}  # in their order

        ready: Callable[[Picture], Picture | Letterboxed] = detector.letterboxed
        ahead = 2 * job.batch
        if job.slices:
            ready, ahead = _as_it_is, AHEAD
        whole = job.slices is not None

        def images() -> Iterator[tuple[str, Picture | Letterboxed]]:
            for item, image in read_items(part.items, self._pool, ready, ahead=ahead, whole=whole):
                if isinstance(image, DataError):
                    rows[item.path] = Row.damaged(item.path, str(image))
                else:
                    yield item.path, image

        for path, found in detect_in_batches(detector, images(), batch=job.batch, slices=job.slices, **job.options):
            rows[path] = Row(path, found)
        write_part(job.run, part.name, list(rows.values()))
        errors = [row.error for row in rows.values() if row.error]
        n_found = sum(len(row.found) for row in rows.values())
        return Done(len(rows), len(errors), n_found, tuple(errors[:NAMED]))


def _as_it_is(image: Picture) -> Picture:
    return image


def _load(job: Job) -> Detector:
    """The detector of a job."""
    detector = Detector(
        job.bundle, use_bundled=False, device=job.device, image_size=job.image_size, threads=job.threads
    )
    for label, vocabulary in job.learned.items():
        detector.load(vocabulary, label)
    return detector
