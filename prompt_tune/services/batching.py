"""Dynamic batching: requests that wait for the graph go through it together, in batches of fixed sizes.

While the graph is busy, requests gather; nobody waits for more of them to come. The last bits of scores and boxes
depend on the shape of a batch, so every batch has one of a few sizes, an answer says which, and its rows are those of
`Detector.detect(images, batch=size)`, bit for bit. The windows of an image that is cut into slices go through it in
batches of their own, and the rows are those of `detect_sliced(image, slices, batch=size)`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from prompt_tune.errors import PromptTuneError, VocabularyError
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import Letterboxed
from prompt_tune.runtime.overlap import Overlap, check_overlap
from prompt_tune.runtime.slices import Window, detect_windows

SIZES = (1, 2, 4, 8)  # of batches
PASSES = 2  # at once: while one is in the graph, the other one's images and boxes are made ready


@dataclass(frozen=True)
class Terms:
    """What a request asks beside its image; only requests with equal terms share a batch.

    Attributes:
        vocabularies: Labels, each once, in the order of loading; None means all that are loaded.
        iou: In 0..1, see `Detector.detect`.
        conf: In 0..1, see `Detector.detect`.
        overlap: See `Detector.detect`.
    """

    vocabularies: tuple[str, ...] | None = None
    iou: float | None = None
    conf: float | None = None
    overlap: Overlap = "keep"

    @classmethod
    def of(
        cls,
        detector: Detector,
        *,
        vocabularies: Sequence[str] | None = None,
        iou: float | None = None,
        conf: float | None = None,
        overlap: str = "keep",
    ) -> "Terms":
        """Checked terms, with numbers rounded to float32, as the protocol has them.

        Raises:
            VocabularyError: No such vocabulary is loaded.
            PromptTuneError: A number is out of range, or there is no such way to treat overlapping boxes.
        """
        for what, value in (("iou", iou), ("conf", conf)):
            if value is not None and not 0 <= value <= 1:
                raise PromptTuneError(f"`{what}` must be from 0 to 1. Received: {value}.")
        loaded = detector.vocabularies
        for label in vocabularies or ():
            if label not in loaded:
                raise VocabularyError(f"No vocabulary `{label}` is loaded. Loaded: {', '.join(loaded)}.")
        return cls(
            None if vocabularies is None else tuple(label for label in loaded if label in vocabularies),
            None if iou is None else float(np.float32(iou)),
            None if conf is None else float(np.float32(conf)),
            check_overlap(overlap),
        )


@dataclass(frozen=True, eq=False)
class Windows:
    """An image that is cut into slices.

    Attributes:
        places: Its windows, see `Slices.windows`.
        images: What they show, ready for the network.
    """

    places: Sequence[Window]
    images: Sequence[Letterboxed]


@dataclass(frozen=True, eq=False)
class Answer:
    """The detections of an image, and the size of the batch in which they were found."""

    found: Detections
    batch: int


@dataclass(eq=False)
class _Waiting:
    image: Letterboxed | Windows
    terms: Terms
    answer: "asyncio.Future[Answer]"
    since: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Pass:
    """What happened in one pass: the size of the batch, the images in it, and seconds.

    Attributes:
        size: Of the batch, with padding.
        images: How many images of requests were in it.
        waited: Seconds that each of them had waited.
        took: Seconds of the pass.
        batches: How many batches of this size went through the graph: several for an image in slices.
    """

    size: int
    images: int
    waited: tuple[float, ...]
    took: float
    batches: int = 1


class Batcher:
    """The queue before a detector, on one event loop.

    Attributes:
        waiting: Number of images that wait.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        sizes: Sequence[int] = SIZES,
        passes: int = PASSES,
        seen: Callable[[Pass], None] = lambda _: None,
    ) -> None:
        """A queue that is not started yet.

        Args:
            detector: Which detects.
            sizes: Of batches, from 1 on. A single one makes every answer independent of what else was asked.
            passes: Number of batches that are in work at once.
            seen: Called after each pass.

        Raises:
            PromptTuneError: A size is below 1, or there is none.
        """
        if not sizes or min(sizes) < 1:
            raise PromptTuneError(f"Sizes of batches must be at least 1. Received: {list(sizes)}.")
        self._detector, self._sizes, self._seen = detector, tuple(sorted(set(sizes))), seen
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._passes = passes
        self._workers = ThreadPoolExecutor(passes, "graph")
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        """Number of images that wait."""
        return len(self._queue)

    async def start(self) -> None:
        """Run a batch of each size, so that no request pays for what the first pass of a shape costs, then begin."""
        size = self._detector.image_size
        empty = self._detector.letterboxed(np.zeros((size, size, 3), np.uint8))
        loop = asyncio.get_running_loop()
        for number in self._sizes:
            await loop.run_in_executor(self._workers, self._detect, [empty] * number, Terms(), number)
        self._tasks = [loop.create_task(self._run()) for _ in range(self._passes)]

    async def detect(self, image: Letterboxed | Windows, terms: Terms) -> Answer:
        """The detections of an image; a cancelled call leaves the queue.

        Raises:
            PromptTuneError: See `Detector.detect`.
        """
        if self._closing:
            raise PromptTuneError("The server stops. Ask another one.")
        waiting = _Waiting(image, terms, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._arrived.set()
        return await waiting.answer

    async def close(self) -> None:
        """Answer all that waits, then stop."""
        self._closing = True
        self._arrived.set()
        await asyncio.gather(*self._tasks)
        self._workers.shutdown()

    async def _run(self) -> None:
        """Pass after pass, until the queue is closed and empty."""
        loop = asyncio.get_running_loop()
        while True:
            batch, size = self._take()
            if not batch:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                continue
            began = time.perf_counter()
            images, terms = [waiting.image for waiting in batch], batch[0].terms
            try:
                found = await loop.run_in_executor(self._workers, self._detect, images, terms, size)
            except Exception as error:  # of any class: it belongs to who asked, and the next batch has to go on
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)
                continue
            took = time.perf_counter() - began
            waited = tuple(began - waiting.since for waiting in batch)
            count = -(-len(images[0].images) // size) if isinstance(images[0], Windows) else 1
            self._seen(Pass(size, len(batch), waited, took, count))
            for waiting, one in zip(batch, found, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(Answer(one, size))

    def _take(self) -> tuple[list[_Waiting], int]:
        """The next batch, and its size: of the terms that have waited longest, as many as fill a size.

        Fewer than the smallest size are padded to it. An image in slices is a pass of its own, in batches of the
        largest size that its windows fill.
        """
        self._queue = deque(waiting for waiting in self._queue if not waiting.answer.done())
        if not self._queue:
            return [], 0
        first = self._queue[0]
        if isinstance(first.image, Windows):
            self._queue.popleft()
            return [first], self._size(len(first.image.images))
        alike = (one for one in self._queue if one.terms == first.terms and isinstance(one.image, Letterboxed))
        same = list(islice(alike, self._sizes[-1]))
        size = self._size(len(same))
        batch = same[:size]
        taken = set(map(id, batch))
        self._queue = deque(waiting for waiting in self._queue if id(waiting) not in taken)
        return batch, size

    def _size(self, count: int) -> int:
        """The largest size that this number of images fills, or else the smallest one."""
        return max((size for size in self._sizes if size <= count), default=self._sizes[0])

    def _detect(self, images: Sequence[Letterboxed | Windows], terms: Terms, size: int) -> list[Detections]:
        """One pass; `Detector.detect` fills what is left of the batch."""
        show = None
        if terms.vocabularies is not None:
            has_classes = {label for label, _ in self._detector.classes}
            show = [f"{label}:*" for label in terms.vocabularies if label in has_classes]
            if gone := set(terms.vocabularies) - set(self._detector.vocabularies):
                raise VocabularyError(f"Vocabulary `{min(gone)}` was unloaded in the meantime.")
        options: dict[str, Any] = {"iou": terms.iou, "conf": terms.conf, "overlap": terms.overlap, "show": show}
        found: list[Detections] = []
        whole = [image for image in images if isinstance(image, Letterboxed)]
        for image in images:
            if isinstance(image, Windows):
                found.append(detect_windows(self._detector, image.images, image.places, batch=size, **options))
        return found or self._detector.detect(whole, batch=size, **options)
