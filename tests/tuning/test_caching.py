"""The region cache: what is in it, when it is used again, and what happens when something is damaged."""

import copy
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cached import SIZE, fill, write_sample
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from prompt_tune.config import RegionBudget
from prompt_tune.datasets.samples import Sample
from prompt_tune.errors import DataError, ModelError, RunError
from prompt_tune.models.world import World
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.images import letterbox, read_rgb
from prompt_tune.tuning.caching import FORWARD_BATCH, READ_AHEAD, cache_regions
from prompt_tune.tuning.regions import read_parts

N_ANCHORS = 8 * 8 + 4 * 4 + 2 * 2
SMALL = RegionBudget(in_box=12, top=5, random=7)


@pytest.fixture(scope="module")
def guide() -> Tensor:
    return F.normalize(torch.randn(6, 512, generator=torch.Generator().manual_seed(3)), dim=1)


def with_labels(sample: Sample, **parts: np.ndarray) -> Sample:
    """The sample with other labels."""
    return replace(sample, labels=replace(sample.labels, **parts))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Six images: a full batch and two more."""
    (tmp_path / "images").mkdir()
    return [write_sample(tmp_path / "images", number) for number in range(6)]


def test_cache_without_guide_holds_what_the_backbone_gives_and_the_same_labels(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path
) -> None:
    free, fixed = (fill(world, steer, samples, tmp_path / "cache", views=2) for steer in (None, guide))
    assert not {file for files in free.files for file in files} & {file for files in fixed.files for file in files}
    pixels, _ = letterbox(read_rgb(samples[3].path), SIZE)
    wanted = world.backbone(torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255)
    layers, _ = free.load_backbone(3)
    assert layers.keys() == wanted.keys() and len(layers) > 1
    for layer, output in wanted.items():
        torch.testing.assert_close(layers[layer], output, rtol=2e-3, atol=1e-3)  # float16
    for view in (0, 1):
        bare, of_regions = free.load_backbone(3, view)[1], fixed.load(3, view)
        for part in ("boxes_xyxy", "classes", "ignore"):
            np.testing.assert_array_equal(getattr(bare.labels, part), getattr(of_regions.labels, part))
        np.testing.assert_array_equal(bare.frame_xyxy, of_regions.frame_xyxy)
    assert len(bare.anchor) == 0


def test_cache_without_guide_that_is_truncated_is_computed_again(
    world: World, samples: list[Sample], tmp_path: Path
) -> None:
    cache = fill(world, None, samples[:2], tmp_path / "cache")
    before = contents(tmp_path / "cache")
    cache.files[1][0].write_bytes(cache.files[1][0].read_bytes()[:-10])
    with pytest.raises(RunError, match="Run again"):
        cache.load_backbone(1)
    fill(world, None, samples[:2], tmp_path / "cache")
    assert contents(tmp_path / "cache") == before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_cache_without_budget_holds_what_the_detector_gives(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path
) -> None:
    cache = fill(world, guide, samples, tmp_path / "cache")
    assert len(cache.files) == 6 and not cache.skipped
    for number in (0, 5):
        pixels, frame = letterbox(read_rgb(samples[number].path), SIZE)
        head, boxes = world.features(torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255, guide)
        regions = cache.load(number)
        assert regions.anchor.tolist() == list(range(N_ANCHORS))
        torch.testing.assert_close(regions.head, head[0], rtol=2e-3, atol=1e-4)  # float16
        torch.testing.assert_close(regions.boxes_xyxy, boxes[0], rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(regions.labels.boxes_xyxy, frame.to_input(samples[number].labels.boxes_xyxy))
        np.testing.assert_array_equal(regions.labels.classes, samples[number].labels.classes)
        assert regions.head.dtype == torch.float32 and regions.labels.ignore.dtype == bool


def test_cache_of_images_without_boxes_and_with_ignored_ones_keeps_the_labels(
    world: World, guide: Tensor, tmp_path: Path
) -> None:
    empty = write_sample(tmp_path, 0, n_objects=0)
    ignored = with_labels(write_sample(tmp_path, 1), ignore=np.array([True, False]))
    cache = fill(world, guide, [empty, ignored], tmp_path / "cache", budget=SMALL)
    assert cache.load(0).labels.boxes_xyxy.shape == (0, 4) and len(cache.load(0).anchor) == SMALL.top + SMALL.random
    assert cache.load(1).labels.ignore.tolist() == [True, False]


def points_in(regions_anchor: Tensor, box: np.ndarray, world: World) -> Tensor:
    """(r,) bool: anchors whose point is in a box."""
    at = world.anchors(SIZE, SIZE)[0][regions_anchor].numpy()
    return torch.from_numpy(((at > box[:2]) & (at < box[2:])).all(1))


def test_budget_keeps_anchors_in_boxes_top_scores_and_random_ones(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path
) -> None:
    everything = fill(world, guide, samples, tmp_path / "all")
    budget = RegionBudget(in_box=N_ANCHORS, top=5, random=7)
    cache = fill(world, guide, samples, tmp_path / "some", budget=budget)
    level = world.anchors(SIZE, SIZE)[2]
    for number in range(6):
        whole, some = everything.load(number), cache.load(number)
        assert bool((some.anchor.diff() > 0).all())
        torch.testing.assert_close(some.head, whole.head[some.anchor], rtol=0, atol=0)
        torch.testing.assert_close(some.boxes_xyxy, whole.boxes_xyxy[some.anchor], rtol=0, atol=0)
        in_box = torch.zeros(N_ANCHORS, dtype=torch.bool)
        for box in whole.labels.boxes_xyxy:
            in_box |= points_in(whole.anchor, box, world)
        scores = world.logits(whole.head[None], level, *world.fold(guide))[0].amax(1)
        wanted = in_box.clone()
        wanted[scores.topk(4).indices] = True  # the fifth may differ: these features went through float16
        assert set(wanted.nonzero().flatten().tolist()) <= set(some.anchor.tolist())
        others = len(some.anchor) - int(in_box.sum())
        assert budget.random <= others <= budget.random + budget.top + 9  # 9: in boxes widened to 16 pixels


def test_budget_too_small_for_all_objects_gives_each_its_best_anchors(
    world: World, guide: Tensor, tmp_path: Path
) -> None:
    sample = write_sample(tmp_path, 0)
    large_and_small = np.array([[0, 0, 60, 60], [66, 20, 88, 42]], np.float32)
    sample = with_labels(sample, boxes_xyxy=large_and_small)
    whole = fill(world, guide, [sample], tmp_path / "all").load(0)
    some = fill(world, guide, [sample], tmp_path / "some", budget=RegionBudget(in_box=8, top=0, random=0)).load(0)
    assert len(some.anchor) == 8
    overlap = torch.from_numpy(box_iou(whole.boxes_xyxy.numpy(), whole.labels.boxes_xyxy))
    for k, box in enumerate(whole.labels.boxes_xyxy):
        inside = points_in(whole.anchor, box, world)
        best = overlap[:, k].masked_fill(~inside, -1).topk(4).indices
        assert set(best.tolist()) <= set(some.anchor.tolist())


def test_budget_of_overlapping_objects_stays_in_their_boxes(world: World, guide: Tensor, tmp_path: Path) -> None:
    large_and_small = np.array([[0, 0, 60, 60], [40, 20, 62, 42]], np.float32)
    sample = with_labels(write_sample(tmp_path, 0), boxes_xyxy=large_and_small)
    regions = fill(world, guide, [sample], tmp_path / "cache", budget=RegionBudget(20, 0, 0)).load(0)
    inside = torch.stack([points_in(regions.anchor, box, world) for box in regions.labels.boxes_xyxy])
    assert len(regions.anchor) == 20 and bool(inside.any(0).all()) and int(inside[1].sum()) < 20


def test_budget_spends_nothing_on_ignored_boxes(world: World, guide: Tensor, tmp_path: Path) -> None:
    sample = write_sample(tmp_path, 0)
    boxes = np.array([[0, 0, 90, 60], [30, 20, 50, 40]], np.float32)
    sample = with_labels(sample, boxes_xyxy=boxes, ignore=np.array([True, False]))
    regions = fill(world, guide, [sample], tmp_path / "cache", budget=RegionBudget(60, 0, 0)).load(0)
    inside = points_in(regions.anchor, regions.labels.boxes_xyxy[1], world)
    assert 0 < len(regions.anchor) < 20 and int(inside.sum()) >= len(regions.anchor) - 9  # 9: the box is widened


def test_views_are_cached_beside_the_image_and_share_the_first(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path
) -> None:
    one = fill(world, guide, samples, tmp_path / "cache")
    three = fill(world, guide, samples, tmp_path / "cache", views=3)
    assert [files[0] for files in three.files] == [files[0] for files in one.files]
    assert len({file for files in three.files for file in files}) == 18
    plain, augmented = three.load(0), three.load(0, 2)
    assert not torch.equal(plain.head, augmented.head)
    assert not np.array_equal(plain.labels.boxes_xyxy, augmented.labels.boxes_xyxy)


def test_second_run_computes_nothing_and_gives_the_same(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path
) -> None:
    cache = fill(world, guide, samples, tmp_path / "cache", budget=SMALL, views=2)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    again = fill(world, guide, samples, tmp_path / "cache", budget=SMALL, views=2)
    assert again.files == cache.files
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == times


def test_same_seed_gives_the_same_bytes(world: World, guide: Tensor, samples: list[Sample], tmp_path: Path) -> None:
    for name in ("one", "two"):
        fill(world, guide, samples, tmp_path / name, budget=SMALL, views=2, seed=4)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("guided", [True, False])
def test_any_number_of_threads_gives_the_same_bytes(
    guided: bool, world: World, guide: Tensor, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workers in (1, 5):
        monkeypatch.setattr("prompt_tune.tuning.caching.n_workers", lambda _, n=workers: n)
        growing = 0
        for cache in cache_regions(
            world, guide if guided else None, samples, tmp_path / f"{workers}", image_size=SIZE, views=3
        ):
            assert len(cache.files) > growing
            growing = len(cache.files)
        assert all(file.is_file() for files in cache.files for file in files)
    assert contents(tmp_path / "1") == contents(tmp_path / "5") and len(contents(tmp_path / "1")) == 18


def test_run_stopped_in_the_middle_continues_to_the_same_bytes(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path
) -> None:
    """Also where a single image of a batch is missing: it must not come out differently for being computed alone."""
    whole = fill(world, guide, samples, tmp_path / "whole", budget=SMALL)
    stopped = cache_regions(world, guide, samples, tmp_path / "stopped", image_size=SIZE, budget=SMALL)
    assert len(next(stopped).files) == FORWARD_BATCH
    stopped.close()
    assert len(contents(tmp_path / "stopped")) == FORWARD_BATCH
    (tmp_path / "stopped" / whole.files[2][0].name).unlink()
    kept = tmp_path / "stopped" / whole.files[0][0].name
    time = kept.stat().st_mtime_ns
    fill(world, guide, samples, tmp_path / "stopped", budget=SMALL)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert kept.stat().st_mtime_ns == time


def other_detector(world: World) -> World:
    other = copy.copy(world)
    other.digest = "0" * 64
    return other


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 96},
        {"seed": 1},
        {"budget": RegionBudget(13, 5, 7)},
        {"budget": None},
        {"guide": lambda guide: guide.flip(0)},
        {"world": other_detector},
        {"sample": lambda sample: with_labels(sample, boxes_xyxy=sample.labels.boxes_xyxy + 1)},
        {"sample": lambda sample: with_labels(sample, classes=sample.labels.classes + 1)},
        {"sample": lambda sample: with_labels(sample, ignore=~sample.labels.ignore)},
        {"pixels": 1},
    ],
)
def test_anything_that_changes_is_a_miss(world: World, guide: Tensor, tmp_path: Path, change: dict[str, Any]) -> None:
    sample = write_sample(tmp_path, 0)
    before = fill(world, guide, [sample], tmp_path / "cache", budget=SMALL).files
    settings = {"budget": SMALL} | {
        key: value for key, value in change.items() if key in ("image_size", "seed", "budget")
    }
    world = change["world"](world) if "world" in change else world
    guide = change["guide"](guide) if "guide" in change else guide
    sample = change["sample"](sample) if "sample" in change else sample
    if "pixels" in change:
        pixels = np.array(Image.open(sample.path))
        pixels[0, 0, 0] ^= 1
        Image.fromarray(pixels).save(sample.path)
    after = fill(world, guide, [sample], tmp_path / "cache", **settings).files
    assert after != before and len(contents(tmp_path / "cache")) == 2


def test_window_of_an_image_is_cached_as_a_picture_of_it_would_be_but_never_mixed_up_with_one(
    world: World, guide: Tensor, tmp_path: Path
) -> None:
    photo = write_sample(tmp_path, 1, n_objects=0)  # 90 x 60 pixels
    left, top, right, bottom = window = (20, 10, 70, 50)
    part = replace(photo, size_wh=(50, 40), window=window, part=1)
    Image.fromarray(read_rgb(photo.path)[top:bottom, left:right]).save(tmp_path / "part.png")
    alone = replace(photo, path=tmp_path / "part.png", size_wh=(50, 40))
    whole = replace(photo, window=(0, 0, 90, 60))
    other = replace(part, window=(20, 11, 70, 51))
    cache = fill(world, guide, [photo, whole, part, other, alone], tmp_path / "cache")
    assert len({file for files in cache.files for file in files}) == 5  # all labels are the same: none
    a, b = (cache.load(image) for image in (2, 4))
    torch.testing.assert_close(a.head, b.head, rtol=0, atol=0)
    np.testing.assert_array_equal(a.frame_xyxy, b.frame_xyxy)
    torch.testing.assert_close(cache.load(0).head, cache.load(1).head, rtol=0, atol=0)
    assert not torch.equal(cache.load(3).head, a.head)


def test_image_under_another_name_is_not_computed_again(world: World, guide: Tensor, tmp_path: Path) -> None:
    sample = write_sample(tmp_path, 0)
    before = fill(world, guide, [sample], tmp_path / "cache", budget=SMALL).files
    moved = replace(sample, path=sample.path.rename(tmp_path / "moved.png"))
    assert fill(world, guide, [moved], tmp_path / "cache", budget=SMALL).files == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
    ],
)
def test_truncated_file_is_computed_again(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    cache = fill(world, guide, samples, tmp_path / "cache")
    before = contents(tmp_path / "cache")
    damage(cache.files[1][0])
    with pytest.raises(RunError, match="Run again"):
        cache.load(1)
    fill(world, guide, samples, tmp_path / "cache")
    assert contents(tmp_path / "cache") == before


def test_a_bit_that_flipped_a_nan_and_another_shape_are_computed_again_in_one_line(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files that still are good safetensors, but not what was written."""
    cache = fill(world, guide, samples, tmp_path / "cache", budget=SMALL)
    before = contents(tmp_path / "cache")
    for index, change in enumerate(
        (
            lambda parts: parts["head"].view(torch.int16)[3, 5].bitwise_xor_(1),
            lambda parts: parts["boxes_xyxy"][0].fill_(torch.nan),
            lambda parts: parts.update(head=parts["head"][:-1].clone()),
            lambda parts: parts["label_classes"].add_(1),
            lambda parts: parts.pop("checksum"),
        )
    ):
        parts = load_file(cache.files[index][0])
        change(parts)
        save_file(parts, cache.files[index][0])
    with pytest.raises(RunError, match=r"damaged or gone \(its content is not what was written\)"):
        cache.load(0)
    assert not caplog.messages
    fill(world, guide, samples, tmp_path / "cache", budget=SMALL)
    assert contents(tmp_path / "cache") == before
    (line,) = caplog.messages
    assert line.startswith("5 files of the region cache were damaged, and computed again: ") and line.endswith(", ...")


