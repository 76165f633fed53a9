"""YOLO-World v1: parity with ultralytics, then everything that v2 does: retention, fit, export, runtime, bake."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import MakeCheckpoint
from parity import random_images, ultralytics_forward, unit_rows
from small_bundle import learned_for, photo, small_bundle

from prompt_tune.config import FitConfig
from prompt_tune.contract import INPUTS
from prompt_tune.datasets.sample import write_sample
from prompt_tune.deployment.bake import save_checkpoint
from prompt_tune.evaluation.verify import changed_bits
from prompt_tune.models import ultralytics
from prompt_tune.models.world import World
from prompt_tune.runtime.detector import Detector


@pytest.fixture(scope="module")
def v1(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random yolov8n-world in ultralytics' format."""
    return make_checkpoint(tmp_path_factory.mktemp("v1") / "random-n-world.pt", version="")


@pytest.fixture(scope="module")
def world(v1: Path) -> World:
    return World.load(v1)


@pytest.fixture(scope="module")
def bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of v1: its export checks the graph against torch."""
    return small_bundle(world, tmp_path_factory.mktemp("bundle") / "v1")


@pytest.mark.parametrize("n_classes", [1, 7, 80, 131])
@pytest.mark.parametrize("scale", ["n", "s"])
def test_features_and_fold_equal_ultralytics_forward(
    scale: str, n_classes: int, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    world = World.load(make_checkpoint(tmp_path / "model.pt", scale=scale, seed=3, version=""))
    images, text = random_images(2, 3, 96, 160, seed=n_classes), unit_rows(n_classes, seed=n_classes)
    expected_boxes, expected_logits = ultralytics_forward(world.model, images, text)
    head, boxes = world.features(images, text)
    logits = world.logits(head, world.anchors(96, 160)[2], *world.fold(text))
    assert head.shape == (2, 315, world.c3)
    assert expected_logits.std() > 0.5  # else the comparison proves nothing
    torch.testing.assert_close(boxes, expected_boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)


def test_float16_cache_keeps_the_scores(world: World) -> None:
    guide = unit_rows(20, seed=1)
    head, _ = world.features(random_images(2, 3, 96, 96), guide)
    level, fold = world.anchors(96, 96)[2], world.fold(guide)
    exact, cached = (world.logits(part, level, *fold).sigmoid() for part in (head, head.half().float()))
    assert (exact - cached).abs().max() < 2e-3


def test_learned_rows_change_no_bit_of_original_scores_in_torch(world: World) -> None:
    images, guide = random_images(2, 3, 96, 64), unit_rows(80, seed=2)
    level = world.anchors(96, 64)[2]
    head, boxes = world.features(images, guide)
    before = world.logits(head, level, *world.fold(guide))
    head_again, boxes_again = world.features(images, guide)
    world.logits(head_again, level, *world.fold(unit_rows(300, seed=3)))
    assert torch.equal(boxes, boxes_again)
    assert torch.equal(before, world.logits(head_again, level, *world.fold(guide)))


@pytest.mark.parametrize(("batch", "height", "width", "n_learned"), [(1, 32, 32, 0), (3, 160, 96, 5), (2, 224, 64, 40)])
def test_graph_on_untraced_shapes_equals_torch(
    bundle: Path, world: World, batch: int, height: int, width: int, n_learned: int
) -> None:
    images, original = random_images(batch, 3, height, width, seed=4), unit_rows(80, seed=5)
    learned = unit_rows(n_learned, seed=6)
    session = onnxruntime.InferenceSession(bundle / "detector.onnx", providers=["CPUExecutionProvider"])
    arrays = (images, original[:, None], learned[:, None], *(torch.tensor([number]) for number in (1.0, 0.05, 0.05)))
    feed = {name: array.numpy() for name, array in zip(INPUTS, arrays, strict=True)}
    head, boxes = world.features(images, original)
    for table, rows in zip(session.run(None, feed), (original, learned), strict=True):
        scores = world.logits(head, world.anchors(height, width)[2], *world.fold(rows)).sigmoid()
        assert len(table) > 0 or not n_learned
        for image, *box, score, index in table[:: max(1, len(table) // 50)]:
            near = (boxes[int(image)] - torch.tensor(box)).abs().amax(dim=1) < 1e-3 * max(height, width)
            assert (scores[int(image), near, int(index)] - score).abs().min() < 1e-4


def test_runtime_with_learned_vocabularies_changes_no_original_bit(bundle: Path) -> None:
    images = [photo(70, 90, seed=1), photo(120, 60, seed=2)]
    detector = Detector(bundle, use_bundled=False, image_size=160)
    alone = [found.of("original") for found in detector.detect(images, original_conf=0.01)]
    assert sum(map(len, alone)) > 20
    detector.load(bundle / "learned.vocab.safetensors")
    detector.load(learned_for(bundle, *(f"thing {i}" for i in range(200)), seed=9), name="many")
    together = detector.detect(images, original_conf=0.01, learned_conf=0.01)
    assert sum(len(found.of("many")) for found in together) > 0
    for before, after in zip(alone, together, strict=True):
        kept = after.of("original")
        assert changed_bits(before.boxes_xyxy, kept.boxes_xyxy) == changed_bits(before.scores, kept.scores) == 0
        assert before.class_names == kept.class_names


def test_fit_export_and_detect_run_on_it(v1: Path, text_tower: Path, tmp_path: Path) -> None:
    from prompt_tune.deployment.bundle import export_bundle
    from prompt_tune.tuning.fit import fit
    from prompt_tune.tuning.job import FitInputs

    custom, _ = write_sample(tmp_path / "set", n_images=6)
    names = tmp_path / "names.txt"
    names.write_text("".join(f"thing {i}\n" for i in range(8)))
    before = {name: tensor.clone() for name, tensor in World.load(v1).model.state_dict().items()}
    # its text features are of no tower, which would be refused: without names they are known to be noise
    plain = tmp_path / "plain.pt"
    checkpoint = torch.load(v1, weights_only=False)
    checkpoint["model"].names = {i: str(i) for i in range(80)}
    torch.save(checkpoint, plain)
    inputs = FitInputs(str(plain), custom, original=str(names), text_tower=f"local-dir:{text_tower}")
    result = fit(inputs, tmp_path / "run", config=FitConfig(epochs=3, image_size=96))
    losses = [line["loss"] for line in _metrics(result.run)]
    assert losses[-1] < losses[0]
    after = World.load(plain).model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    export_bundle(result.run, tmp_path / "bundle")
    (found,) = Detector(tmp_path / "bundle").detect(photo(90, 90), learned_conf=0.001)
    assert set(found.vocabularies) <= {"original", "learned"}


def _metrics(run: Path) -> list[dict[str, Any]]:
    from prompt_tune.run import RunFolder

    return RunFolder(run).read_metrics()


def test_baked_checkpoint_of_it_predicts_in_ultralytics(world: World, tmp_path: Path) -> None:
    assert world.names is not None and world.class_embeddings is not None
    rows = torch.cat((world.class_embeddings, unit_rows(1, seed=8)))  # (81, 512)
    save_checkpoint(world, (*world.names, "gizmo"), rows, tmp_path / "custom.pt", image_size=96)
    model: Any = ultralytics.quiet_import("ultralytics").YOLOWorld(str(tmp_path / "custom.pt"))
    images = random_images(1, 3, 96, 96)
    with torch.no_grad():
        output = model.model(images)[0]  # (1, 4 + 81, A)
    head, _ = world.features(images, rows)
    wanted = world.logits(head, world.anchors(96, 96)[2], *world.fold(rows)).sigmoid()
    torch.testing.assert_close(output[:, 4:].transpose(1, 2), wanted, rtol=1e-3, atol=1e-5)
    assert model.predict(np.ascontiguousarray(photo(96, 96)), verbose=False, device="cpu")[0].names[80] == "gizmo"
