"""Kills `fit`, `export`, `vocab merge` and `detect` with SIGKILL at random points, runs them again, compares bytes.

After each kill, what was there before must be whole: the old file or folder, or the new one. After the second run,
everything must be equal to that of a run that was never killed. `fit` goes on with `--resume`.

python tests/stress/kill.py --cases 50 --seed 1
"""

import argparse
import io
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image
from stress.cases import Result, summary
from stress.commands_alone import hidden, run
from stress.job import Job, contents, expected

from prompt_tune.files import backup_of

MOST_KILLS = 3  # of one case


def kill_fit(job: Job, work: Path, cases: int, rng: random.Random) -> Result:
    """`fit`, resumed until it is done."""
    wanted, ended = expected(job.fit(work / "run"), work / "run", work)
    result = Result()
    for case in range(cases):
        shutil.rmtree(work / "run")
        kills = 0
        for _ in range(rng.randint(1, MOST_KILLS)):
            kills += run(job.fit(work / "run", "--resume"), work, kill_after=rng.uniform(0, ended.seconds)).status == -9
        last = run(job.fit(work / "run", "--resume"), work)
        result.outcomes["kills"] += kills
        result.outcomes["temporary files left"] += len(hidden(work / "run"))
        _compare(result, f"fit {case}", last.status, last.out, contents(work / "run"), wanted)
    return result


def kill_over_old(
    command: Callable[[Path], tuple[object, ...]], out: Path, old: Path, whole: Callable[[Path], str | None]
) -> Callable[[Path, int, random.Random], Result]:
    """A killer for a command that replaces `old`, which lies at `out`; `whole` says what is wrong after a kill."""

    def kill(work: Path, cases: int, rng: random.Random) -> Result:
        place = work / out
        wanted, ended = expected(command(place), place, work)
        before, result = contents(old), Result()
        for case in range(cases):
            for path in (place, backup_of(place)):
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)
            (shutil.copytree if old.is_dir() else shutil.copyfile)(old, place)
            result.outcomes["kills"] += run(command(place), work, kill_after=rng.uniform(0, ended.seconds)).status == -9
            kept = place if place.exists() else backup_of(place)
            if not kept.exists():
                result.faults.append(f"{out} {case}: neither the old nor the new one is there")
            elif (found := contents(kept)) not in (before, wanted) and (wrong := whole(kept)):
                result.faults.append(f"{out} {case}: after the kill, {wrong}")
            else:
                result.outcomes["old kept" if found == before else "new there" if found == wanted else "between"] += 1
            last = run(command(place), work)
            _compare(result, f"{out} {case}", last.status, last.out, contents(place), wanted)
        result.outcomes["temporary files left"] += len([path for path in work.glob(".*") if path != work])
        return result

    return kill


def killers(job: Job) -> dict[str, Callable[[Path, int, random.Random], Result]]:
    """A killer for each command."""
    old = job.folder / "old"
    if not old.exists():
        old.mkdir()
        shutil.copytree(job.folder / "bundle", old / "bundle")
        (old / "bundle" / "README.md").write_text("an older bundle\n")
        run(job.detect(old / "found", conf=0.3), job.folder / "make")
        shutil.copyfile(job.folder / "old.vocab.safetensors", old / "merged.vocab.safetensors")

    def never(_: Path) -> str:
        return "it is neither the old nor the new one"

    return {
        "fit": lambda work, cases, rng: kill_fit(job, work, cases, rng),
        "export": kill_over_old(job.export, Path("bundle"), old / "bundle", never),
        "merge": kill_over_old(job.merge, Path("merged.vocab.safetensors"), old / "merged.vocab.safetensors", never),
        "detect": kill_over_old(job.detect, Path("found"), old / "found", broken_results),
    }


def broken_results(folder: Path) -> str | None:
    """`detect` replaces file after file: each must be whole."""
    for name, data in contents(folder).items():
        try:
            if name.endswith(".json"):
                json.loads(data)
            elif name.endswith((".jpg", ".png")):
                Image.open(io.BytesIO(data)).load()
            elif name.endswith(".csv") and not data.endswith(b"\n"):
                return f"{name} is cut short"
        except (OSError, ValueError) as error:
            return f"{name} is damaged: {error}"
    return None


def _compare(
    result: Result, case: str, status: int, out: str, found: dict[str, bytes], wanted: dict[str, bytes]
) -> None:
    """The second run worked, and what it wrote is what was wanted."""
    differing = [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
    if status:
        result.faults.append(f"{case}: the second run failed: {out[-300:]!r}")
    elif differing:
        result.faults.append(f"{case}: not the same bytes: {', '.join(differing)}")
    else:
        result.outcomes["same bytes"] += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=50, help="of each command")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", choices=("fit", "export", "merge", "detect"))
    given = options.parse_args(arguments)
    status = 0
    with tempfile.TemporaryDirectory(prefix="stress-") as folder:
        job = Job.make(Path(folder) / "job")
        for name, kill in killers(job).items():
            if given.only in (None, name):
                started, work = time.perf_counter(), Path(folder) / name
                work.mkdir()
                result = kill(work, given.cases, random.Random(f"{given.seed}-{name}"))
                head = f"kill {name}: {given.cases} cases (seed {given.seed})"
                status |= summary(head, result, time.perf_counter() - started)
    return status


if __name__ == "__main__":
    sys.exit(main())
