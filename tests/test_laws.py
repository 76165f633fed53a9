"""The six laws of the product, each on the model that ships: a test here that fails is a broken promise."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import LeakyGraph
from places import WEIGHTS

from prompt_tune import Detector, Vocabulary
from prompt_tune.config import FitConfig
from prompt_tune.datasets.sample import write_sample
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.deployment.graph import DetectorGraph
from prompt_tune.errors import ModelError, PromptTuneError, VocabularyError
from prompt_tune.models.context import PromptContext
from prompt_tune.models.text_tower import TextTower
from prompt_tune.models.world import World, region_logits
from prompt_tune.runtime.images import read_rgb
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs
from prompt_tune.tuning.trainer import Trainer
from prompt_tune.vocabulary.vocabulary import guide_digest

SHORT = FitConfig(epochs=3)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample set: its folder."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder / "set", n_images=8)
    return folder / "set"


@pytest.fixture(scope="module")
def run(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs on it."""
    out = tmp_path_factory.mktemp("run") / "run"
    fit(FitInputs("tiny", sample / "custom" / "custom.yaml"), out, config=SHORT)
    return out


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    """Its bundle."""
    export_bundle(run, run.parent / "bundle")
    return run.parent / "bundle"


def _others(bundle: Path, folder: Path, count: int) -> list[Path]:
    """Further learned vocabularies for the bundle's detector and guide, of random classes."""
    learned = Vocabulary.load(bundle / "learned.vocab.safetensors")
    paths = []
    for k, n_cls in enumerate([1, 7, 40][:count]):
        rows = np.random.default_rng(k).normal(size=(n_cls, k + 1, 512)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        names = tuple(f"thing {k}-{i}" for i in range(n_cls))
        other = Vocabulary(
            names,
            rows,
            kind="learned",
            detector=learned.detector,
            text_tower=learned.text_tower,
            guide=learned.guide,
            box_offsets=np.full((n_cls, 4), 0.25) if k else None,
        )
        paths.append(folder / f"other{k}.vocab.safetensors")
        other.save(paths[-1])
    return paths


# Law 1: frozen


def test_fit_leaves_detector_and_tower_bit_equal(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers: list[Trainer] = []

    class Kept(Trainer):
        def __init__(self, *parts: Any, **options: Any) -> None:
            super().__init__(*parts, **options)
            trainers.append(self)

    monkeypatch.setattr("prompt_tune.tuning.fit.Trainer", Kept)
    fit(FitInputs("tiny", sample / "custom" / "custom.yaml"), tmp_path / "run", config=FitConfig(epochs=1))
    world, tower = trainers[0].task.world, trainers[0].context.tower
    fresh_world, fresh_tower = World.load("tiny"), TextTower.load("tiny")
    after = world.model.state_dict()
    for name, tensor in fresh_world.model.state_dict().items():
        assert torch.equal(tensor, after[name]), name
    for name, parameter in fresh_tower.parameters().items():
        assert torch.equal(parameter, tower.parameters()[name]), name
    assert not any(module.training for module in (*world.model.modules(), *tower.transformer.modules()))


def test_loss_has_gradients_in_ctx_alone() -> None:
    world, tower = World.load("tiny"), TextTower.load("tiny")
    context = PromptContext(tower, [("gizmo",), ("widget",)])
    head = torch.randn(12, world.c3, generator=torch.Generator().manual_seed(0))
    region_logits(world, head, torch.arange(12) % 3, context()).square().sum().backward()
    assert [name for name, _ in context.named_parameters()] == ["ctx"]
    assert context.ctx.grad is not None and bool((context.ctx.grad.flatten(2).abs().sum(2) > 0).all())
    frozen = [*world.model.parameters(), *tower.parameters().values()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


# Law 2: retention


def test_original_detections_in_onnx_runtime_are_bit_identical_with_any_vocabularies(
    bundle: Path, sample: Path, tmp_path: Path
) -> None:
    paths = sorted((sample / "custom/images/test").iterdir())
    images = [np.moveaxis(read_rgb(path), 2, 0)[None].astype(np.float32) / 255 for path in paths]
    others = _others(bundle, tmp_path, 3)
    settings: list[tuple[bool, list[Path]]] = [
        (True, []),
        (True, others),
        (True, others[::-1]),
        (False, others[:1]),
    ]
    alone = Detector(bundle, use_bundled=False)
    before = [alone.raw(image)[0] for image in images]
    assert sum(map(len, before)) > 100
    for bundled, learned in settings:
        detector = Detector(bundle, use_bundled=bundled, learned=learned)
        after = [detector.raw(image)[0] for image in images]
        assert [table.tobytes() for table in after] == [table.tobytes() for table in before]


def _in_torch(graph: type[DetectorGraph]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Boxes and original scores without learned rows, with some, with many, and with those in another order."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 128, 160, generator=generator)
    many = torch.nn.functional.normalize(torch.randn(300, 1, 512, generator=generator), dim=2)
    original = torch.tensor(Vocabulary.load(WEIGHTS / "original.vocab.safetensors").embeddings)
    module = graph(World.load("tiny"))
    with torch.no_grad():
        return [module.raw(images, original, learned)[:2] for learned in (many[:0], many[:1], many, many.flip(0))]


def test_original_detections_in_torch_are_bit_identical_with_any_learned_rows_in_any_order() -> None:
    alone, *others = _in_torch(DetectorGraph)
    assert alone[1].shape[:2] == (2, 80)
    for boxes, scores in others:
        assert torch.equal(boxes, alone[0]) and torch.equal(scores, alone[1])


def test_graph_whose_guide_takes_learned_rows_would_be_caught() -> None:
    alone, *others = _in_torch(LeakyGraph)
    for _, scores in others:
        assert not torch.equal(scores, alone[1])


def test_another_guide_changes_original_scores(bundle: Path, sample: Path) -> None:
    """Without this the retention tests would prove nothing: the guide of `tiny` must matter.

    The learned classes as the guide, and as a part of it beside the original ones, as others do it.
    """
    world = World.load("tiny")
    paths = sorted((sample / "custom/images/test").iterdir())[:4]
    pixels = torch.tensor(np.stack([read_rgb(path) for path in paths])).permute(0, 3, 1, 2).float() / 255
    original, learned = (
        torch.tensor(Vocabulary.load(bundle / f"{kind}.vocab.safetensors").embeddings).flatten(0, 1)
        for kind in ("original", "learned")
    )
    _, _, level = world.anchors(*pixels.shape[2:])
    scores = []
    for guide in (original, learned, torch.cat([original, learned])):
        head, _ = world.features(pixels, guide)
        scores.append(world.logits(head, level, *world.fold(original)).sigmoid())
    assert float((scores[0] - scores[1]).abs().max()) > 0.1
    assert not torch.equal(scores[0], scores[2])


# Law 3: complete and safe files


def test_learned_vocabulary_file_holds_all_that_inference_needs(bundle: Path, sample: Path, tmp_path: Path) -> None:
    """The bundle works alone: no run folder, no data set, no torch object in any file."""
    image = sorted((sample / "custom/images/test").iterdir())[0]
    found = Detector(bundle).detect([image])[0]
    assert found.size_wh == (256, 256)
    for path in (path for path in bundle.rglob("*") if path.is_file()):
        head = path.read_bytes()[:4096]
        assert not head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")), f"{path} is a pickle or a zip of one"


# Interrupted writes: tests/test_files.py and tests/vocabulary/test_format.py


# Law 4 has a module of its own: tests/test_light_imports.py


# Law 5: nothing silent


def test_vocabulary_of_another_detector_or_guide_is_refused(bundle: Path, tmp_path: Path) -> None:
    learned = Vocabulary.load(bundle / "learned.vocab.safetensors")
    for part in ("detector", "guide"):
        foreign = replace(learned, detector="ab" * 32) if part == "detector" else replace(learned, guide="ab" * 32)
        path = tmp_path / f"{part}.vocab.safetensors"
        foreign.save(path)
        with pytest.raises(VocabularyError, match=part):
            Detector(bundle, use_bundled=False, learned=[path])


def test_text_tower_of_another_detector_is_refused(sample: Path, tmp_path: Path, text_tower: Path) -> None:
    with pytest.raises(ModelError, match="was made for text tower"):
        fit(
            FitInputs("tiny", sample / "custom" / "custom.yaml", text_tower=f"local-dir:{text_tower}"), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_damaged_image_among_many_is_skipped_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_sample(tmp_path / "set", n_images=4)
    damaged = tmp_path / "set/custom/images/train/0002.jpg"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3 : -2] = bytes(len(content) - 2 - len(content) // 3)  # header and end mark stay
    damaged.write_bytes(content[: len(content) // 2])
    with caplog.at_level("WARNING", logger="prompt_tune"):
        fit(FitInputs("tiny", tmp_path / "set/custom/custom.yaml"), tmp_path / "run", config=FitConfig(epochs=1))
    assert "0002.jpg` cannot be read" in caplog.text  # the line of counts is no warning: see test_opening.py


# Law 6: reproducible and restartable


def test_same_seed_gives_the_same_bytes(run: Path, sample: Path, tmp_path: Path) -> None:
    fit(FitInputs("tiny", sample / "custom" / "custom.yaml"), tmp_path / "again", config=SHORT)
    for name in ("prompts.safetensors", "learned.vocab.safetensors", "original.vocab.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes(), name


def test_killed_fit_continues_to_the_same_bytes(run: Path, sample: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle, then --resume: the result is that of a run that was never touched."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "prompt_tune", "fit", "--model", "tiny", "--epochs", "3"]
    command += ["--data", str(sample / "custom" / "custom.yaml"), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (out / "state.safetensors").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / "state.safetensors").exists()
    fit(FitInputs("tiny", sample / "custom" / "custom.yaml"), out, config=SHORT, resume=True)
    for name in ("prompts.safetensors", "learned.vocab.safetensors"):
        assert (out / name).read_bytes() == (run / name).read_bytes(), name


def test_resume_with_other_settings_is_refused(run: Path, sample: Path) -> None:
    data = sample / "custom" / "custom.yaml"
    with pytest.raises(PromptTuneError, match="`epochs`"):
        fit(FitInputs("tiny", data), run, config=FitConfig(epochs=5), resume=True)
    with pytest.raises(PromptTuneError, match="--resume"):
        fit(FitInputs("tiny", data), run, config=SHORT)


def test_resume_on_labels_that_were_edited_is_refused(tmp_path: Path) -> None:
    data = write_sample(tmp_path / "set", n_images=6)[0]
    fit(FitInputs("tiny", data), tmp_path / "run", config=FitConfig(epochs=1))
    labels = next(path for path in sorted((data.parent / "labels/train").iterdir()) if path.read_text())
    labels.write_text(labels.read_text() + "0 0.5 0.5 0.25 0.25\n")
    with pytest.raises(PromptTuneError, match="`labels`"):
        fit(FitInputs("tiny", data), tmp_path / "run", config=FitConfig(epochs=1), resume=True)


def test_shipped_original_vocabulary_is_its_own_guide() -> None:
    vocabulary = Vocabulary.load(WEIGHTS / "original.vocab.safetensors")
    assert vocabulary.guide == guide_digest(vocabulary.embeddings) and len(vocabulary.names) == 80
