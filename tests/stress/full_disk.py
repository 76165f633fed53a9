"""Runs `fit`, `export`, `vocab merge` and `detect` on small disks that fill up, then makes room and runs them again.

On the full disk: status 0, or status 1 and one line; an old bundle or vocabulary stays whole. With room: the bytes of a
run that never met a full disk. `fit` goes on with `--resume`. The disks are tmpfs, so this needs to be root.

python tests/stress/full_disk.py --cases 20 --seed 1
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stress.cases import Result, summary
from stress.commands_alone import one_line_error, run
from stress.job import Job, contents, expected

from prompt_tune.files import backup_of

PAGE = 4096
ROOMY = 512 * 2**20


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of `size` bytes at `folder`, unmounted in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True, capture_output=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(folder: Path, size: int) -> None:
    """Make the disk larger."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True, capture_output=True)


def why_not() -> str | None:
    """Why no disk can be mounted here, or None."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", PAGE):
                return None
        except (OSError, subprocess.CalledProcessError) as error:
            return f"a tmpfs cannot be mounted here ({type(error).__name__}); this needs to be root"


def fill(
    command: Callable[[Path], tuple[object, ...]],
    again: Callable[[Path], tuple[object, ...]],
    old: Path | None,
    work: Path,
    name: str,
    cases: int,
    rng: random.Random,
) -> Result:
    """Run a command on `cases` disks of different sizes; `old` lies at its place before."""
    disk = work / "disk"
    out = disk / name
    with small_disk(disk, ROOMY):
        wanted, _ = expected(command(out), out, work)
        needed = shutil.disk_usage(disk).used
    before = contents(old) if old else {}
    occupied = 0 if old is None else sum(-(-len(data) // PAGE) * PAGE for data in before.values()) + 16 * PAGE
    result = Result()
    for case in range(cases):
        size = occupied + max(PAGE * 4, int(needed * rng.uniform(0, 1.1)))
        with small_disk(disk, size // PAGE * PAGE):
            if old:
                (shutil.copytree if old.is_dir() else shutil.copyfile)(old, out)
            first = run(command(out), work)
            if first.status == 0:
                result.outcomes["enough room"] += 1
            elif wrong := one_line_error(first):
                result.faults.append(f"{name} {case} ({size} bytes): {wrong}")
            else:
                result.outcomes["one line"] += 1
                kept = out if out.exists() else backup_of(out)
                if old and name != "found" and (not kept.exists() or contents(kept) != before):
                    result.faults.append(f"{name} {case} ({size} bytes): what was there before is damaged")
            grow(disk, ROOMY)
            last = run(again(out) if first.status else command(out) if name != "run" else again(out), work)
            differing = [key for key, data in wanted.items() if contents(out).get(key) != data]
            if last.status or differing:
                result.faults.append(f"{name} {case} ({size} bytes): with room, {last.out[-300:]!r}, other {differing}")
            else:
                result.outcomes["same bytes with room"] += 1
    return result


def fillers(job: Job) -> dict[str, Callable[[Path, int, random.Random], Result]]:
    """A filler for each command."""
    old = job.folder / "old.vocab.safetensors"
    return {
        "fit": lambda work, cases, rng: fill(
            job.fit, lambda out: job.fit(out, "--resume"), None, work, "run", cases, rng
        ),
        "export": lambda work, cases, rng: fill(
            job.export, job.export, job.folder / "bundle", work, "bundle", cases, rng
        ),
        "merge": lambda work, cases, rng: fill(job.merge, job.merge, old, work, "m.vocab.safetensors", cases, rng),
        "detect": lambda work, cases, rng: fill(job.detect, job.detect, None, work, "found", cases, rng),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=20, help="disks for each command")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", choices=("fit", "export", "merge", "detect"))
    given = options.parse_args(arguments)
    if reason := why_not():
        print(f"full_disk: skipped, {reason}")
        return 0
    status = 0
    with tempfile.TemporaryDirectory(prefix="stress-") as folder:
        job = Job.make(Path(folder) / "job")
        for name, filler in fillers(job).items():
            if given.only in (None, name):
                started, work = time.perf_counter(), Path(folder) / name
                work.mkdir()
                result = filler(work, given.cases, random.Random(f"{given.seed}-{name}"))
                head = f"full_disk {name}: {given.cases} disks (seed {given.seed})"
                status |= summary(head, result, time.perf_counter() - started)
    return status


if __name__ == "__main__":
    sys.exit(main())
