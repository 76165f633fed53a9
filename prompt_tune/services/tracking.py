"""Run tracking: what `fit --log` tells TensorBoard, MLflow and Weights & Biases, epoch by epoch.

Everything stays in the run folder, unless a tracker's own variables name another place. Usage reports are off.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prompt_tune.errors import PromptTuneError, RunError
from prompt_tune.files import saving
from prompt_tune.privacy import TRACKERS_QUIET, environment
from prompt_tune.report.pictures import embedded_photos
from prompt_tune.run import RESUME, RunFolder
from prompt_tune.services.trackers import MADE, Tracker
from prompt_tune.tuning.fit import FitResult
from prompt_tune.version import install

PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}
NUMBERS = {  # of a line of metrics.jsonl, and how trackers call them
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "seconds": "train/seconds",
    "ap": "val/ap",
    "ap50": "val/ap50",
}
IDS_FILE = "tracking.json"  # in the run folder: each tracker's own name of the run, to continue it
PHOTOS = 12  # of the report that are logged
logger = logging.getLogger(__name__)


class Tracking:
    """The trackers of one run. One that fails is dropped with a warning: learning goes on."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        """Open nothing yet: the run folder may not exist.

        Args:
            names: Of `PACKAGES`; a name that stands twice counts once.
            folder: The run folder.

        Raises:
            PromptTuneError: A package is missing.
        """
        self._names, self._run = tuple(dict.fromkeys(names)), RunFolder(folder)
        self._open: dict[str, Tracker] | None = None
        for name in self._names:
            for package in PACKAGES[name]:
                if find_spec(package) is None:
                    raise PromptTuneError(f"{package} is not installed, and --log {name} needs it: {install(name)}")

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Log an epoch, once its line is in metrics.jsonl. A tracker that is new to the run is told of earlier ones."""
        if self._open is None:
            self._start(line["epoch"])
        self._each(partial(_log, line))

    def finish(self, result: FitResult) -> None:
        """Log what was kept, the pictures, and the files: vocabulary, report, settings."""
        if self._open is None:  # nothing was left to learn
            self._start(1 + max((line["epoch"] for line in self._run.read_metrics()), default=0))
        values = {"kept/epoch": float(result.epoch), "kept/ap": result.ap, "kept/ap50": result.ap50}
        values |= {f"kept/ap50 of {part.label}": part.metrics.ap50 for part in result.unlearned}
        with tempfile.TemporaryDirectory(prefix="prompt-tune-") as folder:
            pictures = {path.stem: path for path in (self._run.curves, self._run.reliability) if path.is_file()}
            for number, (text, content) in enumerate(embedded_photos(self._run.report)[:PHOTOS], 1):
                path = Path(folder, f"photo{number:02}.jpg")
                path.write_bytes(content)
                pictures[f"{path.stem}: {text}"] = path
            files = [path for path in (self._run.learned, self._run.report, self._run.config) if path.is_file()]
            self._each(lambda tracker: tracker.finish(result.epoch, values, pictures, files))

    def places(self) -> list[str]:
        """How to look at what was logged: one line for each tracker."""
        return [tracker.place for tracker in (self._open or {}).values()]

    def close(self, *, whole: bool) -> None:
        """Close all trackers; `whole` is False if the fit has failed."""
        self._each(lambda tracker: tracker.close(whole=whole))

    def _start(self, epoch: int) -> None:
        """Open the trackers before an epoch is logged, and tell those that are new to the run of the earlier ones."""
        self._open = {}
        if not self._names:
            return
        config, known = self._run.read_config(), self._read_ids()
        for name in self._names:
            with self._dropping(name):
                self._open[name] = MADE[name](self._run.folder, config, known.get(name), epoch)
        new = self._open.keys() - known.keys()
        for line in self._run.read_metrics():
            if line["epoch"] < epoch:
                self._each(partial(_log, line), new)
        with saving(self._run.folder / IDS_FILE, RunError, cure=RESUME) as path:
            ids = known | {name: tracker.id for name, tracker in self._open.items()}
            path.write_text(json.dumps(ids, indent=1) + "\n")

    def _read_ids(self) -> dict[str, str]:
        """The trackers' names of the run; empty if there are none, or if the file is damaged."""
        try:
            ids = json.loads((self._run.folder / IDS_FILE).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        known = ids if isinstance(ids, dict) else {}
        return {name: value for name, value in known.items() if isinstance(value, str)}

    def _each(self, act: Callable[[Tracker], None], names: Collection[str] | None = None) -> None:
        """Do something with all open trackers, or with those of these names."""
        for name, tracker in list((self._open or {}).items()):
            if names is None or name in names:
                with self._dropping(name):
                    act(tracker)

    @contextmanager
    def _dropping(self, name: str) -> Iterator[None]:
        """A block that uses a tracker, which is dropped if it fails."""
        try:
            yield
        except Exception as error:  # of somebody else's library: a full disk, a server that is gone, ...
            logger.warning("%s failed, so nothing more is logged to it: %s", name, error)
            (self._open or {}).pop(name, None)


@contextmanager
def tracking(names: Sequence[str], folder: Path) -> Iterator[Tracking]:
    """The trackers of a run, closed at the end, with usage reports off in between.

    Args:
        names: See `Tracking`.
        folder: The run folder.

    Raises:
        PromptTuneError: A package is missing.
    """
    tracked = Tracking(names, folder)
    with environment(TRACKERS_QUIET if names else {}):
        whole = False
        try:
            yield tracked
            whole = True
        finally:
            tracked.close(whole=whole)


def _log(line: Mapping[str, Any], tracker: Tracker) -> None:
    """Log a line of metrics.jsonl."""
    tracker.log(int(line["epoch"]), {NUMBERS[key]: float(line[key]) for key in NUMBERS if key in line})
