"""The state of training that a run folder keeps, so that `--resume` continues to the same bytes. No pickle."""

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from prompt_tune.contract import METADATA_KEY
from prompt_tune.errors import RunError
from prompt_tune.files import replacing
from prompt_tune.run import RunFolder

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


def save_state(run: RunFolder, state: TrainState) -> None:
    """Write what `--resume` reads; no pickle."""
    from safetensors.torch import save_file

    fields = {name: value for name, value in vars(state).items() if name != "tensors"}
    tensors = {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.tensors.items()
    }
    with replacing(run.state) as path:
        save_file(tensors, path, metadata={METADATA_KEY: json.dumps(fields, sort_keys=True)})


def load_state(run: RunFolder, shape: torch.Size) -> TrainState | None:
    """The saved state, or None where no epoch was done yet.

    Args:    shape: of `ctx`.
    Raises:  RunError: the file is damaged or of another shape.
    """
    from safetensors import SafetensorError, safe_open

    if not run.state.is_file():
        return None
    try:
        with safe_open(run.state, framework="pt") as file:
            fields = json.loads(file.metadata()[METADATA_KEY])
            names = set(file.keys())
            state = TrainState(tensors={name: file.get_tensor(name) for name in names}, **fields)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{run.state} is damaged: {error}. Delete it to train again from the cache.") from error
    if names != STATE_TENSORS or any(tensor.shape != shape for tensor in state.tensors.values()):
        raise RunError(
            f"{run.state} must hold {sorted(STATE_TENSORS)} of shape {tuple(shape)}. Delete it to train again "
            "from the cache."
        )
    return state
