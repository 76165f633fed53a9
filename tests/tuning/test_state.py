"""The state of training: it comes back as it was, and nothing else is taken for it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prompt_tune.contract import METADATA_KEY
from prompt_tune.errors import RunError
from prompt_tune.run import RunFolder
from prompt_tune.tuning.state import TrainState, load_state, save_state

SHAPE = torch.Size((2, 1, 4, 8))


def state(epoch: int = 2) -> TrainState:
    tensors = {name: torch.full(SHAPE, float(i)) for i, name in enumerate(("ctx", "best_ctx", "exp_avg", "exp_avg_sq"))}
    return TrainState(epoch=epoch, best_epoch=1, best_ap=0.25, best_ap50=0.5, step=14, tensors=tensors)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that was started."""
    folder = RunFolder(tmp_path / "run")
    folder.open({"model": "tiny"}, resume=False)
    return folder


def test_state_comes_back_as_it_was_and_has_the_same_bytes(run: RunFolder) -> None:
    assert load_state(run, SHAPE) is None
    save_state(run, state())
    before = run.state.read_bytes()
    back = load_state(run, SHAPE)
    assert back is not None
    assert (back.epoch, back.best_epoch, back.best_ap, back.best_ap50, back.step) == (2, 1, 0.25, 0.5, 14)
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in state().tensors.items())
    save_state(run, back)
    assert run.state.read_bytes() == before


def test_state_of_parameters_and_shared_tensors_is_saved(run: RunFolder) -> None:
    parameter = torch.nn.Parameter(torch.ones(SHAPE))
    shared = {"ctx": parameter.detach(), "best_ctx": parameter.detach()}
    save_state(run, TrainState(1, 1, 0.1, 0.2, 7, {**state().tensors, **shared}))
    back = load_state(run, SHAPE)
    assert back is not None and torch.equal(back.tensors["best_ctx"], parameter)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: path.write_bytes(b""),
        lambda path: save_file(state().tensors, path),
        lambda path: save_file(state().tensors, path, metadata={METADATA_KEY: '{"epoch": 1}'}),
        lambda path: save_file(
            {"ctx": torch.zeros(SHAPE)},
            path,
            metadata={METADATA_KEY: json.dumps({"epoch": 1, "best_epoch": 1, "best_ap": 0, "best_ap50": 0, "step": 7})},
        ),
    ],
)
def test_damaged_state_is_refused_with_a_cure(run: RunFolder, damage: Callable[[Path], object]) -> None:
    save_state(run, state())
    damage(run.state)
    with pytest.raises(RunError, match="Delete it to train again") as refusal:
        load_state(run, SHAPE)
    assert len(str(refusal.value).splitlines()) == 1


def test_state_of_another_shape_is_refused(run: RunFolder) -> None:
    save_state(run, state())
    with pytest.raises(RunError, match=r"of shape \(3, 1, 4, 8\)"):
        load_state(run, torch.Size((3, 1, 4, 8)))


def test_state_on_a_full_disk_is_one_line_and_the_one_before_stays(run: RunFolder) -> None:
    """A limit on the size of files stands for a full disk: the write fails in the same way, after some bytes."""
    save_state(run, state(1))
    before = run.state.read_bytes()
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import resource, signal
from pathlib import Path
from prompt_tune.errors import RunError
from prompt_tune.run import RunFolder
from prompt_tune.tuning.state import load_state, save_state
import torch
run = RunFolder(Path({str(run.folder)!r}))
state = load_state(run, torch.Size({tuple(SHAPE)}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
try:
    save_state(run, state)
except RunError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Cannot write {run.state}: File too large. Make room")
    assert done.stdout.count("\n") == 1 and run.state.read_bytes() == before
    assert [path.name for path in run.folder.iterdir() if path.name.startswith(".")] == []
