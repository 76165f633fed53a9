"""Where images come from: files, folders, glob patterns, videos, cameras and network streams, one frame at a time.

Videos, cameras and streams need PyAV (FFmpeg), which the extra `video` installs. Images do not.
"""

import os
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from prompt_tune.errors import DataError
from prompt_tune.media.video import Video, count_frames, open_address, open_camera, open_file, require_av
from prompt_tune.runtime.image_files import IMAGE_SUFFIXES, Places, as_places, find_all
from prompt_tune.runtime.images import Picture, read_picture, read_rgb

_KNOWN = (  # to FFmpeg, which reads them by their content
    ".3g2 .3gp .amv .asf .avi .divx .dv .f4v .flv .h264 .h265 .hevc .ivf .m2t .m2ts .m2v .m4v .mj2 .mjpeg .mjpg .mkv "
    ".mod .mov .mp4 .mpe .mpeg .mpg .mts .mxf .nut .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m"
)
VIDEO_SUFFIXES = tuple(_KNOWN.split())
_MOST_DIGITS = 9  # of a camera's number
TIMEOUT = 10.0  # seconds; a stream over a slow line answers within two or three
Frames = Generator["Frame", None, None]


@dataclass(frozen=True, eq=False)
class Frame:
    """An image, or a frame of a video, camera or stream.

    Attributes:
        name: Path of the file below the folder that all files share, or "camera-0" or "stream".
        image: uint8 (h, w, 3) RGB, upright; of a very large JPEG, at reduced size, see `read_picture`.
        index: Number of the frame in its video, from 0; None for an image.
        seconds: Time since the first frame of the video; for a live source, by the clock of this machine.
        path: File of an image; None for a frame.
        size_wh: Width and height of the original in pixels, where `image` is reduced; else None.
    """

    name: str
    image: np.ndarray
    index: int | None = None
    seconds: float | None = None
    path: Path | None = None
    size_wh: tuple[int, int] | None = None

    @property
    def picture(self) -> Picture:
        """The image, for the network."""
        return Picture.of(self.image) if self.size_wh is None else Picture(self.image, self.size_wh)

    def whole(self) -> np.ndarray:
        """The image in its own size: uint8 (h, w, 3) RGB. Raises: DataError: it must be read again, and cannot."""
        return self.image if self.size_wh is None or self.path is None else read_rgb(self.path)

    @property
    def file_name(self) -> str:
        """A unique name for labels: that of the image, or for a frame a name like "clip.mp4/000012.jpg"."""
        return self.name if self.index is None else f"{self.name}/{self.index:06}.jpg"


class Source(Protocol):
    """Gives frames, and records what could not be read.

    Attributes:
        total: Number of frames to come, for videos a close estimate; None where it is unknown.
        live: Whether the source has no end of its own.
        paths: The files.
        skipped: Name of each file that cannot be read, or only in part, with the reason.
        broken: Why a stream ended too early, or None.
        missed: Frames of a live source that passed while earlier ones were processed.
    """

    total: int | None
    live: bool
    paths: Sequence[Path]
    skipped: dict[str, str]
    broken: str | None
    missed: int

    def frames(self) -> Frames:
        """The frames, each read when it is asked for. Closing the generator releases the camera or file."""
        ...


def open_source(
    source: Places,
    *,
    every: int = 1,
    timeout: float = TIMEOUT,
    recursive: bool = True,
    without: Path | None = None,
    whole: bool = False,
) -> Source:
    """Open images, a video, a camera or a stream.

    Args:
        source: An image or video file, a folder of them, a glob pattern, the number of a camera ("0"), or an address
            (rtsp://, http://, ...). Several files, folders and patterns can be given as a list; a camera or an address
            only alone.
        every: Take the first frame of a video, camera or stream, and then every `every`-th.
        timeout: Seconds after which a camera or stream that sends nothing is an error.
        recursive: Whether folders are read with their subfolders.
        without: A subfolder that is left out, such as the one that results are written to.
        whole: Whether very large JPEGs are read in their own size, as slices need them.

    Raises:
        DataError: There is nothing at that place, the camera or address cannot be opened, or PyAV is not installed.
    """
    if every < 1:
        raise DataError(f"`every` must be at least 1. Received: {every}.")
    places = as_places(source)
    live = [str(place) for place in places if _is_camera(str(place)) or "://" in str(place)]
    if live and len(places) > 1:
        raise DataError(
            f"A camera or an address must be the only source. Received: `{live[0]}` and {len(places) - 1} more. Run a "
            "command for each."
        )
    text = live[0] if live else ""
    if _is_camera(text):
        return _Stream(open_camera(int(text), timeout=timeout, every=every), f"camera-{int(text)}")
    if text:
        return _Stream(open_address(text, timeout=timeout, every=every), "stream")
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    paths = find_all(places, suffixes, "image or video", recursive=recursive, without=without)
    return _Files(paths, every, whole=whole)


