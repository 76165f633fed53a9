"""Everything below a folder: links, metadata, and what cannot be read."""

import glob
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prompt_tune.errors import DataError
from prompt_tune.runtime.folders import expanded, is_broken_link, is_metadata, matching, walk


def names(root: Path, **options: Any) -> list[str]:
    return [path.relative_to(root).as_posix() for path in walk(root, **options)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with subfolders, one of them linked, with links that lead back, and with what computers add."""
    root, other = tmp_path / "root", tmp_path / "other"
    for name in ("a.jpg", "b/c.jpg", "b/.x/d.jpg", "__MACOSX/a.jpg", "b/@eaDir/a.jpg", "._a.jpg", "Thumbs.db"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    other.mkdir()
    (other / "e.jpg").touch()
    (root / "linked").symlink_to(other)
    (root / "b" / "loop").symlink_to(root)
    (other / "loop").symlink_to(root)
    (root / "gone.jpg").symlink_to(tmp_path / "nothing")
    return root


def test_walk_follows_links_ends_loops_and_leaves_out_metadata(root: Path) -> None:
    assert names(root) == ["a.jpg", "b/c.jpg", "gone.jpg", "linked/e.jpg"]
    assert names(root, recursive=False) == ["a.jpg", "gone.jpg"]
    assert names(root, without=root / "b") == ["a.jpg", "gone.jpg", "linked/e.jpg"]
    assert names(root / "b", without=root) == ["c.jpg"], "a folder above the one that is read does not hide it"
    assert [path.name for path in walk(root) if is_broken_link(path)] == ["gone.jpg"]


def test_walk_subfolder_that_may_not_be_read_is_named_and_the_rest_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of root may read everything, so the system's refusal is put in its place."""
    scan = os.scandir

    def refuse(folder: Path) -> Iterator[Any]:
        if folder.name == "b":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    reasons: list[str] = []
    assert names(root, unreadable=reasons) == ["a.jpg", "gone.jpg", "linked/e.jpg"]
    assert reasons == [f"`{root / 'b'}` cannot be read: Permission denied. Allow reading it, or leave it out."]
    with pytest.raises(DataError, match=r"b` cannot be read: Permission denied\."):
        names(root)


def test_is_metadata() -> None:
    assert [name for name in ("._a", ".git", "@eaDir", "Desktop.ini", "a.jpg", "a.") if not is_metadata(name)] == [
        "a.jpg",
        "a.",
    ]


@pytest.fixture
def tangle(tmp_path: Path) -> Path:
    """Twelve folders, each with a picture and with links to all of them: some 12! ways to go on without a circle."""
    root = tmp_path / "tangle"
    folders = [root / f"{number:02}" for number in range(12)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "a.jpg").touch()
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    return root


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """Forty folders without a circle, each with two links to the next: 2^40 ways to the last one."""
    for number in range(40):
        folder = tmp_path / "steps" / f"{number:02}"
        folder.mkdir(parents=True)
        (folder / "a.jpg").touch()
        for name in ("x", "y"):
            (folder / name).symlink_to(tmp_path / "steps" / f"{number + 1:02}")
    return tmp_path / "steps" / "00"


@pytest.mark.timeout(60)
def test_walk_and_matching_end_where_links_lead_to_a_folder_in_endless_ways(tangle: Path, steps: Path) -> None:
    for root, count in ((tangle, 12), (steps, 40)):
        walked = {os.path.realpath(path) for path in walk(root) if path.name == "a.jpg"}
        matched = {os.path.realpath(path) for path in matching(root / "**" / "*.jpg", [])}
        assert len(walked) == len(matched) == count


@pytest.mark.timeout(60)
def test_matching_ends_at_two_links_back(tmp_path: Path) -> None:
    """With `glob.glob` it would be 2^40 paths."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.jpg").touch()
    for name in ("x", "y"):
        (tmp_path / "b" / name).symlink_to(tmp_path)
    assert matching(tmp_path / "**" / "*.jpg", []) == [tmp_path / "b" / "a.jpg"]
    assert matching(tmp_path / "**" / "b" / "**" / "a.jpg", []) == [tmp_path / "b" / "a.jpg"]


PATTERNS = [
    "*.jpg",
    "**/*.jpg",
    "b/*",
    "*/*.jpg",
    "**/c.*",
    "**/b/*.jpg",
    "[ab].jpg",
    "?.jpg",
    "**/linked/*",
    "b/**/e*",
]


@pytest.mark.parametrize("pattern", [*PATTERNS, "**", "b/**", "x/*.jpg", "a.jpg/*", "a.jpg/**", "B/*.JPG", "g*"])
def test_matching_gives_the_files_of_glob(root: Path, pattern: str) -> None:
    (root / "b" / "loop").unlink()
    (root.parent / "other" / "loop").unlink()
    wanted = [Path(name) for name in glob.glob(str(root / pattern), recursive=True)]
    wanted = [path for path in wanted if not any(map(is_metadata, path.relative_to(root).parts))]
    found = matching(root / pattern, [])
    assert sorted(path for path in found if not path.is_dir()) == sorted(path for path in wanted if not path.is_dir())


def test_matching_of_a_relative_pattern_gives_relative_paths(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert matching(Path("*.jpg"), []) == [Path("gone.jpg"), Path("a.jpg")]
    assert matching(Path("**/c.jpg"), []) == [Path("b/c.jpg")]


@pytest.mark.parametrize("part", ["a\0*", "x" * 5000 + "*", "~nobody-of-this-name*"])
def test_matching_of_names_that_cannot_be_gives_nothing(tmp_path: Path, part: str) -> None:
    assert matching(tmp_path / part / "*.jpg", []) == matching(tmp_path / "x\0" / part, []) == []


def test_walk_of_folders_deeper_than_the_stack_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    Path("a.jpg").touch()
    os.chdir(tmp_path)
    assert [path.name for path in walk(Path("d"))] == ["a.jpg"]
    subprocess.run(["rm", "-rf", "d"], check=True)  # pytest's own removal is recursive


def test_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/a") == Path("/home/me/a")
    for text in ("~nobody-of-this-name/a", "~a\0b/c", "a/~", "x" * 5000, "\udcff"):
        assert expanded(text) == Path(text)
