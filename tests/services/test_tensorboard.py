"""`fit --log tensorboard`, read back."""

from pathlib import Path
from typing import Any

import extras
import numpy as np
import pytest
from tracked import LINES, fit_logged, stopped_and_continued

from prompt_tune.run import RunFolder

extras.needs("tensorboard")


def read(folder: Path) -> Any:
    """What TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return events


def steps(events: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was logged. Nothing was sent, and nothing written outside its folder."""
    run, outcome = fit_logged(tmp_path_factory.mktemp("tensorboard"), "tensorboard")
    assert outcome.status == 0, outcome.out
    assert (outcome.left, outcome.sockets) == ([], [])
    assert f"Logged: tensorboard --logdir '{run}'" in outcome.out
    return run


def test_numbers_of_each_epoch_are_those_of_the_run(run: Path) -> None:
    events = read(run)
    lines = RunFolder(run).read_metrics()
    for tag, key in (("train/loss", "loss"), ("val/ap50", "ap50"), ("train/learning_rate", "learning_rate")):
        found = steps(events, tag)
        assert [step for step, _ in found] == [1, 2]
        np.testing.assert_allclose([value for _, value in found], [line[key] for line in lines], rtol=1e-6)
    assert len(steps(events, "kept/ap50")) == 1
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("kept/ap50 of")} == {
        *("kept/ap50 of best template", "kept/ap50 of plain name"),
    }


def test_pictures_and_the_digest_of_the_vocabulary_are_there(run: Path) -> None:
    import hashlib

    events = read(run)
    images = events.Tags()["images"]
    assert "curves" in images and sum(tag.startswith("photo") for tag in images) > 3
    assert events.Images("curves")[0].encoded_image_string.startswith(b"\x89PNG")
    text = events.Tensors("files/text_summary")[0].tensor_proto.string_val[0].decode()
    assert hashlib.sha256((run / "learned.vocab.safetensors").read_bytes()).hexdigest() in text
    assert '"epochs": 2' in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()


def test_run_that_is_continued_has_each_epoch_once(tmp_path: Path) -> None:
    stopped_and_continued(tmp_path / "run", "tensorboard")
    found = steps(read(tmp_path / "run"), "train/loss")
    assert [step for step, _ in found] == [1, 2, 3]
    np.testing.assert_allclose([value for _, value in found], [line["loss"] for line in LINES], rtol=1e-6)
