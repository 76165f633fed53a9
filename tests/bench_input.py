"""How many images a second the caching of `fit` could feed to a fast GPU, and what limits it.

Run `python tests/bench_input.py ../shared/data/raccoon/images [--images N]`. The detector is the real one with its
network replaced by a sleep of 2 ms a batch, as long as a fast card takes; all else is what `fit` does: reading,
decoding, letterboxing, choosing anchors, writing. The parts are timed alone too, on one thread.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from prompt_tune.config import IMAGE_SIZE, RegionBudget
from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.models.world import World
from prompt_tune.runtime.image_files import find_images
from prompt_tune.runtime.images import image_size, letterbox, read_rgb
from prompt_tune.tuning import caching
from prompt_tune.tuning.caching import FORWARD_BATCH, cache_regions

SLEEP = 0.002  # seconds of a batch


class FastWorld(World):
    """A detector whose passes take 2 ms and always give the same."""

    def features(self, images: torch.Tensor, guide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `World.features`."""
        if not hasattr(self, "_given"):
            self._given = super().features(images, guide)
        time.sleep(SLEEP)
        return self._given


@click.command()
@click.argument("photos", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--images",
    default=200,
    show_default=True,
    help="Photos; repeated ones would be cached already.",
)
@click.option("--workers", default=(1, 2, 4), multiple=True, show_default=True, help="Threads that decode, and write.")
def main(photos: Path, images: int, workers: tuple[int, ...]) -> None:
    """Print images a second by the number of threads, and of each part alone."""
    torch.set_num_threads(1)  # the GPU computes; the threads of the pools are what is measured
    world = FastWorld.load("tiny")
    guide = torch.nn.functional.normalize(torch.randn(80, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    paths = find_images(photos)
    labels = Labels(np.array([[10, 10, 90, 70]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool))
    samples = [Sample(paths[k % len(paths)], labels, image_size(paths[k % len(paths)])) for k in range(images)]
    world.features(torch.rand(FORWARD_BATCH, 3, IMAGE_SIZE, IMAGE_SIZE), guide)
    _cache(world, guide, samples[:FORWARD_BATCH], 1)  # imports, and first calls
    table = Table("what", "threads", "images a second")
    for n in workers:
        table.add_row("caching", f"{n} + {n}", f"{images / _seconds(partial(_cache, world, guide, samples, n)):.0f}")
    some = paths[:100]
    pixels = [read_rgb(path) for path in some]
    table.add_row("reading and decoding alone", "1", f"{len(some) / _seconds(lambda: [read_rgb(p) for p in some]):.0f}")
    table.add_row("letterboxing alone", "1", f"{len(some) / _seconds(lambda: [letterbox(p, 640) for p in pixels]):.0f}")
    table.add_row("the sleep alone", "", f"{FORWARD_BATCH / SLEEP:.0f}")
    click.echo(f"{os.cpu_count()} cores")
    Console(width=100).print(table)


def _cache(world: World, guide: torch.Tensor, samples: list[Sample], workers: int) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(caching, "n_workers", lambda _: workers),
    ):
        for _ in cache_regions(
            world, guide, samples, Path(folder), image_size=IMAGE_SIZE, views=1, budget=RegionBudget()
        ):
            pass


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
