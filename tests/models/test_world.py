"""Parity with ultralytics' own forward pass, the frozen law, digests, and what is refused."""

import logging
from pathlib import Path

import pytest
import torch
from conftest import MakeCheckpoint
from parity import random_images, ultralytics_forward, unit_rows

from prompt_tune.errors import ModelError, ProviderError
from prompt_tune.models import ultralytics
from prompt_tune.models.world import World, detector_digest, torch_device


@pytest.mark.parametrize("n_classes", [1, 7, 80, 131])
@pytest.mark.parametrize("scale", ["n", "s"])
def test_features_and_fold_equal_ultralytics_forward(
    scale: str, n_classes: int, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    world = World.load(make_checkpoint(tmp_path / "model.pt", scale=scale, seed=3))
    images, text = random_images(2, 3, 96, 160, seed=n_classes), unit_rows(n_classes, seed=n_classes)
    expected_boxes, expected_logits = ultralytics_forward(world.model, images, text)

    head, boxes = world.features(images, text)
    logits = world.logits(head, world.anchors(96, 160)[2], *world.fold(text))

    assert head.shape == (2, 315, world.c3)
    assert expected_logits.std() > 0.5  # else the comparison proves nothing
    torch.testing.assert_close(boxes, expected_boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)


def test_logits_of_gathered_anchors_equal_those_of_all(world: World) -> None:
    head, _ = world.features(random_images(3, 3, 64, 96), unit_rows(4, seed=1))
    level = world.anchors(64, 96)[2]
    fold = world.fold(unit_rows(6, seed=2))
    everything = world.logits(head, level, *fold)
    kept = torch.stack([torch.randperm(len(level), generator=torch.Generator().manual_seed(i))[:40] for i in range(3)])

    gathered = torch.stack([image[rows] for image, rows in zip(head, kept, strict=True)])

    expected = torch.stack([image[rows] for image, rows in zip(everything, kept, strict=True)])
    torch.testing.assert_close(world.logits(gathered, level[kept], *fold), expected, rtol=1e-5, atol=1e-5)


def test_original_logits_with_and_without_learned_classes_are_bit_equal(world: World) -> None:
    guide = unit_rows(80, seed=1)
    level = world.anchors(96, 64)[2]
    images = random_images(2, 3, 96, 64)
    head, boxes = world.features(images, guide)
    before = world.logits(head, level, *world.fold(guide))
    for n_learned in (1, 7, 1123):
        head_again, boxes_again = world.features(images, guide)
        after = world.logits(head_again, level, *world.fold(guide))
        learned = world.logits(head_again, level, *world.fold(unit_rows(n_learned, seed=n_learned)))
        assert learned.shape[2] == n_learned
        assert torch.equal(before, after) and torch.equal(boxes, boxes_again)


def test_guide_when_another_changes_scores_visibly(world: World) -> None:
    images, classes = random_images(1, 3, 64, 64), unit_rows(5, seed=3)
    scores = []
    for seed in (1, 2):
        head, _ = world.features(images, unit_rows(80, seed=seed))
        scores.append(world.logits(head, world.anchors(64, 64)[2], *world.fold(classes)).sigmoid())
    assert (scores[0] - scores[1]).abs().max() > 0.05


def test_anchors_match_the_levels_of_the_features(world: World) -> None:
    points, stride, level = world.anchors(64, 96)
    assert len(points) == 8 * 12 + 4 * 6 + 2 * 3
    assert points[:2].tolist() == [[4.0, 4.0], [12.0, 4.0]]
    assert points[12].tolist() == [4.0, 12.0]
    assert points[-1].tolist() == [80.0, 48.0]
    assert stride.unique_consecutive().tolist() == [8.0, 16.0, 32.0]
    assert level.bincount().tolist() == [96, 24, 6]


def test_features_leave_model_frozen_and_bit_equal(world: World) -> None:
    before = {name: tensor.clone() for name, tensor in world.model.state_dict().items()}
    world.features(random_images(2, 3, 64, 64), unit_rows(3, seed=1))
    world.features(random_images(1, 3, 96, 32), unit_rows(9, seed=2))
    after = world.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in world.model.modules())
    assert not any(parameter.requires_grad for parameter in world.model.parameters())
    assert {parameter.dtype for parameter in world.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("images", "guide", "text"),
    [
        ((1, 3, 64, 65), (4, 512), "multiples of 32"),
        ((1, 1, 64, 64), (4, 512), "(b, 3, h, w)"),
        ((1, 3, 64, 64), (0, 512), "at least one row"),
        ((1, 3, 64, 64), (1, 4, 512), "(n, 512)"),
    ],
)
def test_features_of_wrong_shapes_are_refused(
    world: World, images: tuple[int, ...], guide: tuple[int, ...], text: str
) -> None:
    with pytest.raises(ModelError) as error:
        world.features(torch.zeros(images), torch.zeros(guide))
    assert text in str(error.value)


