"""From the rows of `label` to COCO JSON or a YOLO data set, in constant memory."""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from prompt_tune.errors import DataError
from prompt_tune.files import told
from prompt_tune.media.labels import Coco, Yolo
from prompt_tune.media.sinks import Sink
from prompt_tune.media.sources import Frame
from prompt_tune.progress import Progress, silent
from prompt_tune.runtime.detections import ORIGINAL, ClassKey, choose_classes
from prompt_tune.runtime.image_files import WRITTEN_SUFFIXES
from prompt_tune.runtime.images import decode_picture
from prompt_tune.services.items import content_of, item_of
from prompt_tune.services.results import Results

Format = Literal["coco", "yolo"]
_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote.

    Attributes:
        images: Number of images.
        detections: Number of detections in the rows of these images.
        skipped: Number of images that could not be read when they were labelled.
    """

    images: int
    detections: int
    skipped: int


def convert(
    labelled: Path | str,
    out: Path | str,
    *,
    to: Collection[Format],
    show: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Converted:
    """Write the rows of `label` as `detect --save` would, under the same names.

    Args:
        labelled: The folder that `label` wrote.
        out: Folder to write to.
        to: "coco" (detections.json), "yolo" (the folder `yolo`, with copies of the images).
        show: Classes that get labels in the YOLO data set, see `choose_classes`. By default, the learned ones.
        progress: Called with (stage, done, total, note).

    Returns:
        What was written.

    Raises:
        DataError: `labelled` is not from `label`, has no images, or has been damaged; `out` cannot be written; or an
            image that goes into the YOLO data set cannot be read any more.
        VocabularyError: A name to show is unknown.
    """
    results, out = Results(labelled), Path(out)
    settings = results.settings()
    classes: list[ClassKey] = [(str(label), str(name)) for label, name in settings["classes"]]
    chosen = choose_classes(classes, show=settings["show"] if show is None else show, hide=settings["hide"])
    names = _Names(results.paths())
    if not names.count:
        raise DataError(f"`{labelled}` has no rows. Run prompt-tune label first.")
    skipped: dict[str, str] = {}
    images = detections = 0
    with tempfile.TemporaryDirectory(prefix="prompt-tune-") as scratch, ExitStack() as opened:
        with told(out, DataError):
            out.mkdir(parents=True, exist_ok=True)
        sinks: list[Sink] = []
        if "coco" in to:
            sinks.append(Coco(out, classes, info=settings["info"], skipped=skipped))
        if "yolo" in to:
            shown = tuple(key for key in classes if key in chosen)
            learned = tuple(key for key in shown if key[0] != ORIGINAL)
            sinks.append(Yolo(out, shown if settings["show"] is not None or show is not None else learned or shown))
        for sink in sinks:
            opened.enter_context(sink)
        for row in results.rows():
            name = names.of(row.path)
            progress("convert", images + len(skipped), names.count, name)
            if row.error:
                skipped[name] = row.error
                continue
            frame = _frame(name, row.path, Path(scratch)) if "yolo" in to else Frame(name, _NO_PIXELS)
            for sink in sinks:
                sink.write(frame, row.found)
            images, detections = images + 1, detections + len(row.found)
    progress("convert", names.count, names.count, "")
    return Converted(images, detections, len(skipped))


class _Names:
    """Names below the folder that all images share, as `detect` has them."""

    def __init__(self, paths: Iterator[str]) -> None:
        self.count = 0
        shared: list[str] | None = None
        for path in paths:
            self.count += 1
            parts = path.split("/")[:-1]
            if shared is None:
                shared = parts
            elif parts[: len(shared)] != shared:
                pairs = zip(shared, parts, strict=False)
                shared = shared[: next((i for i, (one, other) in enumerate(pairs) if one != other), len(parts))]
        self._length = len("/".join([*(shared or []), ""]))

    def of(self, path: str) -> str:
        """The name of an image."""
        return path[self._length :]


def _frame(name: str, path: str, scratch: Path) -> Frame:
    """An image for the YOLO data set: a file, which is copied as it is, or pixels if no trainer reads its format."""
    item = item_of(path)
    content = content_of(item)
    suffix = Path(path).suffix.lower()
    if item.start >= 0 and item.size < 0:  # a row of a Parquet file: its name has no suffix
        suffix = ".png" if content.startswith(b"\x89PNG") else ".jpg" if content.startswith(b"\xff\xd8") else ""
        name += suffix
    if suffix not in WRITTEN_SUFFIXES:
        return Frame(name, decode_picture(content, whole=True).pixels)
    file = scratch / f"image{Path(name).suffix}"
    file.write_bytes(content)
    return Frame(name, _NO_PIXELS, path=file)