class _Files:
    """Images and videos on disk, in order."""

    def __init__(self, paths: Sequence[Path], every: int, *, whole: bool) -> None:
        self.live = False
        self.paths = paths
        self.skipped: dict[str, str] = {}
        self.broken: str | None = None
        self.missed = 0
        self._every, self._whole = every, whole
        videos = [path for path in paths if _is_video(path)]
        if videos:
            require_av(f"`{videos[0]}` is a video", "Or give a pattern that names images only.")
        counts = [count_frames(path, every=every) if _is_video(path) else 1 for path in paths]
        self.total = None if None in counts else sum(count or 0 for count in counts)

    def frames(self) -> Frames:
        """See `Source.frames`."""
        absolute = [Path(os.path.abspath(path)) for path in self.paths]  # not resolved: names are what the user sees
        root = os.path.commonpath([path.parent for path in absolute])
        for path, place in zip(self.paths, absolute, strict=True):
            name = place.relative_to(root).as_posix()
            try:
                if _is_video(path):
                    yield from self._video(path, name)
                else:
                    yield self._image(path, name)
            except DataError as error:
                self.skipped[name] = str(error)

    def _image(self, path: Path, name: str) -> Frame:
        picture = read_picture(path, whole=self._whole)
        return Frame(name, picture.pixels, path=path, size_wh=None if picture.is_whole else picture.size_wh)

    def _video(self, path: Path, name: str) -> Frames:
        video = open_file(path, every=self._every)
        try:
            yield from _named(video, name)
        finally:
            if damage := video.broken or video.damage:
                self.skipped[name] = damage


class _Stream:
    """A camera or an address. If it is live, it gives the newest frame and drops older ones that nobody took."""

    def __init__(self, video: Video, name: str) -> None:
        self.live = video.live
        self.paths: Sequence[Path] = ()
        self.skipped: dict[str, str] = {}
        self.broken: str | None = None
        self.missed = 0
        self.total = video.total
        self._video, self._name = video, name

    def frames(self) -> Frames:
        """See `Source.frames`."""
        try:
            with closing(self._newest() if self.live else _named(self._video, self._name)) as frames:
                yield from frames
            self.broken = self._video.broken  # only here: if the reader stopped early, the silence is no error
        finally:
            if self._video.damage:
                self.skipped[self._name] = self._video.damage

    def _newest(self) -> Frames:
        """The frames as a thread reads them. A frame that nobody took before the next one came is dropped."""
        slot: list[Frame] = []  # at most one frame
        changed, done = threading.Condition(), threading.Event()

        def read() -> None:
            try:
                with closing(_named(self._video, self._name)) as frames:
                    for frame in frames:
                        with changed:
                            if done.is_set():
                                return
                            self.missed += len(slot)
                            slot[:] = [frame]
                            changed.notify()
            finally:
                with changed:
                    done.set()
                    changed.notify()

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            try:
                while True:
                    with changed:
                        changed.wait_for(lambda: slot or done.is_set())
                        if not slot:
                            break
                        frame = slot.pop()
                    yield frame
                reading.result()  # an error of the thread is an error here
            finally:
                done.set()


def _named(video: Video, name: str) -> Frames:
    with closing(video.frames()) as frames:
        for index, image, seconds in frames:
            yield Frame(name, image, index, seconds)


def _is_camera(text: str) -> bool:
    return text.isdecimal() and len(text) <= _MOST_DIGITS and not os.path.exists(text)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES
