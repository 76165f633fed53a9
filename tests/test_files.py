import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disks import full_disk
from places import TESTS
from safetensors.numpy import save_file

from prompt_tune.contract import METADATA_KEY
from prompt_tune.errors import RunError
from prompt_tune.files import (
    MAX_METADATA_BYTES,
    backup_of,
    is_special,
    read_tensors,
    replacing,
    replacing_folder,
    saving,
    shortened,
    tensor_bytes,
)

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
    """The umask belongs to the process: while one thread changes it, the files of the others are open to all."""
    code = """if True:
        import os, sys, threading
        from prompt_tune.files import replacing

        def write_others() -> None:
            while not stop.is_set():
                handle = os.open("other", os.O_CREAT | os.O_WRONLY, 0o666)
                modes.append(os.fstat(handle).st_mode & 0o777)
                os.close(handle)
                os.unlink("other")

        os.chdir(sys.argv[1])
        os.umask(0o077)
        sys.setswitchinterval(1e-6)  # threads take turns between any two steps
        stop, modes = threading.Event(), []
        thread = threading.Thread(target=write_others)
        thread.start()
        while len(modes) < 10_000:
            with replacing("ours"):
                pass
        stop.set()
        thread.join()
        print({oct(mode) for mode in modes})
    """
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{'0o600'}\n", "")


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


# safetensors with one key of metadata


def accept(fields: dict[str, Any], names: set[str]) -> None:
    """Takes any fields and tensors."""


@pytest.mark.parametrize("file", sorted((TESTS / "data").rglob("*.safetensors")), ids=lambda path: str(path.name))
def test_file_of_an_older_version_is_written_to_the_same_bytes(file: Path) -> None:
    fields, tensors = read_tensors(file, accept)
    assert fields and tensors and tensor_bytes(tensors, fields) == file.read_bytes()


def test_tensors_and_fields_come_back_whatever_their_order_in_memory(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    (tmp_path / "a").write_bytes(tensor_bytes({"b": array.T, "a": np.zeros((0, 4), np.float32)}, {"é": [1, None]}))
    fields, tensors = read_tensors(tmp_path / "a", accept)
    assert fields == {"é": [1, None]} and {name: rows.shape for name, rows in tensors.items()} == {
        "a": (0, 4),
        "b": (3, 2),
    }
    assert np.array_equal(tensors["b"], array.T)


def test_check_sees_fields_and_names_before_a_tensor_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(tensor_bytes({"x": np.zeros(1, np.float64)}, {"k": 1}))  # type no reader takes

    def check(fields: dict[str, Any], names: set[str]) -> None:
        assert (fields, names) == ({"k": 1}, {"x"})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read_tensors(tmp_path / "a", check)
    with pytest.raises(ValueError, match=r"^`x` must be float32 \(F32\)\. Received: F64$"):
        read_tensors(tmp_path / "a", accept)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, "its metadata has no key `prompt-tune`"),
        ({"format": "pt"}, "its metadata has no key `prompt-tune`"),
        ({METADATA_KEY: "{}", "a": "b"}, "no key but `prompt-tune`. Received: ['a', 'prompt-tune']"),
        ({METADATA_KEY: "{"}, "its metadata is not JSON ("),
        ({METADATA_KEY: '{"a": 1, "a": 1}'}, "its metadata is not JSON (a key stands twice)"),
        ({METADATA_KEY: "[1]"}, "its metadata must be a JSON object"),
        ({METADATA_KEY: " " * (MAX_METADATA_BYTES + 1)}, f"must fit in {MAX_METADATA_BYTES} bytes"),
    ],
)
def test_file_with_other_metadata_is_refused(tmp_path: Path, metadata: dict[str, str] | None, reason: str) -> None:
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "a", metadata=metadata)
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_tensors(tmp_path / "a", accept)


