"""Values that each process makes for itself, in real forks."""

import gc
import os
import threading
import time
from pathlib import Path

import pytest

from prompt_tune.runtime.processes import PerProcess


def in_a_child(tell: object) -> str:
    """What a function returns in a forked child."""
    assert callable(tell)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        gc.disable()  # a child must not free what other tests have left: a session waits for threads that it lacks
        try:
            os.write(writer, str(tell()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def test_value_is_made_once_and_once_more_in_a_child() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(os.getpid())
        return os.getpid()

    value = PerProcess(make)
    assert not made and value.get() == value.get() == os.getpid() and made == [os.getpid()]
    assert in_a_child(lambda: value.get() == value.get() == os.getpid() and len(made)) == "2"
    assert value.get() == os.getpid() and len(made) == 1  # the parent's is what it was


def test_grandchild_makes_its_own_value_too() -> None:
    value = PerProcess(os.getpid)
    value.get()
    assert in_a_child(lambda: in_a_child(lambda: value.get() == os.getpid())) == "True"


def test_first_value_is_that_of_this_process_alone() -> None:
    value = PerProcess(lambda: "made", first="first")
    assert (value.get(), in_a_child(value.get), value.get()) == ("first", "made", "first")


class Noted:
    """Writes a line to a file when it is freed."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __del__(self) -> None:
        with self.file.open("a") as file:
            file.write(f"{os.getpid()}\n")


@pytest.mark.parametrize("used", [False, True])
def test_child_frees_its_own_value_but_never_its_parents(tmp_path: Path, used: bool) -> None:
    file = tmp_path / "freed"
    values = [PerProcess(lambda: Noted(file))]
    values[0].get()

    def drop() -> int:
        if used:
            values[0].get()
        values.clear()  # the last reference
        return os.getpid()

    child = in_a_child(drop)
    assert file.exists() == used and (not used or file.read_text() == f"{child}\n")
    drop()
    assert file.read_text().splitlines()[-1] == str(os.getpid())


def test_threads_that_ask_at_once_get_one_value() -> None:
    def make() -> object:
        time.sleep(0.05)
        return object()

    value, got = PerProcess(make), []
    threads = [threading.Thread(target=lambda: got.append(value.get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4 and len(set(got)) == 1


def test_lock_that_another_thread_holds_does_not_stop_a_child() -> None:
    lock = PerProcess(threading.Lock)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock.get():
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        assert in_a_child(lambda: lock.get().acquire(timeout=5)) == "True"
        assert not lock.get().acquire(blocking=False)
    finally:
        done.set()
        holder.join()
