"""The run folder of a fit: what was asked, what was learned, how it went, and where to go on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_tune.errors import RunError
from prompt_tune.files import replacing

METADATA_KEY = "prompt-tune"  # one key: safetensors writes several in random order
CACHE_FOLDER = "regions"  # may be there before the run is
STATE_TENSORS = {"ctx", "best_ctx", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True, eq=False)
class TrainState:
    """All that the next epoch depends on.

    tensors: ctx, best_ctx, and AdamW's exp_avg and exp_avg_sq, all of ctx's shape. step: AdamW's. best_ap, best_ap50:
    in 0..1, of best_epoch. Epochs count from 1.
    """

    epoch: int
    best_epoch: int
    best_ap: float
    best_ap50: float
    step: int
    tensors: dict[str, Tensor]


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

    def save_state(self, state: TrainState) -> None:
        """Write what `--resume` reads; no pickle."""
        from safetensors.torch import save_file

        fields = {name: value for name, value in vars(state).items() if name != "tensors"}
        tensors = {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.tensors.items()
        }
        with replacing(self.state) as path:
            save_file(tensors, path, metadata={METADATA_KEY: json.dumps(fields, sort_keys=True)})

    def load_state(self, shape: torch.Size) -> TrainState | None:
        """The saved state, or None where no epoch was done yet.

        Args:    shape: of `ctx`.
        Raises:  RunError: the file is damaged or of another shape.
        """
        from safetensors import SafetensorError, safe_open

        if not self.state.is_file():
            return None
        try:
            with safe_open(self.state, framework="pt") as file:
                fields = json.loads(file.metadata()[METADATA_KEY])
                names = set(file.keys())
                state = TrainState(tensors={name: file.get_tensor(name) for name in names}, **fields)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{self.state} is damaged: {error}. Delete it to train again from the cache.") from error
        if names != STATE_TENSORS or any(tensor.shape != shape for tensor in state.tensors.values()):
            raise RunError(
                f"{self.state} must hold {sorted(STATE_TENSORS)} of shape {tuple(shape)}. Delete it to train again "
                "from the cache."
            )
        return state

    def draw_curves(self) -> None:
        """Loss, AP and AP50 by epoch as a picture; none where no epoch is on record."""
        from matplotlib.figure import Figure  # the object interface: no display, no global state

        lines = self.read_metrics()
        if not lines:
            return
        epochs = [line["epoch"] for line in lines]
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(epochs, [line["loss"] for line in lines], color="tab:red")
        left.set(title="training loss", xlabel="epoch", yscale="log")
        for key, label in (("ap50", "AP50"), ("ap", "AP")):
            right.plot(epochs, [line[key] for line in lines], label=label)
        best = max(lines, key=lambda line: line["ap"])
        right.axvline(best["epoch"], color="grey", linestyle=":", label=f"kept: epoch {best['epoch']}")
        right.set(title="validation, learned classes", xlabel="epoch", ylim=(0, 1))
        right.legend()
        for axes in (left, right):
            axes.grid(alpha=0.3)
        with replacing(self.curves) as path:
            figure.savefig(path, dpi=110, metadata={"Software": None})


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with its settings beside the rest, so that an error names the one that differs."""
    return {name: value for name, value in config.items() if name != "settings"} | config.get("settings", {})
