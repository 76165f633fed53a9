"""Frames of files, videos, cameras and streams."""

import time
from pathlib import Path

import numpy as np
import pytest
from clips import as_jpeg, greys, number_of, served, write_clip
from damage import cases
from PIL import Image
from small_bundle import photo

from prompt_tune.errors import DataError
from prompt_tune.media.sources import VIDEO_SUFFIXES, Frame, open_source

N_CLIP = 12


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", greys(N_CLIP))


def test_open_source_image_gives_its_pixels_and_name(tmp_path: Path) -> None:
    Image.fromarray(photo(20, 30)).save(tmp_path / "a.png")
    source = open_source(tmp_path / "a.png")
    (frame,) = source.frames()
    assert (source.total, source.live, source.paths) == (1, False, [tmp_path / "a.png"])
    assert (frame.name, frame.file_name, frame.index, frame.seconds) == ("a.png", "a.png", None, None)
    assert frame.path == tmp_path / "a.png"
    np.testing.assert_array_equal(frame.image, photo(20, 30))


def test_open_source_very_large_jpeg_is_reduced_unless_it_is_wanted_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prompt_tune.runtime.opening.WHOLE_MEGAPIXELS", 1)
    Image.fromarray(photo(1000, 1500)).save(tmp_path / "a.jpg")
    (frame,) = open_source(tmp_path).frames()
    assert frame.image.shape == (500, 750, 3) and frame.size_wh == frame.picture.size_wh == (1500, 1000)
    assert frame.picture.pixels is frame.image
    (whole,) = open_source(tmp_path, whole=True).frames()
    assert whole.image.shape == (1000, 1500, 3) and whole.size_wh is None and whole.picture.size_wh == (1500, 1000)
    assert np.array_equal(frame.whole(), whole.image)


def test_open_source_video_gives_every_frame_in_order_with_its_time(clip: Path) -> None:
    source = open_source(clip)
    frames = list(source.frames())
    assert source.total == len(frames) == N_CLIP
    assert [(frame.index, number_of(frame.image)) for frame in frames] == [(n, n) for n in range(N_CLIP)]
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(N_CLIP) / 25, atol=1e-6)  # type: ignore[arg-type]
    assert {(frame.name, frame.image.shape, frame.image.dtype.name) for frame in frames} == {
        ("clip.mp4", (48, 64, 3), "uint8")
    }
    assert frames[7].file_name == "clip.mp4/000007.jpg"
    assert (source.live, source.skipped, source.broken, source.missed) == (False, {}, None, 0)


@pytest.mark.parametrize(("every", "wanted"), [(1, 12), (5, 3), (12, 1), (100, 1)])
def test_open_source_every_takes_the_first_and_then_each_nth(clip: Path, every: int, wanted: int) -> None:
    source = open_source(clip, every=every)
    assert [(frame.index, number_of(frame.image)) for frame in source.frames()] == [
        (n, n) for n in range(0, N_CLIP, every)
    ]
    assert source.total == wanted


def test_open_source_folder_mixes_images_and_videos_sorted(tmp_path: Path, clip: Path) -> None:
    for name in ("a.png", "z.jpg"):
        Image.fromarray(photo(20, 30)).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    source = open_source(tmp_path)
    names = [frame.name for frame in source.frames()]
    assert names == ["a.png", *["clip.mp4"] * N_CLIP, "z.jpg"]
    assert source.total == N_CLIP + 2


