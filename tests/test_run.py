"""The run folder: starting, going on, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prompt_tune.contract import METADATA_KEY
from prompt_tune.errors import RunError
from prompt_tune.run import RunFolder
from prompt_tune.tuning.state import TrainState, load_state, save_state

CONFIG = {"model": "tiny", "digests": {"guide": "12"}, "settings": {"epochs": 3, "region_budget": [600, 50, 64]}}
SHAPE = torch.Size((2, 1, 4, 8))


def state(epoch: int = 2) -> TrainState:
    tensors = {name: torch.full(SHAPE, float(i)) for i, name in enumerate(("ctx", "best_ctx", "exp_avg", "exp_avg_sq"))}
    return TrainState(epoch=epoch, best_epoch=1, best_ap=0.25, best_ap50=0.5, step=14, tensors=tensors)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that was started."""
    folder = RunFolder(tmp_path / "run")
    folder.open(CONFIG, resume=False)
    return folder


@pytest.mark.parametrize("resume", [False, True])
def test_open_new_folder_writes_the_configuration(tmp_path: Path, resume: bool) -> None:
    run = RunFolder(tmp_path / "a" / "run")
    run.open(CONFIG, resume=resume)
    assert json.loads(run.config.read_text()) == CONFIG


def test_open_folder_with_a_cache_or_what_a_killed_process_left_is_possible(tmp_path: Path) -> None:
    (tmp_path / "regions").mkdir()
    (tmp_path / ".config-ab12.json").touch()
    RunFolder(tmp_path).open(CONFIG, resume=False)


def test_open_run_again_needs_resume(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"holds a run already\. Go on with --resume, or give another --out\."):
        run.open(CONFIG, resume=False)
    run.open(CONFIG, resume=True)


def test_open_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="is not empty and no run"):
        RunFolder(tmp_path).open(CONFIG, resume=True)
    with pytest.raises(RunError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex").open(CONFIG, resume=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": {"epochs": 4, "region_budget": [600, 50, 64]}}, "with `epochs` 3, and this is 4"),
        ({"settings": {"epochs": 3, "region_budget": [1, 50, 64]}}, r"`region_budget` \[600, 50, 64\]"),
        ({"settings": {"region_budget": [600, 50, 64]}}, "`epochs` 3, and this is None"),
        ({"digests": {"guide": "13"}}, "`digests`"),
        ({"model": "other.pt"}, "`model` 'tiny', and this is 'other.pt'"),
        ({"new": 1}, "`new` None, and this is 1"),
    ],
)
def test_resume_with_another_configuration_names_what_differs(
    run: RunFolder, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(RunError, match=reason):
        run.open({**CONFIG, **changes}, resume=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "5"])
def test_resume_with_a_damaged_configuration_is_refused(run: RunFolder, text: str) -> None:
    run.config.write_text(text)
    with pytest.raises(RunError, match="is damaged") as refusal:
        run.open(CONFIG, resume=True)
    assert len(str(refusal.value).splitlines()) == 1


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


def line(epoch: int, loss: float = 1.0) -> dict[str, float]:
    return {"epoch": epoch, "loss": loss, "ap": 0.1 * epoch, "ap50": 0.2 * epoch}


def test_metrics_of_an_epoch_done_again_are_replaced(run: RunFolder) -> None:
    assert run.read_metrics() == []
    for entry in (line(1), line(2), line(3), line(2, loss=0.5)):
        run.add_metrics(entry)
    assert run.read_metrics() == [line(1), line(2, loss=0.5)]
    assert len(run.metrics.read_text().splitlines()) == 2


def test_damaged_metrics_are_refused(run: RunFolder) -> None:
    run.metrics.write_text('{"epoch": 1')
    with pytest.raises(RunError, match=r"metrics.jsonl is damaged"):
        run.add_metrics(line(1))
