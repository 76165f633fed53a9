"""Values that do not survive a fork, such as threads, locks and ONNX Runtime's sessions: each process makes its own."""

import ctypes
import os
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_alive: "weakref.WeakSet[PerProcess[Any]]" = weakref.WeakSet()


class PerProcess(Generic[T]):
    """A value that each process makes at its first use.

    A forked child does not use its parent's value, and never frees it either: a session that is freed waits for its
    threads, which the child does not have (onnxruntime #31961).
    """

    def __init__(self, make: Callable[[], T], *, first: T | None = None) -> None:
        """Prepare the value.

        Args:
            make: Makes the value. If two threads call it at the same time, both get the same value.
            first: The value of this process, if there is one already.
        """
        self._make = make
        self._made: dict[str, T] = {} if first is None else {"value": first}
        _alive.add(self)
        _watch_forks()

    def get(self) -> T:
        """The value of this process."""
        made = self._made
        if "value" not in made:
            made.setdefault("value", self._make())  # atomic, and no lock that a fork could leave locked
        return made["value"]

    def leave_to_parent(self) -> None:
        """In a forked child: keep the parent's value for ever, and make another one at the next use."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._made))
        self._made = {}


@cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    for value in list(_alive):
        value.leave_to_parent()
