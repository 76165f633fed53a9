"""A small bundle for the tests of services."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from prompt_tune.models.world import World


@pytest.fixture(scope="session")
def bundle(world: "World", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle on the random detector."""
    from small_bundle import small_bundle

    return small_bundle(world, tmp_path_factory.getbasetemp() / "small-bundle")
