"""Which images a source has, and their pixels, wherever they are."""

import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import extras
import pytest

# ruff: noqa: E402
extras.needs("pyarrow", "fsspec")

import pyarrow as pa
from labelling import encoded, same_pixels, write_photos
from pyarrow import parquet
from small_bundle import photo

from prompt_tune.errors import DataError, PromptTuneError
from prompt_tune.runtime.images import to_rgb
from prompt_tune.services import items
from prompt_tune.services.items import Item, content_of, find_items, item_of, read_items, text_of


def read(found: list[Item], *, ahead: int = 3) -> list[object]:
    """The pixels or errors of items, in their order."""
    with ThreadPoolExecutor(2) as pool:
        pairs = list(read_items(found, pool, to_rgb, ahead=ahead))
    assert [item for item, _ in pairs] == found
    return [got for _, got in pairs]


def write_tar(path: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            (path.parent / "member").write_bytes(content)
            tar.add(path.parent / "member", name)
    (path.parent / "member").unlink()
    return path


def test_folder_patterns_and_files_have_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_photos(tmp_path / "photos" / "deep", 3)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    wanted = [Item(str(path), str(path)) for path in paths]
    assert list(find_items("photos")) == wanted
    assert list(find_items("photos/**/*1.png")) == wanted[1:2]
    assert list(find_items(["photos/deep/0002.png", "photos"])) == [wanted[2], *wanted[:2]]
    assert all(same_pixels(one, photo(60 + n, 90 - n, seed=n)) for n, one in enumerate(read(wanted)))
    with pytest.raises(DataError, match="image, tar or Parquet file"):
        list(find_items("photos/*.txt", recursive=False))


def test_folder_of_results_is_no_source(tmp_path: Path) -> None:
    (path,) = write_photos(tmp_path, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rows.parquet").write_bytes(b"")
    assert [item.path for item in find_items(tmp_path, without=tmp_path / "out")] == [str(path)]


def test_tar_gives_its_images_by_offset(tmp_path: Path) -> None:
    """WebDataset: labels beside the images, names with folders, and a damaged image."""
    contents = {
        "a/000.png": encoded(0),
        "a/000.cls": b"3",
        "a/001.jpg": b"no image",
        "a/.hid.png": b"",
        "b.jpg": encoded(2, "JPEG"),
    }
    shard = write_tar(tmp_path / "shard-000.tar", contents)
    found = list(find_items(tmp_path))
    assert [item.path for item in found] == [f"{shard}/a/000.png", f"{shard}/a/001.jpg", f"{shard}/b.jpg"]
    first, damaged, last = read(found)
    assert same_pixels(first, photo(60, 90, seed=0)) and not isinstance(last, DataError)
    assert str(damaged).startswith(f"`{shard}/a/001.jpg` cannot be read as an image: ")
    assert content_of(found[2]) == contents["b.jpg"]
    assert item_of(found[2].path) == found[2]


def test_damaged_tar_is_an_item_with_an_error_after_what_can_be_read(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "shard.tar", {"a.png": encoded(0), "b.png": encoded(1), "c.png": encoded(2)})
    content = shard.read_bytes()
    second = content.index(b"b.png")
    shard.write_bytes(content[:second] + b"\xff" * 512 + content[second + 512 :])
    found = list(find_items(shard))
    first, damaged = read(found)
    assert same_pixels(first, photo(60, 90, seed=0))
    assert found[1].path == str(shard) and str(damaged).startswith(f"`{shard}` cannot be read as a tar: ")


def test_parquet_of_paths_names_files_below_its_folder(tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 3)
    listed = ["photos/0002.png", str(paths[0]), None]
    parquet.write_table(pa.table({"path": listed, "note": ["x"] * 3}), tmp_path / "list.parquet")
    found = list(find_items(tmp_path / "list.parquet"))
    assert [item.path for item in found] == [str(paths[2]), str(paths[0]), f"{tmp_path}/list.parquet/2"]
    first, second, third = read(found)
    assert same_pixels(first, photo(62, 88, seed=2)) and same_pixels(second, photo(60, 90, seed=0))
    assert "names no image: its `path` is None" in str(third)


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_of_contents_is_read_by_row(tmp_path: Path, nested: bool) -> None:
    """Over row groups, with rows left out, a damaged content and a missing one; as a column or in a struct."""
    contents: list[bytes | None] = [encoded(number) for number in range(40)]
    contents[7], contents[21] = b"damaged", None
    column = [{"bytes": one, "path": f"{n}.png"} for n, one in enumerate(contents)] if nested else contents
    table = pa.table({"image" if nested else "bytes": column, "path": ["same"] * 40})
    parquet.write_table(table, tmp_path / "images.parquet", row_group_size=15)
    found = list(find_items(tmp_path / "images.parquet"))
    assert [item.path for item in found] == [f"{tmp_path}/images.parquet/{row}" for row in range(40)]
    wanted = [0, 1, 7, 14, 15, 21, 39]
    got = dict(zip(wanted, read([found[row] for row in wanted], ahead=2), strict=True))
    for row in (0, 1, 14, 15, 39):
        assert same_pixels(got[row], photo(60, 90, seed=row)), row
    assert str(got[7]).startswith(f"`{tmp_path}/images.parquet/7` cannot be read as an image: ")
    assert str(got[21]) == f"`{tmp_path}/images.parquet/21` cannot be read: the row has no content. Replace it."
    assert content_of(item_of(found[16].path)) == contents[16]


def test_parquet_without_images_is_an_error_and_a_damaged_one_an_item(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"file": ["a"]}), tmp_path / "wrong.parquet")
    with pytest.raises(DataError, match=r"must have a column `path` or `bytes`.* It has: file\. Rename one\."):
        list(find_items(tmp_path / "wrong.parquet"))
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    (damaged,) = read(list(find_items(tmp_path / "damaged.parquet")))
    assert "damaged.parquet` cannot be read as a Parquet file: " in str(damaged)


