"""TensorBoard, MLflow and Weights & Biases behind one interface. Each library is imported when it is first used."""

import hashlib
import json
import os
import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from prompt_tune.privacy import environment

PROJECT = "prompt-tune"  # the name of the experiment or project, unless the tracker's variable names another
MOST_CHARACTERS = 500  # of a value that MLflow takes as a parameter, in every version


class Tracker(Protocol):
    """Where a run is logged.

    Attributes:
        id: The tracker's own name of the run.
        place: How to look at it, in one line.
    """

    id: str
    place: str

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log the numbers of an epoch."""

    def finish(
        self, epoch: int, values: Mapping[str, float], pictures: Mapping[str, Path], files: Sequence[Path]
    ) -> None:
        """Log what was kept.

        Args:
            epoch: The epoch that was kept.
            values: Its numbers.
            pictures: Files by title.
            files: The vocabulary first, then report and settings.
        """

    def close(self, *, whole: bool) -> None:
        """End the run; `whole` is False if it failed."""


class TensorBoard:
    """Event files in the folder `tensorboard` of the run."""

    def __init__(self, run: Path, config: Mapping[str, Any], known: str | None, epoch: int) -> None:
        """Open the folder. What it has of later epochs, from before a kill, is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run / "tensorboard"
        self._writer = SummaryWriter(str(self._folder), purge_step=None if known is None else epoch)
        if known is None:
            self._writer.add_text("settings", f"```\n{json.dumps(config, indent=1)}\n```")
        self.id, self.place = self._folder.name, shlex.join(["tensorboard", "--logdir", str(run)])

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def finish(
        self, epoch: int, values: Mapping[str, float], pictures: Mapping[str, Path], files: Sequence[Path]
    ) -> None:
        """See `Tracker.finish`. TensorBoard keeps no files, so their names and digests are logged."""
        self.log(epoch, values)
        for title, path in pictures.items():
            with Image.open(path) as image:
                self._writer.add_image(title, np.asarray(image.convert("RGB")), epoch, dataformats="HWC")
        rows = [f"| `{path}` | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |" for path in files]
        self._writer.add_text("files", "\n".join(["| file | SHA-256 |", "| --- | --- |", *rows]), epoch)

    def close(self, *, whole: bool) -> None:
        """See `Tracker.close`."""
        self._writer.close()


class MLflow:
    """A SQLite store in the folder `mlflow` of the run, or what MLFLOW_TRACKING_URI names."""

    def __init__(self, run: Path, config: Mapping[str, Any], known: str | None, epoch: int) -> None:
        """Start a run of the experiment MLFLOW_EXPERIMENT_NAME, or continue it."""
        import mlflow

        folder = run.absolute() / "mlflow"
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            folder.mkdir(exist_ok=True)
            uri = f"sqlite:///{folder / 'mlflow.db'}"
            artifacts = (folder / "artifacts").as_uri()
        else:
            artifacts = None  # where the server keeps them
        self._client = mlflow.MlflowClient(uri)
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self._client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self._client.create_experiment(name, artifacts)
            known = str(self._client.create_run(number, run_name=run.absolute().name).info.run_id)
            for key, value in _flat(config).items():
                self._client.log_param(known, key, value[:MOST_CHARACTERS])
        else:
            self._client.update_run(known, status="RUNNING")
        self.id, self.place = known, shlex.join(["mlflow", "ui", "--backend-store-uri", uri])

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        for name, value in values.items():
            self._client.log_metric(self.id, name, value, step=epoch)

    def finish(
        self, epoch: int, values: Mapping[str, float], pictures: Mapping[str, Path], files: Sequence[Path]
    ) -> None:
        """See `Tracker.finish`."""
        self.log(epoch, values)
        for path in pictures.values():
            self._client.log_artifact(self.id, str(path), "pictures")
        for path in files:
            self._client.log_artifact(self.id, str(path))

    def close(self, *, whole: bool) -> None:
        """See `Tracker.close`."""
        self._client.set_terminated(self.id, "FINISHED" if whole else "FAILED")


class Wandb:
    """Offline, in the folder `wandb` of the run, for `wandb sync`; online if WANDB_MODE says so."""

    def __init__(self, run: Path, config: Mapping[str, Any], known: str | None, epoch: int) -> None:
        """Start a run of the project WANDB_PROJECT, or continue it."""
        mode = os.environ.get("WANDB_MODE", "offline")
        folder = run.absolute()
        self._home = {} if mode == "online" else _wandb_home(folder / "wandb")  # online, the login is in the user's own
        self.id = known or secrets.token_hex(4)
        with self._at_home():
            import wandb

            settings = wandb.Settings(
                console="off",
                host="",
                silent=mode != "online",
                save_code=False,
                disable_git=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            )
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=folder.name,
                id=self.id,
                resume="allow" if mode == "online" else None,
                dir=str(folder),
                mode=mode,
                config=dict(config),
                settings=settings,
            )
        self.place = (
            self._run.url if mode == "online" else shlex.join(["wandb", "sync", str(Path(self._run.dir).parent)])
        )

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._run.log(dict(values), step=epoch)

    def finish(
        self, epoch: int, values: Mapping[str, float], pictures: Mapping[str, Path], files: Sequence[Path]
    ) -> None:
        """See `Tracker.finish`."""
        with self._at_home():
            import wandb

            photos = {title: wandb.Image(str(path), caption=title) for title, path in pictures.items()}
            self._run.log({title.partition(":")[0]: photo for title, photo in photos.items()})
            self._run.summary.update(dict(values))
            artifact = wandb.Artifact(f"vocabulary-{self.id}", type="vocabulary")
            for path in files:
                artifact.add_file(str(path))
            self._run.log_artifact(artifact)

    def close(self, *, whole: bool) -> None:
        """See `Tracker.close`."""
        with self._at_home():
            import wandb

            self._run.finish(exit_code=0 if whole else 1)
            wandb.teardown()  # its own process has written everything only when it is gone

    @contextmanager
    def _at_home(self) -> Iterator[None]:
        """A block in which wandb writes to the run folder, not to the home folder."""
        with environment(self._home):
            yield


def _wandb_home(folder: Path) -> dict[str, str]:
    """Where wandb is to write while it is offline: it would use the home folder."""
    return {f"WANDB_{kind.upper()}_DIR": str(folder / kind) for kind in ("cache", "config", "data")}


def _flat(config: Mapping[str, Any]) -> dict[str, str]:
    """The configuration of a run as parameters: settings beside the rest, and texts as they are."""
    settings = config.get("settings", {})
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in {**{k: v for k, v in config.items() if k != "settings"}, **settings}.items()
    }


# run folder, its configuration, the tracker's name of the run if it has one, and the epoch that comes next
MADE: dict[str, Callable[[Path, Mapping[str, Any], str | None, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": Wandb,
}
