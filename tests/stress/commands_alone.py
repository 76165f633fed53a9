"""Runs commands in forked children, which have everything imported and so can be killed in the middle of their work."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST = 300.0  # seconds of one command


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (minus the signal, if one killed it), its output, and its seconds."""

    status: int
    out: str
    seconds: float


def import_everything() -> None:
    """Import what the commands import, so that children begin to work at once. No thread may be started here."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import open_clip  # noqa: F401

    import prompt_tune.deployment.bundle
    import prompt_tune.report.page
    import prompt_tune.runtime.detector
    import prompt_tune.tuning.fit  # noqa: F401
    from prompt_tune.models.ultralytics import quiet_import
    from prompt_tune.report.figures import import_matplotlib
    from prompt_tune.runtime.providers import quiet_onnxruntime

    quiet_import("ultralytics.nn.tasks")
    import_matplotlib()
    quiet_onnxruntime()


def run(arguments: Sequence[object], folder: Path, *, kill_after: float | None = None) -> Ended:
    """`prompt-tune ARGUMENTS` in a child.

    Args:
        arguments: Of the command line.
        folder: For what the child prints, and its temporary files.
        kill_after: Seconds after which SIGKILL ends it.
    """
    log, temporary = folder / "log", folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _be_the_command(arguments, log, temporary)
    limit, status = LONGEST if kill_after is None else kill_after, None
    while status is None:
        done, word = os.waitpid(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(word)
        elif time.monotonic() - started > limit:
            os.kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        else:
            time.sleep(0.001)
    return Ended(status, log.read_text(errors="replace") if log.exists() else "", time.monotonic() - started)


def one_line_error(ended: Ended) -> str | None:
    """None if a command failed as it should, with the status 1 and one line; otherwise what is wrong."""
    lines = ended.out.strip().splitlines()
    if ended.status != 1:
        return f"status {ended.status}: {ended.out[-300:]!r}"
    if "Traceback" in ended.out:
        return f"a traceback: {lines[-1]!r:.300}"
    if not lines or not lines[-1].startswith("Error: "):
        return f"no error in one line: {ended.out[-300:]!r}"
    return None


def tree(folder: Path) -> dict[str, bytes]:
    """Content by relative path of all files that are not hidden."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder) for path in files]
    return {
        str(name): path.read_bytes()
        for name, path in zip(names, files, strict=True)
        if not any(part.startswith(".") for part in name.parts)
    }


def hidden(folder: Path) -> list[Path]:
    """Temporary files that a killed command has left."""
    return [path for path in folder.rglob(".*") if path.is_file() or path.is_dir()]


def _be_the_command(arguments: Sequence[object], log: Path, temporary: Path) -> None:
    status = 70
    try:
        out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ["TMPDIR"] = str(temporary)
        sys.argv = ["prompt-tune", *map(str, arguments)]
        from prompt_tune.cli import main

        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)
