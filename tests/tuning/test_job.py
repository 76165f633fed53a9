"""What a fit is made from: inputs that say where they come from, and a job that knows when it is another one."""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from prompt_tune.config import IMAGE_SIZE, TINY_IMAGE_SIZE, FitConfig
from prompt_tune.datasets.held_out import content_digest
from prompt_tune.datasets.replay import ReplaySource
from prompt_tune.datasets.sample import CLASSES, write_sample
from prompt_tune.errors import RunError
from prompt_tune.models.text_tower import TextTower, template_embeddings
from prompt_tune.tuning.job import FitInputs, Job, prepare
from prompt_tune.vocabulary.names import parse_inline


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    """A small custom job, which a test may edit: its YAML."""
    return write_sample(tmp_path / "set", n_images=3)[0]


def job_of(inputs: FitInputs, config: FitConfig | None = None) -> Job:
    return prepare(inputs, config or FitConfig(), "cpu")


def test_inputs_as_json_name_what_exists_by_its_whole_path(
    custom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()  # the model of that name comes first
    replay = (ReplaySource("set/original", 0.5), ReplaySource("grounding.json"))
    assert FitInputs("tiny", "set/custom/custom.yaml", replay=replay).as_json() == {
        "model": "tiny",
        "data": str(custom.resolve()),
        "replay": [[str((tmp_path / "set/original").resolve()), 0.5], ["grounding.json", 3.0]],
    }
    assert FitInputs("yolov8s-worldv2.pt", custom).as_json()["model"] == "yolov8s-worldv2.pt"


def test_prepare_resolves_what_was_left_open_and_writes_nothing(custom: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    job = job_of(FitInputs("tiny", custom))
    assert sorted(tmp_path.rglob("*")) == before
    assert job.config == FitConfig(image_size=TINY_IMAGE_SIZE, views=16)
    assert job.context.classes == [(name,) for name in CLASSES] and len(job.original.names) == 80
    assert (job.earlier, job.frozen, job.teacher) == (None, [], None) and not job.replayed.train.samples


def test_prepare_takes_the_image_size_that_checkpoints_were_trained_at(
    custom: Path, checkpoint: Path, text_tower: Path, tmp_path: Path
) -> None:
    stored = torch.load(checkpoint, weights_only=False)
    stored["model"].txt_feats *= 2  # not unit: nothing says which tower they are from
    torch.save(stored, tmp_path / "noise.pt")
    inputs = FitInputs(tmp_path / "noise.pt", custom, original="lorry, van", text_tower=f"local-dir:{text_tower}")
    jobs = [job_of(inputs, FitConfig(image_size=size)) for size in (96, 0)]
    assert [job.config.image_size for job in jobs] == [96, IMAGE_SIZE]
    assert jobs[0].original.names == ("lorry", "van")


def test_prepare_builds_context_and_teacher_as_the_settings_say(custom: Path) -> None:
    classes = [("forklift", "lift truck"), *((name,) for name in list(CLASSES)[1:])]
    config = FitConfig(context_length=2, prompts_per_class=2, token_position="front", teacher_weight=1.0)
    job = job_of(FitInputs("tiny", custom, classes=classes), config)
    assert job.context.ctx.shape[:3] == (6, 4, 2) and job.context.token_position == "front"
    assert job.teacher is not None and job.teacher.shape == (6, 4, 512)
    wanted = template_embeddings(TextTower.load("tiny"), job.context.texts)
    np.testing.assert_array_equal(job.teacher.numpy(), wanted)


def _move_a_box(data: Path) -> None:
    labels = sorted((data.parent / "labels/train").iterdir())[0]
    labels.write_text("0 0.5 0.5 0.25 0.25\n")


def _rename_a_class(data: Path) -> None:
    data.write_text(data.read_text().replace("gizmo", "gadget"))


def _drop_a_validation_image(data: Path) -> None:
    sorted((data.parent / "images/val").iterdir())[0].unlink()


def _change_an_image(data: Path) -> None:
    path = sorted((data.parent / "images/train").iterdir())[0]
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        (lambda data: None, set()),
        (_move_a_box, {"labels"}),
        (_drop_a_validation_image, {"labels", "sample_images"}),
        (_change_an_image, {"sample_images"}),
        (_rename_a_class, {"classes"}),
    ],
)
def test_job_as_json_differs_where_the_data_set_was_edited(
    custom: Path, edit: Callable[[Path], object], changed: set[str]
) -> None:
    before = job_of(FitInputs("tiny", custom)).as_json()
    edit(custom)
    after = job_of(FitInputs("tiny", custom)).as_json()
    assert before.keys() == after.keys()
    assert {name for name, value in before.items() if after[name] != value} == changed


