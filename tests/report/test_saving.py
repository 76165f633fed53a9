"""Files that people look at: written whole, or refused in one line that says what to do."""

from pathlib import Path

import pytest
from disks import full_disk

from prompt_tune.errors import RunError
from prompt_tune.report.saving import saving


def test_saving_replaces_the_file_when_the_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "new" / "page.html"
    for text in ("first", "second"):
        with saving(file) as temporary:
            temporary.write_text(text)
        assert file.read_text() == text
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]


def test_saving_on_a_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("old")
    with pytest.raises(RunError) as refusal, full_disk(), saving(file) as temporary:
        temporary.write_text("new" * 1000)
    assert str(refusal.value) == f"Cannot write {file}: File too large. Choose another place or make room."
    assert file.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [("file/page.html", "File exists"), ("folder", "Is a directory")],
    ids=["in a file", "a folder"],
)
def test_saving_where_no_file_can_be_says_why(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError) as refusal, saving(tmp_path / place) as temporary:
        temporary.write_text("text")
    assert str(refusal.value) == f"Cannot write {tmp_path / place}: {reason}. Choose another place or make room."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_saving_passes_other_errors_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), saving(tmp_path / "page.html"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
