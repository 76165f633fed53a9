import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prompt_tune.files import backup_of, replacing, replacing_folder

SWAP = """
import os, signal, sys
from pathlib import Path
from prompt_tune.files import replacing_folder

{patch}
with replacing_folder(sys.argv[1]) as new:
    (new / "a").write_text("new")
    (new / "b").write_text("new")
"""
FAILS = """
rename, calls = os.replace, []
def failing(source, target):
    calls.append(target)
    if len(calls) in {numbers}:
        raise PermissionError(13, "Permission denied", str(target))
    rename(source, target)
os.replace = failing
"""
KILLED = """
rename, calls = os.replace, []
def killing(source, target):
    rename(source, target)
    calls.append(target)
    if len(calls) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = killing
"""


def swap_in_a_child(folder: Path, patch: str = "") -> subprocess.CompletedProcess[str]:
    """Replaces `folder` by one with `a` and `b`, in a process of its own in which `patch` runs first."""
    code = SWAP.replace("{patch}", patch)
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


OLD, NEW = {"a": "old", "c": "old"}, {"a": "new", "b": "new"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is there already, alone in its parent."""
    folder = tmp_path / "parent" / "bundle"
    folder.mkdir(parents=True)
    for name, text in OLD.items():
        (folder / name).write_text(text)
    return folder


# files


def test_replacing_makes_the_file_and_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.vocab.safetensors"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".safetensors" and not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_replacing_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_replacing_follows_the_umask(tmp_path: Path) -> None:
    code = "import os, sys; os.umask(0o027); from prompt_tune.files import replacing\nwith replacing(sys.argv[1]): pass"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_replacing_leaves_the_files_of_other_threads_private(tmp_path: Path) -> None:
    """The umask belongs to the process: while it is changed, another thread's file is open to all."""
    stop, modes = threading.Event(), set()

    def write_others() -> None:
        number = 0
        while not stop.is_set():
            other = tmp_path / f"other{number}"
            os.close(os.open(other, os.O_CREAT | os.O_WRONLY, 0o666))
            modes.add(other.stat().st_mode & 0o777)
            other.unlink()
            number += 1

    before = os.umask(0o077)
    thread = threading.Thread(target=write_others)
    try:
        thread.start()
        for _ in range(3000):
            with replacing(tmp_path / "ours"):
                pass
    finally:
        stop.set()
        thread.join()
        os.umask(before)
    assert modes == {0o600}


# folders


def test_replacing_folder_makes_a_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "bundle"
    done = swap_in_a_child(folder)
    assert done.returncode == 0, done.stderr
    assert content(folder) == NEW and list(folder.parent.iterdir()) == [folder]
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode  # not the private mode of a temporary folder


def test_replacing_folder_replaces_the_whole_old_one(folder: Path) -> None:
    done = swap_in_a_child(folder)
    assert done.returncode == 0, done.stderr
    assert content(folder) == NEW and list(folder.parent.iterdir()) == [folder]


def test_replacing_folder_whose_block_fails_leaves_the_old_one(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacing_folder(folder) as new:
        (new / "a").write_text("half")
        raise ZeroDivisionError
    assert content(folder) == OLD and list(folder.parent.iterdir()) == [folder]


def test_replacing_folder_replaces_a_link_and_not_its_target(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    with replacing_folder(link) as new:
        (new / "a").write_text("new")
    assert not link.is_symlink() and content(link) == {"a": "new"} and content(folder) == OLD
    assert sorted(tmp_path.iterdir()) == [link, folder.parent]


@pytest.mark.parametrize("numbers", [{1}, {2}])
def test_rename_that_fails_leaves_the_old_folder_in_place(folder: Path, numbers: set[int]) -> None:
    done = swap_in_a_child(folder, FAILS.replace("{numbers}", str(numbers)))
    assert done.returncode == 1 and "PermissionError" in done.stderr
    assert content(folder) == OLD and list(folder.parent.iterdir()) == [folder]


def test_old_folder_that_cannot_get_its_name_back_is_kept_and_restored_by_the_next_call(folder: Path) -> None:
    done = swap_in_a_child(folder, FAILS.replace("{numbers}", "{2, 3}"))
    assert done.returncode == 1 and str(folder) in done.stderr
    assert not folder.exists() and content(backup_of(folder)) == OLD
    with pytest.raises(ZeroDivisionError), replacing_folder(folder):
        raise ZeroDivisionError
    assert content(folder) == OLD and list(folder.parent.iterdir()) == [folder]


def test_process_killed_between_the_renames_leaves_a_backup_that_the_next_call_restores(folder: Path) -> None:
    done = swap_in_a_child(folder, KILLED.replace("{number}", "1"))
    assert done.returncode == -signal.SIGKILL
    assert not folder.exists() and content(backup_of(folder)) == OLD
    with pytest.raises(ZeroDivisionError), replacing_folder(folder):
        raise ZeroDivisionError
    assert content(folder) == OLD and not backup_of(folder).exists()
    assert swap_in_a_child(folder).returncode == 0 and content(folder) == NEW


def test_process_killed_before_it_deletes_the_backup_leaves_the_new_folder(folder: Path) -> None:
    done = swap_in_a_child(folder, KILLED.replace("{number}", "2"))
    assert done.returncode == -signal.SIGKILL
    assert content(folder) == NEW and content(backup_of(folder)) == OLD
    with replacing_folder(folder) as new:
        (new / "a").write_text("newer")
    assert content(folder) == {"a": "newer"} and list(folder.parent.iterdir()) == [folder]
