"""Fit as a function: what it keeps, how it stops and continues, and what its cache saves. See also test_laws.py."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prompt_tune.config import FitConfig
from prompt_tune.datasets.replay import ReplaySource
from prompt_tune.datasets.sample import CLASSES, write_sample
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.errors import DataError, PromptTuneError, RunError, VocabularyError
from prompt_tune.evaluation.validate import validate_bundle, validate_run
from prompt_tune.evaluation.verify import verify
from prompt_tune.models.embeddings import build_vocabulary
from prompt_tune.models.prompts_file import load_context
from prompt_tune.models.text_tower import TextTower, template_embeddings
from prompt_tune.models.world import World
from prompt_tune.run import RunFolder
from prompt_tune.runtime.detector import Detector
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs
from prompt_tune.tuning.loss import ClassSample, Prepared, class_loss
from prompt_tune.tuning.trainer import Trainer
from prompt_tune.vocabulary.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small custom job: its YAML."""
    return write_sample(tmp_path_factory.mktemp("sample") / "set", n_images=10)[0]


@pytest.mark.parametrize(("n_images", "kept"), [(24, "best"), (10, "last")])
def test_fit_keeps_the_best_epoch_of_the_validation_images_or_the_last_if_they_are_few(
    n_images: int, kept: str, tmp_path: Path
) -> None:
    data = write_sample(tmp_path / "set", n_images=n_images)[0]
    notes: list[str] = []

    def progress(stage: str, done: int, total: int | None, note: str) -> None:
        if stage == "train":
            notes.append(note)

    config = FitConfig(epochs=6, updates=20, learning_rate=1.0, nms_iou=0.7, boxes="frozen")
    told: list[Mapping[str, Any]] = []
    result = fit(FitInputs("tiny", data), tmp_path / "run", config=config, progress=progress, on_epoch=told.append)
    lines = RunFolder(tmp_path / "run").read_metrics()
    assert told == lines
    best = max(lines, key=lambda line: line["ap"])
    assert best["epoch"] < 6  # else the two would be the same
    wanted = best if kept == "best" else lines[-1]
    assert result.epoch == wanted["epoch"]
    assert notes[-1] == f"kept: epoch {result.epoch}  AP50 {wanted['ap50']:.3f}  AP {wanted['ap']:.3f}"
    assert (result.ap, result.ap50) == pytest.approx((wanted["ap"], wanted["ap50"]), abs=0.005)  # scores below 0.01 too
    assert result.finished and lines[-1]["loss"] < lines[0]["loss"]
    provenance = Vocabulary.load(tmp_path / "run" / "learned.vocab.safetensors").provenance
    assert provenance["epoch"] == result.epoch and provenance["val_ap"] == round(result.ap, 6)


def test_limit_of_overlap_is_chosen_on_the_validation_images_or_given(custom: Path, tmp_path: Path) -> None:
    by_limit = {}
    for iou in (0.7, 0.6, 0.5, 0.0):
        config = FitConfig(epochs=4, nms_iou=iou)
        by_limit[iou] = fit(FitInputs("tiny", custom, cache=tmp_path / "cache"), tmp_path / f"{iou}", config=config)
    learned = {iou: Vocabulary.load(result.run / "learned.vocab.safetensors") for iou, result in by_limit.items()}
    assert learned[0.7].nms_iou is None  # the graph does it
    assert learned[0.6].nms_iou is not None and set(learned[0.6].nms_iou.tolist()) == {float(np.float32(0.6))}
    best = max((0.7, 0.6, 0.5), key=lambda iou: by_limit[iou].ap50)
    assert by_limit[0.0].ap50 == by_limit[best].ap50 > by_limit[0.7].ap50
    np.testing.assert_array_equal(learned[0.0].nms_iou_rows, learned[best].nms_iou_rows)
    assert {result.epoch for result in by_limit.values()} == {by_limit[0.7].epoch}


