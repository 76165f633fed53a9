"""What a fit is made from, read and checked before anything is written."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_tune.config import IMAGE_SIZE, TINY_IMAGE_SIZE, FitConfig
from prompt_tune.datasets.reading import DataSet, read_dataset
from prompt_tune.datasets.replay import Replayed, ReplaySource, choose_replay
from prompt_tune.datasets.samples import Split
from prompt_tune.errors import RunError
from prompt_tune.models.context import PromptContext
from prompt_tune.models.embeddings import default_tower, original_vocabulary
from prompt_tune.models.text_tower import TextTower, template_embeddings
from prompt_tune.models.world import TINY, World
from prompt_tune.tuning.continuation import Earlier
from prompt_tune.version import __version__
from prompt_tune.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Job:
    """What a fit is made from, read and checked.

    replayed: images without the new objects. earlier: the run it goes on from. frozen: for each class, whether its
    context stays as it is. teacher: (n_cls, n_prompts, 512) float32, what hand-written prompts give, where the settings
    want it.
    """

    world: World
    original: Vocabulary
    dataset: DataSet
    replayed: Replayed
    context: PromptContext
    config: FitConfig
    earlier: Earlier | None
    frozen: list[bool]
    teacher: Tensor | None

    def as_json(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        tower = self.context.tower
        return {
            "version": 1,
            "text_tower": tower.spec,
            "from": None if self.earlier is None else _file_digest(self.earlier.run.prompts, self.earlier.run.learned),
            "labels": _label_digest(self.dataset.train, self.dataset.val),
            "replay_labels": _label_digest(self.replayed.train, self.replayed.held_out),
            "classes": [list(prompts) for prompts in self.context.classes],
            "digests": {"detector": self.world.digest, "text_tower": tower.digest, "guide": self.original.digest},
            "prompt_tune": __version__,
            "image_size": self.config.image_size,
            "settings": self.config.as_json(),
        }


def prepare(
    model: str | Path,
    data: str | Path,
    config: FitConfig,
    original: str | Path | None,
    text_tower: str | None,
    classes: Sequence[tuple[str, ...]] | None,
    replay: Sequence[ReplaySource],
    from_run: str | Path | None,
    device: str,
) -> Job:
    """Read and check all that `fit` is given; nothing is written."""
    if config.freeze_old and from_run is None:
        raise RunError("`freeze_old` keeps the context of an earlier run, and none is given. Name it with --from.")
    world = World.load(model, device=device)
    tower = TextTower.load(text_tower or default_tower(model), device=device)
    earlier = None if from_run is None else Earlier.load(Path(from_run), tower)
    if earlier is not None:
        config, original = earlier.settings(config), original or earlier.run.original
    if not config.image_size:
        config = replace(config, image_size=TINY_IMAGE_SIZE if str(model) == TINY else IMAGE_SIZE)
    vocabulary = original_vocabulary(world, tower, original)
    if earlier is not None:
        earlier.check(world.digest, vocabulary.digest, config.guide)
    names = None if classes is None else [prompts[0] for prompts in classes]
    dataset = read_dataset(data, seed=config.seed, names=names)
    classes = classes or (earlier.with_synonyms if earlier else _alone)(dataset.names)
    context = PromptContext(
        tower,
        classes,
        n_ctx=config.context_length,
        class_specific=config.class_specific,
        token_position=config.token_position,
        prompts_per_class=config.prompts_per_class,
        initial_words=config.initial_words,
        seed=config.seed,
    )
    frozen = [] if earlier is None else earlier.adopt(context, freeze=config.freeze_old)
    replayed = Replayed()
    if replay:
        labelled = [sample.path for sample in dataset.train.samples + dataset.val.samples]
        replayed = choose_replay(replay, classes, len(dataset.train.samples), config.seed, labelled)
    teacher = None
    if config.teacher_weight:
        teacher = torch.from_numpy(template_embeddings(tower, context.texts)).to(world.device)
    return Job(world, vocabulary, dataset, replayed, context, config, earlier, frozen, teacher)


def _alone(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Classes without synonyms."""
    return [(name,) for name in names]


def _label_digest(*splits: Split) -> str:
    """SHA-256 (hex) of images and labels by name: a run is not resumed on a data set that was edited meanwhile."""
    digest = hashlib.sha256()
    for split in splits:
        for sample in split.samples:
            digest.update(f"{sample.path.name} {len(sample.labels)}\n".encode())
            for part in (sample.labels.boxes_xyxy, sample.labels.classes, sample.labels.ignore):
                digest.update(part.tobytes())
        digest.update(b"\n")
    return digest.hexdigest()


def _file_digest(*paths: Path) -> str:
    """SHA-256 (hex) of the bytes of files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
