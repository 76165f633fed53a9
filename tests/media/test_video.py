"""Videos, cameras and addresses, as PyAV reads them."""

import re
import socket
import time
from pathlib import Path

import av
import numpy as np
import pytest
from clips import greys, number_of, served, write_clip
from damage import damaged
from test_light_imports import run_without_heavy_modules

from prompt_tune.errors import DataError
from prompt_tune.media.sources import VIDEO_SUFFIXES, open_source
from prompt_tune.media.video import count_frames, open_address, open_file


@pytest.mark.parametrize("turned", [90, 180, -90])
def test_video_filmed_sideways_is_upright(tmp_path: Path, turned: int) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16] = 255  # what is stored: the bright corner is top left
    ((_, upright, _),) = open_file(write_clip(tmp_path / "turned.mp4", [image], turned=turned)).frames()
    expected = np.rot90(image, round(turned / 90))  # counter-clockwise, as FFmpeg counts
    assert upright.shape == expected.shape
    assert np.abs(upright.astype(int) - expected).mean() < 10


def test_video_with_a_colon_in_its_relative_name_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("2024-05-01T12:30:00.mp4")
    write_clip(tmp_path / "clip.mp4", greys(3)).rename(name)
    assert count_frames(name) == 3
    source = open_source(name)
    assert [(frame.name, frame.index) for frame in source.frames()] == [(str(name), index) for index in range(3)]
    assert source.skipped == {}


def test_video_with_a_hole_gives_the_rest_and_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (48, 64, 3)).astype(np.uint8) for _ in range(20)]
    path = write_clip(tmp_path / "hole.avi", noise, codec="mjpeg")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 6000] = bytes(6000)
    path.write_bytes(content)
    source = open_source(path)
    indices = [frame.index for frame in source.frames()]
    assert 10 <= len(indices) < 20
    assert list(source.skipped) == ["hole.avi"]
    lost = 20 - len(indices)
    assert (
        f"is damaged: {20 - lost} of 20 frames came" in source.skipped["hole.avi"]
        or "damaged places" in source.skipped["hole.avi"]
    )


def test_sound_only_is_an_error_of_one_line(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        assert isinstance(stream, av.AudioStream)
        container.mux(stream.encode(sound))
    source = open_source(tmp_path / "a.mkv")
    assert list(source.frames()) == []
    assert source.skipped == {"a.mkv": f"`{tmp_path / 'a.mkv'}` has no pictures in it. Give a video."}


def test_server_that_says_nothing_raises_after_the_timeout() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        started = time.monotonic()
        with pytest.raises(DataError, match=r"nothing came for 0\.5 seconds"):
            open_address(f"rtsp://127.0.0.1:{server.getsockname()[1]}/cam", timeout=0.5)
        assert 0.4 < time.monotonic() - started < 5


def test_missing_file_on_a_server_raises(tmp_path: Path) -> None:
    with served(tmp_path) as address, pytest.raises(DataError, match="404 Not Found"):
        open_address(f"{address}/gone.mp4", timeout=5)


@pytest.mark.parametrize("name", ["clip.mp4", "0", "rtsp://127.0.0.1:9/cam"])
def test_without_the_extra_the_error_is_the_pip_command(tmp_path: Path, name: str) -> None:
    (tmp_path / "clip.mp4").touch()
    code = """
from prompt_tune.errors import DataError
from prompt_tune.media.sources import VIDEO_SUFFIXES, open_source
try:
    open_source(sys.argv[1])
except DataError as error:
    print(error)
"""
    done = run_without_heavy_modules(code, tmp_path / name if name == "clip.mp4" else name)
    assert "av, which reads it, is not installed: pip install '.[video]' (in a checkout)" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("every", [1, 5])
def test_count_of_frames_is_that_of_the_frames(every: int, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", greys(12))
    frames = [(index, number_of(image)) for index, image, _ in open_file(clip, every=every).frames()]
    assert frames == [(number, number) for number in range(0, 12, every)]
    assert count_frames(clip, every=every) == len(frames)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert count_frames(tmp_path / "broken.mp4") == 0


def cut(path: Path, share: float) -> Path:
    """The first part of a file, under a name of its own."""
    place = path.with_name(f"cut{path.suffix}")
    place.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return place


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".avi", "mpeg4"), (".mkv", "libx264"), (".webm", "libvpx"), (".flv", "flv")]
)
def test_file_that_ends_before_its_header_says_is_damaged_with_the_count(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (96, 128, 3)).astype(np.uint8) for _ in range(60)]
    whole = write_clip(tmp_path / f"a{suffix}", noise, codec=codec)
    video = open_file(whole)
    assert len(list(video.frames())) == 60 and video.damage is None and video.broken is None
    video = open_file(cut(whole, 0.6), every=2)
    came = 2 * len(list(video.frames()))
    assert 20 < came < 45 and video.damage is not None
    count = re.fullmatch(
        rf"`.*cut{suffix}` is damaged: (\d+) of 60 frames came\. .*Check it with a player\.", video.damage
    )
    assert count is not None, video.damage
    assert int(count[1]) in (came - 1, came)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["concat", "hls", "sdp", "text"])
