"""Continuing from an earlier run: where it starts, what stays as it was, what is carried over, and what is refused."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from subsets import write_subset

from prompt_tune.config import FitConfig
from prompt_tune.datasets.sample import CLASSES, write_sample
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.errors import ModelError, PromptTuneError, RunError
from prompt_tune.models.embeddings import default_tower
from prompt_tune.models.prompts_file import load_context
from prompt_tune.models.text_tower import TextTower
from prompt_tune.progress import Progress, silent
from prompt_tune.runtime.detector import Detector
from prompt_tune.tuning.continuation import Earlier
from prompt_tune.tuning.fit import FitResult, fit
from prompt_tune.tuning.job import FitInputs
from prompt_tune.vocabulary.vocabulary import Vocabulary

FORKLIFT, GIZMO, SPROCKET = list(CLASSES)[:3]
SHORT = FitConfig(epochs=2, updates=6, context_length=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample set, parts of it, and a cache that all runs share."""
    folder = tmp_path_factory.mktemp("continuation")
    whole = write_sample(folder / "set", n_images=10)[0]
    write_subset(whole, folder / "first", [FORKLIFT, GIZMO])
    write_subset(whole, folder / "both", [SPROCKET, FORKLIFT])
    write_subset(whole, folder / "new", [SPROCKET])
    return folder


def run_fit(
    place: Path,
    data: str,
    out: Path,
    config: FitConfig = SHORT,
    *,
    resume: bool = False,
    progress: Progress = silent,
    **inputs: Any,
) -> FitResult:
    """A fit of `tiny` on a part of the sample set; `inputs` are further fields of `FitInputs`."""
    made = FitInputs("tiny", place / data / "data.yaml", cache=place / "cache", **inputs)
    return fit(made, out, config=config, resume=resume, progress=progress)


@pytest.fixture(scope="module")
def earlier(place: Path) -> Path:
    """A run on two classes, one with a synonym, with calibration: its folder."""
    config = replace(SHORT, epochs=8, calibrate=True, token_position="front")
    run_fit(place, "first", place / "earlier", config, classes=[(FORKLIFT, "lift truck"), (GIZMO,)])
    return place / "earlier"


def learned(run: Path) -> Vocabulary:
    return Vocabulary.load(run / "learned.vocab.safetensors")


def row(vocabulary: Vocabulary, name: str) -> np.ndarray:
    """(n_prompts, 512)"""
    return vocabulary.embeddings[vocabulary.names.index(name)]


def test_from_the_same_data_starts_where_the_earlier_run_ended(place: Path, earlier: Path, tmp_path: Path) -> None:
    config = FitConfig(epochs=1, learning_rate=1e-6)
    again = run_fit(place, "first", tmp_path / "again", config, from_run=earlier)
    fresh = run_fit(place, "first", tmp_path / "fresh", config)
    was = learned(earlier)
    assert again.ap == pytest.approx(was.provenance["val_ap"], abs=0.01) and fresh.ap < again.ap - 0.05
    now = learned(tmp_path / "again")
    assert now.names == was.names and "carried" not in now.provenance
    assert float(np.einsum("cpd,cpd->cp", now.embeddings, was.embeddings).min()) > 0.9999


