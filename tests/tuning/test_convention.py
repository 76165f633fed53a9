"""Boxes as labels are drawn: from labels to the vocabulary, and on to what every part of the product detects."""

from pathlib import Path

import numpy as np
import pytest

from prompt_tune.config import FitConfig
from prompt_tune.datasets.sample import write_sample
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.evaluation.validate import validate_bundle, validate_run
from prompt_tune.tuning.fit import FitResult, fit
from prompt_tune.tuning.job import FitInputs
from prompt_tune.vocabulary.vocabulary import Vocabulary

WIDER = 0.25  # of its width, on the left: how these labels are drawn


def redraw(folder: Path) -> None:
    """Move the left edge of every label."""
    for path in folder.rglob("labels/*/*.txt"):
        lines = []
        for line in path.read_text().splitlines():
            k, *numbers = line.split()
            x, y, w, h = map(float, numbers)
            left, right = max(0.0, x - w / 2 - WIDER * w), x + w / 2
            lines.append(f"{k} {(left + right) / 2:.6f} {y} {right - left:.6f} {h}\n")
        path.write_text("".join(lines))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    yaml = write_sample(tmp_path_factory.mktemp("wide") / "set", n_images=24)[0]
    redraw(yaml.parent)
    return yaml


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, FitResult]:
    """A fit with boxes as labels are drawn, and one with the detector's own."""
    folder = tmp_path_factory.mktemp("runs")
    inputs = FitInputs("tiny", data, cache=folder / "cache")
    return {
        boxes: fit(inputs, folder / boxes, config=FitConfig(epochs=6, views=1, boxes=boxes))
        for boxes in ("calibrated", "frozen")
    }


def test_fit_finds_how_labels_are_drawn_and_gains_precision(results: dict[str, FitResult]) -> None:
    learned, frozen = (Vocabulary.load(results[name].run / "learned.vocab.safetensors") for name in results)
    assert frozen.box_offsets is None and "boxes" not in frozen.provenance
    offsets = learned.box_offsets_rows
    moved = offsets.any(axis=1)
    assert moved.sum() >= 3 and (offsets[moved, 0] < -0.08).all() and np.abs(offsets[moved, 1:]).mean() < 0.06
    np.testing.assert_array_equal(learned.embeddings, frozen.embeddings)  # what is learned does not depend on it
    assert results["calibrated"].ap > results["frozen"].ap + 0.03
    facts = learned.provenance["boxes"]
    gains = [
        facts[learned.names[k]]["iou_after"] - facts[learned.names[k]]["iou_before"] for k in np.flatnonzero(moved)
    ]
    assert min(gains) > 0


def test_torch_and_bundle_draw_the_same_boxes(data: Path, results: dict[str, FitResult], tmp_path: Path) -> None:
    run = results["calibrated"].run
    export_bundle(run, tmp_path / "bundle")
    in_torch, deployed = validate_run(run, data).learned, validate_bundle(tmp_path / "bundle", data).learned
    assert in_torch is not None and deployed is not None
    assert deployed.ap == pytest.approx(in_torch.ap, abs=0.003)
    assert in_torch.ap == pytest.approx(results["calibrated"].ap, abs=0.05)  # few objects, and the cache is float16
    assert in_torch.ap > results["frozen"].ap + 0.03


def test_report_says_how_boxes_are_moved_and_shows_them(results: dict[str, FitResult]) -> None:
    page = (results["calibrated"].run / "report.html").read_text(encoding="utf-8")
    section = page.split('<section id="boxes">')[1].split("</section>")[0]
    assert "% wider on the left" in section and "than the detector&#39;s boxes" in section
    assert section.count("<img ") >= 3 and " before, " in section
    assert '<section id="boxes">' not in (results["frozen"].run / "report.html").read_text(encoding="utf-8")


def test_few_photos_are_each_moved_by_the_offsets_of_the_others(data: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    write_sample(few / "set", n_images=10)
    redraw(few)
    for part in ("images", "labels"):  # no validation images
        for path in [*few.rglob(f"{part}/val/*")]:
            path.unlink()
    yaml = few / "set" / "custom" / "custom.yaml"
    yaml.write_text("".join(line for line in yaml.read_text().splitlines(True) if line[:4] not in ("val:", "test")))
    result = fit(FitInputs("tiny", yaml), tmp_path / "run", config=FitConfig(epochs=2, views=1))
    learned = Vocabulary.load(result.run / "learned.vocab.safetensors")
    assert result.folds > 1 and set(learned.provenance["boxes"]) <= set(learned.names)
