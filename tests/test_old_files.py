"""Runs, bundles and vocabulary files of earlier versions still load, and mean what they meant."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from places import TESTS

from prompt_tune import Detector, Vocabulary
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.models.embeddings import default_tower, load_run
from prompt_tune.models.prompts_file import load_context
from prompt_tune.models.text_tower import TextTower
from prompt_tune.run import RunFolder
from prompt_tune.tuning.state import load_state

DATA = TESTS / "data"  # README.md there says what is in it
FILES = sorted(DATA.rglob("*.vocab.safetensors"))


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(DATA)) for file in FILES])
def test_old_vocabulary_is_read_and_written_to_the_same_bytes(file: Path) -> None:
    assert len(FILES) == 8
    assert Vocabulary.load(file).to_bytes() == file.read_bytes()


def test_old_bundle_detects_what_it_detected() -> None:
    detector = Detector(DATA / "bundle", threads=1)
    (found,) = detector.detect([DATA / "photo.png"], original_conf=0.5, learned_conf=0.5)
    then = json.loads((DATA / "detections.json").read_text())
    names = [":".join(key) for key in zip(found.vocabularies, found.class_names, strict=True)]
    assert names == then["names"]
    np.testing.assert_allclose(found.scores, then["scores"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.boxes_xyxy, then["boxes"], rtol=1e-3, atol=0.05)


def test_old_bundle_takes_old_vocabularies_beside_its_own() -> None:
    detector = Detector(DATA / "bundle", threads=1)
    labels = [detector.load(file) for file in sorted((DATA / "vocabularies").iterdir())]
    assert labels == ["merged", "own-guide", "plain-any-detector", "plain-fields"]
    (found,) = detector.detect([DATA / "photo.png"], learned_conf=0.0)
    assert {*labels, "learned"} <= set(found.vocabularies)


def test_old_run_is_loaded_exported_and_its_prompts_give_its_embeddings(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(DATA / "run", run)
    config, _, original, learned = load_run(run)
    assert (config["image_size"], len(original.names), len(learned.names)) == (256, 80, 6)
    context = load_context(run / "prompts.safetensors", TextTower.load(default_tower("tiny")))
    np.testing.assert_allclose(context.embeddings(), learned.embeddings, rtol=0, atol=1e-5)
    folder = RunFolder(run)
    state = load_state(folder, context.ctx.shape)
    assert state is not None and (state.epoch, [line["epoch"] for line in folder.read_metrics()]) == (2, [1, 2])
    export_bundle(run, tmp_path / "bundle")
    assert Detector(tmp_path / "bundle", threads=1).classes[-6:] == tuple(("learned", name) for name in learned.names)
