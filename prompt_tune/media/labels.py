"""Sinks for labels: COCO JSON, a YOLO data set, CSV, and lines of JSON."""

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Self, TextIO

from prompt_tune.contract import HOLD_OUT
from prompt_tune.errors import DataError
from prompt_tune.files import saving, told
from prompt_tune.media.labelled_set import LabelledSet
from prompt_tune.media.sinks import OTHER_OUT, Sink
from prompt_tune.media.sources import Frame
from prompt_tune.runtime.detections import PIXEL_DECIMALS, SCORE_DECIMALS, ClassKey, Detections, coco_categories
from prompt_tune.wording import csv_cell

COCO_FILE = "detections.json"
CSV_FILE = "detections.csv"
YOLO_FOLDER = "yolo"
ORIGIN = ("file_name", "video", "frame", "seconds")
HIDDEN = "hidden"  # a further field where boxes on the same object may be hidden
TRACK = "track_id"  # a further field where objects are tracked
ROW = ("vocabulary", "class", "score", "box_xyxy")
ESCAPED = "backslashreplace"  # a file name that is not valid text: JSON reads its escapes back, and CSV shows them
SHARE_DECIMALS = 6  # YOLO labels: a hundredth of a pixel in 10,000
SECOND_DECIMALS = 3


class Coco(Sink):
    """detections.json in COCO's format. Each annotation also has its `score` and `vocabulary`."""

    def __init__(
        self,
        out: Path,
        classes: Sequence[ClassKey],
        *,
        info: Mapping[str, object] | None = None,
        skipped: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare the document.

        Args:
            out: Folder to write to.
            classes: (vocabulary label, class name) of every class that may be found.
            info: Where the detections come from.
            skipped: Names of the files that cannot be read, with the reasons. It is read when the document is finished.
        """
        super().__init__()
        self._out, self._classes, self._info = out, classes, info or {}
        self._skipped = {} if skipped is None else skipped  # not `or`: an empty one may still grow
        self._category_ids = {key: number for number, key in enumerate(classes, start=1)}
        self._images = self._annotations = 0

    def __enter__(self) -> Self:
        self._target = self._files.enter_context(saving(self._out / COCO_FILE, DataError, cure=OTHER_OUT))
        with told(self._out / COCO_FILE, DataError, cure=OTHER_OUT):
            self._image_lines, self._annotation_lines = self._spool(), self._spool()
        return self

    def write(self, frame: Frame, found: Detections) -> None:
        """See `Sink.write`."""
        width, height = found.size_wh
        entry = {"id": self._images + 1, **_origin(frame), "width": width, "height": height}
        with told(self._out / COCO_FILE, DataError, cure=OTHER_OUT):
            _line(self._image_lines, self._images, entry)
            self._images += 1
            for row in found.to_coco(self._images, self._category_ids, first_id=self._annotations + 1):
                _line(self._annotation_lines, self._annotations, row)
                self._annotations += 1

    def _spool(self) -> IO[str]:
        """A nameless file beside the target: the two lists of the document grow on disk, not in memory."""
        return self._files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors=ESCAPED, dir=self._out))

    def _finish(self) -> None:
        info = {**self._info, "skipped": list(self._skipped)}
        with (
            told(self._out / COCO_FILE, DataError, cure=OTHER_OUT),
            open(self._target, "w", encoding="utf-8", errors=ESCAPED) as file,
        ):
            file.write(f'{{"info": {_json(info)},\n"images": [\n')
            _append(file, self._image_lines)
            file.write(f'\n],\n"categories": {_json(coco_categories(self._classes))},\n"annotations": [\n')
            _append(file, self._annotation_lines)
            file.write("\n]}\n")


class Yolo(LabelledSet):
    """A data set in ultralytics' format to correct and learn from: the folder `yolo` with images, labels and data.yaml.

    The format has no scores, and everything without a box counts as background.
    """

    def __init__(self, out: Path, classes: Sequence[ClassKey]) -> None:
        """Prepare the data set.

        Args:
            out: Folder that gets the folder `yolo`.
            classes: See `LabelledSet`.
        """
        super().__init__(out / YOLO_FOLDER, classes, label=_yolo_label)

    def write(self, frame: Frame, found: Detections) -> None:
        """See `Sink.write`."""
        image = self.save_image(frame)
        self.save_text(_yolo_label(image), "".join(self._lines(found)))

    def _lines(self, found: Detections) -> Iterator[str]:
        """Lines `class x y w h`: centre and size as shares of the image's size. Boxes without an area are left out."""
        width, height = found.size_wh
        for _, number, (left, top, right, bottom) in self.rows(found):
            shares = (
                (left + right) / 2 / width,
                (top + bottom) / 2 / height,
                (right - left) / width,
                (bottom - top) / height,
            )
            x, y, w, h = (f"{share:.{SHARE_DECIMALS}f}" for share in shares)
            if float(w) > 0 and float(h) > 0:
                yield f"{number} {x} {y} {w} {h}\n"

    def _finish(self) -> None:
        lines = [f"  {number}: {_json(name)}\n" for number, name in enumerate(self.names)]  # JSON text is YAML text
        self.save_text(
            self.root / "data.yaml",
            "# A detector made these labels: correct them before you trust them. `val` has the same images, since\n"
            "# `yolo val` needs it. With `hold_out`, `prompt-tune fit` holds out a fifth of the images instead;\n"
            "# to train with ultralytics, let `val` name other images.\n"
            f"train: images\nval: images\n{HOLD_OUT}: true\nnames:\n{''.join(lines)}",
        )


class Csv(Sink):
    """detections.csv for spreadsheets: one line per detection, boxes in pixels of the image."""

    def __init__(self, out: Path, *, may_hide: bool = False, has_tracks: bool = False) -> None:
        """Prepare the table.

        Args:
            out: Folder to write to.
            may_hide: Whether detections may be hidden: a further column then says which.
            has_tracks: Whether objects are tracked: a last column then has their numbers.
        """
        super().__init__()
        self._may_hide, self._has_tracks = may_hide, has_tracks
        self._path = out / CSV_FILE

    def __enter__(self) -> Self:
        temporary = self._files.enter_context(saving(self._path, DataError, cure=OTHER_OUT))
        self._file = self._files.enter_context(open(temporary, "w", encoding="utf-8", errors=ESCAPED, newline=""))
        self._writer = csv.writer(self._file)
        more = [*([HIDDEN] if self._may_hide else []), *([TRACK] if self._has_tracks else [])]
        self._writer.writerow((*ORIGIN, *ROW[:-1], "x1", "y1", "x2", "y2", *more))
        return self

    def write(self, frame: Frame, found: Detections) -> None:
        """See `Sink.write`."""
        origin = _origin(frame)
        with told(self._path, DataError, cure=OTHER_OUT):
            for number, (*row, box) in enumerate(_rows(found)):
                marks: list[object] = [int(found[number].hidden)] if self._may_hide else []
                marks += [found[number].track_id] if self._has_tracks else []
                self._writer.writerow(map(csv_cell, (*(origin.get(name) for name in ORIGIN), *row, *box, *marks)))


class JsonLines(Sink):
    """One line of JSON per frame, written at once, for pipes. The lines are ASCII, so that any pipe takes them."""

    def __init__(self, file: TextIO) -> None:
        """Prepare to write.

        Args:
            file: Open for text; it stays open.
        """
        super().__init__()
        self._file = file

    def write(self, frame: Frame, found: Detections) -> None:
        """Write one line.

        Raises:
            BrokenPipeError: Nobody reads the lines any more.
            DataError: The file cannot be written.
        """
        width, height = found.size_wh
        rows: list[dict[str, object]] = [dict(zip(ROW, (*row, box), strict=True)) for *row, box in _rows(found)]
        for row, hidden in zip(rows, () if found.hidden is None else found.hidden.tolist(), strict=False):
            row[HIDDEN] = hidden
        for row, track in zip(rows, () if found.track_ids is None else found.track_ids.tolist(), strict=False):
            row[TRACK] = track or None
        entry = {**_origin(frame), "width": width, "height": height, "detections": rows}
        try:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        except BrokenPipeError:  # the reader has gone: the caller decides what that means
            raise
        except OSError as error:
            raise DataError(f"Cannot write the lines of JSON: {error.strerror or error}. Make room.") from error


def _yolo_label(image: Path) -> Path:
    """The label file of an image by ultralytics' rule: the folder `images` becomes `labels`."""
    return image.parent.with_name("labels") / f"{image.stem}.txt"


def _origin(frame: Frame) -> dict[str, object]:
    """Where a frame is from: the fields of `ORIGIN`, or the name alone for an image."""
    entry: dict[str, object] = {"file_name": frame.file_name}
    if frame.index is not None:
        seconds = None if frame.seconds is None else round(frame.seconds, SECOND_DECIMALS)
        entry |= {"video": frame.name, "frame": frame.index, "seconds": seconds}
    return entry


def _rows(found: Detections) -> Iterator[tuple[str, str, float, list[float]]]:
    """The detections with the fields of `ROW`, for CSV and lines of JSON."""
    for box, score, name, label in zip(
        found.boxes_xyxy, found.scores, found.class_names, found.vocabularies, strict=True
    ):
        corners = [round(float(value), PIXEL_DECIMALS) for value in box]
        yield label, name, round(float(score), SCORE_DECIMALS), corners


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False)


def _line(file: IO[str], before: int, entry: object) -> None:
    """One more entry of a JSON list, on a line of its own."""
    file.write((",\n" if before else "") + _json(entry))


def _append(file: IO[str], lines: IO[str]) -> None:
    """Copy the spooled lines in pieces."""
    lines.seek(0)
    shutil.copyfileobj(lines, file)
