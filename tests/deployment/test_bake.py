"""The baked checkpoint in ultralytics itself, and the measure of what its joint guide moves."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import learned_for_tiny, original_vocabulary
from PIL import Image
from runs import write_run
from small_bundle import photo
from vocabularies import TOWER, refusal_of, unit_rows

from prompt_tune.datasets.sample import original_scene
from prompt_tune.deployment.bake import _matched_changes, bake, measure_predict, measure_shift
from prompt_tune.errors import DataError, RunError
from prompt_tune.models import ultralytics
from prompt_tune.models.world import World
from prompt_tune.runtime.detections import Detections
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

SIZE = 256


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `tiny` with a twin of its first class, which has that class's name, and a random class."""
    original = original_vocabulary()
    rows = np.concatenate([original.embeddings[:1], unit_rows(1, 1, seed=3)])  # (2, 1, 512)
    learned = learned_for_tiny((original.names[0], "gizmo"), rows)
    return write_run(tmp_path_factory.mktemp("run"), "tiny", original, learned, image_size=SIZE)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures that show original classes of `tiny`."""
    folder = tmp_path_factory.mktemp("scenes")
    for index in range(3):
        Image.fromarray(original_scene(0, index).image).save(folder / f"{index}.png")
    return folder


def checkpoint_run(folder: Path, checkpoint: Path, world: World) -> Path:
    """A run on the random checkpoint with one random class."""
    assert world.names is not None and world.class_embeddings is not None
    rows = world.class_embeddings.numpy()[:, None]  # (80, 1, 512)
    origin: dict[str, Any] = {"detector": world.digest, "text_tower": TOWER, "guide": guide_digest(rows)}
    original = Vocabulary(world.names, rows, kind="original", **origin)
    learned = Vocabulary(("gizmo",), unit_rows(1, 1), kind="learned", **origin)
    return write_run(folder, str(checkpoint), original, learned, image_size=96)


def load(path: Path) -> Any:
    """The file in ultralytics' own class, as its users load it; a call of CLIP would fail: there is no network."""
    return ultralytics.quiet_import("ultralytics").YOLOWorld(str(path))


