"""Commands in an empty home folder, without a network, and what they wrote and where they wanted to connect."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

# variables by which a library could be quiet without our doing, or write elsewhere
FORGOTTEN = ("CI", "ORT_", "XDG_", "HF_", "HUGGING", "YOLO_", "MPL", "TORCH", "NO_ALBUM", "TMP", "TEMP", "PYTEST")
CREATED = re.compile(r'(?:openat\(AT_FDCWD, |creat\(|mkdir\(|mkdirat\(AT_FDCWD, )"([^"]+)".*= \d+$')
SOCKET = re.compile(r"\b(?:socket|connect|sendto|sendmsg|sendmmsg|bind)\(.*AF_(?:INET|INET6)\b.*")
# in every Python process, where strace is not there: what Python itself connects to
HOOK = """
import os, sys
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["SANDBOX_LOG"], "a") as log:
            print(event, args[-1], args[:2], file=log)
sys.addaudithook(hook)
"""


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        status: Its exit status.
        out: What it printed.
        left: What is in its home, its temporary and its current folder afterwards.
        created: The files and folders that it made, all of them if strace is installed; else what is left.
        sockets: Calls for the network, those of native code too if strace is installed.
    """

    status: int
    out: str
    left: list[Path]
    created: list[Path]
    sockets: list[str]


def run_alone(folder: Path, *command: object, **environment: str) -> Outcome:
    """Run a Python program, such as ("-m", "prompt_tune", "detect"), in a sandbox.

    Args:
        folder: A new folder for what the sandbox needs.
        command: Python's arguments.
        environment: Variables that the program finds.
    """
    for name in ("home", "tmp", "here", "site"):
        (folder / name).mkdir(parents=True)
    (folder / "site" / "sitecustomize.py").write_text(HOOK)
    log, trace = folder / "log", folder / "trace"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FORGOTTEN)}
    kept |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "SANDBOX_LOG": str(log)}
    kept |= {"PYTHONPATH": os.pathsep.join((str(folder / "site"), str(ROOT))), "PYTHONDONTWRITEBYTECODE": "1"}
    watched = ["strace", "-f", "-qq", "-e", "trace=%network,openat,creat,mkdir,mkdirat", "-o", str(trace)]
    done = subprocess.run(
        [*no_network(), *(watched if has_strace() else ()), sys.executable, *map(str, command)],
        env=kept | environment,
        cwd=folder / "here",
        capture_output=True,
        text=True,
        check=False,
    )
    left = [path for name in ("home", "tmp", "here") for path in (folder / name).rglob("*")]
    created, sockets = left, log.read_text().splitlines() if log.exists() else []
    if has_strace():
        lines = trace.read_text(errors="replace").splitlines()
        made = [match[1] for line in lines if "O_CREAT" in line or "mkdir" in line if (match := CREATED.search(line))]
        created = [folder / "here" / name for name in dict.fromkeys(made)]
        sockets += [match[0] for line in lines if (match := SOCKET.search(line))]
    return Outcome(done.returncode, done.stdout + done.stderr, left, created, sockets)


@cache
def no_network() -> tuple[str, ...]:
    """What starts a program in a network namespace of its own, without a network; skips where that is not allowed."""
    for way in (("unshare", "-n"), ("unshare", "-rn")):
        if shutil.which("unshare") and subprocess.run([*way, "true"], capture_output=True).returncode == 0:
            return way
    pytest.skip("a network namespace cannot be made here (`unshare -rn`)")


@cache
def has_strace() -> bool:
    """Whether processes can be traced here."""
    if not shutil.which("strace"):
        return False
    return subprocess.run(["strace", "-f", "-qq", "-e", "trace=none", "true"], capture_output=True).returncode == 0