def test_own_classes_are_the_checkpoints_names_and_text_features(world: World) -> None:
    assert world.names is not None and world.names[:2] == ("thing 0", "thing 1")
    assert world.class_embeddings is not None
    assert world.class_embeddings.shape == (80, 512)
    torch.testing.assert_close(world.class_embeddings, world.model.txt_feats[0].float(), rtol=1e-5, atol=1e-6)


def test_own_classes_of_model_from_yaml_are_none_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    tasks = ultralytics.quiet_import("ultralytics.nn.tasks")
    model = tasks.WorldModel("yolov8n-worldv2.yaml", ch=3, nc=4, verbose=False)
    model.names = {0: "a", 1: "b", 2: "c", 3: "d"}
    with caplog.at_level(logging.INFO, "prompt_tune.models.world"):
        world = World(model, source_name="here.pt")
    assert world.names == ("a", "b", "c", "d")
    assert world.class_embeddings is None
    assert "'here.pt' has no text features of its own" in caplog.text

    model.names = {i: str(i) for i in range(4)}
    assert World(model).names is None


def test_digest_when_path_class_count_or_text_change_stays(checkpoint: Path, world: World, tmp_path: Path) -> None:
    stored = torch.load(checkpoint, weights_only=False)
    model = stored["model"].float()
    model.yaml = dict(reversed(model.yaml.items())) | {"yaml_file": "/elsewhere/model.yaml", "nc": 3, "ch": 3}
    model.txt_feats = torch.zeros(1, 3, 512)
    model.names = {0: "x", 1: "y", 2: "z"}
    torch.save({"ema": model, "model": None}, tmp_path / "moved.pt")
    assert World.load(tmp_path / "moved.pt").digest == world.digest


def test_digest_when_a_weight_or_the_structure_changes_differs(world: World) -> None:
    state = {name: tensor.clone() for name, tensor in world.model.state_dict().items()}
    assert detector_digest(world.yaml, state) == world.digest
    assert detector_digest(world.yaml | {"scale": "s"}, state) != world.digest
    state["model.22.cv4.0.norm.running_mean"][0] += 1e-3
    assert detector_digest(world.yaml, state) != world.digest


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "is not a detector: it has no detector.yaml"),
        ("nowhere.pt", "There is no detector 'nowhere.pt'; give 'tiny', the path of a .pt file, or one of yolov8s-"),
        (__file__, "is not a checkpoint: a detector is a .pt file"),
    ],
)
def test_load_of_what_is_not_there_is_refused(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as error:
        World.load(name)
    assert text in str(error.value)


def test_backbone_and_neck_give_what_feature_maps_gives(world: World) -> None:
    images, guide = random_images(2, 3, 64, 96), unit_rows(5, seed=3)
    with torch.no_grad():
        kept = world.backbone(images)
        for rows in (guide, unit_rows(2, seed=4)):  # one pass of the backbone serves every guide
            maps, boxes = world.neck(kept, rows)
            right_maps, right_boxes = world.feature_maps(images, rows)
            assert all(torch.equal(a, b) for a, b in zip(maps, right_maps, strict=True))
            assert torch.equal(boxes, right_boxes)


def test_neck_hands_a_gradient_to_the_guide(world: World) -> None:
    guide = unit_rows(3, seed=5).requires_grad_()
    maps, _ = world.neck(world.backbone(random_images(1, 3, 64, 64)), guide)
    torch.cat([level.flatten() for level in maps]).square().sum().backward()
    assert guide.grad is not None and bool(guide.grad.abs().sum() > 0)


def test_torch_takes_the_names_of_gpus_that_ultralytics_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_device("cpu") == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for device in ("cuda", "cuda:1", "0", 0):
        with pytest.raises(ProviderError, match=f"^`device='{device}'`: the environment variable CUDA_VISIBLE_DEVICES"):
            torch_device(device)
    if torch.cuda.is_available():
        monkeypatch.undo()
        assert torch_device("0") == torch_device(0) == "cuda:0"
