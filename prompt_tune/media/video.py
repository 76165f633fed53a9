"""Reads videos, cameras and network streams as RGB frames, with PyAV (FFmpeg) from the extra `video`."""

import os
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from prompt_tune.errors import DataError
from prompt_tune.version import install

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

MICROSECONDS = 1_000_000  # per second; FFmpeg gives durations in microseconds
_STREAM_OPTIONS = {"rtsp_transport": "tcp"}  # UDP loses packets silently, and the picture smears
_FORMATS = (  # of FFmpeg, that files may have: others, such as playlists and scripts, make it open more files
    "asf,av1,avi,dv,flv,h261,h263,h264,hevc,ivf,jpeg_pipe,m4v,matroska,mjpeg,mjpeg_2000,mov,mpeg,mpegts,mpegvideo,"
    "mpjpeg,mxf,nut,obu,ogg,rm,vc1,vvc,webm,yuv4mpegpipe"
)
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
_CURE = "Check it with a player."


class Video:
    """An open video. Damaged parts are skipped and counted.

    Attributes:
        shown: Its name in messages.
        live: Whether it has no length: a camera or a stream.
        total: Number of frames to come, a close estimate; None where it is unknown.
        broken: Why it ended too early, or None.
    """

    def __init__(
        self,
        container: "InputContainer",
        shown: str,
        *,
        every: int,
        timeout: float | None = None,
        is_cut: bool = False,
    ) -> None:
        """Take over an open container.

        Args:
            container: It has pictures.
            shown: Its name in messages.
            every: Give every `every`-th frame.
            timeout: Seconds of silence after which a camera or stream is an error; None for a file.
            is_cut: Whether the file is shorter than its header says.
        """
        self.shown = shown
        self.live = timeout is not None and container.duration is None
        self.broken: str | None = None
        self._container, self._every, self._timeout = container, every, timeout
        self._decoded, self._damaged, self._first_damage = 0, 0, ""
        self._is_cut, self._is_done, self._last = is_cut, False, 0.0  # the time of the last frame, in seconds
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"  # decode on several cores
        count = self._promised = stream.frames  # 0: the header does not say
        if not count and container.duration and stream.average_rate:
            count = round(container.duration / MICROSECONDS * float(stream.average_rate))
        self._estimate = count
        has_end = container.format.name == "flv" and not container.streams.audio and container.duration
        self._end = container.duration / MICROSECONDS if has_end and container.duration else 0.0
        self.total = -(-count // every) if count and not self.live else None

    @property
    def damage(self) -> str | None:
        """One line about the parts that are missing or could not be decoded, or None."""
        place = f"damaged places, the first {self._first_damage}"
        lacks = self._is_done and (self._decoded < self._promised or self._is_cut or self._ends_early())
        if not lacks:
            return f"`{self.shown}`: skipped {self._damaged} {place}. {_CURE}" if self._damaged else None
        count = self._promised or self._estimate
        came = f"{self._decoded} of {count}" if count > self._decoded else f"not all after {self._decoded}"
        skipped = f" There are {self._damaged} {place}." if self._damaged else ""
        return f"`{self.shown}` is damaged: {came} frames came.{skipped} {_CURE}"

    def _ends_early(self) -> bool:
        """Whether an FLV without sound ends long before the duration in its header: it has no count and no size."""
        return self._last < 0.9 * self._end

    def frames(self) -> Generator[tuple[int, np.ndarray, float | None], None, None]:
        """Every `every`-th frame. The video is closed at the end.

        Yields:
            Number of the frame, from 0; its pixels, uint8 (h, w, 3) RGB, upright; seconds since the first frame, for a
            live video by the clock of this machine, because many cameras' clocks are wrong.
        """
        start: float | None = None
        with self._container:
            for frame in self._frames():
                index = self._decoded
                self._decoded += 1
                self._last = frame.time or self._last
                if index % self._every == 0:
                    now = time.monotonic() if self.live else frame.time
                    start = now if start is None else start
                    yield index, _upright(frame), None if now is None or start is None else now - start
        self._is_done = True
        if not self._decoded and not self.broken:
            self.broken = f"`{self.shown}` has no frame that can be decoded. {_CURE}"

    def _frames(self) -> Iterator["VideoFrame"]:
        from av.error import FFmpegError

        started = time.monotonic()
        try:
            for packet in self._container.demux(self._container.streams.video[0]):
                try:
                    decoded = packet.decode()
                except FFmpegError as error:
                    self._count_damage(_reason(error))
                    continue
                for frame in decoded:
                    if frame.is_corrupt:
                        self._count_damage("a picture with errors")
                    else:
                        yield frame
                started = time.monotonic()
        except FFmpegError as error:
            reason = _silence(self._timeout, started) or _reason(error)
            of = f" of {self._estimate}" if self._estimate > self._decoded else ""
            self.broken = f"`{self.shown}` broke off after {self._decoded}{of} frames: {reason}. {_CURE}"

    def _count_damage(self, reason: str) -> None:
        self._first_damage = self._first_damage or f"after {self._decoded} frames ({reason})"
        self._damaged += 1


def open_file(path: Path, *, every: int = 1) -> Video:
    """Open a video file. FFmpeg gets its absolute path: it would take a name with a colon for a protocol.

    Raises:
        DataError: The file cannot be opened, it has no pictures, or PyAV is not installed.
    """
    return Video(_open_path(path), str(path), every=every, is_cut=_is_cut_matroska(path))


def _is_cut_matroska(path: Path) -> bool:
    """Whether a file is Matroska or WebM, and shorter than the size of its segment says, which is all of its content.

    Source: RFC 8794 (EBML), sections 4 to 6, and RFC 9559 (Matroska), section 4.5.
    """
    with open(path, "rb") as file:
        place = 0
        for wanted in (_EBML, _SEGMENT):
            file.seek(place)
            head = file.read(12)
            if head[:4] != wanted or len(head) < 5 or not head[4]:
                return False
            length = 9 - head[4].bit_length()  # bytes of the size, by the first bit that is set
            bits = 7 * length
            size = int.from_bytes(head[4 : 4 + length]) & ((1 << bits) - 1)
            if size == (1 << bits) - 1:  # unknown: a recording that was not finished, or a stream
                return False
            place += 4 + length + size
        return file.seek(0, os.SEEK_END) < place


def count_frames(path: Path, *, every: int = 1) -> int | None:
    """Number of frames by the header of a video file; None if it does not say, 0 if the file cannot be opened."""
    try:
        with _open_path(path) as container:
            return Video(container, str(path), every=every).total
    except DataError:
        return 0


def open_address(address: str, *, timeout: float, every: int = 1) -> Video:
    """Open a network stream, or a video on a server.

    Args:
        address: rtsp://, http://, or another address that FFmpeg reads. User, password and query are never shown.
        timeout: Seconds after which an address that sends nothing is an error.
        every: Give every `every`-th frame.

    Raises:
        DataError: See `open_file`.
    """
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise DataError(f"The source is not an address: {error}. Correct it.") from error  # it may have a password
    shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    options = dict(_STREAM_OPTIONS) if parts.scheme.startswith("rtsp") else {}
    return Video(_open(address, shown, timeout, options), shown, every=every, timeout=timeout)


def open_camera(number: int, *, timeout: float, every: int = 1) -> Video:
    """Open a camera of this machine through the system's interface (V4L2, AVFoundation, DirectShow).

    Raises:
        DataError: There is no such camera, it cannot be opened, or PyAV is not installed.
    """
    shown = f"camera {number}"
    av = require_av(f"`{shown}` is a camera")
    options: dict[str, str] = {}
    if sys.platform.startswith("linux"):
        there = sorted(int(path.name[5:]) for path in Path("/dev").glob("video*") if path.name[5:].isdecimal())
        names = [f"/dev/video{index}" for index in there]
        address, known, interface = f"/dev/video{number}", number in there, "v4l2"
    elif sys.platform == "darwin":  # its default rate, 29.97, is refused by many cameras
        address, known, options, interface, names = str(number), True, {"framerate": "30"}, "avfoundation", []
    else:
        names = [device.name for device in av.enumerate_input_devices("dshow") if "video" in device.media_types]
        known, interface = number < len(names), "dshow"
        address = f"video={names[number]}" if known else ""
    if not known:
        raise DataError(f"`{shown}`: no such camera. Cameras here: {', '.join(names) or 'none'}.")
    return Video(_open(address, shown, timeout, options, interface), shown, every=every, timeout=timeout)


def require_av(what: str, otherwise: str = "") -> ModuleType:
    """Import PyAV.

    Args:
        what: What needs it; the error begins with it.
        otherwise: A cure that does without it.

    Raises:
        DataError: PyAV is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        cure = f"{install('video')}. {otherwise}".rstrip()
        raise DataError(f"{what}, and av, which reads it, is not installed: {cure}") from error
    return av


def _open_path(path: Path) -> "InputContainer":
    """Open a file that is a video by its content."""
    return _open(os.path.abspath(path), str(path), options={"format_whitelist": _FORMATS})


def _open(
    address: str,
    shown: str,
    timeout: float | None = None,
    options: dict[str, str] | None = None,
    interface: str | None = None,
) -> "InputContainer":
    """Open a container that has pictures."""
    av = require_av(f"`{shown}` is a video, a camera or a stream")
    from av.error import ArgumentError, FFmpegError

    started = time.monotonic()
    try:
        container: InputContainer = av.open(address, format=interface, options=options or {}, timeout=timeout)
    except (FFmpegError, ValueError) as error:
        reason = _silence(timeout, started) or _reason(error)
        if timeout is None and isinstance(error, ArgumentError):
            reason = "its content is not a video of a known format"
        raise DataError(f"`{shown}` cannot be opened as a video: {reason}. {_CURE}") from error
    if not container.streams.video:
        container.close()
        raise DataError(f"`{shown}` has no pictures in it. Give a video.")
    return container


def _upright(frame: "VideoFrame") -> np.ndarray:
    """uint8 (h, w, 3) RGB, turned as the video says: phones store pictures sideways."""
    image = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _silence(timeout: float | None, started: float) -> str | None:
    """The reason for an error after the timeout, which FFmpeg reports under many names; else None."""
    is_up = timeout is not None and time.monotonic() - started >= timeout
    return f"nothing came for {timeout:g} seconds" if is_up else None


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")