def test_ctrl_c_keeps_what_is_there_and_resume_ends_with_the_same_bytes(custom: Path, tmp_path: Path) -> None:
    config, cache = FitConfig(epochs=3), tmp_path / "cache"
    fit(FitInputs("tiny", custom, cache=cache), tmp_path / "whole", config=config)

    notes: list[str] = []

    def interrupt(stage: str, done: int, total: int | None, note: str) -> None:
        notes.append(note)
        if stage == "train" and done == 2:
            raise KeyboardInterrupt

    stopped = fit(FitInputs("tiny", custom, cache=cache), tmp_path / "cut", config=config, progress=interrupt)
    assert notes[-1].startswith(f"kept: epoch {stopped.epoch}  AP50 ")
    assert not stopped.finished and stopped.epoch in (1, 2)
    assert Vocabulary.load(tmp_path / "cut" / "learned.vocab.safetensors").names
    resumed = fit(FitInputs("tiny", custom, cache=cache), tmp_path / "cut", config=config, resume=True)
    assert resumed.finished
    for name in ("prompts.safetensors", "learned.vocab.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_run_is_resumed_on_a_moved_data_set_to_the_same_bytes_and_measured_there(tmp_path: Path) -> None:
    data = write_sample(tmp_path / "here", n_images=4)[0]
    replay = tmp_path / "replay"
    replay.mkdir()
    for path in sorted((data.parent.parent / "original/images/val").iterdir())[:3]:
        shutil.copy(path, replay)
    config, cache = FitConfig(epochs=2, views=1), tmp_path / "cache"

    def interrupt(stage: str, done: int, total: int | None, note: str) -> None:
        if stage == "train" and done == 1:
            raise KeyboardInterrupt

    def inputs(data: Path, replay: Path) -> FitInputs:
        return FitInputs("tiny", data, cache=cache, replay=[ReplaySource(str(replay), 0.5)])

    fit(inputs(data, replay), tmp_path / "whole", config=config)
    fit(inputs(data, replay), tmp_path / "cut", config=config, progress=interrupt)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = inputs(tmp_path / "there" / data.relative_to(tmp_path / "here"), replay.rename(tmp_path / "elsewhere"))
    assert fit(moved, tmp_path / "cut", config=config, resume=True).finished
    for name in ("prompts.safetensors", "learned.vocab.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert json.loads((tmp_path / "cut/config.json").read_text())["data"] == str(moved.data)
    image = sorted((Path(moved.data).parent / "images/train").iterdir())[0]
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(RunError, match="`sample_images`"):
        fit(moved, tmp_path / "cut", config=config, resume=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names that are not text")
def test_images_whose_names_are_not_text_are_learned_from_and_shown(tmp_path: Path) -> None:
    data = write_sample(tmp_path / "set", n_images=3)[0]
    for split in ("train", "val"):
        for path in [*(data.parent / "images" / split).iterdir(), *(data.parent / "labels" / split).iterdir()]:
            path.rename(path.with_name(os.fsdecode(b"gro\xdf-") + path.name))
    with (data.parent / "labels/train" / os.fsdecode(b"gro\xdf-0000.txt")).open("a") as file:
        file.write("0 7 7 0.1 0.1\n")
    fit(FitInputs("tiny", data), tmp_path / "run", config=FitConfig(epochs=1, updates=1, views=1))
    assert b"gro\xdf-0000.txt" in (tmp_path / "run/left_out.txt").read_bytes()
    assert "gro\\udcdf-0" in (tmp_path / "run/report.html").read_text(encoding="utf-8")


def test_second_fit_with_the_same_cache_runs_no_detector(
    custom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = FitInputs("tiny", custom, cache=tmp_path / "cache")
    fit(inputs, tmp_path / "a", config=FitConfig(epochs=1))
    monkeypatch.setattr(World, "features", None)  # calling it would fail
    fit(
        FitInputs("tiny", custom, cache=tmp_path / "cache"),
        tmp_path / "b",
        config=FitConfig(epochs=1, learning_rate=0.01),
    )
    with pytest.raises(TypeError):
        fit(
            FitInputs("tiny", custom, cache=tmp_path / "cache"),
            tmp_path / "c",
            config=FitConfig(epochs=1, image_size=224),
        )


def test_fit_with_synonyms_writes_several_prompts_a_class(custom: Path, tmp_path: Path) -> None:
    classes = [("forklift", "lift truck"), ("gizmo",), ("sprocket",), ("widget",), ("flange",), ("doodad",)]
    fit(FitInputs("tiny", custom, classes=classes), tmp_path / "run", config=FitConfig(epochs=1))
    learned = Vocabulary.load(tmp_path / "run" / "learned.vocab.safetensors")
    assert learned.embeddings.shape == (6, 2, 512)
    assert not np.array_equal(learned.embeddings[0, 0], learned.embeddings[0, 1])
    assert np.array_equal(learned.embeddings[1, 0], learned.embeddings[1, 1])


@pytest.mark.parametrize("config", [FitConfig(epochs=1, views=3), FitConfig(epochs=1, class_specific=False)])
def test_fit_with_other_settings_learns_other_embeddings(config: FitConfig, custom: Path, tmp_path: Path) -> None:
    fit(FitInputs("tiny", custom), tmp_path / "usual", config=FitConfig(epochs=1))
    fit(FitInputs("tiny", custom), tmp_path / "other", config=config)
    usual, other = (Vocabulary.load(tmp_path / name / "learned.vocab.safetensors") for name in ("usual", "other"))
    assert usual.digest != other.digest


def test_original_vocabulary_of_the_user_guides_the_neck(custom: Path, tmp_path: Path) -> None:
    fit(
        FitInputs("tiny", custom, original="red circle, blue ring; azure hoop"),
        tmp_path / "run",
        config=FitConfig(epochs=1),
    )
    original = Vocabulary.load(tmp_path / "run" / "original.vocab.safetensors")
    learned = Vocabulary.load(tmp_path / "run" / "learned.vocab.safetensors")
    assert original.names == ("red circle", "blue ring") and original.n_prompts == 2
    assert learned.guide == original.digest


def test_run_folder_in_the_way_is_refused(custom: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep me")
    with pytest.raises(RunError, match="is not a run of `fit`"):
        fit(FitInputs("tiny", custom), tmp_path / "run", config=FitConfig(epochs=1))
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
    result = fit(FitInputs("tiny", tmp_path / "wide" / "data.yaml"), tmp_path / "run", config=FitConfig(epochs=6))
    measured = validate_run(tmp_path / "run", tmp_path / "wide" / "data.yaml").learned
    assert measured is not None and result.ap > 0.05
    assert result.ap == pytest.approx(measured.ap, abs=0.02)  # an epoch is measured without scores below 0.01


OWN = FitConfig(epochs=4, updates=2, guide="own", prompts_per_class=2)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all runs of this module."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def own_run(custom: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose classes guide the neck themselves, two prompts each."""
    out = tmp_path_factory.mktemp("own") / "run"
    fit(FitInputs("tiny", custom, cache=shared_cache), out, config=OWN)
    return out


def test_guide_own_leaves_detector_and_tower_bit_equal(
    custom: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[Trainer] = []

    class Kept(Trainer):
        def __init__(self, *parts: Any, **options: Any) -> None:
            super().__init__(*parts, **options)
            trainers.append(self)

    monkeypatch.setattr("prompt_tune.tuning.fit.Trainer", Kept)
    fit(FitInputs("tiny", custom, cache=shared_cache), tmp_path / "run", config=replace(OWN, epochs=1))
    world, tower = trainers[0].task.world, trainers[0].context.tower
    after = world.model.state_dict()
    for name, tensor in World.load("tiny").model.state_dict().items():
        assert torch.equal(tensor, after[name]), name
    for name, parameter in TextTower.load("tiny").parameters().items():
        assert torch.equal(parameter, tower.parameters()[name]), name
    assert all(p.grad is None for p in (*world.model.parameters(), *tower.parameters().values()))
    assert not any(module.training for module in (*world.model.modules(), *tower.transformer.modules()))


def test_guide_own_is_measured_alike_by_fit_torch_and_onnx_runtime_and_changes_no_bit(
    custom: Path, own_run: Path, tmp_path: Path
) -> None:
    learned = Vocabulary.load(own_run / "learned.vocab.safetensors")
    assert learned.guide_mode == "own" and learned.guide == learned.digest and learned.n_prompts == 2
    export_bundle(own_run, tmp_path / "bundle")
    measured = [validate_run(own_run, custom).learned, validate_bundle(tmp_path / "bundle", custom).learned]
    for metrics in measured:
        assert metrics is not None and metrics.ap == pytest.approx(learned.provenance["val_ap"], abs=0.03)
    assert learned.provenance["val_ap"] > 0.02
    images = custom.parent / "images" / "test"
    assert verify(tmp_path / "bundle", images).original_bits_changed == 0
    found = Detector(tmp_path / "bundle").detect([sorted(images.iterdir())[0]], learned_conf=0.0)
    assert any("learned" in image.vocabularies for image in found)


def test_guide_own_that_is_stopped_goes_on_to_the_same_bytes(
    custom: Path, own_run: Path, shared_cache: Path, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int | None, note: str) -> None:
        if stage == "train" and done == 2:
            raise KeyboardInterrupt

    fit(FitInputs("tiny", custom, cache=shared_cache), tmp_path / "run", config=OWN, progress=stop)
    fit(FitInputs("tiny", custom, cache=shared_cache), tmp_path / "run", config=OWN, resume=True)
    for name in ("prompts.safetensors", "learned.vocab.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (own_run / name).read_bytes(), name


def test_vocabulary_built_from_prompts_of_guide_own_guides_itself(own_run: Path) -> None:
    classes = [("gizmo",), ("widget",)]
    built = build_vocabulary("tiny", classes, kind="learned", prompts=own_run / "prompts.safetensors")
    learned = Vocabulary.load(own_run / "learned.vocab.safetensors")
    assert (built.guide_mode, built.guide) == ("own", built.digest)
    for name in built.names:
        ours, theirs = (vocabulary.embeddings[vocabulary.names.index(name)] for vocabulary in (built, learned))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_several_prompts_a_class_start_apart_and_stay_apart(own_run: Path) -> None:
    learned = Vocabulary.load(own_run / "learned.vocab.safetensors")
    cosines = np.einsum("cd,cd->c", learned.embeddings[:, 0], learned.embeddings[:, 1])
    assert float(cosines.max()) < 0.999
    page = (own_run / "report.html").read_text()
    assert all(name in page for name in CLASSES) and learned.digest in page


def test_teacher_keeps_embeddings_nearer_to_hand_written_prompts_the_more_it_weighs(
    custom: Path, shared_cache: Path, tmp_path: Path
) -> None:
    teacher = template_embeddings(TextTower.load("tiny"), [(name,) for name in CLASSES])
    cosines = []
    for weight in (0.0, 10.0, 1000.0):
        out = tmp_path / str(weight)
        fit(
            FitInputs("tiny", custom, cache=shared_cache),
            out,
            config=FitConfig(epochs=5, updates=4, teacher_weight=weight),
        )
        rows = Vocabulary.load(out / "learned.vocab.safetensors").embeddings
        cosines.append(float(np.einsum("cpd,cpd->cp", rows, teacher).mean()))
    assert cosines[0] + 0.02 < cosines[1] < cosines[2] - 0.02


def test_teacher_that_cannot_be_made_stops_the_fit_before_it_writes(custom: Path, tmp_path: Path) -> None:
    long = [(" ".join(["very"] * 69) + f" {name}",) for name in CLASSES]
    with pytest.raises(VocabularyError, match="window"):
        fit(
            FitInputs("tiny", custom, classes=long),
            tmp_path / "run",
            config=FitConfig(teacher_weight=1.0, context_length=1),
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("position", ["front", "middle"])
def test_position_and_initial_words_are_on_record_and_embed_the_same(
    custom: Path, shared_cache: Path, tmp_path: Path, position: Any
) -> None:
    config = FitConfig(epochs=1, token_position=position, initial_words="a photo of a")
    fit(FitInputs("tiny", custom, cache=shared_cache), tmp_path / "run", config=config)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (settings["token_position"], settings["initial_words"]) == (position, "a photo of a")
    context = load_context(tmp_path / "run" / "prompts.safetensors", TextTower.load("tiny"))
    assert (context.token_position, context.initial_words) == (position, "a photo of a")
    learned = Vocabulary.load(tmp_path / "run" / "learned.vocab.safetensors")
    np.testing.assert_allclose(context.embeddings(), learned.embeddings, atol=1e-6)


@pytest.fixture
def replay_folder(custom: Path, tmp_path: Path) -> Path:
    """A plain folder with eight images of the original vocabulary alone."""
    folder = tmp_path / "replay"
    folder.mkdir()
    for path in sorted((custom.parent.parent / "original/images/val").iterdir())[:8]:
        shutil.copy(path, folder)
    return folder


def damage(path: Path) -> None:
    """The header stays, so that only decoding shows it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_replayed_images_are_trained_on_counted_and_resumed(
    custom: Path, replay_folder: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten labelled images and eight replayed ones: one of these is damaged, one held out. The run is stopped once."""
    batches: list[list[int]] = []

    def counting(
        world: World, rows: torch.Tensor, images: list[Prepared], sample: ClassSample | None = None
    ) -> torch.Tensor:
        batches.append([len(image.candidates.counts) for image in images])
        return class_loss(world, rows, images, sample)

    monkeypatch.setattr("prompt_tune.tuning.tasks.class_loss", counting)
    replay = [ReplaySource(str(replay_folder), 0.8)]
    damage(sorted(replay_folder.iterdir())[2])
    config = FitConfig(epochs=2, updates=1, views=1)  # no object leaves its picture

    def stop(stage: str, done: int, total: int | None, note: str) -> None:
        if stage == "train" and done == 1:
            raise KeyboardInterrupt

    fit(FitInputs("tiny", custom, cache=shared_cache, replay=replay), tmp_path / "run", config=config, progress=stop)
    fit(FitInputs("tiny", custom, cache=shared_cache, replay=replay), tmp_path / "run", config=config, resume=True)
    fit(FitInputs("tiny", custom, cache=shared_cache, replay=replay), tmp_path / "whole", config=config)
    names = ("learned.vocab.safetensors", "prompts.safetensors")
    assert all((tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
    provenance = Vocabulary.load(tmp_path / "run" / "learned.vocab.safetensors").provenance
    replayed = provenance["replay_images"]
    assert provenance["train_images"] == 10 and replayed == 6
    assert len(batches) == 4  # an update an epoch, in each of the two runs
    assert all(
        len(batch) == 16 and batch.count(0) == replayed for batch in batches
    )  # the sample's own images have objects
    with pytest.raises(RunError, match="`replay`"):
        fit(FitInputs("tiny", custom, cache=shared_cache), tmp_path / "run", config=config, resume=True)
    (replay_folder / "new.jpg").write_bytes((replay_folder / "0000.jpg").read_bytes())
    (replay_folder / "0001.jpg").unlink()
    with pytest.raises(RunError, match="`replay_labels`"):
        fit(FitInputs("tiny", custom, cache=shared_cache, replay=replay), tmp_path / "run", config=config, resume=True)


def test_replay_of_damaged_images_alone_is_refused(
    custom: Path, replay_folder: Path, shared_cache: Path, tmp_path: Path
) -> None:
    for path in replay_folder.iterdir():
        damage(path)
    with pytest.raises(DataError, match="none of its 8 images can be read"):
        fit(FitInputs("tiny", custom, cache=shared_cache, replay=[ReplaySource(str(replay_folder))]), tmp_path / "run")


def test_replay_that_is_not_there_stops_the_fit_before_it_writes(custom: Path, tmp_path: Path) -> None:
    with pytest.raises(PromptTuneError, match="nowhere"):
        fit(FitInputs("tiny", custom, replay=[ReplaySource(str(tmp_path / "nowhere"))]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_training_images_are_not_counted_as_learned_from(tmp_path: Path) -> None:
    data = write_sample(tmp_path / "set", n_images=4)[0]
    image = data.parent / "images/train/0002.jpg"
    content = image.read_bytes()
    image.write_bytes(content[:300] + b"\0" * 400 + content[-2:])  # its beginning and end are whole
    label = data.parent / "labels/train/0001.txt"
    label.write_text(label.read_text() + "0 7 7 0.1 0.1\n")
    with pytest.raises(DataError, match=r"1 bad label row\), which --strict forbids: `.*0001\.txt`, line"):
        fit(FitInputs("tiny", data), tmp_path / "run", config=FitConfig(epochs=1), strict=True)
    assert not (tmp_path / "run").exists()
    fit(FitInputs("tiny", data), tmp_path / "run", config=FitConfig(epochs=1))
    lines = (tmp_path / "run" / "left_out.txt").read_text("utf-8").splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"train: bad label row: `{label}`, line ")
    assert lines[1].startswith("while decoding: unreadable image: ") and "0002.jpg" in lines[1]
    provenance = Vocabulary.load(tmp_path / "run" / "learned.vocab.safetensors").provenance
    assert (provenance["train_images"], provenance["replay_images"], provenance["val_images"]) == (3, 0, 4)


def test_replayed_images_that_are_held_out_raise_thresholds_and_leave_precision(custom: Path, tmp_path: Path) -> None:
    """The held-out ones count for thresholds alone: AP is that of the labelled validation images."""
    original = custom.parent.parent / "original" / "images" / "val"
    source = ReplaySource(str(original), 1.0)
    fit(FitInputs("tiny", custom, replay=[source]), tmp_path / "run", config=FitConfig(epochs=4))
    provenance = Vocabulary.load(tmp_path / "run" / "learned.vocab.safetensors").provenance
    assert provenance["val_images"] == 10  # and 2 more behind them
    assert provenance["train_images"] == 10 and 8 <= provenance["replay_images"] <= 10
    measured = validate_run(tmp_path / "run", custom).learned
    assert measured is not None and provenance["val_ap"] == pytest.approx(measured.ap, abs=0.02)


@pytest.mark.parametrize("damaged", ["all", "labelled"])
def test_fit_without_a_readable_labelled_validation_image_ends_before_training(tmp_path: Path, damaged: str) -> None:
    data = write_sample(tmp_path / "set", n_images=4)[0]
    images = sorted((data.parent / "images/val").iterdir())
    if damaged == "labelled":  # one image without objects can still be read
        (data.parent / "labels/val" / f"{images[-1].stem}.txt").write_text("")
        images.pop()
    for path in images:  # a PNG from its signature to its end mark, so that only decoding the pixels shows the damage
        Image.open(path).save(path, "PNG")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    reason = "None of the 4 images" if damaged == "all" else "No readable validation image of .* has a box. The first"
    with pytest.raises(DataError, match=reason) as refusal:
        fit(FitInputs("tiny", data), tmp_path / "run", config=FitConfig(epochs=1))
    assert images[0].name in str(refusal.value) and not RunFolder(tmp_path / "run").metrics.exists()


def _warned(caplog: pytest.LogCaptureFixture, begin: str) -> list[str]:
    """The warnings that have a text."""
    return [record.getMessage() for record in caplog.records if begin in record.getMessage()]


@pytest.mark.parametrize("backgrounds", [0, 2])
def test_fit_says_when_all_training_images_show_an_object(
    backgrounds: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    custom = write_sample(tmp_path / "set", n_images=4)[0]
    labels = sorted((custom.parent / "labels/train").iterdir())
    for file in labels:
        file.write_text("0 0.5 0.5 0.25 0.25\n")
    for file in labels[:backgrounds]:
        file.write_text("")
    fit(FitInputs("tiny", custom), tmp_path / "run", config=FitConfig(epochs=1))
    said = _warned(caplog, "training images show an object")
    assert len(said) == (0 if backgrounds else 1)
    if said:
        assert said[0].startswith(f"{len(labels)} of {len(labels)} training") and "--replay" in said[0]
        assert "\n" not in said[0]


def test_fit_with_replay_does_not_ask_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    custom = write_sample(tmp_path / "set", n_images=4)[0]
    for file in (custom.parent / "labels/train").iterdir():
        file.write_text("0 0.5 0.5 0.25 0.25\n")
    replay = [ReplaySource(str(custom.parent.parent / "original/images/val"), 1.0)]
    fit(FitInputs("tiny", custom, replay=replay), tmp_path / "run", config=FitConfig(epochs=1))
    assert not _warned(caplog, "training images show an object")


def test_fit_that_came_to_nothing_says_the_usual_causes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    custom = write_sample(tmp_path / "set", n_images=4)[0]
    for file in (custom.parent / "labels").rglob("*.txt"):
        file.write_text("0 0.02 0.02 0.03 0.03\n")  # where nothing is
    result = fit(FitInputs("tiny", custom), tmp_path / "run", config=FitConfig(epochs=1))
    said = _warned(caplog, "The fit came to nothing")
    assert result.ap50 < 0.05 and len(said) == 1 and f"AP50 is {result.ap50:.3f}" in said[0]


def test_fit_that_learned_something_names_no_causes(
    custom: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fit(FitInputs("tiny", custom), tmp_path / "run", config=FitConfig(epochs=2)).ap50 >= 0.05
    assert not _warned(caplog, "The fit came to nothing")
