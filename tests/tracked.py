"""A small run that `fit --log` logs: in a sandbox, and in this process to stop and continue it."""

import shutil
from dataclasses import replace
from pathlib import Path

from places import TESTS
from sandbox import Outcome, run_alone

from prompt_tune.datasets.sample import write_sample
from prompt_tune.run import RunFolder
from prompt_tune.services.tracking import tracking
from prompt_tune.tuning.fit import FitResult

SMALL = ("--epochs", "2", "--updates", "3", "--context-length", "2", "--views", "1")
# urllib3 asks whether there is IPv6 by binding a port of this machine; wandb talks with its own process
LOCAL = ("socket(AF_INET6, ", "bind(", "socket.connect /")
LINES = [{"epoch": epoch, "loss": 1.0 / epoch, "ap": 0.1 * epoch, "learning_rate": 0.1} for epoch in (1, 2, 3)]


def fit_logged(folder: Path, name: str) -> tuple[Path, Outcome]:
    """`fit --log NAME` with an empty home and no network: the run folder, and what it left or sent elsewhere."""
    custom, _ = write_sample(folder / "set", n_images=4)
    run = folder / "out" / "my run"
    command = ("fit", "--model", "tiny", "--data", custom, "--out", run, "--log", name, *SMALL)
    outcome = run_alone(folder / "alone", "-m", "prompt_tune", *command)
    return run, replace(outcome, sockets=[line for line in outcome.sockets if not _is_local(line)])


def _is_local(line: str) -> bool:
    """Whether a line of the sandbox's log is about this machine alone."""
    return line.startswith(LOCAL) and ("bind(" not in line or '"::1"' in line)


def stopped_and_continued(folder: Path, name: str) -> RunFolder:
    """Two epochs are logged, then the process is gone; another one logs the third and the end."""
    shutil.copytree(TESTS / "data" / "run", folder)
    run = RunFolder(folder)
    run.metrics.unlink()
    for lines in (LINES[:2], LINES[2:]):
        with tracking([name], folder) as tracked:
            for line in lines:
                run.add_metrics(line)
                tracked.epoch(line)
            if lines[-1] is LINES[-1]:
                tracked.finish(FitResult(folder, 3, 0.3, 0.5, (), finished=True, folds=0, seconds={}))
    return run