def test_baked_tiny_predicts_in_ultralytics_what_the_joint_guide_gives(
    tiny_run: Path, scenes: Path, tmp_path: Path
) -> None:
    baked = bake(tiny_run, tmp_path / "custom.pt")
    assert baked.names[-2:] == (f"{baked.names[0]} (learned)", "gizmo") and baked.n_original == 80
    model = load(tmp_path / "custom.pt")
    assert model.names == dict(enumerate(baked.names))

    world = World.load("tiny")
    rows = torch.tensor(np.concatenate([original_vocabulary().embeddings, unit_rows(1, 1, seed=3)])[:, 0])  # (81, 512)
    rows = torch.cat((rows[:80], rows[:1], rows[80:]))  # (82, 512): the original ones, the twin, gizmo
    pixels = np.asarray(Image.open(scenes / "0.png"))
    image = torch.tensor(pixels.transpose(2, 0, 1)[None]).float() / 255  # (1, 3, h, w)
    head, boxes_xyxy = world.features(image, rows)
    wanted = world.logits(head, world.anchors(SIZE, SIZE)[2], *world.fold(rows)).sigmoid()  # (1, A, 82)
    with torch.no_grad():
        output = model.model(image)[0]  # (1, 4 + 82, A), boxes as cxcywh
    torch.testing.assert_close(output[:, 4:].transpose(1, 2), wanted, rtol=1e-3, atol=1e-5)

    (result,) = model.predict(pixels[..., ::-1].copy(), verbose=False, device="cpu")  # 256 px come from the file
    assert result.orig_shape == (SIZE, SIZE) and len(result.boxes) > 0
    anchors = wanted[0].argmax(dim=0)  # the best of each class
    best = int(result.boxes.conf.argmax())
    name = int(result.boxes.cls[best])
    torch.testing.assert_close(result.boxes.conf[best], wanted.max(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(result.boxes.xyxy[best], boxes_xyxy[0, anchors[name]].clamp(0, SIZE), rtol=0, atol=0.1)


def test_baked_checkpoint_loads_predicts_and_is_the_same_detector(
    checkpoint: Path, world: World, tmp_path: Path
) -> None:
    run = checkpoint_run(tmp_path / "run", checkpoint, world)
    bake(run, tmp_path / "custom.pt")
    model = load(tmp_path / "custom.pt")
    assert model.model.model[-1].nc == 81 and model.names[80] == "gizmo"
    assert model.predict(photo(96, 96), verbose=False, device="cpu", conf=0.001)[0].boxes.data.shape[1] == 6
    again = World.load(tmp_path / "custom.pt")
    assert (again.digest, again.names) == (world.digest, (*(world.names or ()), "gizmo"))
    first = (tmp_path / "custom.pt").read_bytes()
    (tmp_path / "other").mkdir()
    bake(run, tmp_path / "other" / "custom.pt")
    assert (tmp_path / "other" / "custom.pt").read_bytes() == first


def test_shift_of_a_twin_is_nothing_and_of_a_random_class_is_measured(scenes: Path) -> None:
    world, original = World.load("tiny"), torch.tensor(original_vocabulary().embeddings[:, 0])  # (80, 512)
    twin = torch.cat((original, original[:1]))  # the guide's maximum does not change by it
    shift = measure_shift(world, twin, 80, scenes, image_size=SIZE)
    assert (shift.images, shift.lost, shift.gained) == (3, 0, 0) and shift.before > 5
    assert shift.largest < 1e-5
    other = torch.cat((original, torch.tensor(unit_rows(40, seed=9))))
    moved = measure_shift(world, other, 80, scenes, image_size=SIZE)
    assert moved.before == shift.before
    assert moved.largest > 1e-4 and moved.largest >= moved.mean > 0


def test_predict_hides_original_detections_behind_better_learned_ones_unless_boxes_have_several_classes(
    scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, best = World.load("tiny"), torch.tensor(original_vocabulary().embeddings[:, 0])  # (80, 512)
    worse = torch.nn.functional.normalize(best + 0.1 * torch.tensor(unit_rows(80, seed=9)), dim=1)
    rows = torch.cat((worse, best))  # in the same box, the learned class scores higher
    names = tuple(f"class {index}" for index in range(160))
    guide = measure_shift(world, rows, 80, scenes, image_size=SIZE)
    assert guide.before > 5 and guide.lost <= 1 and guide.learned is None
    options: dict[str, Any] = {"image_size": SIZE}
    predicted = measure_predict(world, names, rows, 80, scenes, **options)
    assert (predicted.images, predicted.gained) == (3, 0)
    assert predicted.lost >= 5 and (predicted.learned or 0) >= predicted.lost  # 7 of 21
    assert measure_predict(world, names[:80], rows[:80], 80, scenes, **options).lost == 0

    nms = ultralytics.quiet_import("ultralytics.utils.nms")  # as docs/other-tools.md does it
    monkeypatch.setattr(nms, "non_max_suppression", partial(nms.non_max_suppression, multi_label=True))
    several = measure_predict(world, names, rows, 80, scenes, **options)
    assert several.before == predicted.before and several.lost <= 1


def detections(boxes: list[list[int]], *, scores: list[float], classes: list[int]) -> Detections:
    rows = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(rows, np.array(scores, np.float32), np.array(classes, np.int64))


def test_matched_changes_by_hand() -> None:
    before = detections(
        [[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 10]],
        scores=[0.9, 0.8, 0.5, 0.4],
        classes=[1, 1, 1, 2],
    )
    after = detections([[0, 0, 10, 10], [0, 1, 10, 10], [20, 20, 30, 30]], scores=[0.7, 0.75, 0.5], classes=[1, 1, 2])
    nothing = detections([], scores=[], classes=[])
    # the first two find one each, the third is gone, and the fourth is of another class than what lies there
    np.testing.assert_allclose(_matched_changes(before, after), [0.2, 0.05], atol=1e-6)
    assert _matched_changes(before, nothing).shape == _matched_changes(nothing, after).shape == (0,)


def test_bake_says_what_ultralytics_cannot_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = unit_rows(1, 1)
    fields: dict[str, Any] = {"guide_mode": "own", "guide": guide_digest(rows), "calibration": np.array([[2, 0]])}
    learned = learned_for_tiny(("gizmo",), rows, **fields)
    with caplog.at_level(logging.INFO):
        bake(
            write_run(tmp_path / "run", "tiny", original_vocabulary(), learned, image_size=SIZE), tmp_path / "custom.pt"
        )
    assert "cannot hold the calibration" in caplog.text and "their scores change too" in caplog.text


def test_bake_refuses_what_ultralytics_cannot_hold(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is a \.pt file"):
        bake(tiny_run, tmp_path / "custom.onnx")
    several = write_run(
        tmp_path / "run", "tiny", original_vocabulary(), learned_for_tiny(("gizmo",), unit_rows(1, 2)), image_size=SIZE
    )
    text = refusal_of(lambda: bake(several, tmp_path / "custom.pt"))
    assert text.startswith("custom.pt has room for one embedding per class, but 'gizmo' has several prompts.")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="None of the 1 images"):
        bake(tiny_run, tmp_path / "custom.pt", images=tmp_path / "bad")
    assert not (tmp_path / "custom.pt").exists()


def test_background_row_comes_last_and_is_not_counted(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The row that `tiny` detects most is marked: it still guides, so the others stay as they are."""
    world, original = World.load("tiny"), original_vocabulary()
    rows = torch.tensor(original.embeddings[:, 0])  # (80, 512)
    head, _ = world.features(torch.tensor(original_scene(0, 0).image.transpose(2, 0, 1)[None]).float() / 255, rows)
    scores = world.logits(head, world.anchors(SIZE, SIZE)[2], *world.fold(rows)).amax((0, 1))  # (80,)
    row = int(scores.argmax())
    marked = replace(original, background=((original.names[row], ""),))
    learned = learned_for_tiny(("gizmo",), unit_rows(1, 1, seed=3))
    run = write_run(tmp_path / "run", "tiny", marked, learned, image_size=SIZE)
    with caplog.at_level(logging.INFO):
        baked = bake(run, tmp_path / "custom.pt", images=scenes)
    others = tuple(name for name in original.names if name != original.names[row])
    assert baked.names == (*others, "gizmo", "") and (baked.n_original, baked.n_background) == (79, 1)
    assert "background rows come last in" in caplog.text and "Predict with classes=range(80)." in caplog.text
    plain = bake(
        write_run(tmp_path / "plain", "tiny", original, learned, image_size=SIZE), tmp_path / "b.pt", images=scenes
    )
    assert baked.shift is not None and plain.shift is not None
    assert 0 < baked.shift.before < plain.shift.before and baked.shift.learned is None
    assert baked.predicted is not None and baked.predicted.before > 0
    again = World.load(tmp_path / "custom.pt")
    assert again.names == baked.names and again.class_embeddings is not None
    np.testing.assert_allclose(again.class_embeddings[-1], rows[row], atol=1e-6)
    (result,) = load(tmp_path / "custom.pt").predict(
        np.ascontiguousarray(original_scene(0, 0).image[..., ::-1]), verbose=False, device="cpu", classes=range(80)
    )
    assert len(result.boxes) and int(result.boxes.cls.max()) < 80