@pytest.mark.parametrize(
    ("inputs", "settings", "changed"),
    [
        ({"original": "red circle, blue ring"}, {}, {"digests"}),
        ({}, {"epochs": 3}, {"settings"}),
        ({}, {"image_size": 192}, {"settings", "image_size"}),
        ({"given": frozenset({"epochs"})}, {}, set()),
    ],
)
def test_job_as_json_differs_where_inputs_or_settings_do(
    custom: Path, inputs: dict[str, object], settings: dict[str, int], changed: set[str]
) -> None:
    before = job_of(FitInputs("tiny", custom)).as_json()
    after = job_of(FitInputs("tiny", custom, **inputs), FitConfig(**settings)).as_json()  # type: ignore[arg-type]
    assert {name for name, value in before.items() if after[name] != value} == changed


def test_job_as_json_knows_the_replayed_images(custom: Path) -> None:
    images = custom.parent.parent / "original/images/val"
    inputs = FitInputs("tiny", custom, replay=[ReplaySource(str(images), 1.0)])
    before = job_of(inputs)
    known = before.as_json()
    assert before.replayed.train.samples and known["from"] is None
    path = before.replayed.train.samples[0].path
    path.rename(path.with_name("renamed.jpg"))
    after = job_of(inputs).as_json()
    changed = {name for name, value in known.items() if after[name] != value}
    assert {"replay_labels"} <= changed <= {"replay_labels", "sample_images"}


def test_freeze_old_without_an_earlier_run_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(RunError, match=r"none is given\. Name it with --from"):
        job_of(FitInputs("nowhere.pt", "nowhere"), FitConfig(freeze_old=True))


def test_job_records_held_out_images_only_without_validation_images(custom: Path, tmp_path: Path) -> None:
    assert "held_out" not in job_of(FitInputs("tiny", custom)).as_json()
    custom = write_sample(tmp_path / "more", n_images=110)[0]
    content = yaml.safe_load(custom.read_text())
    del content["val"]
    custom.write_text(yaml.safe_dump(content))
    job = job_of(FitInputs("tiny", custom))
    assert (job.config.views, job.dataset.few, len(job.dataset.val.samples)) == (5, False, 22)
    assert job.as_json()["held_out"] == sorted(content_digest(sample.path) for sample in job.dataset.val.samples)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names that are not text")
def test_image_names_that_are_not_text_have_a_digest_and_others_keep_theirs(custom: Path) -> None:
    known = job_of(FitInputs("tiny", custom))
    labels = known.as_json()["labels"]
    expected = hashlib.sha256()
    for split in (known.dataset.train, known.dataset.val):
        for sample in split.samples:
            expected.update(f"{sample.path.name} {len(sample.labels)}\n".encode())
            for part in (sample.labels.boxes_xyxy, sample.labels.classes, sample.labels.ignore):
                expected.update(part.tobytes())
        expected.update(b"\n")
    assert labels == expected.hexdigest(), "as in runs of 0.1.0"
    for folder, suffix in (("images", "jpg"), ("labels", "txt")):
        path = custom.parent / folder / "train" / f"0000.{suffix}"
        path.rename(path.with_name(os.fsdecode(b"\xff0000.") + suffix))
    job = job_of(FitInputs("tiny", custom))
    assert any("\udcff" in sample.path.name for sample in job.dataset.train.samples)
    assert job.as_json()["labels"] != labels


@pytest.mark.parametrize(
    ("names", "original", "hints"),
    [
        (None, None, []),
        (
            "red circle, gizmo, sprocket, widget, flange, Gizmo",
            "red circle, blue ring",
            ["differ in case", "red circle"],
        ),
    ],
)
def test_prepare_hints_at_names_that_may_not_be_meant(
    names: str | None, original: str | None, hints: list[str], custom: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes = None if names is None else parse_inline(names)
    job_of(FitInputs("tiny", custom, classes=classes, original=original))
    said = [record.getMessage() for record in caplog.records if record.name == "prompt_tune.tuning.job"]
    assert len(set(said)) == len(hints)
    for hint in hints:
        assert any(hint in message for message in said)
