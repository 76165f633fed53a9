"""How long work reports its progress."""

from collections.abc import Callable, Mapping
from typing import Any

Progress = Callable[[str, int, int | None, str], None]  # stage, steps done, steps in all (None: unknown), note
Epoch = Callable[[Mapping[str, Any]], None]  # a line of metrics.jsonl, once it is written


def silent(stage: str, done: int, total: int | None, note: str) -> None:
    """A `Progress` that shows nothing."""


def untold(line: Mapping[str, Any]) -> None:
    """An `Epoch` that tells nobody."""
