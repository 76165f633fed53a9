"""Progress bars for work in stages, with rate and remaining time."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prompt_tune.cli.verbosity import is_quiet
from prompt_tune.progress import Progress
from prompt_tune.wording import printable

logger = logging.getLogger(__name__)


@contextmanager
def stages() -> Iterator[Progress]:
    """A `Progress` callback that shows one bar per stage on standard error; none with `--quiet`.

    When the block ends, the time of each stage is logged for `--verbose`.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Steps per second, over the last half minute."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f}/s" if speed else "")

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),  # a file name may have [ ]
    )
    tasks: dict[str, TaskID] = {}
    spans: dict[str, tuple[float, float]] = {}
    with Bars(*columns, console=Console(stderr=True), disable=is_quiet()) as bars:

        def progress(stage: str, done: int, total: int | None, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note="")
            bars.update(tasks[stage], completed=done, total=total, note=printable(note))
            now = time.perf_counter()
            spans[stage] = (spans.get(stage, (now, now))[0], now)

        yield progress
    for stage, (first, last) in spans.items():
        logger.debug("%s: %.1f s from its first step to its last", stage, last - first)
