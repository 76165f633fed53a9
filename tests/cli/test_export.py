"""`prompt-tune export`: bundles in both precisions, and what it refuses in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import learned_for_tiny, original_vocabulary
from commands import run_command
from PIL import Image
from runs import write_run
from vocabularies import TOWER

from prompt_tune.datasets.sample import custom_scene, write_sample
from prompt_tune.deployment.bundle import BUNDLE_FILES
from prompt_tune.models.world import World
from prompt_tune.runtime.detector import Detector
from prompt_tune.version import install_on_cpu
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

SIZE = 256


def test_export_writes_a_bundle_and_says_where(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    original = original_vocabulary()
    learned = learned_for_tiny(("disc",), original.embeddings[:1])
    run = write_run(tmp_path / "run", "tiny", original, learned, image_size=SIZE)
    done = run_command(capfd, "export", run, "--out", tmp_path / "bundle")
    assert (done.status, done.out) == (0, f"Bundle: {tmp_path / 'bundle'}\n")
    assert {path.name for path in (tmp_path / "bundle").iterdir()} >= set(BUNDLE_FILES)
    assert Detector(tmp_path / "bundle", threads=1).precision == "float32"


def test_export_with_wheel_and_photo_and_again_without(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    learned = learned_for_tiny(("disc",), original_vocabulary().embeddings[:1])
    run = write_run(tmp_path / "run", "tiny", original_vocabulary(), learned, image_size=SIZE)
    write_sample(tmp_path / "sample", n_images=6)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"data": str(tmp_path / "sample" / "custom" / "custom.yaml")}))
    bundle = tmp_path / "bundle"
    assert run_command(capfd, "export", run, "--out", bundle, "--with-wheel").status == 0
    (wheel,) = bundle.glob("prompt_tune-*.whl")
    readme = (bundle / "README.md").read_text()
    assert f"pip install bundle/{wheel.name}\n" in readme and "checkout" not in readme
    assert install_on_cpu(f"bundle/{wheel.name}") in readme
    with Image.open(bundle / "web" / "sample.jpg") as photo:
        assert photo.format == "JPEG"
    assert run_command(capfd, "export", run, "--out", bundle, "--no-photo").status == 0
    assert not [*bundle.glob("*.whl")] and not (bundle / "web" / "sample.jpg").exists()
    readme = (bundle / "README.md").read_text()
    assert "pip install .   # in a checkout of prompt-tune: it is not on PyPI yet" in readme


def test_export_of_what_is_no_run_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = run_command(capfd, "export", tmp_path / "gone", "--out", tmp_path / "bundle")
    assert done.status == 1 and done.err.startswith(f"Error: '{tmp_path / 'gone'}' is not a run folder")
    assert len(done.err.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_export_with_half_writes_a_float16_bundle_that_detects(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = original_vocabulary()
    learned = learned_for_tiny(("disc", "other"), original.embeddings[[0, 5]], thresholds=original.thresholds[[0, 5]])
    run = write_run(tmp_path / "run", "tiny", original, learned, image_size=SIZE)
    done = run_command(capfd, "export", run, "--out", tmp_path / "bundle", "--half")
    assert (done.status, done.out.count("Bundle: ")) == (0, 1)
    assert "float16: boxes within 0.0" in done.err and "of float32 on the sample set." in done.err
    detector = Detector(tmp_path / "bundle", threads=1)
    assert detector.precision == "float16"
    (found,) = detector.detect(np.asarray(custom_scene(0, "test", 1).image))
    assert "original" in found.vocabularies
    for name, copy in zip((original.names[0], original.names[5]), ("disc", "other"), strict=True):
        copies = found.of("learned").scores[np.array(found.of("learned").class_names, dtype=object) == copy]
        originals = found.of("original").scores[np.array(found.of("original").class_names, dtype=object) == name]
        np.testing.assert_allclose(copies, originals, atol=1e-5)


def test_export_with_half_that_is_refused_writes_nothing(
    checkpoint: Path, world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert world.names is not None and world.class_embeddings is not None
    embeddings = world.class_embeddings.numpy()[:, None]  # (80, 1, 512)
    guide = guide_digest(embeddings)
    origin: dict[str, Any] = {"detector": world.digest, "text_tower": TOWER, "guide": guide}
    original = Vocabulary(world.names, embeddings, kind="original", **origin)
    learned = Vocabulary(("gizmo",), embeddings[:1], kind="learned", **origin)
    run = write_run(tmp_path / "run", checkpoint, original, learned, image_size=SIZE)
    done = run_command(capfd, "export", run, "--out", tmp_path / "bundle", "--half")
    assert done.status == 1 and done.err.startswith("Error: In float16, boxes of this detector move by")
    assert len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_name_of_export_is_the_label_of_the_bundles_vocabulary(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = original_vocabulary()
    learned = learned_for_tiny(("disc",), original.embeddings[:1])
    run = write_run(tmp_path / "run", "tiny", original, learned, image_size=SIZE)
    bundle = tmp_path / "bundle"
    done = run_command(capfd, "export", run, "--out", bundle, "--name", "forklifts")
    assert (done.status, done.out) == (0, f"Bundle: {bundle}\n")
    detector = Detector(bundle, learned=[run / "learned.vocab.safetensors"], threads=1)
    assert list(detector.vocabularies) == ["original", "forklifts", "learned"] and detector.bundled == "forklifts"
    assert Vocabulary.load(bundle / "learned.vocab.safetensors").provenance["label"] == "forklifts"
    assert "label" not in Vocabulary.load(run / "learned.vocab.safetensors").provenance
    done = run_command(capfd, "export", run, "--out", tmp_path / "other", "--name", "original")
    assert done.status == 1 and done.err.startswith("Error: A label must be a word")
    assert not (tmp_path / "other").exists()
    assert run_command(capfd, "export", run, "--out", bundle).status == 0
    assert (bundle / "learned.vocab.safetensors").read_bytes() == (run / "learned.vocab.safetensors").read_bytes()
