"""How long work tells what it has done: the type of the callback, and one that says nothing."""

from collections.abc import Callable

Progress = Callable[[str, int, int | None, str], None]  # stage, done, total (None: unknown), note


def silent(stage: str, done: int, total: int | None, note: str) -> None:
    """A `Progress` that shows nothing."""
