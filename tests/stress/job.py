"""The smallest job that does everything: a data set, vocabularies to merge, and the commands on them."""

import json
from dataclasses import dataclass
from pathlib import Path

from bundles import learned_for_tiny
from stress.commands_alone import Ended, import_everything, run, tree
from vocabularies import unit_rows

from prompt_tune.datasets.sample import write_sample

SMALL = ("--epochs", "3", "--updates", "3", "--context-length", "2", "--views", "1")
METRICS = "metrics.jsonl"  # compared without the seconds of each epoch
NOT_COMPARED = ("cache", "config.json", "report.html")  # work, and files with the run's own paths and times


@dataclass(frozen=True)
class Job:
    """A folder with a data set, a finished run, its bundle, and what the commands should write."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Job":
        """Fit and export once."""
        import_everything()
        folder.mkdir(parents=True, exist_ok=True)
        write_sample(folder / "set", n_images=4)
        for name, seed in (("one", 1), ("two", 2), ("old", 3)):
            rows = unit_rows(40, 2, seed=seed)
            names = tuple(f"{name} {i}" for i in range(40))
            learned_for_tiny(names, rows).save(folder / f"{name}.vocab.safetensors")
        job = cls(folder)
        for command in (job.fit(folder / "run"), job.export(folder / "bundle")):
            ended = run(command, folder / "make")
            if ended.status:
                raise RuntimeError(f"{command[0]} failed: {ended.out}")
        return job

    def fit(self, out: Path, *more: object) -> tuple[object, ...]:
        """The command line of a fit."""
        data = self.folder / "set" / "custom" / "custom.yaml"
        return ("fit", "--model", "tiny", "--data", data, "--out", out, *SMALL, *more)

    def export(self, out: Path) -> tuple[object, ...]:
        """The command line of an export."""
        return ("export", self.folder / "run", "--out", out)

    def merge(self, out: Path) -> tuple[object, ...]:
        """The command line of a merge of 80 classes."""
        return ("vocab", "merge", *(self.folder / f"{name}.vocab.safetensors" for name in ("one", "two")), "--out", out)

    def detect(self, out: Path, *, conf: float = 0.05) -> tuple[object, ...]:
        """The command line of a detection."""
        images = self.folder / "set" / "custom" / "images" / "test"
        kinds = [part for kind in ("pictures", "coco", "csv") for part in ("--save", kind)]
        return ("detect", self.folder / "bundle", images, "--out", out, "--conf", conf, "--threads", 1, *kinds)


def expected(command: tuple[object, ...], out: Path, work: Path) -> tuple[dict[str, bytes], Ended]:
    """What a command writes when nothing goes wrong, and how it ended."""
    ended = run(command, work)
    if ended.status:
        raise RuntimeError(f"{command[0]} failed: {ended.out}")
    return contents(out), ended


def contents(out: Path) -> dict[str, bytes]:
    """What is at a command's `--out`, a file or a folder, without what is not compared."""
    if out.is_file():
        return {"": out.read_bytes()}
    found = {name: data for name, data in tree(out).items() if name.split("/")[0] not in NOT_COMPARED}
    if METRICS in found:
        lines = [json.loads(line) for line in found[METRICS].splitlines()]
        found[METRICS] = json.dumps([{key: line[key] for key in line if key != "seconds"} for line in lines]).encode()
    return found
