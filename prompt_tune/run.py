"""The run folder of a fit: its settings, what was learned, how it went, and where to continue."""

import json
import logging
from pathlib import Path
from typing import Any

from prompt_tune.errors import RunError
from prompt_tune.files import saving

CONFIG_FILE = "config.json"
HELD_OUT = "held_out"  # key of the images that were held out; runs of 0.1.0 lack it
IMAGES = "sample_images"  # key of the digest of all images; runs of 0.1.0 lack it
PLACES = ("model", "data", "replay", "text_tower", "against")  # may move: digests say whether they are the same
LINE = ("epoch", "loss")  # numbers that every line of metrics.jsonl has
CACHE_FOLDER = "regions"  # may exist before the run does
RESUME = "Make room or allow writing, then continue with --resume."  # the cure if a file cannot be written
logger = logging.getLogger(__name__)


class RunFolder:
    """The files of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / CONFIG_FILE
        self.prompts = folder / "prompts.safetensors"
        self.original = folder / "original.vocab.safetensors"
        self.learned = folder / "learned.vocab.safetensors"
        self.metrics = folder / "metrics.jsonl"
        self.curves = folder / "curves.png"
        self.reliability = folder / "reliability.png"
        self.report = folder / "report.html"
        self.state = folder / "state.safetensors"
        self.folds = folder / "folds.safetensors"  # contexts of the cross-validation
        self.left_out = folder / "left_out.txt"  # all that is left out of the data, a line each

    def open(self, config: dict[str, Any], *, resume: bool) -> None:
        """Start a run, or resume one that was started with the same configuration.

        Data, model and text tower may have moved since: if all digests agree, the new places are recorded.

        Raises:
            RunError: The folder has a run and `resume` is off, the run was started with another configuration, the
                folder holds something else, or it cannot be written.
        """
        if self.config.is_file():
            if not resume:
                raise RunError(f"{self.folder} holds a run already. Continue it with --resume, or give another --out.")
            self._check_same(config)
            self._record_places(config)
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder} is a file; a run needs a folder. Give another --out.")
        # a hidden file may be left from a process that was killed while writing
        if self.folder.exists() and any(p.name != CACHE_FOLDER and p.name[0] != "." for p in self.folder.iterdir()):
            raise RunError(f"{self.folder} is not empty, and it is not a run of `fit`. Give another --out.")
        self._write_config(config)

    def _write_config(self, config: dict[str, Any]) -> None:
        with saving(self.config, RunError, cure="Give another --out or make room.") as path:
            path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")

    def read_config(self) -> dict[str, Any]:
        """The configuration that was written: any JSON object, whose `settings` are an object too if there are any.

        Raises:
            RunError: The file cannot be read or is damaged.
        """
        try:
            config = json.loads(self.config.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{self.config} is damaged: {error}. Run `prompt-tune fit` in a new folder.") from error
        if not isinstance(config, dict) or not isinstance(config.get("settings", {}), dict):
            raise RunError(f"{self.config} is damaged: it holds no settings. Run `prompt-tune fit` in a new folder.")
        return config

    def held_out(self) -> tuple[str, ...]:
        """The content digests of the images that the run held out; none if it recorded none, or is not there yet.

        Raises:
            RunError: The record is damaged.
        """
        recorded = self.read_config().get(HELD_OUT, []) if self.config.is_file() else []
        if not isinstance(recorded, list) or not all(isinstance(digest, str) for digest in recorded):
            raise RunError(f"{self.config} is damaged: `{HELD_OUT}` is not a list of digests. Give another folder.")
        return tuple(recorded)

    def _check_same(self, config: dict[str, Any]) -> None:
        """Refuse to resume with other settings."""
        old, new = _flat(self.read_config()), _flat(json.loads(json.dumps(config)))
        may_move = IMAGES in old
        for name in (HELD_OUT, IMAGES):
            if name not in old:
                new.pop(name, None)
        differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if differing and not (may_move and set(differing) <= set(PLACES)):
            name = differing[0]
            raise RunError(
                f"{self.folder} was started with `{name}` {old.get(name)!r}. Received: {new.get(name)!r}. Resume "
                "it with the same settings and data, or give another --out."
            )

    def _record_places(self, config: dict[str, Any]) -> None:
        """Record where data, model and text tower are now, if they have moved."""
        old = self.read_config()
        moved = {name: config[name] for name in PLACES if name in config and config[name] != old.get(name)}
        if moved:
            logger.info("Moved since the run was started, and the same: %s.", ", ".join(moved))
            self._write_config(old | moved)

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Append one JSON line. If an epoch is done again after a kill, its line is replaced."""
        lines = [old for old in self.read_metrics() if old["epoch"] < line["epoch"]]
        with saving(self.metrics, RunError, cure=RESUME) as path:
            path.write_text("".join(json.dumps(entry) + "\n" for entry in [*lines, line]))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one for each epoch.

        Raises:
            RunError: The file is damaged.
        """
        if not self.metrics.exists():
            return []
        try:
            lines = [json.loads(line) for line in self.metrics.read_text("utf-8").splitlines()]
            for line in lines:
                if not isinstance(line, dict) or not all(type(line.get(key)) in (int, float) for key in LINE):
                    raise ValueError(f"a line must have the numbers {', '.join(LINE)}. Received: {line!r:.80}")
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{self.metrics} is damaged: {error}. Delete it; the result does not need it.") from error
        return lines


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with its settings on the top level, so that an error can name the one that differs."""
    return {name: value for name, value in config.items() if name != "settings"} | config.get("settings", {})
