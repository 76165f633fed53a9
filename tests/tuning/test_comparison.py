"""The learned classes beside their plain names, templates and training images, in real fits on `tiny`."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from prompt_tune.config import FitConfig
from prompt_tune.datasets.sample import CLASSES, write_sample
from prompt_tune.evaluation.baselines import PLAIN, name_embeddings
from prompt_tune.evaluation.validate import validate_run
from prompt_tune.models.text_tower import TextTower
from prompt_tune.tuning import comparison
from prompt_tune.tuning.comparison import why_nothing
from prompt_tune.tuning.fit import FitResult, fit
from prompt_tune.tuning.job import FitInputs
from prompt_tune.vocabulary.names import read_templates
from prompt_tune.vocabulary.vocabulary import Vocabulary

LEARNED_FILE = "learned.vocab.safetensors"


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small custom job: its YAML."""
    return write_sample(tmp_path_factory.mktemp("sample") / "set", n_images=10)[0]


@pytest.fixture(scope="module")
def result(custom: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    out = tmp_path_factory.mktemp("run") / "run"
    return fit(FitInputs("tiny", custom), out, config=FitConfig(epochs=8))


def test_names_are_measured_as_val_measures_a_vocabulary_of_them(
    result: FitResult, custom: Path, tmp_path: Path
) -> None:
    """A run with the names' embeddings in place of the learned ones has these numbers, class by class."""
    plain, template = result.unlearned
    assert plain.template == PLAIN and not plain.chosen
    assert template.template in read_templates()
    assert template.chosen == f"the best of {len(read_templates())} templates on these images"
    for part in (plain, template):
        embeddings = name_embeddings(TextTower.load("tiny"), [(name,) for name in CLASSES], part.template)
        assert embeddings is not None
        run = tmp_path / part.label
        shutil.copytree(result.run, run, ignore=shutil.ignore_patterns("regions"))
        learned = Vocabulary.load(run / LEARNED_FILE)
        replace(learned, embeddings=embeddings, nms_iou=None).save(run / LEARNED_FILE)
        found = validate_run(run, custom)
        assert found.learned is not None
        assert (part.metrics.ap, part.metrics.ap50) == pytest.approx((found.learned.ap, found.learned.ap50), abs=0.003)
        by_class = {row.name: row.metrics.ap50 for row in found.classes}
        assert {name: part.class_ap50[name] for name in by_class} == pytest.approx(by_class, abs=0.01)
    assert plain.metrics.ap50 < 0.5 < result.ap50


def test_provenance_has_the_names_and_the_training_images(result: FitResult, custom: Path) -> None:
    provenance = Vocabulary.load(result.run / LEARNED_FILE).provenance
    assert provenance["unlearned"] == [part.to_record() for part in result.unlearned]
    found = validate_run(result.run, custom, split="train")
    assert found.learned is not None
    assert provenance["train_ap50"] == pytest.approx(found.learned.ap50, abs=0.02)
    assert "held_out" not in provenance  # the data set has validation images of its own


def test_template_is_chosen_on_a_part_of_many_images_and_says_so(
    custom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "CHOSEN_ON", 4)
    found = fit(FitInputs("tiny", custom), tmp_path / "run", config=FitConfig(epochs=1))
    assert found.unlearned[1].chosen == "the best of 7 templates on 4 of these images"


def test_names_under_their_own_guide_are_measured_too(custom: Path, tmp_path: Path) -> None:
    found = fit(FitInputs("tiny", custom), tmp_path / "run", config=FitConfig(epochs=1, guide="own"))
    assert [part.label for part in found.unlearned] == ["plain name", "best template"]
    measured = validate_run(tmp_path / "run", custom)
    assert [part.metrics.ap50 for part in measured.unlearned] == pytest.approx(
        [part.metrics.ap50 for part in found.unlearned], abs=0.01
    )


@pytest.mark.parametrize(
    ("ap50", "trained", "boxes", "wanted"),
    [
        (0.9, 0.95, 100, ""),
        (0.5, 0.95, 100, ""),  # a gap, but not far
        (0.47, 0.95, 100, "What was learned does not carry over: AP50 is 0.470 on the validation images and 0.950"),
        (0.47, 0.95, 9, ""),  # chance
        (0.47, None, 100, ""),
        (0.049, None, 100, "The fit came to nothing: AP50 is 0.049"),
        (0.0, 0.0, 1, "The fit came to nothing"),
    ],
)
def test_fit_that_came_to_nothing_is_told_by_its_figures(
    ap50: float, trained: float | None, boxes: int, wanted: str
) -> None:
    said = why_nothing(ap50, trained, boxes, 640, "the validation images")
    assert said.startswith(wanted) and bool(said) == bool(wanted)


def test_fit_on_good_labels_with_bad_validation_labels_says_that_it_does_not_carry_over(
    custom: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(custom.parent, tmp_path / "set")
    for file in sorted((tmp_path / "set" / "labels" / "val").iterdir())[:7]:
        file.write_text("0 0.02 0.02 0.03 0.03\n" * 1 + "1 0.95 0.05 0.04 0.04\n")
    found = fit(FitInputs("tiny", tmp_path / "set"), tmp_path / "run", config=FitConfig(epochs=8))
    said = [line for line in caplog.messages if "does not carry over" in line]
    assert len(said) == 1 and f"AP50 is {found.ap50:.3f} on the validation images" in said[0]
    assert "does not carry over" in (found.run / "report.html").read_text()


@pytest.mark.parametrize(
    ("items", "most", "wanted"),
    [([], 2, []), ([5, 6], 2, [5, 6]), (range(10), 2, [0, 5]), (range(7), 3, [0, 2, 4])],
)
def test_spread_takes_items_at_equal_distances(items: Sequence[int], most: int, wanted: list[int]) -> None:
    assert comparison._spread(items, most) == wanted
