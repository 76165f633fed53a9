"""The run folder of a fit: what was asked, what was learned, how it went, and where to go on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_tune.errors import RunError
from prompt_tune.files import replacing

if TYPE_CHECKING:
    pass

CONFIG_FILE = "config.json"  # of a run folder
CACHE_FOLDER = "regions"  # may be there before the run is


class RunFolder:
    """Paths and files of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.prompts = folder / "prompts.safetensors"
        self.original = folder / "original.vocab.safetensors"
        self.learned = folder / "learned.vocab.safetensors"
        self.metrics = folder / "metrics.jsonl"
        self.curves = folder / "curves.png"
        self.reliability = folder / "reliability.png"
        self.report = folder / "report.html"
        self.state = folder / "state.safetensors"

    def open(self, config: dict[str, Any], *, resume: bool) -> None:
        """Start a run, or go on with one that was started with the same configuration.

        Raises:  RunError: the folder has a run and `resume` is off, it was started with another configuration, it holds
                 something else, or it cannot be written.
        """
        if self.config.is_file():
            if not resume:
                raise RunError(f"{self.folder} holds a run already. Go on with --resume, or give another --out.")
            self._check_same(config)
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder} is a file; a run needs a folder. Give another --out.")
        # a hidden file may be what a killed process was writing
        if self.folder.exists() and any(p.name != CACHE_FOLDER and p.name[0] != "." for p in self.folder.iterdir()):
            raise RunError(f"{self.folder} is not empty and no run of `fit`. Give another --out.")
        try:
            with replacing(self.config) as path:
                path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            raise RunError(f"{self.folder} cannot be written: {error.strerror}. Give another --out.") from error

    def _check_same(self, config: dict[str, Any]) -> None:
        """Refuse to go on with other settings."""
        try:
            old = json.loads(self.config.read_text())
        except ValueError as error:
            raise RunError(f"{self.config} is damaged: {error}. Give another --out.") from error
        if not isinstance(old, dict):
            raise RunError(f"{self.config} is damaged: it holds no settings. Give another --out.")
        old, new = _flat(old), _flat(json.loads(json.dumps(config)))
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                raise RunError(
                    f"{self.folder} was started with `{name}` {old.get(name)!r}, and this is {new.get(name)!r}. Resume "
                    "with the same settings and data, or give another --out."
                )

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Append one JSON line; lines of an epoch that is done again after a kill are replaced."""
        lines = [old for old in self.read_metrics() if old["epoch"] < line["epoch"]]
        with replacing(self.metrics) as path:
            path.write_text("".join(json.dumps(entry) + "\n" for entry in [*lines, line]))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch.

        Raises:  RunError: the file is damaged.
        """
        if not self.metrics.is_file():
            return []
        try:
            return [json.loads(line) for line in self.metrics.read_text().splitlines()]
        except ValueError as error:
            raise RunError(f"{self.metrics} is damaged: {error}. Delete it; the result does not need it.") from error


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with its settings beside the rest, so that an error names the one that differs."""
    return {name: value for name, value in config.items() if name != "settings"} | config.get("settings", {})
