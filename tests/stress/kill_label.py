"""Kills `label` and its workers with SIGKILL at random points, runs it again, and compares bytes.

One folder of results goes through all kills: each case begins with what the last one left, so that a row that is lost
or written twice anywhere shows at the end. Then the folder must have the bytes of a run that was never killed. A worker
that is killed must be replaced, and its run must end well.

python tests/stress/kill_label.py BUNDLE --cases 10 --seed 1
python tests/stress/kill_label.py BUNDLE --cases 10 --seed 1 --engine ray
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from labelling import files_of, rows_of, write_photos
from stress.cases import Result, summary

from prompt_tune.services.results import Results

PHOTOS = 60  # for each case, so that there is always something left to do
PART = 3
PARTS_AT_ONCE = 2  # workers
LONGEST = 120  # seconds of a run


def kill_label(
    work: Path, bundle: Path, cases: int, rng: random.Random, *, show: Sequence[str] = (), address: str | None = None
) -> Result:
    """Kill the command or one of its workers in each case.

    Args:
        work: An empty folder.
        bundle: What to label with.
        cases: Number of kills to try.
        rng: Decides whom to kill, and when.
        show: Classes to write; by default all.
        address: Of a Ray cluster of this machine, or None for the local engine.
    """
    result, photos = Result(), work / "photos"
    photos.mkdir()
    paths = write_photos(photos, PHOTOS * cases)
    engine = ("--engine", "ray", "--address", address) if address else ()

    def start(out: Path, until: int) -> subprocess.Popen[str]:
        """Label the first images: more with each case."""
        listed = work / "listed"
        listed.mkdir(exist_ok=True)
        for path in paths[:until]:
            with suppress(FileExistsError):
                (listed / path.name).symlink_to(path)
        options = ("--part", str(PART), "--batch", "2", "--workers", str(PARTS_AT_ONCE), "--threads", "1")
        command = ("label", bundle, listed, "--out", out, *options, *(f"--show={name}" for name in show), *engine)
        return subprocess.Popen(
            [sys.executable, "-m", "prompt_tune", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    for case in range(cases):
        until = PHOTOS * (case + 1)
        before = len(list(Results(work / "out").paths()))
        process = start(work / "out", until)
        goal = before + rng.randrange(0, PHOTOS)  # rows after which it is killed
        whom = rng.choice(("command", "worker"))
        deadline = time.monotonic() + LONGEST
        while process.poll() is None and time.monotonic() < deadline:
            if len(Results(work / "out").parts()) * PART >= goal and (pids := workers(process.pid, bool(address))):
                time.sleep(rng.uniform(0, 0.05))
                with suppress(ProcessLookupError):
                    os.kill(process.pid if whom == "command" else rng.choice(pids), signal.SIGKILL)
                    result.outcomes["kills"] += 1
                    result.outcomes[f"kills of a {whom}"] += 1
                break
            time.sleep(0.002)
        try:
            out, _ = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            process.kill()
            result.faults.append(f"case {case}: it hangs after the kill of a {whom}")
            continue
        if process.returncode not in (0, -signal.SIGKILL) or (whom == "worker" and process.returncode):
            result.faults.append(f"case {case}: status {process.returncode} after the kill of a {whom}: {out[-500:]}")
        result.outcomes["ended" if process.returncode == 0 else "stopped"] += 1
        _whole(result, case, work / "out")
    last = start(work / "out", len(paths))
    text, _ = last.communicate(timeout=LONGEST)
    clean, _ = start(work / "clean", len(paths)).communicate(timeout=LONGEST)
    if last.returncode:
        result.faults.append(f"the last run ended with {last.returncode}: {text[-500:]}")
    if rows_of(work / "out") != rows_of(work / "clean"):
        result.faults.append(f"other rows than those of a run that was not killed: {clean[-200:]}")
    if len(rows_of(work / "out")) != len(paths):
        result.faults.append(f"{len(rows_of(work / 'out'))} rows for {len(paths)} images")
    result.outcomes["equal files"] += len(files_of(work / "out").items() & files_of(work / "clean").items())
    if hidden := list((work / "out").glob(".*")):
        result.faults.append(f"left: {hidden}")
    return result


def workers(pid: int, on_ray: bool) -> list[int]:
    """The processes that label."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ")
            parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if command.startswith(b"ray::MapWorker") if on_ray else (parent == pid and b"spawn_main" in command):
                found.append(int(place.name))
    return found


def _whole(result: Result, case: int, out: Path) -> None:
    """After a kill: files that are there can be read, and have no row twice."""
    try:
        rows_of(out)
    except Exception as error:
        result.faults.append(f"case {case}: {type(error).__name__}: {error}")


@contextmanager
def two_nodes() -> Iterator[str]:
    """A Ray cluster of two nodes on this machine; its address."""
    from prompt_tune.privacy import quiet_imports

    with quiet_imports():
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=1)
            yield cluster.address
        finally:
            cluster.shutdown()


def main() -> None:
    """Run the cases, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rng, bundle = random.Random(options.seed), options.bundle.absolute()
        if options.engine == "ray":
            with two_nodes() as address:
                result = kill_label(Path(folder), bundle, options.cases, rng, address=address)
        else:
            result = kill_label(Path(folder), bundle, options.cases, rng)
    sys.exit(summary(f"label, engine {options.engine}", result, time.monotonic() - began))


if __name__ == "__main__":
    main()