@pytest.mark.parametrize("end", [0, 7, 30, -1])
def test_file_that_is_cut_short_is_refused(tmp_path: Path, end: int) -> None:
    (tmp_path / "a").write_bytes(tensor_bytes({"x": np.zeros(9, np.float32)}, {})[:end])
    with pytest.raises(ValueError, match="not safetensors, or damaged or cut short"):
        read_tensors(tmp_path / "a", accept)


def test_fields_over_the_limit_are_refused() -> None:
    with pytest.raises(ValueError, match="must fit in"):
        tensor_bytes({}, {"notes": "x" * MAX_METADATA_BYTES})


def test_saving_replaces_the_file_when_the_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "new" / "page.html"
    for text in ("first", "second"):
        with saving(file, RunError) as temporary:
            temporary.write_text(text)
        assert file.read_text() == text
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]


def test_saving_on_a_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("old")
    with pytest.raises(RunError) as refusal, full_disk(), saving(file, RunError) as temporary:
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
    with pytest.raises(RunError) as refusal, saving(tmp_path / place, RunError) as temporary:
        temporary.write_text("text")
    assert str(refusal.value) == f"Cannot write {tmp_path / place}: {reason}. Choose another place or make room."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_saving_passes_other_errors_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), saving(tmp_path / "page.html", RunError):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


LONG_NAMES = (
    "a" * 251 + ".png",
    "\U0001f600" * 62 + ".jpg",
    "a." + "b" * 240,
    "a." + "b" * 253,
    "\u00e9" * 127,
    "." + "a" * 254,
)


@pytest.mark.parametrize("name", LONG_NAMES)
def test_names_as_long_as_disks_take_them_are_written(tmp_path: Path, name: str) -> None:
    assert len(os.fsencode(name)) <= 255
    seen = []
    for _ in range(2):
        with replacing(tmp_path / name) as temporary:
            temporary.write_text("new")
            seen.append(temporary.name)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "new"
    assert seen[0] != seen[1]
    if 0 < len(os.fsencode(Path(name).suffix)) < 200:
        assert Path(seen[0]).suffix == Path(name).suffix
    for _ in range(2):
        with replacing_folder(tmp_path / f"{name[:-1]}d") as new:
            (new / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name[:-1]}d"])


def test_backups_of_long_names_differ(tmp_path: Path) -> None:
    assert backup_of(tmp_path / "bundle").name == ".bundle.prompt-tune-backup"
    names = {backup_of(tmp_path / ("a" * 250 + end)).name for end in "xyz"}
    assert len(names) == 3 and all(len(name) <= 255 for name in names)


def test_shortened_counts_bytes_and_cuts_no_character() -> None:
    assert shortened("abc", 3) == "abc" and shortened("abc", 2) == "ab" and shortened("abc", 0) == ""
    assert shortened("\u00e9\u00e9", 3) == "\u00e9" and shortened("\udcff\udcff", 1) == "\udcff"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_is_special(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("pipe")
    assert is_special(tmp_path / "pipe") and is_special(tmp_path / "link") and is_special("/dev/null")
    assert not any(is_special(path) for path in (tmp_path, tmp_path / "file", tmp_path / "none", "a\0b", "x" * 5000))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"a":', '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":', "a key stands twice"),
        ('"dtype":"F32"', '"dtype":"F32","dtype":"F32"', "duplicate field `dtype`"),  # safetensors says so itself
        ('"dtype":"F32"', '"dtype":"F32","note":1', "must have ['data_offsets', 'dtype', 'shape']"),
    ],
)
def test_header_that_others_could_read_otherwise_is_refused(old: str, new: str, reason: str, tmp_path: Path) -> None:
    content = tensor_bytes({"a": np.ones(1, np.float32)}, {"version": 1})
    size = 8 + int.from_bytes(content[:8], "little")
    header = content[8:size].decode()
    assert header.count(old) == 1
    changed = header.replace(old, new).encode()
    (tmp_path / "a").write_bytes(len(changed).to_bytes(8, "little") + changed + content[size:])
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_tensors(tmp_path / "a", accept)
