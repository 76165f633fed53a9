"""Cross-validation of few photos."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from prompt_tune.config import FitConfig
from prompt_tune.datasets.sample import CLASSES, write_sample
from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.errors import DataError, RunError
from prompt_tune.evaluation.validate import validate_run
from prompt_tune.run import RunFolder
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.folds import FOLDS, make_folds
from prompt_tune.tuning.job import FitInputs
from prompt_tune.vocabulary.vocabulary import Vocabulary


def samples(folder: Path, classes: list[list[int]], copies: dict[int, int] | None = None) -> list[Sample]:
    """Images that show these classes; `copies` names images that are copies of another."""
    out = []
    for i, shown in enumerate(classes):
        path = folder / f"{i:02}.png"
        Image.new("RGB", (8, 8), ((copies or {}).get(i, i), 9, 9)).save(path)
        boxes = np.tile(np.array([1, 1, 7, 7], np.float32), (len(shown), 1)).reshape(-1, 4)
        out.append(Sample(path, Labels(boxes, np.array(shown, np.int64), np.zeros(len(shown), bool)), (8, 8)))
    return out


def test_folds_are_a_division_that_spreads_each_class(tmp_path: Path) -> None:
    images = samples(tmp_path, [[0]] * 20 + [[1]] * 5 + [[0, 1]] * 5 + [[]] * 10)
    folds = make_folds(images, 0)
    assert len(folds) == FOLDS and sorted(i for fold in folds for i in fold) == list(range(40))
    assert [len(fold) for fold in folds] == [8] * 5
    for k, count in ((0, 5), (1, 2)):
        assert [sum(k in images[i].classes for i in fold) for fold in folds] == [count] * 5
    assert folds == make_folds(images, 0) != make_folds(images, 1)


def test_copies_of_a_picture_are_in_one_fold(tmp_path: Path) -> None:
    images = samples(tmp_path, [[0]] * 8, copies={5: 1, 6: 1})
    assert {1, 5, 6} <= set(next(fold for fold in make_folds(images, 0) if 1 in fold))


@pytest.mark.parametrize(("n_shown", "n_folds"), [(1, 0), (2, 2), (4, 4), (5, 5), (9, 5)])
def test_few_pictures_are_left_out_one_at_a_time(tmp_path: Path, n_shown: int, n_folds: int) -> None:
    assert len(make_folds(samples(tmp_path, [[0]] * n_shown + [[]] * 3), 0)) == n_folds


def test_pictures_that_share_no_class_cannot_be_cross_validated(tmp_path: Path) -> None:
    assert make_folds(samples(tmp_path, [[0], [1], [2], []]), 0) == []
    assert len(make_folds(samples(tmp_path, [[0], [1], [2], [2, 0]]), 0)) == 4


@pytest.mark.parametrize("seed", range(20))
def test_two_pictures_of_a_class_are_in_two_folds_though_each_also_shows_a_rarer_one(tmp_path: Path, seed: int) -> None:
    """Otherwise nothing of any class would be left to measure."""
    images = samples(tmp_path, [[0, k + 1] if k in (2, 5) else [k + 1] for k in range(8)])
    assert sum(any(0 in images[i].classes for i in fold) for fold in make_folds(images, seed)) == 2


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of eight images without validation images."""
    data = write_sample(tmp_path_factory.mktemp("few") / "set", n_images=8)[0]
    content = yaml.safe_load(data.read_text())
    data.write_text(yaml.safe_dump({key: value for key, value in content.items() if key not in ("val", "test")}))
    return data


def test_fit_of_few_images_trains_on_all_and_measures_what_it_left_out(few: Path, tmp_path: Path) -> None:
    result = fit(FitInputs("tiny", few), tmp_path / "run", config=FitConfig(epochs=6, views=2))
    provenance = Vocabulary.load(tmp_path / "run" / "learned.vocab.safetensors").provenance
    assert (result.folds, provenance["cross_validated"]) == (5, 5)
    assert (provenance["train_images"], provenance["val_images"], provenance["epoch"]) == (8, 8, 6)
    trained = validate_run(tmp_path / "run", few, split="train")
    assert trained.images == 8 and trained.learned is not None
    assert 0 < result.ap50 < trained.learned.ap50  # what was left out is harder than what was trained on
    assert "5 folds" in (tmp_path / "run" / "report.html").read_text("utf-8")
    with pytest.raises(DataError, match="these prompts were trained on all images of a data set without `val`"):
        validate_run(tmp_path / "run", few)


def test_a_class_of_one_picture_is_too_rare_to_validate(
    few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(few.parent, tmp_path / "set")
    for number, label in enumerate(sorted((tmp_path / "set/labels/train").iterdir())):
        label.write_text("0 0.5 0.5 0.25 0.25\n" + ("3 0.2 0.2 0.2 0.2\n" if number == 2 else ""))
    fit(FitInputs("tiny", tmp_path / "set" / few.name), tmp_path / "run", config=FitConfig(epochs=1, views=1))
    assert f"Too rare to validate: {list(CLASSES)[3]}. Only one picture shows such a class" in caplog.text


def test_stopped_cross_validation_continues_to_the_same_bytes(few: Path, tmp_path: Path) -> None:
    config = FitConfig(epochs=2, updates=4, views=1)

    def stopping(stage: str, done: int, total: int | None, note: str) -> None:
        if stage == "cross-validate" and done == 5:  # in the third of five folds
            raise KeyboardInterrupt

    def learned(name: str) -> bytes:
        return (tmp_path / name / "learned.vocab.safetensors").read_bytes()

    fit(FitInputs("tiny", few), tmp_path / "whole", config=config)
    run = RunFolder(tmp_path / "stopped")
    with pytest.raises(RunError, match=r"Stopped in the cross-validation, before the training\."):
        fit(FitInputs("tiny", few), run.folder, config=config, progress=stopping)
    stages: list[str] = []

    def progress(stage: str, done: int, total: int | None, note: str) -> None:
        stages.append(stage)

    fit(FitInputs("tiny", few), run.folder, config=config, resume=True, progress=progress)
    assert stages.count("cross-validate") == 6  # three folds of two epochs
    assert learned("stopped") == learned("whole")
    run.folds.write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"folds\.safetensors is damaged"):
        fit(FitInputs("tiny", few), run.folder, config=config, resume=True)


def test_a_single_picture_is_trained_on_and_told(few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = tmp_path / "one"
    for kind in ("images", "labels"):
        (one / kind / "train").mkdir(parents=True)
        source = sorted((few.parent / kind / "train").iterdir())[1]
        (one / kind / "train" / source.name).write_bytes(source.read_bytes())
    names = yaml.safe_load(few.read_text())["names"]
    (one / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "names": names}))
    result = fit(FitInputs("tiny", one / "data.yaml"), tmp_path / "run", config=FitConfig(epochs=1, views=2))
    assert result.folds == 1 and "No class is shown by two pictures" in caplog.text