def test_addresses_are_read_by_fsspec(tmp_path: Path) -> None:
    """A folder, a pattern, a tar and a Parquet file behind `memory://`; errors name the address."""
    import fsspec

    system = fsspec.filesystem("memory")
    shard = write_tar(tmp_path / "shard.tar", {"in/x.png": encoded(5)})
    parquet.write_table(pa.table({"bytes": [encoded(6)]}), tmp_path / "images.parquet")
    parquet.write_table(pa.table({"path": ["a/0.png"]}), tmp_path / "list.parquet")
    for name, content in {
        "a/0.png": encoded(3),
        "a/1.png": b"no image",
        "b/shard.tar": shard.read_bytes(),
        "b/images.parquet": (tmp_path / "images.parquet").read_bytes(),
        "list.parquet": (tmp_path / "list.parquet").read_bytes(),
    }.items():
        system.pipe_file(f"/set/{name}", content)
    found = list(find_items(["memory://set/a", "memory://set/b", "memory://set/list.parquet"]))
    names = ["a/0.png", "a/1.png", "b/images.parquet/0", "b/shard.tar/in/x.png", "a/0.png"]
    assert [item.path for item in found] == [f"memory:///set/{name}" for name in names]
    assert list(find_items("memory://set/*/0.png")) == found[:1]
    got = read(found)
    for number, seed in ((0, 3), (2, 6), (3, 5), (4, 3)):
        assert same_pixels(got[number], photo(60, 90, seed=seed))
        assert content_of(item_of(found[number].path)) == content_of(found[number]) == encoded(seed)
    assert str(got[1]).startswith("`memory:///set/a/1.png` cannot be read as an image: ")
    (gone,) = read([Item("memory:///set/gone.png", "memory:///set/gone.png")])
    assert str(gone).startswith("`memory:///set/gone.png` cannot be read: ")
    with pytest.raises(DataError, match="has no image, tar or Parquet file"):
        list(find_items("memory://nothing"))
    with pytest.raises(PromptTuneError, match=r"needs fsspec with the file system of its scheme .* s3fs"):
        list(find_items("nowhere://a"))


def test_images_are_read_ahead_up_to_a_limit(tmp_path: Path) -> None:
    found = [Item(str(path), str(path)) for path in write_photos(tmp_path, 12)]
    taken: list[Item] = []

    def take() -> Iterator[Item]:
        for one in found:
            taken.append(one)
            yield one

    with ThreadPoolExecutor(1) as pool:
        for number, _ in enumerate(read_items(take(), pool, to_rgb, ahead=4), 1):
            assert len(taken) <= number + 4
    assert len(taken) == 12


def test_name_that_is_no_text_is_escaped_and_still_read(tmp_path: Path) -> None:
    (path,) = write_photos(tmp_path, 1)
    odd = os.path.join(os.fsencode(tmp_path), b"a\xff.png")
    os.rename(path, odd)
    (item,) = find_items(tmp_path)
    assert item.path == text_of(os.fsdecode(odd)) == f"{tmp_path}/a\\xff.png"
    assert same_pixels(read([item])[0], photo(60, 90, seed=0))


def test_archive_that_has_gone_is_an_error(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "shard.tar", {"a.png": encoded(0)})
    items._contents.cache_clear()
    with pytest.raises(DataError, match=r"has no `b\.png` any more"):
        item_of(f"{shard}/b.png")
