"""Where detections go. Here: the base class of all sinks, annotated pictures and annotated videos.

A sink takes one frame at a time and keeps none of them, so that memory does not grow with the input.
"""

import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from prompt_tune.errors import DataError
from prompt_tune.files import MAX_NAME, saving, shortened, told
from prompt_tune.media.draw import draw
from prompt_tune.media.sources import Frame
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.image_files import WRITTEN_SUFFIXES
from prompt_tune.runtime.images import encoded

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

OTHER_OUT = "Choose another --out or make room."
JPEG_QUALITY = 92  # text and thin lines smear below 90
VIDEO_CODEC, VIDEO_OPTIONS = "libx264", {"crf": "20", "preset": "veryfast"}  # thin lines stay sharp at 20
TICKS = Fraction(1, 90_000)  # seconds; the clock of MPEG, which all usual frame rates divide
log = logging.getLogger(__name__)
USUAL_RATE = 30  # frames per second that the encoder plans with; the timestamps decide


class Sink:
    """Takes frames with their detections.

    A context manager: files that hold many frames get their names at the end, and do not appear after an error. Files
    that hold one frame (pictures, YOLO labels) stay, each of them whole.
    """

    def __init__(self) -> None:
        self._files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._files:  # an error that passes through keeps files from getting their names
            if error is not None:
                raise error
            self._finish()

    def write(self, frame: Frame, found: Detections) -> None:
        """Write one frame and its detections.

        Raises:
            DataError: The place cannot be written, or a file of the source would be replaced.
        """
        raise NotImplementedError

    def _finish(self) -> None:
        """Write what comes after the last frame."""


class Places:
    """Gives each file a path of its own. Case and Unicode form do not count: many disks take a.png and A.png as one.

    Memory grows with the number of paths, so it is for files of the source, not for frames of a video.
    """

    def __init__(self, key: Callable[[Path], Path] = lambda path: path) -> None:
        """Start with no path taken.

        Args:
            key: What must differ, made from the path; the path itself by default.
        """
        self._key = key
        self._taken: set[str] = set()

    def take(self, path: Path) -> Path:
        """The path, or the first of NAME-2, NAME-3, ... that is not taken yet."""
        free, number = path, 1
        while (key := unicodedata.normalize("NFC", str(self._key(free))).casefold()) in self._taken:
            number += 1
            free = within_limit(path, f"-{number}{path.suffix}")
        self._taken.add(key)
        return free


class _Drawings(Sink):
    """What annotated pictures and annotated videos share: no file of the source is replaced."""

    def __init__(self, out: Path, sources: Iterable[Path] = ()) -> None:
        """Prepare to write.

        Args:
            out: Folder to write to.
            sources: Files that must not be replaced.
        """
        super().__init__()
        self._out, self._sources = out, frozenset(map(os.path.realpath, sources))
        self._places = Places()

    def _place(self, name: str, suffixes: Sequence[str], added: str) -> Path:
        """Where the drawing goes. Raises: DataError: it would replace a file of the source."""
        place = self._places.take(with_suffix(self._out / name, suffixes, added))
        if os.path.realpath(place) in self._sources:
            raise DataError(f"The annotated picture `{place}` would replace an image of yours. Choose another --out.")
        return place


class Pictures(_Drawings):
    """An annotated picture for each image, under the image's own name. Ignores frames of videos."""

    def write(self, frame: Frame, found: Detections) -> None:
        """See `Sink.write`."""
        if frame.index is not None:
            return
        place = self._place(frame.name, WRITTEN_SUFFIXES, ".png")
        try:
            picture = draw(frame.image, found.scaled((frame.image.shape[1], frame.image.shape[0])))
            content = encoded(picture, place.suffix, quality=JPEG_QUALITY)
        except DataError as error:  # the next one may fit
            log.warning("`%s` is not written: %s", place, error)
            return
        with saving(place, DataError, cure=OTHER_OUT) as temporary:
            temporary.write_bytes(content)


class Videos(_Drawings):
    """An annotated MP4 (H.264) for each video, camera or stream, with the times of its frames but no sound."""

    def __init__(self, out: Path, sources: Iterable[Path] = ()) -> None:
        """See `Pictures`."""
        super().__init__(out, sources)
        self._name: str | None = None
        self._ticks = -1

    def write(self, frame: Frame, found: Detections) -> None:
        """See `Sink.write`."""
        if frame.index is None:
            return
        from av import VideoFrame

        if frame.name != self._name:
            self._next(frame)
        picture = VideoFrame.from_image(draw(frame.image, found))
        ticks = round(frame.index / USUAL_RATE / TICKS) if frame.seconds is None else round(frame.seconds / TICKS)
        self._ticks = max(self._ticks + 1, ticks)  # the encoder wants each frame to be later than the last
        picture.pts, picture.time_base = self._ticks, TICKS
        with told(self._target, DataError, cure=OTHER_OUT):
            self._container.mux(self._stream.encode(picture))

    def _next(self, frame: Frame) -> None:
        """Finish one video and open the next."""
        import av

        self.__exit__(None, None, None)
        self._target = self._place(frame.name, (".mp4",), ".mp4")
        temporary = self._files.enter_context(saving(self._target, DataError, cure=OTHER_OUT))
        height, width = frame.image.shape[:2]
        self._container: OutputContainer = self._files.enter_context(av.open(str(temporary), "w"))
        self._stream = cast("VideoStream", self._container.add_stream(VIDEO_CODEC, USUAL_RATE, options=VIDEO_OPTIONS))
        self._stream.width, self._stream.height = max(2, width & ~1), max(2, height & ~1)  # H.264 wants even sides
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = TICKS
        self._name, self._ticks = frame.name, -1

    def _finish(self) -> None:
        if self._name is not None:
            with told(self._target, DataError, cure=OTHER_OUT):
                self._container.mux(self._stream.encode(None))
        self._name = None


def with_suffix(path: Path, suffixes: Sequence[str], added: str) -> Path:
    """The path, with a stem that disks take; with one more suffix, `added`, where it has none of `suffixes`."""
    is_known = path.suffix.lower() in suffixes
    return within_limit(path if is_known else path.with_name(f"{path.name}{added}"), path.suffix if is_known else added)


def within_limit(path: Path, end: str) -> Path:
    """The path with an end in place of its suffix; its stem is cut where disks would not take a name as long."""
    return path.with_name(f"{shortened(path.stem, MAX_NAME - len(os.fsencode(end)))}{end}")
