"""The run folder of a fit: what was asked, what was learned, how it went, and where to go on."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_tune.errors import RunError
from prompt_tune.files import replacing

METADATA_KEY = "prompt-tune"


@dataclass(frozen=True, eq=False)
class TrainState:
    """All that the next epoch depends on. tensors: ctx, best_ctx, exp_avg, exp_avg_sq, all of ctx's shape; step: AdamW's."""

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
        self.state = folder / "state.safetensors"

    def open(self, config: dict[str, Any], *, resume: bool) -> None:
        """Start a run, or go on with one that was started with the same configuration.

        A run that stopped before its first epoch has nothing to go on from but the region cache, which any run uses.

        Raises:  RunError: the folder has a run and `resume` is off, or it was started with another configuration.
        """
        if self.config.is_file() and (resume or self.state.is_file()):
            if not resume:
                raise RunError(f"{self.folder} holds a run already. Go on with --resume, or give another --out.")
            self._check_same(config)
            return
        if not self.config.is_file() and self.folder.is_dir() and any(p.name != "regions" for p in self.folder.iterdir()):
            raise RunError(f"{self.folder} is not empty and no run of `fit`. Give another --out.")
        with replacing(self.config) as path:
            path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")

    def _check_same(self, config: dict[str, Any]) -> None:
        """Refuse to go on with other settings."""
        try:
            old = json.loads(self.config.read_text())
        except ValueError as error:
            raise RunError(f"{self.config} is damaged: {error}. Give another --out.") from error
        new = json.loads(json.dumps(config))
        old, new = ({**c, **c.get("settings", {}), "settings": None} for c in (old, new))
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                raise RunError(
                    f"{self.folder} was started with `{name}` {old.get(name)!r}, and this is {new.get(name)!r}. Resume with "
                    "the same settings and data, or give another --out."
                )

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Append one JSON line; lines of an epoch that is done again after a kill are replaced."""
        lines = [old for old in self.read_metrics() if old["epoch"] < line["epoch"]]
        with replacing(self.metrics) as path:
            path.write_text("".join(json.dumps(entry) + "\n" for entry in [*lines, line]))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch."""
        if not self.metrics.is_file():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def save_state(self, state: TrainState) -> None:
        """Write what `--resume` reads; no pickle."""
        from safetensors.torch import save_file

        fields = {k: v for k, v in asdict(state).items() if k != "tensors"}
        with replacing(self.state) as path:
            tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in state.tensors.items()}
            save_file(tensors, path, metadata={METADATA_KEY: json.dumps(fields, sort_keys=True)})

    def load_state(self, shape: torch.Size) -> TrainState | None:
        """The saved state, or None where no epoch was done yet.

        Raises:  RunError: the file is damaged or of another shape.
        """
        from safetensors import SafetensorError, safe_open

        if not self.state.is_file():
            return None
        try:
            with safe_open(self.state, framework="pt") as file:
                fields = json.loads(file.metadata()[METADATA_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118: not a dict
            state = TrainState(tensors=tensors, **fields)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{self.state} is damaged: {error}. Delete it to train again from the cache.") from error
        if any(tensor.shape != shape for tensor in state.tensors.values()):
            raise RunError(f"{self.state} is of another shape than {tuple(shape)}. Delete it to train again.")
        return state

    def draw_curves(self) -> None:
        """Loss, AP and AP50 by epoch as a picture."""
        from matplotlib.figure import Figure  # the object interface: no display, no global state

        lines = self.read_metrics()
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