def test_from_builds_the_prompts_as_they_were(
    place: Path, earlier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = FitConfig(epochs=1, context_length=3, seed=1)
    with caplog.at_level(logging.WARNING, logger="prompt_tune"):
        run_fit(place, "both", tmp_path / "run", config, from_run=earlier)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    settings = stored["settings"]
    assert (settings["context_length"], settings["token_position"]) == (2, "front")
    assert "`context_length` is 2" in caplog.text and "3 is not used" in caplog.text
    assert "`seed`" not in caplog.text
    assert stored["classes"] == [[SPROCKET], [FORKLIFT, "lift truck"]]


@pytest.mark.parametrize("given", [frozenset(), frozenset({"token_position", "image_size"})])
def test_from_names_a_setting_that_was_given_and_is_not_used_even_if_it_is_the_default(
    earlier: Path, given: frozenset[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The run has its names in front, at 256 pixels; the default is the end, and 0 pixels for the model's own size."""
    run = Earlier.load(earlier, TextTower.load(default_tower("tiny")))
    with caplog.at_level(logging.WARNING, logger="prompt_tune"):
        settings = run.settings(FitConfig(), given)
    assert settings.token_position == "front"
    assert ("'end' is not used" in caplog.text) == bool(given)
    assert settings.image_size == (0 if given else 256)


def test_from_takes_the_image_size_of_the_earlier_run_unless_another_is_given(place: Path, tmp_path: Path) -> None:
    config = replace(SHORT, epochs=1)
    run_fit(place, "first", tmp_path / "small", replace(config, image_size=192))
    for out, asked, wanted in (("same", 0, 192), ("other", 224, 224)):
        run_fit(place, "new", tmp_path / out, replace(config, image_size=asked), from_run=tmp_path / "small")
        assert json.loads((tmp_path / out / "config.json").read_text())["image_size"] == wanted


def test_classes_that_are_not_in_the_data_are_carried_over_to_the_bit(
    place: Path, earlier: Path, tmp_path: Path
) -> None:
    run_fit(place, "both", tmp_path / "run", from_run=earlier)
    was, now = learned(earlier), learned(tmp_path / "run")
    assert now.names == (SPROCKET, FORKLIFT, GIZMO)
    old, new = was.names.index(GIZMO), now.names.index(GIZMO)
    assert np.array_equal(now.embeddings[new], was.embeddings[old])
    assert now.thresholds[new] == was.thresholds[old]
    assert now.calibration is not None and was.calibration is not None
    assert np.array_equal(now.calibration[new], was.calibration[old])
    assert np.array_equal(now.calibration[0], [1, 0])  # this run was not asked for one
    assert not np.array_equal(row(now, FORKLIFT), row(was, FORKLIFT))  # in the data, so it went on learning
    assert now.provenance["carried"] == {"names": [GIZMO], "from": was.digest}
    assert not {GIZMO} & now.provenance["thresholds"]["expected"].keys()


def test_prompts_file_with_carried_classes_gives_the_embeddings_of_the_vocabulary(
    place: Path, earlier: Path, tmp_path: Path
) -> None:
    run_fit(place, "both", tmp_path / "run", from_run=earlier)
    tower, now = TextTower.load("tiny"), learned(tmp_path / "run")
    context = load_context(tmp_path / "run" / "prompts.safetensors", tower)
    assert tuple(texts[0] for texts in context.classes) == now.names
    np.testing.assert_allclose(context.embeddings(), now.embeddings, atol=1e-5)
    before = load_context(earlier / "prompts.safetensors", tower)
    assert torch.equal(context.ctx[2, 0], before.ctx[1, 0])  # gizmo


def test_frozen_classes_are_bit_equal_after_training(place: Path, earlier: Path, tmp_path: Path) -> None:
    """Context and embedding, though the tower embeds them in a batch with other names."""
    config = replace(SHORT, epochs=3, freeze_old=True)
    run_fit(place, "both", tmp_path / "run", config, from_run=earlier)
    was, now = learned(earlier), learned(tmp_path / "run")
    assert now.names == (SPROCKET, FORKLIFT, GIZMO)
    for name in (FORKLIFT, GIZMO):
        assert np.array_equal(row(now, name), row(was, name)), name
    before, after = (load_file(run / "prompts.safetensors")["ctx"] for run in (earlier, tmp_path / "run"))
    assert np.array_equal(after[1], before[0]) and np.array_equal(after[2, 0], before[1, 0])
    start = run_fit(place, "new", tmp_path / "start", replace(config, epochs=1, learning_rate=1e-9), from_run=earlier)
    assert start.finished
    assert not np.allclose(load_file(tmp_path / "start" / "prompts.safetensors")["ctx"][0], after[0], atol=1e-3)


def test_class_that_the_new_validation_images_never_show_keeps_its_threshold_and_calibration(
    place: Path, earlier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(place / "both", tmp_path / "both")
    for path in (tmp_path / "both" / "labels" / "val").iterdir():  # of the second class, FORKLIFT
        path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("1 ")))
    marked = tmp_path / "marked"
    shutil.copytree(earlier, marked)
    was = replace(learned(earlier), nms_iou=np.full(2, 0.625, np.float32))
    was.save(marked / "learned.vocab.safetensors")
    config = replace(SHORT, freeze_old=True)
    with caplog.at_level(logging.WARNING, logger="prompt_tune"):
        fit(FitInputs("tiny", tmp_path / "both" / "data.yaml", from_run=marked), tmp_path / "run", config=config)
    assert (
        f"Thresholds are kept from {marked} for 1 class never found" in caplog.text
        and "stays at 0.25" not in caplog.text
    )
    now = learned(tmp_path / "run")
    old, new = was.names.index(FORKLIFT), now.names.index(FORKLIFT)
    assert now.thresholds[new] == was.thresholds[old] != np.float32(0.25)
    assert was.calibration is not None and not np.array_equal(was.calibration[old], [1, 0])
    assert np.array_equal(now.calibration_rows[new], was.calibration[old])
    assert now.nms_iou_rows[new] == np.float32(0.625)
    assert now.nms_iou_rows[now.names.index(SPROCKET)] != np.float32(0.625)
    assert now.provenance["thresholds"]["expected"].keys() == {SPROCKET}


def test_frozen_run_that_is_stopped_goes_on_to_the_same_bytes(place: Path, earlier: Path, tmp_path: Path) -> None:
    config = replace(SHORT, epochs=3, freeze_old=True)
    run_fit(place, "both", tmp_path / "whole", config, from_run=earlier)

    def stop(stage: str, done: int, total: int | None, note: str) -> None:
        if stage == "train" and done == 1:
            raise KeyboardInterrupt

    assert not run_fit(place, "both", tmp_path / "cut", config, from_run=earlier, progress=stop).finished
    with pytest.raises(RunError, match="was started with"):
        run_fit(place, "both", tmp_path / "cut", replace(config, freeze_old=False, token_position="front"), resume=True)
    assert run_fit(place, "both", tmp_path / "cut", config, from_run=earlier, resume=True).finished
    for name in ("prompts.safetensors", "learned.vocab.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_chain_of_runs_carries_all_classes_to_the_bit_and_detects_them(
    place: Path, earlier: Path, tmp_path: Path
) -> None:
    doodad = list(CLASSES)[5]
    write_subset(place / "set/custom/custom.yaml", tmp_path / "last", [doodad])
    run_fit(place, "new", tmp_path / "second", replace(SHORT, epochs=6), from_run=earlier)
    fit(
        FitInputs("tiny", tmp_path / "last" / "data.yaml", from_run=tmp_path / "second", cache=place / "cache"),
        tmp_path / "third",
        config=SHORT,
    )
    first, second, third = (learned(run) for run in (earlier, tmp_path / "second", tmp_path / "third"))
    assert second.names == (SPROCKET, FORKLIFT, GIZMO) and third.names == (doodad, SPROCKET, FORKLIFT, GIZMO)
    for name, source in ((SPROCKET, second), (FORKLIFT, first), (GIZMO, first)):
        assert np.array_equal(row(third, name), row(source, name)), name
    page = (tmp_path / "third" / "report.html").read_text()
    assert doodad in page and ", ".join([SPROCKET, FORKLIFT, GIZMO]) in page and third.digest in page
    export_bundle(tmp_path / "third", tmp_path / "bundle")
    detector = Detector(tmp_path / "bundle")
    images = sorted((place / "set/custom/images/train").iterdir())
    found = detector.detect(images, learned_conf=0.0)
    assert {name for image in found for name in image.class_names} >= {SPROCKET, FORKLIFT, GIZMO}


def test_shared_context_goes_on_with_other_names_and_carries_none(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(SHORT, class_specific=False)
    run_fit(place, "first", tmp_path / "shared", replace(config, epochs=4))
    with caplog.at_level(logging.WARNING, logger="prompt_tune"):
        run_fit(place, "both", tmp_path / "run", FitConfig(epochs=1, learning_rate=1e-9), from_run=tmp_path / "shared")
    assert learned(tmp_path / "run").names == (SPROCKET, FORKLIFT)
    assert "1 earlier classes are not in the new vocabulary. Load" in caplog.text
    before, after = (load_file(tmp_path / run / "prompts.safetensors")["ctx"] for run in ("shared", "run"))
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_from_of_another_tower_is_refused(earlier: Path, place: Path, tmp_path: Path, text_tower: Path) -> None:
    with pytest.raises(ModelError, match="text tower"):
        run_fit(place, "new", tmp_path / "run", from_run=earlier, text_tower=f"local-dir:{text_tower}")


def _unfinished(earlier: Path, folder: Path) -> Path:
    """A run folder without its result."""
    folder.mkdir()
    (folder / "config.json").write_bytes((earlier / "config.json").read_bytes())
    return folder


def _of_another_detector(earlier: Path, folder: Path) -> Path:
    """A run whose vocabulary says that it is for another detector."""
    folder.mkdir()
    for name in ("prompts", "original.vocab"):
        (folder / f"{name}.safetensors").write_bytes((earlier / f"{name}.safetensors").read_bytes())
    replace(learned(earlier), detector="ab" * 32).save(folder / "learned.vocab.safetensors")
    return folder


def _renamed(earlier: Path, folder: Path) -> Path:
    """A run whose vocabulary was edited."""
    _of_another_detector(earlier, folder)
    learned(earlier).rename({GIZMO: "gadget"}).save(folder / "learned.vocab.safetensors")
    return folder


@pytest.mark.parametrize(
    ("data", "config", "options", "reason"),
    [
        ("first", {"freeze_old": True}, {}, "nothing is left to learn"),
        ("new", {"guide": "own"}, {}, "was learned with guide `original`. Received: `own`."),
        ("new", {}, {"original": "red circle, blue ring"}, " was made for guide "),
        (
            "new",
            {},
            {"from_run": lambda *_: "nowhere"},
            "nowhere is not a complete run of `fit`: it has no prompts",
        ),
        ("new", {}, {"from_run": _unfinished}, "is not a complete run"),
        ("new", {}, {"from_run": _of_another_detector}, "was made for detector abababababab"),
        ("new", {}, {"from_run": _renamed}, "have different classes"),
        (
            "both",
            {"freeze_old": True},
            {"classes": [(SPROCKET,), (FORKLIFT, "lorry")]},
            "keeps its synonyms, 'forklift; lift truck'. Received: 'forklift; lorry'",
        ),
        ("new", {"freeze_old": True}, {"from_run": None}, "`freeze_old` keeps the context of an earlier run"),
    ],
)
def test_combination_that_means_nothing_is_refused_and_nothing_is_written(
    data: str,
    config: dict[str, object],
    options: dict[str, object],
    reason: str,
    place: Path,
    earlier: Path,
    tmp_path: Path,
) -> None:
    options = {"from_run": earlier} | options
    make = options["from_run"]
    if callable(make):
        options["from_run"] = make(earlier, tmp_path / "made")
    with pytest.raises(PromptTuneError) as refusal:
        run_fit(place, data, tmp_path / "run", replace(SHORT, **config), **options)  # type: ignore[arg-type]
    assert reason in str(refusal.value) and len(str(refusal.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_shared_context_cannot_be_frozen_in_part(place: Path, tmp_path: Path) -> None:
    config = replace(SHORT, epochs=1)
    run_fit(place, "first", tmp_path / "shared", replace(config, class_specific=False))
    with pytest.raises(RunError, match="cannot be frozen"):
        run_fit(place, "both", tmp_path / "run", replace(config, freeze_old=True), from_run=tmp_path / "shared")
