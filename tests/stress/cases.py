"""Runs numbered cases in a child process, which may crash or hang, and prints one line at the end.

Case N of seed S is always the same, so `--first N --cases 1` repeats one, and a large number can be done in parts.
"""

import argparse
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from prompt_tune.errors import PromptTuneError

SHOWN = 20  # faults that are printed
MEMORY = 8 * 2**30  # bytes of address space of a child: more is a fault
LONGEST_ERROR = 4000  # characters
MEMORY_DISK = Path("/dev/shm")  # files of a case live for a millisecond

Check = Callable[[random.Random, Path], str]  # of a random generator and an empty folder: the outcome


class FaultError(Exception):
    """What a case found, as a clause."""


@dataclass
class Result:
    """The outcomes of cases, counted, and the faults."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def run_cases(check: Check, cases: int, *, seed: int = 0, first: int = 0, patience: float = 60.0) -> Result:
    """Run the cases `first` to `first + cases - 1`.

    Args:
        check: Runs one case. A `FaultError`, and any other exception, is a fault.
        cases: How many.
        seed: Draws the cases.
        first: The number of the first.
        patience: Seconds that a case may take.
    """
    context, result, end = multiprocessing.get_context("fork"), Result(), first + cases
    while first < end:
        told = result.outcomes.total() + len(result.faults)
        now: Any = context.Value("q", first, lock=False)
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(check, seed, range(first, end), now, theirs))
        worker.start()
        theirs.close()
        hung = _listen(ours, now, patience, result)
        if hung:
            worker.kill()
        worker.join()
        if not hung and worker.exitcode == 0:
            break
        status = worker.exitcode or 0
        # a child tells its outcomes once a second
        result.outcomes["lost with the process"] += (
            now.value - first - (result.outcomes.total() + len(result.faults) - told)
        )
        died = signal.Signals(-status).name if status < 0 else f"status {status}"
        result.faults.append(
            f"case {now.value}: {f'longer than {patience:g} s' if hung else f'the process died, {died}'}"
        )
        first = now.value + 1
    return result


def check_error(error: PromptTuneError) -> None:
    """The text of an error is one line of reasonable length."""
    text = str(error)
    if not text.strip() or len(text.splitlines()) != 1:
        raise FaultError(f"{type(error).__name__} that is not one line: {text!r:.300}")
    if len(text) > LONGEST_ERROR:
        raise FaultError(f"{type(error).__name__} of {len(text)} characters: {text!r:.200}")


def scratch() -> Path:
    """A new folder, in memory where possible."""
    return Path(tempfile.mkdtemp(prefix="stress-", dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None))


def parser(text: str | None, cases: int) -> argparse.ArgumentParser:
    """The options that all fuzzers share."""
    options = argparse.ArgumentParser(description=text)
    options.add_argument("--cases", type=int, default=cases)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--first", type=int, default=0, help="number of the first case")
    return options


def fuzz(text: str | None, check: Check, arguments: Sequence[str] | None = None, *, cases: int) -> int:
    """The whole of a fuzzer's command: its exit status."""
    given = parser(text, cases).parse_args(arguments)
    started = time.perf_counter()
    result = run_cases(check, given.cases, seed=given.seed, first=given.first)
    head = f"{given.cases} cases (seed {given.seed}, from {given.first})"
    return summary(f"{Path(sys.argv[0]).stem}: {head}", result, time.perf_counter() - started)


def summary(head: str, result: Result, seconds: float) -> int:
    """Print faults and the last line; returns the exit status."""
    for fault in result.faults[:SHOWN]:
        print(fault)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result.outcomes.items()))
    print(f"{head}: {counts or 'nothing'}; {len(result.faults)} faults; {seconds:.0f} s")
    return int(bool(result.faults))


def _listen(ours: Connection, now: Any, patience: float, result: Result) -> bool:
    """Collect what a child sends until it ends; True if a case takes longer than `patience`."""
    last, since = -1, time.monotonic()
    while True:
        if ours.poll(0.2):
            try:
                outcomes, faults = ours.recv()
            except EOFError:
                return False
            result.outcomes.update(outcomes)
            result.faults += faults
        if now.value != last:
            last, since = now.value, time.monotonic()
        elif time.monotonic() - since > patience:
            return True


def _work(check: Check, seed: int, numbers: range, now: Any, out: Connection) -> None:
    """The child."""
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where native decoders complain
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    folder, sent = scratch(), time.monotonic()
    try:
        for number in numbers:
            now.value = number
            try:
                outcomes[check(random.Random(f"{seed}-{number}"), folder)] += 1
            except FaultError as fault:
                faults.append(f"case {number}: {fault}")
            except Exception as error:
                at = traceback.extract_tb(error.__traceback__)[-1]
                ours = [
                    frame for frame in traceback.extract_tb(error.__traceback__) if "prompt_tune/" in frame.filename
                ]
                via = f" (from {Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
                where = f"{Path(at.filename).name}:{at.lineno}{via}"
                faults.append(f"case {number}: {type(error).__name__} at {where}: {error!s:.200}")
            if faults or time.monotonic() - sent > 1 or number == numbers[-1]:
                out.send((outcomes, faults))
                outcomes, faults, sent = Counter(), [], time.monotonic()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
