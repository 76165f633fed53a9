"""Fit as a function: what it keeps, how it stops and goes on, and what its cache saves. See also tests/test_laws.py."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prompt_tune.config import FitConfig
from prompt_tune.errors import RunError
from prompt_tune.fit import fit
from prompt_tune.run import RunFolder
from prompt_tune.sample import write_sample
from prompt_tune.validate import validate_run
from prompt_tune.vocabulary import Vocabulary
from prompt_tune.world import World


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small custom job: its YAML."""
    return write_sample(tmp_path_factory.mktemp("sample") / "set", n_images=10)[0]


def test_fit_keeps_the_best_epoch_of_the_validation_images(custom: Path, tmp_path: Path) -> None:
    result = fit("tiny", custom, tmp_path / "run", config=FitConfig(epochs=4))
    lines = RunFolder(tmp_path / "run").read_metrics()
    best = max(lines, key=lambda line: line["ap"])
    assert (result.epoch, result.ap, result.ap50) == (best["epoch"], best["ap"], best["ap50"])
    assert result.finished and lines[-1]["loss"] < lines[0]["loss"]
    provenance = Vocabulary.load(tmp_path / "run" / "learned.vocab.safetensors").provenance
    assert provenance["epoch"] == result.epoch and provenance["val_ap"] == round(result.ap, 6)


def test_ctrl_c_keeps_what_is_there_and_resume_ends_with_the_same_bytes(custom: Path, tmp_path: Path) -> None:
    config, cache = FitConfig(epochs=3), tmp_path / "cache"
    fit("tiny", custom, tmp_path / "whole", config=config, cache=cache)

    def interrupt(stage: str, done: int, total: int, note: str) -> None:
        if stage == "train" and done == 2:
            raise KeyboardInterrupt

    stopped = fit("tiny", custom, tmp_path / "cut", config=config, cache=cache, report=interrupt)
    assert not stopped.finished and stopped.epoch in (1, 2)
    assert Vocabulary.load(tmp_path / "cut" / "learned.vocab.safetensors").names
    resumed = fit("tiny", custom, tmp_path / "cut", config=config, cache=cache, resume=True)
    assert resumed.finished
    for name in ("prompts.safetensors", "learned.vocab.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_second_fit_with_the_same_cache_runs_no_detector(
    custom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit("tiny", custom, tmp_path / "a", config=FitConfig(epochs=1), cache=tmp_path / "cache")
    monkeypatch.setattr(World, "features", None)  # calling it would fail
    fit("tiny", custom, tmp_path / "b", config=FitConfig(epochs=1, learning_rate=0.01), cache=tmp_path / "cache")
    with pytest.raises(TypeError):
        fit("tiny", custom, tmp_path / "c", config=FitConfig(epochs=1, image_size=224), cache=tmp_path / "cache")


def test_fit_with_synonyms_writes_several_prompts_a_class(custom: Path, tmp_path: Path) -> None:
    classes = [("forklift", "lift truck"), ("gizmo",), ("sprocket",), ("widget",), ("flange",), ("doodad",)]
    fit("tiny", custom, tmp_path / "run", config=FitConfig(epochs=1), classes=classes)
    learned = Vocabulary.load(tmp_path / "run" / "learned.vocab.safetensors")
    assert learned.embeddings.shape == (6, 2, 512)
    assert not np.array_equal(learned.embeddings[0, 0], learned.embeddings[0, 1])
    assert np.array_equal(learned.embeddings[1, 0], learned.embeddings[1, 1])


@pytest.mark.parametrize("config", [FitConfig(epochs=1, views=3), FitConfig(epochs=1, class_specific=False)])
def test_fit_with_other_settings_learns_other_embeddings(config: FitConfig, custom: Path, tmp_path: Path) -> None:
    fit("tiny", custom, tmp_path / "usual", config=FitConfig(epochs=1))
    fit("tiny", custom, tmp_path / "other", config=config)
    usual, other = (Vocabulary.load(tmp_path / name / "learned.vocab.safetensors") for name in ("usual", "other"))
    assert usual.digest != other.digest


def test_original_vocabulary_of_the_user_guides_the_neck(custom: Path, tmp_path: Path) -> None:
    fit("tiny", custom, tmp_path / "run", config=FitConfig(epochs=1), original="red circle, blue ring; azure hoop")
    original = Vocabulary.load(tmp_path / "run" / "original.vocab.safetensors")
    learned = Vocabulary.load(tmp_path / "run" / "learned.vocab.safetensors")
    assert original.names == ("red circle", "blue ring") and original.n_prompts == 2
    assert learned.guide == original.digest


def test_run_folder_in_the_way_is_refused(custom: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep me")
    with pytest.raises(RunError, match="no run of `fit`"):
        fit("tiny", custom, tmp_path / "run", config=FitConfig(epochs=1))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_fit_measures_what_val_measures_where_objects_reach_the_edge(custom: Path, tmp_path: Path) -> None:
    """Half of every image, so that the input has grey bars, and objects at its edge have boxes that leave the photo."""
    (tmp_path / "wide").mkdir()
    for split in ("train", "val"):
        for path in sorted((custom.parent / "images" / split).iterdir()):
            image = Image.open(path)
            target = tmp_path / "wide" / "images" / split / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            image.crop((0, 64, 256, 192)).save(target, quality=95)
            rows = np.loadtxt(custom.parent / "labels" / split / f"{path.stem}.txt", ndmin=2).reshape(-1, 5)
            top, bottom = (rows[:, 2] - rows[:, 4] / 2) * 2 - 0.5, (rows[:, 2] + rows[:, 4] / 2) * 2 - 0.5
            top, bottom = top.clip(0, 1), bottom.clip(0, 1)
            rows[:, 2], rows[:, 4] = (top + bottom) / 2, bottom - top
            label = tmp_path / "wide" / "labels" / split / f"{path.stem}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(label, rows[rows[:, 4] > 0.1], fmt=["%d", "%.6f", "%.6f", "%.6f", "%.6f"])
    (tmp_path / "wide" / "data.yaml").write_text(custom.read_text().replace("test: images/test\n", ""))
    result = fit("tiny", tmp_path / "wide" / "data.yaml", tmp_path / "run", config=FitConfig(epochs=6))
    measured = validate_run(tmp_path / "run", tmp_path / "wide" / "data.yaml").learned
    assert measured is not None and result.ap > 0.05
    assert result.ap == pytest.approx(measured.ap, abs=0.02)  # an epoch is measured without scores below 0.01
