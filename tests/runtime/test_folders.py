"""Everything below a folder: links, metadata, and what cannot be read."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prompt_tune.errors import DataError
from prompt_tune.runtime.folders import is_broken_link, is_metadata, walk


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