def test_script_under_the_name_of_a_video_opens_no_other_file(tmp_path: Path, kind: str) -> None:
    """FFmpeg would read what it names, such as other files of the machine, or a pipe without end."""
    write_clip(tmp_path / "other.ts", greys(3))
    content = {
        "concat": "ffconcat version 1.0\nfile other.ts\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'other.ts'}\n#EXT-X-ENDLIST\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 26\n",
        "text": "hello\n" * 100,
    }[kind]
    path = tmp_path / "a.mp4"
    path.write_text(content)
    with pytest.raises(DataError, match=r"a\.mp4` cannot be opened as a video: ") as caught:
        open_file(path)
    assert "\n" not in str(caught.value) and count_frames(path) == 0
    if kind in ("concat", "sdp"):
        assert "its content is not a video of a known format" in str(caught.value)


CODECS = ("libx264", "mjpeg", "mpeg4", "mpeg2video", "flv1", "amv", "libvpx", "rawvideo", "wmv2", "libx265", "dvvideo")


def test_every_suffix_that_can_be_written_is_read(tmp_path: Path) -> None:
    """The list of formats that files may have has those of the suffixes."""
    read = set()
    for suffix in VIDEO_SUFFIXES:
        for codec in (
            "libx264",
            "mjpeg",
            "mpeg4",
            "mpeg2video",
            "flv1",
            "amv",
            "libvpx",
            "rawvideo",
            "wmv2",
            "dvvideo",
        ):
            path = tmp_path / f"{codec}{suffix}"
            try:
                write_clip(path, greys(3, height=576, width=720) if codec == "dvvideo" else greys(3), codec=codec)
                with av.open(str(path)) as container:
                    next(container.decode(video=0))
            except Exception:
                continue  # FFmpeg does not write this codec with this suffix, or cannot read it itself
            assert len(list(open_file(path).frames())) >= 1, path.name
            read.add(suffix)
            break
    assert len(read) > 20, sorted(set(VIDEO_SUFFIXES) - read)


@pytest.mark.parametrize("address", ["http://[", "rtsp://[::x/a", "https://user:secret@[x/"])
def test_address_that_is_none_is_one_line_without_the_password(address: str) -> None:
    with pytest.raises(DataError, match="is not an address") as caught:
        open_source(address)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.timeout(120)
def test_damaged_videos_are_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips = [write_clip(tmp_path / f"good.{suffix}", greys(6)).read_bytes() for suffix in ("mp4", "mkv", "avi", "ts")]
    for number in range(100):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(damaged(clips[number % len(clips)], rng))
        try:
            video = open_file(path)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert all(image.ndim == 3 for _, image, _ in video.frames())
            assert "\n" not in (video.broken or video.damage or "")
