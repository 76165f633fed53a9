"""Where detections go, and the first two places: annotated pictures and annotated videos.

Each sink takes one frame at a time and keeps none, so that the memory does not grow with the input.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from prompt_tune.errors import DataError
from prompt_tune.files import replacing
from prompt_tune.media.draw import draw
from prompt_tune.media.sources import Frame
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

JPEG_QUALITY = 92  # text and thin lines smear below 90
VIDEO_CODEC, VIDEO_OPTIONS = "libx264", {"crf": "20", "preset": "veryfast"}  # thin lines stay sharp at 20
TICKS = Fraction(1, 90_000)  # seconds; the clock of MPEG, which all usual frame rates divide
USUAL_RATE = 30  # frames a second that the encoder plans with; the timestamps decide


class Sink:
    """Takes frames with their detections. A context manager: files get their names in the end, after an error none.

    What is written a frame at a time (pictures, YOLO labels) stays, each file whole.
    """

    def __init__(self) -> None:
        self._files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._files:  # where an error passes, files do not get their names
            if error is not None:
                raise error
            self._finish()

    def write(self, frame: Frame, found: Detections) -> None:
        """One frame and what was found in it.

        Raises: DataError: the place cannot be written, or a file of the source would be replaced.
        """
        raise NotImplementedError

    def _finish(self) -> None:
        """What is left to write when all frames are there."""


class Pictures(Sink):
    """An annotated picture of each image, under the image's own name; frames of videos are not for it."""

    def __init__(self, out: Path, sources: Iterable[Path] = ()) -> None:
        """Args: out: folder to write to. sources: files that must not be replaced."""
        super().__init__()
        self._out, self._sources = out, frozenset(path.resolve() for path in sources)

    def write(self, frame: Frame, found: Detections) -> None:
        """See `Sink`."""
        if frame.index is None:
            with writing(_place(self._out, frame.name, IMAGE_SUFFIXES, self._sources)) as temporary:
                draw(frame.image, found).save(temporary, quality=JPEG_QUALITY)


class Videos(Sink):
    """An annotated MP4 (H.264) of each video, camera or stream, with the times of its frames; no sound."""

    def __init__(self, out: Path, sources: Iterable[Path] = ()) -> None:
        """Args: out: folder to write to. sources: files that must not be replaced."""
        super().__init__()
        self._out, self._sources = out, frozenset(path.resolve() for path in sources)
        self._name: str | None = None
        self._ticks = -1

    def write(self, frame: Frame, found: Detections) -> None:
        """See `Sink`."""
        if frame.index is None:
            return
        from av import VideoFrame

        if frame.name != self._name:
            self._next(frame)
        picture = VideoFrame.from_image(draw(frame.image, found))
        ticks = round(frame.index / USUAL_RATE / TICKS) if frame.seconds is None else round(frame.seconds / TICKS)
        self._ticks = max(self._ticks + 1, ticks)  # the encoder wants each frame later than the last
        picture.pts, picture.time_base = self._ticks, TICKS
        with told(self._target):
            self._container.mux(self._stream.encode(picture))

    def _next(self, frame: Frame) -> None:
        """Ends one video and opens the next."""
        import av

        self.__exit__(None, None, None)
        self._target = _place(self._out, frame.name, (".mp4",), self._sources, added=".mp4")
        temporary = self._files.enter_context(writing(self._target))
        height, width = frame.image.shape[:2]
        self._container: OutputContainer = self._files.enter_context(av.open(str(temporary), "w"))
        self._stream = cast("VideoStream", self._container.add_stream(VIDEO_CODEC, USUAL_RATE, options=VIDEO_OPTIONS))
        self._stream.width, self._stream.height = max(2, width & ~1), max(2, height & ~1)  # H.264 wants even sides
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = TICKS
        self._name, self._ticks = frame.name, -1

    def _finish(self) -> None:
        if self._name is not None:
            with told(self._target):
                self._container.mux(self._stream.encode(None))
        self._name = None


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Errors of the disk as one line. Raises: DataError: `path` cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"Cannot write `{path}`: {reason}. Choose another --out or make room.") from error


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """`replacing`, with an error that says what to do. Raises: DataError: `path` cannot be written."""
    with told(path), replacing(path) as temporary:
        yield temporary


def _place(out: Path, name: str, suffixes: Sequence[str], sources: Collection[Path], *, added: str = ".png") -> Path:
    """Where what is drawn goes. Raises: DataError: it would take the place of a file of the source."""
    place = with_suffix(out / name, suffixes, added)
    if place.resolve() in sources:
        raise DataError(f"The annotated picture `{place}` would replace an image of yours. Choose another --out.")
    return place


def with_suffix(path: Path, suffixes: Sequence[str], added: str) -> Path:
    """The path, with one more suffix where it has none of these."""
    return path if path.suffix.lower() in suffixes else path.with_name(f"{path.name}{added}")
