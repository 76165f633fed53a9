"""A real server process for tests and benchmarks: `prompt-tune serve` on a free port."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from places import ROOT

START_SECONDS = 60


@dataclass
class Served:
    """A server that runs.

    Attributes:
        process: Its process.
        url: Where it listens.
        log: The file with what it prints.
    """

    process: "subprocess.Popen[str]"
    url: str
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return host, int(port)

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Ask it to stop. Its exit status, and all that it printed."""
        self.process.send_signal(number)
        status = self.process.wait(60)
        return status, self.log.read_text()


@contextmanager
def served(bundle: Path, log: Path, *options: str, **environment: str) -> Iterator[Served]:
    """A server, which is killed at the end if it still runs.

    Args:
        bundle: What it serves.
        log: A new file for what it prints.
        options: Of `prompt-tune serve`.
        environment: More variables.
    """
    command = [sys.executable, "-m", "prompt_tune", "serve", str(bundle), "--port", "0", *options]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment}
    with (
        log.open("w") as file,
        subprocess.Popen(command, env=variables, stdout=file, stderr=subprocess.STDOUT, text=True) as process,
    ):
        try:
            end = time.monotonic() + START_SECONDS
            while not (found := re.search(r" on (http://\S+)", log.read_text())):
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            yield Served(process, found[1], log)
        finally:
            process.kill()
