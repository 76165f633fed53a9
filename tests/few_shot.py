"""The jobs that methods are compared on. Scenes are written and cached once, then drawn by number and seed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prompt_tune.config import RegionBudget
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.sample import BENCH, CLASSES, original_scene, write_description, write_image
from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.datasets.scenes import HELD_OUT, TRAINED, Look, Scene, draw_scene, random_look
from prompt_tune.models.embeddings import original_vocabulary
from prompt_tune.models.text_tower import TextTower
from prompt_tune.models.world import World
from prompt_tune.tuning.caching import cache_regions
from prompt_tune.tuning.regions import RegionCache
from prompt_tune.vocabulary.names import read_classes
from prompt_tune.vocabulary.vocabulary import Vocabulary

IMAGE_SIZE = 256  # pixels, the size that `tiny` was trained at
COUNTS = {
    "pool": 600,  # training images are drawn from these
    "val": 100,
    "test": 200,
    "original": 100,  # labelled scenes of the original vocabulary
    "background": 300,  # scenes of the job without its objects
    "job replay": 600,  # such scenes for training
    "job replay held out": 100,
    "replay": 600,  # scenes of the pretraining, which stand for a general data set
    "replay held out": 100,
}
STREAMS = {name: 30 + k for k, name in enumerate(COUNTS)}  # not those of sample set and pretraining
UNKNOWN = dict(CLASSES)  # names that the tower was never trained on
KNOWN = {f"{colour} {shape}": Look.of(colour, shape) for colour, shape in HELD_OUT}  # words that it knows
OBJECTS, DISTRACTORS = (1, 3), (2, 5)  # per image: objects of the job's classes and of the original vocabulary


@dataclass(frozen=True, eq=False)
class Job:
    """A detection job in the world of `tiny`.

    Attributes:
        folder: Folder of scenes and caches. Those that are missing are written.
        looks: The classes that are labelled, by name.
        n_taught: How many of these classes, from the first, the training and validation scenes show. None: all.
    """

    folder: Path
    looks: Mapping[str, Look]
    n_taught: int | None = None

    @cached_property
    def world(self) -> World:
        return World.load("tiny")

    @cached_property
    def tower(self) -> TextTower:
        return TextTower.load("tiny")

    @cached_property
    def original(self) -> Vocabulary:
        return original_vocabulary(self.world, self.tower)

    @cached_property
    def guide(self) -> Tensor:
        return torch.tensor(self.original.embeddings).flatten(0, 1)  # (80, 512)

    @property
    def classes(self) -> list[tuple[str, ...]]:
        return [(name,) for name in self.looks]

    @property
    def taught(self) -> list[tuple[str, ...]]:
        return self.classes[: self.n_taught]

    def prepare(self, parts: Iterable[str] = tuple(COUNTS), *, views: int = 1, guided: bool = False) -> None:
        """Write and cache everything that the methods need, so that workers only read."""
        for part in parts:
            self.regions(part)
        self.regions("pool", views)
        for part in ("pool", "val", "test", "background") if guided else ():
            self.backbone(part)

    def draw(self, shots: int, seed: int) -> list[int]:
        """Indices of pool images, drawn until `shots` of them show each class.

        An image may show several classes, and all of them are labelled.
        """
        order = np.random.default_rng([seed, shots]).permutation(COUNTS["pool"])
        samples, chosen, seen = self.samples("pool"), [], np.zeros(len(self.looks), int)
        for i in order:
            there = np.unique(samples[i].labels.classes)
            if (seen[there] < shots).any():
                chosen.append(int(i))
                seen[there] += 1
        return sorted(chosen)

    @cache  # noqa: B019  # a job lives as long as the benchmark
    def samples(self, part: str) -> tuple[Sample, ...]:
        """The labelled images of a part."""
        folder = self.folder / part
        names = list(self.looks) if part != "original" else [names[0] for names in read_classes("tiny")]
        if not (folder / "data.yaml").is_file():
            for index in range(COUNTS[part]):
                scene, labels = self._scene(part, index)
                write_image(folder, "train", index, scene, labels)
            write_description(folder / "data.yaml", names, ("train",))
        if part == "background" or "replay" in part:
            paths = sorted((folder / "images" / "train").iterdir())
            return tuple(Sample(path, Labels.none(), (IMAGE_SIZE, IMAGE_SIZE)) for path in paths)
        dataset = read_dataset(folder / "data.yaml")
        return tuple(sorted(dataset.train.samples + dataset.val.samples, key=lambda sample: sample.path))

    @cache  # noqa: B019
    def regions(self, part: str, views: int = 1) -> RegionCache:
        """The cache of a part under the original guide. Parts for training keep only the budgeted anchors."""
        trained = part in ("pool", "job replay", "replay")
        return self._cached(self.guide, part, views, RegionBudget() if trained else None)

    @cache  # noqa: B019
    def backbone(self, part: str) -> RegionCache:
        """The cache of a part for a guide that is still being learned."""
        return self._cached(None, part, 1, None)

    def _cached(self, guide: Tensor | None, part: str, views: int, budget: RegionBudget | None) -> RegionCache:
        samples, place = self.samples(part), self.folder / "cache"
        settings = {"image_size": IMAGE_SIZE, "views": views, "budget": budget}
        *_, whole = cache_regions(self.world, guide, samples, place, **settings)  # type: ignore[arg-type]
        return whole

    def _scene(self, part: str, index: int) -> tuple[Scene, list[int | None]]:
        """A scene and the class of each of its objects."""
        if part in ("original", "replay", "replay held out"):
            scene = original_scene(STREAMS[part], index)
            return scene, [TRAINED.index((look.layers[0].colour, look.layers[0].shape)) for look in scene.looks]
        rng = np.random.default_rng([STREAMS[part], index])
        names = list(self.looks)[: self.n_taught if part in ("pool", "val") else None]
        none = part == "background" or "replay" in part
        count = 0 if none else rng.integers(OBJECTS[0], OBJECTS[1] + 1)
        looks = [self.looks[names[rng.integers(len(names))]] for _ in range(count)]
        looks += [random_look(rng) for _ in range(rng.integers(DISTRACTORS[0], DISTRACTORS[1] + 1))]
        scene = draw_scene([looks[i] for i in rng.permutation(len(looks))], rng, BENCH)
        own = list(self.looks.values())
        return scene, [next((k for k, look in enumerate(own) if look is at), None) for at in scene.looks]