def test_open_source_glob_keeps_folders_and_a_number_may_be_a_file(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    Image.fromarray(photo(20, 30)).save(tmp_path / "deep" / "a.png")
    names = [frame.name for frame in open_source(f"{tmp_path}/**/*").frames()]
    assert names == [*["clip.mp4"] * N_CLIP, "deep/a.png"]
    Image.fromarray(photo(20, 30)).save(tmp_path / "7", format="PNG")
    monkeypatch.chdir(tmp_path)
    assert [frame.name for frame in open_source("7").frames()] == ["7"]


def test_open_source_damaged_files_are_skipped_and_named(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    (tmp_path / "c.mp4").write_bytes(clip.read_bytes()[:600])
    source = open_source(tmp_path)
    assert len(list(source.frames())) == N_CLIP
    assert list(source.skipped) == ["a.jpg", "b.mp4", "c.mp4"]
    assert f"`{tmp_path / 'b.mp4'}` cannot be opened as a video: Invalid data" in source.skipped["b.mp4"]
    assert not any("\n" in reason for reason in source.skipped.values())


def test_open_source_closed_early_frees_the_file(clip: Path) -> None:
    frames = open_source(clip).frames()
    next(frames)
    frames.close()
    assert list(frames) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("rtsp://user:secret@127.0.0.1:9/cam?token=secret", r"^`rtsp://127\.0\.0\.1:9/cam` cannot be opened.*refused"),
        ("http://127.0.0.1:9/a.mp4", r"^`http://127\.0\.0\.1:9/a\.mp4` cannot be opened.*refused"),
        ("nonsense://there", "`nonsense://there` cannot be opened as a video: Protocol not found"),
        ("977", r"^`camera 977`: no such camera\. Cameras here: "),
        ("gone.mp4", "`gone.mp4`: no such file or folder"),
    ],
)
def test_open_source_that_is_not_there_raises_at_once(source: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match=message) as caught:
        open_source(source)
    assert time.monotonic() - started < 5
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_open_source_every_below_one_raises(clip: Path) -> None:
    with pytest.raises(DataError, match=r"`every` must be at least 1\. Received: 0\."):
        open_source(clip, every=0)


def test_stream_of_a_video_file_on_a_server_loses_no_frame(tmp_path: Path, clip: Path) -> None:
    with served(tmp_path) as address:
        source = open_source(f"{address}/clip.mp4")
        frames = []
        for frame in source.frames():
            time.sleep(0.01)  # slower than it comes
            frames.append(frame)
    assert (source.live, source.total, source.missed) == (False, N_CLIP, 0)
    assert [number_of(frame.image) for frame in frames] == list(range(N_CLIP))
    assert {frame.name for frame in frames} == {"stream"}


def test_stream_without_an_end_gives_the_newest_frame_and_counts_the_missed(tmp_path: Path) -> None:
    with served(tmp_path, [as_jpeg(image) for image in greys(N_CLIP)], breaks=True) as address:
        source = open_source(f"{address}/live", timeout=1)
        assert (source.live, source.total) == (True, None)
        taken: list[Frame] = []
        for frame in source.frames():
            taken.append(frame)
            if len(taken) == 1:
                time.sleep(0.7)  # all others come meanwhile
    indices = [frame.index for frame in taken]
    assert [number_of(frame.image) for frame in taken] == indices
    assert indices[-1] == N_CLIP - 1, "the newest is not dropped"
    assert source.missed == N_CLIP - len(taken) > 0
    assert source.broken is not None and "/live` broke off after 12 frames: nothing came for 1 seconds" in source.broken
    times = [frame.seconds for frame in taken]
    assert times[0] == 0 and times == sorted(times, key=float)  # type: ignore[arg-type]


def test_stream_closed_by_the_reader_ends_its_thread(tmp_path: Path) -> None:
    with served(tmp_path, [as_jpeg(image) for image in greys(N_CLIP)], breaks=True) as address:
        frames = open_source(f"{address}/live", timeout=1).frames()
        next(frames)
        started = time.monotonic()
        frames.close()
        assert time.monotonic() - started < 3
    assert list(frames) == []


def test_video_suffixes_are_lower_case_and_no_image() -> None:
    from prompt_tune.runtime.image_files import IMAGE_SUFFIXES

    assert not set(VIDEO_SUFFIXES) & set(IMAGE_SUFFIXES)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in VIDEO_SUFFIXES)


@pytest.mark.parametrize("number", ["1" * 5000, "1" * 10, "~nobody-of-this-name", "x" * 5000])
def test_source_that_cannot_be_is_one_line(number: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(number)


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_pictures_are_counted_and_named_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_TUNE_MAX_MEGAPIXELS", "4")
    for name, content in cases(100, 100):
        (tmp_path / name).write_bytes(content)
    Image.fromarray(photo(20, 30)).save(tmp_path / "good.png")
    source = open_source(tmp_path)
    names = [frame.name for frame in source.frames()]
    assert "good.png" in names and len(names) + len(source.skipped) == 101 and len(source.skipped) > 50
    assert all(name in reason and "\n" not in reason for name, reason in source.skipped.items())
