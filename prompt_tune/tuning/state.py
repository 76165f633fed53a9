"""The state of training that a run folder keeps, so that `--resume` continues to the same bytes. No pickle."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prompt_tune.errors import RunError
from prompt_tune.files import read_sealed, saving, sealed_bytes
from prompt_tune.run import RESUME, RunFolder

STATE_TENSORS = {"ctx", "best_ctx", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True, eq=False)
class TrainState:
    """Everything that the next epoch depends on.

    Attributes:
        epoch: The last epoch that was done, counted from 1.
        best_epoch: The epoch with the highest AP.
        best_ap: Its AP, in 0..1.
        best_ap50: Its AP50.
        step: AdamW's step.
        tensors: `ctx`, `best_ctx`, and AdamW's `exp_avg` and `exp_avg_sq`, all in the shape of `ctx`.
    """

    epoch: int
    best_epoch: int
    best_ap: float
    best_ap50: float
    step: int
    tensors: dict[str, Tensor]


def save_state(run: RunFolder, state: TrainState) -> None:
    """Write what `--resume` reads, whole or not at all.

    Raises:
        RunError: It cannot be written; the state before is still there.
    """
    fields = {name: value for name, value in vars(state).items() if name != "tensors"}
    data = sealed_bytes({name: tensor.detach().cpu().numpy() for name, tensor in state.tensors.items()}, fields)
    with saving(run.state, RunError, cure=RESUME) as path:
        path.write_bytes(data)


def load_state(run: RunFolder, shape: torch.Size) -> TrainState | None:
    """The saved state, or None if no epoch was done yet.

    Args:
        run: The run folder.
        shape: The shape of `ctx`.

    Raises:
        RunError: The file is damaged, or its tensors have another shape.
    """
    if not run.state.exists():
        return None

    def check(_: dict[str, Any], names: set[str]) -> None:
        if names != STATE_TENSORS:
            raise ValueError(f"it must hold {sorted(STATE_TENSORS)}. Received: {sorted(names)}")

    try:
        fields, arrays = read_sealed(run.state, check)
        _check_fields(fields)
        state = TrainState(tensors={name: torch.from_numpy(array) for name, array in arrays.items()}, **fields)
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{run.state} is damaged: {error}. Delete it to train again from the cache.") from error
    if any(tensor.shape != shape or not bool(tensor.isfinite().all()) for tensor in state.tensors.values()):
        raise RunError(
            f"{run.state} must hold finite tensors of shape {tuple(shape)}. Delete it to train again from the cache."
        )
    return state


def _check_fields(fields: dict[str, Any]) -> None:
    """Refuse numbers that a training cannot have."""
    kinds = {"epoch": int, "best_epoch": int, "best_ap": float, "best_ap50": float, "step": int}
    if fields.keys() != kinds.keys():
        raise ValueError(f"it must hold {sorted(kinds)}. Received: {sorted(fields)}")
    for name, kind in kinds.items():
        value = fields[name]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"`{name}` must be a number. Received: {value!r:.50}")
    if not 1 <= fields["best_epoch"] <= fields["epoch"] or fields["step"] < 1:
        raise ValueError(f"its numbers do not fit each other: {fields}")
