"""Text and YAML files with one-line errors, and the paths that descriptions name."""

from pathlib import Path

import pytest

from prompt_tune.datasets.places import files_under, read_list, read_text, read_yaml, resolve, root_of
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


def test_files_under_leaves_out_metadata_follows_links_and_names_broken_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
    found = files_under(root, (".jpg",))
    assert [path.relative_to(root).as_posix() for path in found] == ["a.JPG", "b/c.jpg", "linked/d.jpg"]
    assert len(caplog.messages) == 1 and str(root / "gone.jpg") in caplog.messages[0]


def test_resolve_parent_of_a_linked_folder_is_that_of_the_real_folder(tmp_path: Path) -> None:
    (tmp_path / "real" / "cfg").mkdir(parents=True)
    (tmp_path / "real" / "images").mkdir()
    link = tmp_path / "elsewhere" / "current"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "real" / "cfg")
    assert resolve(link, "../images", link / "data.yaml") == tmp_path / "real" / "images"
    plain = tmp_path / "real" / "cfg"
    assert resolve(plain, "../images", plain / "data.yaml") == tmp_path / "real" / "images"
