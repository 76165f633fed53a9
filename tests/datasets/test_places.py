"""Text and YAML files with one-line errors, and the paths that descriptions name."""

import os
from pathlib import Path

import pytest

from prompt_tune.datasets.places import (
    beginning,
    files_under,
    is_hidden,
    read_lines,
    read_list,
    read_text,
    read_yaml,
    resolve,
    root_of,
)
from prompt_tune.datasets.samples import LeftOut, Reason
from prompt_tune.errors import DataError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file. Check the path."),
        (b"na\xefve", r"is not UTF-8 text \(byte 2\)\. Save it as UTF-8\."),
    ],
)
def test_read_text_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(tmp_path / "a.txt")


def test_read_text_of_a_folder_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_text(tmp_path)


def test_read_text_drops_the_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\n")
    assert read_text(tmp_path / "a.txt") == "a\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold a mapping .* Received: NoneType"),
        ("- a", "Received: list"),
        ("a: [b\nc: d", "line 2: not valid YAML"),
    ],
)
def test_read_yaml_of_no_mapping_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(DataError, match=message):
        read_yaml(tmp_path / "a.yaml")


def test_read_list_leaves_out_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n a.png \n\nb.png")
    assert read_list(tmp_path / "a.txt") == ["a.png", "b.png"]


def test_root_is_beside_the_description_or_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = tmp_path / "deep" / "a.yaml"
    (tmp_path / "deep" / "beside").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert root_of(description, {}) == tmp_path / "deep"
    assert root_of(description, {"path": "beside"}) == tmp_path / "deep" / "beside"
    assert root_of(description, {"path": "here"}) == tmp_path / "here"
    with pytest.raises(DataError, match="neither beside this file nor in the current folder"):
        root_of(description, {"path": "gone"})


def test_resolve_looks_up_a_parent_entry_below_the_root_as_well(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "train").mkdir(parents=True)
    description = root / "data.yaml"
    assert resolve(root, "train", description) == root / "train"
    assert resolve(root, "../train", description) == root / "train"
    (tmp_path / "train").mkdir()  # what the entry says literally comes first
    assert resolve(root, "../train", description) == tmp_path / "train"
    with pytest.raises(DataError, match=r"there is no `.*gone`\. Correct the entry `\.\./gone`"):
        resolve(root, "../gone", description)


def test_files_under_leaves_out_metadata_follows_links_and_names_broken_ones(tmp_path: Path) -> None:
    root, other = tmp_path / "images", tmp_path / "other"
    for name in (
        "a.JPG",
        "._a.jpg",
        ".ipynb_checkpoints/a.jpg",
        "@eaDir/a.jpg",
        "__MACOSX/a.jpg",
        "Thumbs.db",
        "b/c.jpg",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    other.mkdir()
    (other / "d.jpg").touch()
    (root / "linked").symlink_to(other)
    (root / "b" / "loop").symlink_to(root)
    (other / "loop").symlink_to(root)
    (root / "gone.jpg").symlink_to(tmp_path / "nothing")
    (root / "b" / "x.HEIC.svg").touch()
    passed: dict[Path, LeftOut] = {}
    found = files_under(root, (".jpg",), passed)
    assert [path.relative_to(root).as_posix() for path in found] == ["a.JPG", "b/c.jpg", "linked/d.jpg"]
    link, picture = passed[root / "gone.jpg"], passed[root / "b" / "x.HEIC.svg"]
    assert (link.reason, picture.reason) == (Reason.LINK, Reason.FORMAT)
    assert "gone.jpg` is a link that leads nowhere" in link.what and "x.HEIC.svg`: vector graphics" in picture.what
    assert len(passed) == 2


def test_resolve_and_root_find_names_in_another_spelling(tmp_path: Path) -> None:
    (tmp_path / "my set" / "images").mkdir(parents=True)
    description = tmp_path / "data.yaml"
    for name in ("my set", "my%20set", "My Set", ".\\my set"):
        root = root_of(description, {"path": name})
        assert root == tmp_path / "my set"
        for entry in ("images", "Images", "..\\images", ".\\images\\"):
            assert resolve(root, entry, description) == root / "images"


@pytest.mark.parametrize(
    ("path", "hidden"), [("a.jpg", False), ("._a.jpg", True), (".x/a.jpg", True), ("../a.jpg", False), ("/.x/a", False)]
)
def test_is_hidden_looks_at_what_is_below_the_root(tmp_path: Path, path: str, hidden: bool) -> None:
    assert is_hidden(tmp_path / ".cache" / path, tmp_path / ".cache") == hidden


def test_resolve_parent_of_a_linked_folder_is_that_of_the_real_folder(tmp_path: Path) -> None:
    (tmp_path / "real" / "cfg").mkdir(parents=True)
    (tmp_path / "real" / "images").mkdir()
    link = tmp_path / "elsewhere" / "current"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "real" / "cfg")
    assert resolve(link, "../images", link / "data.yaml") == tmp_path / "real" / "images"
    plain = tmp_path / "real" / "cfg"
    assert resolve(plain, "../images", plain / "data.yaml") == tmp_path / "real" / "images"


@pytest.mark.timeout(30)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_in_a_folder_of_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    os.mkfifo(tmp_path / "b.png")
    os.mkfifo(tmp_path / "other")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    passed: dict[Path, LeftOut] = {}
    assert files_under(tmp_path, (".png",), passed) == [tmp_path / "a.png"]
    assert sorted(path.name for path in passed) == ["b.png", "c.png"]
    assert all("is a pipe, a socket or a device" in entry.what for entry in passed.values())
    assert {entry.reason for entry in passed.values()} == {Reason.IMAGE}


def test_path_of_another_machine_is_the_folder_of_the_yaml_if_its_entries_are_there(tmp_path: Path) -> None:
    """FiftyOne writes the folder that it exported to."""
    (tmp_path / "images").mkdir()
    content = {"path": "/nowhere/export", "train": "./images"}
    assert root_of(tmp_path / "a.yaml", content) == tmp_path
    for train in ("gone", "../images", str(tmp_path / "images"), None):
        with pytest.raises(DataError, match="the folder `path: /nowhere/export` is neither"):
            root_of(tmp_path / "a.yaml", content | {"train": train})


def test_read_lines_and_beginning(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xef\xbb\xbfa,b\r\n\xff\n")
    assert list(read_lines(file, 100)) == ["a,b\r\n", "\ufffd\n"]
    assert beginning(file) == "a,b\r\n\ufffd\n"
    with pytest.raises(DataError, match="has more than 5 bytes"):
        list(read_lines(file, 5))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(read_lines(tmp_path / "gone", 5))
    with pytest.raises(DataError, match="is a pipe, a socket or a device"):
        list(read_lines(Path("/dev/zero"), 5))
    assert beginning(tmp_path / "gone") == beginning(tmp_path) == beginning(Path("/dev/zero")) == ""
