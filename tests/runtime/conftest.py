"""The small bundle and its detector, for all tests of the runtime."""

from pathlib import Path

import pytest
from small_bundle import small_bundle

from prompt_tune.models.world import World
from prompt_tune.runtime.detector import Detector


@pytest.fixture(scope="module")
def bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(world, tmp_path_factory.getbasetemp() / "small-bundle")


@pytest.fixture
def detector(bundle: Path) -> Detector:
    return Detector(bundle, threads=1)
