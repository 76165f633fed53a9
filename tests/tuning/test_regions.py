"""The cached images of a split, as training reads them. What fills the cache is in test_caching.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cached import fill, write_sample
from torch import Tensor
from torch.nn import functional as F

from prompt_tune.datasets.samples import Sample
from prompt_tune.errors import RunError
from prompt_tune.models.world import World


@pytest.fixture(scope="module")
def guide() -> Tensor:
    return F.normalize(torch.randn(6, 512, generator=torch.Generator().manual_seed(3)), dim=1)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    (tmp_path / "images").mkdir()
    return [write_sample(tmp_path / "images", number) for number in range(6)]


def _ignoring(sample: Sample, ignore: list[bool]) -> Sample:
    return replace(sample, labels=replace(sample.labels, ignore=np.array(ignore)))


def test_has_object_counts_no_ignored_box(world: World, guide: Tensor, tmp_path: Path) -> None:
    ignored = [_ignoring(write_sample(tmp_path, k), [True, k == 1]) for k in (1, 2)]
    cache = fill(world, guide, [write_sample(tmp_path, 0, n_objects=0), *ignored], tmp_path / "cache")
    assert [cache.has_object(i) for i in range(3)] == [False, False, True]


def test_replayed_images_stand_behind_the_others_and_are_counted(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path
) -> None:
    samples[4].path.write_bytes(b"no image")
    parts = [fill(world, guide, part, tmp_path / "cache") for part in (samples[:3], samples[3:])]
    both = parts[0].with_replay(parts[1])
    assert (len(both.files), both.n_replay) == (5, 2) and len(both.skipped) == 1
    assert (parts[1].kept, both.kept) == ([0, 2], [0, 1, 2])  # of the samples before the replayed ones
    assert both.files[:3] == parts[0].files and both.files[3:] == parts[1].files
    assert (parts[0].n_replay, len(parts[0].files)) == (0, 3)


def test_load_of_a_file_that_is_gone_is_an_error_with_a_cure(
    world: World, guide: Tensor, samples: list[Sample], tmp_path: Path
) -> None:
    cache = fill(world, guide, samples[:1], tmp_path / "cache")
    cache.files[0][0].unlink()
    with pytest.raises(RunError, match="are damaged or gone"):
        cache.load(0)