def test_every_bit_of_a_cached_file_counts(world: World, guide: Tensor, samples: list[Sample], tmp_path: Path) -> None:
    file = fill(world, guide, samples[:1], tmp_path / "cache", budget=SMALL).files[0][0]
    whole, rng = bytearray(file.read_bytes()), np.random.default_rng(0)
    wanted = {name: part.clone() for name, part in read_parts(file).items()}
    for at in rng.integers(0, 8 * len(whole), 300).tolist():
        flipped = whole.copy()
        flipped[at // 8] ^= 1 << (at % 8)
        file.write_bytes(flipped)
        try:
            found = read_parts(file)
        except ValueError:
            continue
        assert found.keys() == wanted.keys()  # a space of the header: nothing that is read has changed
        assert all(torch.equal(found[name], part) for name, part in wanted.items())


def test_damaged_images_are_left_out_and_named(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path
) -> None:
    content = samples[1].path.read_bytes()
    samples[1].path.write_bytes(content[: len(content) // 2])
    samples[4].path.unlink()
    cache = fill(world, guide, samples, tmp_path / "cache")
    assert len(cache.files) == 4 and len(cache.skipped) == 2
    for number, text in zip((1, 4), cache.skipped, strict=True):
        assert text.count(str(samples[number].path)) == 1 and len(text.splitlines()) == 1
    np.testing.assert_array_equal(cache.load(1).labels.classes, samples[2].labels.classes)
    assert cache.kept == [0, 2, 3, 5]


def test_images_that_are_all_damaged_are_an_error(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path
) -> None:
    for sample in samples:
        sample.path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"None of the 6 images can be used\. The first: `.*000\.png`"):
        fill(world, guide, samples, tmp_path / "cache")


def test_folder_that_cannot_be_made_is_an_error(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="Give another --cache"):
        fill(world, guide, samples, tmp_path / "file")


def test_detector_that_gives_nan_is_an_error(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="not finite"):
        fill(world, guide * torch.nan, samples, tmp_path / "cache")
    assert not contents(tmp_path / "cache")


def test_memory_does_not_grow_with_the_number_of_images(world: World, guide: Tensor, tmp_path: Path) -> None:
    """Pixels are NumPy's, which tracemalloc sees: never more than the batches in work and read ahead."""
    side, n_images = 160, 40
    images = [write_sample(tmp_path, number) for number in range(n_images)]
    tracemalloc.start()
    for _ in cache_regions(world, guide, images, tmp_path / "cache", image_size=side, budget=SMALL):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (READ_AHEAD + 3) * FORWARD_BATCH * 3 * side**2 < 0.6 * n_images * 3 * side**2
