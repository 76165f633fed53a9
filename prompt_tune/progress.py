"""How long work reports its progress."""

from collections.abc import Callable

Progress = Callable[[str, int, int | None, str], None]  # stage, steps done, steps in all (None: unknown), note


def silent(stage: str, done: int, total: int | None, note: str) -> None:
    """A `Progress` that shows nothing."""
