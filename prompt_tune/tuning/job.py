"""What a fit is made from: read and checked before anything is written."""

import hashlib
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_tune.config import IMAGE_SIZE, TINY_IMAGE_SIZE, FitConfig
from prompt_tune.datasets.held_out import content_digest
from prompt_tune.datasets.reading import DataSet, read_dataset
from prompt_tune.datasets.replay import Replayed, ReplaySource, choose_replay
from prompt_tune.datasets.samples import Split
from prompt_tune.errors import RunError
from prompt_tune.models.context import PromptContext
from prompt_tune.models.embeddings import default_tower, original_vocabulary
from prompt_tune.models.text_tower import TextTower, template_embeddings
from prompt_tune.models.world import TINY, World
from prompt_tune.run import CACHE_FOLDER, HELD_OUT, IMAGES
from prompt_tune.runtime.slices import Slices
from prompt_tune.tuning.continuation import Earlier
from prompt_tune.tuning.stand_ins import StandIns
from prompt_tune.tuning.tiles import Tiling, tile
from prompt_tune.tuning.views import automatic_views
from prompt_tune.version import __version__
from prompt_tune.vocabulary.checks import check_made_for
from prompt_tune.vocabulary.names import name_hints
from prompt_tune.vocabulary.vocabulary import Vocabulary

AGAINST_WEIGHT = 10.0  # of stand-ins, if vocabularies are given and no weight is
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitInputs:
    """What a fit learns from.

    Attributes:
        model: The detector, as `World.load` takes it: "tiny", a checkpoint, an official name or a folder.
        data: The data set, as `read_dataset` takes it.
        original: The vocabulary that guides the neck, as `original_vocabulary` takes it. None takes that of `from_run`,
            or the model's own.
        text_tower: The text tower, as `TextTower.load` takes it. None takes the model's own.
        classes: (name, synonym, ...) of each class of the data set, in its order. None takes the names of the data set.
        replay: Images without the new objects, to be mixed in.
        from_run: An earlier run to continue from. Its context is the start, its original vocabulary the guide, and its
            classes that are not in the data set are carried over.
        cache: Folder of the region cache. None takes "regions" in the run folder.
        against: Vocabulary files that will be loaded beside the learned one. Their classes are negatives too, see
            `StandIns`.
        given: Names of the settings that the user chose, also where they equal the default. With `from_run`, the
            others follow the earlier run without a word.
    """

    model: str | Path
    data: str | Path
    original: str | Path | None = None
    text_tower: str | None = None
    classes: Sequence[tuple[str, ...]] | None = None
    replay: Sequence[ReplaySource] = ()
    from_run: str | Path | None = None
    cache: str | Path | None = None
    against: Sequence[str | Path] = ()
    given: frozenset[str] = frozenset()

    def cache_folder(self, run: Path) -> Path:
        """The folder of the region cache for a run folder."""
        return run / CACHE_FOLDER if self.cache is None else Path(self.cache)

    def as_json(self) -> dict[str, Any]:
        """Where the parts of a run come from, for config.json; places that exist are absolute."""
        places: dict[str, Any] = {
            "model": _whole_path(self.model),
            "data": _whole_path(self.data),
            "replay": [[_whole_path(source.place), source.ratio] for source in self.replay],
        }
        return places | ({"against": [_whole_path(place) for place in self.against]} if self.against else {})


@dataclass(frozen=True, eq=False)
class Job:
    """The parts of a fit, read and checked.

    Attributes:
        world: The frozen detector.
        original: The original vocabulary.
        dataset: The data set, cut into windows if the settings ask for it.
        replayed: Images without the new objects, likewise.
        context: The context vectors at the start.
        config: The resolved settings.
        earlier: The run that this one continues from.
        frozen: For each class, whether its context stays as it is; empty without an earlier run.
        teacher: (n_cls, n_prompts, 512) float32, the embeddings of hand-written prompts, if the settings ask for them.
        against: Other vocabularies whose classes are negatives.
        tiling: How photos were cut; None if they were not.
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
    against: list[Vocabulary]
    tiling: Tiling | None = None

    def stand_ins(self) -> StandIns | None:
        """Negatives without images: original classes, and those of other vocabularies; None if they have no weight."""
        if not self.config.stand_ins:
            return None
        return StandIns(self.world, [self.original, *self.against], self.context.classes)

    def as_json(self) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        tower = self.context.tower
        more: dict[str, Any] = {}
        if self.against:
            more["against_digests"] = [vocabulary.digest for vocabulary in self.against]
        if self.dataset.held_out:
            more[HELD_OUT] = sorted(content_digest(sample.path) for sample in self.dataset.val.photos)
        return {
            "version": 1,
            "text_tower": tower.spec,
            "from": None if self.earlier is None else _file_digest(self.earlier.run.prompts, self.earlier.run.learned),
            "labels": _label_digest(self.dataset.train, self.dataset.val),
            "replay_labels": _label_digest(self.replayed.train, self.replayed.held_out),
            IMAGES: _image_digest(self.dataset.train, self.dataset.val, self.replayed.train, self.replayed.held_out),
            "classes": [list(prompts) for prompts in self.context.classes],
            "digests": {"detector": self.world.digest, "text_tower": tower.digest, "guide": self.original.digest},
            "prompt_tune": __version__,
            "image_size": self.config.image_size,
            "settings": self.config.as_json(),
        } | more


def prepare(
    inputs: FitInputs,
    config: FitConfig,
    device: str,
    recorded: Collection[str] | None = None,
    *,
    strict: bool = False,
) -> Job:
    """Read and check everything that `fit` is given; nothing is written.

    Args:
        inputs: What to learn from.
        config: The settings.
        device: A torch device.
        recorded: What the run that is resumed says of its held-out images; see `hold_out`.
        strict: Whether anything of the data that is left out is an error.

    Raises:
        PromptTuneError: Something cannot be used.
    """
    if inputs.against and not config.stand_ins:
        config = replace(config, stand_ins=AGAINST_WEIGHT)
    if config.freeze_old and inputs.from_run is None:
        raise RunError("`freeze_old` keeps the context of an earlier run, and none is given. Name it with --from.")
    slices = _slices(config, inputs.given)
    world = World.load(inputs.model, device=device)
    tower = TextTower.load(inputs.text_tower or default_tower(inputs.model), device=device)
    earlier, original = None, inputs.original
    if inputs.from_run is not None:
        earlier = Earlier.load(Path(inputs.from_run), tower)
        config, original = earlier.settings(config, inputs.given), original or earlier.run.original
        slices = _slices(config)
    if not config.image_size:
        config = replace(config, image_size=TINY_IMAGE_SIZE if str(inputs.model) == TINY else IMAGE_SIZE)
    vocabulary = original_vocabulary(world, tower, original)
    if earlier is not None:
        earlier.check(world.digest, vocabulary.digest, config.guide)
    names = None if inputs.classes is None else [prompts[0] for prompts in inputs.classes]
    dataset = read_dataset(
        inputs.data, seed=config.seed, names=names, recorded=recorded, strict=strict, keep_few=not recorded
    )
    classes = inputs.classes or (earlier.with_synonyms if earlier else _alone)(dataset.names)
    names = [prompts[0] for prompts in classes]
    carried = [] if earlier is None else [name for name in earlier.learned.names if name not in names]
    for hint in name_hints([*names, *carried], vocabulary.class_names):
        logger.warning("%s", hint)
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
    replayed, tiling = Replayed(), None
    if inputs.replay:
        labelled = [sample.path for sample in dataset.train.samples + dataset.val.samples]
        replayed = choose_replay(inputs.replay, classes, len(dataset.train.samples), config.seed, labelled, strict)
    if slices is not None:
        dataset, replayed, tiling = tile(dataset, replayed, slices, config.seed)
    if not config.views:
        own = config.guide == "own"  # its cache is large, and augmented views of it were not measured
        config = replace(config, views=1 if own else automatic_views(dataset.train.samples))
    teacher = None
    if config.teacher_weight:
        teacher = torch.from_numpy(template_embeddings(tower, context.texts)).to(world.device)
    against = [_other(place, world, tower) for place in inputs.against]
    return Job(world, vocabulary, dataset, replayed, context, config, earlier, frozen, teacher, against, tiling)


def _slices(config: FitConfig, given: Collection[str] = ()) -> Slices | None:
    """How the settings cut photos; None if they do not.

    Raises:
        PromptTuneError: They cannot be cut like that, or an overlap is given without a size.
    """
    if config.tile:
        return Slices(config.tile, config.tile_overlap)
    if "tile_overlap" in given or config.tile_overlap != FitConfig.tile_overlap:
        raise RunError("`tile_overlap` says how far slices overlap, and needs their size. Give --tile too.")
    return None


def _other(place: str | Path, world: World, tower: TextTower) -> Vocabulary:
    """Another vocabulary for the same detector and text tower."""
    vocabulary = Vocabulary.load(place)
    check_made_for(
        f"`{place}`",
        {"detector": vocabulary.detector, "text tower": vocabulary.text_tower},
        {"detector": world.digest, "text tower": tower.digest},
        holder="this fit",
        cure="Give --against vocabularies that can be loaded beside what is learned.",
    )
    return vocabulary


def _whole_path(place: str | Path) -> str:
    """The absolute path of a file or folder, so that a run works from anywhere. A name such as `tiny` is kept."""
    return str(Path(place).resolve()) if str(place) != TINY and Path(place).exists() else str(place)


def _alone(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Classes without synonyms."""
    return [(name,) for name in names]


def _label_digest(*splits: Split) -> str:
    """SHA-256 (hex) of image names and labels, so that no run is resumed on a data set that was edited meanwhile."""
    digest = hashlib.sha256()
    for split in splits:
        for sample in split.photos:
            name = os.fsencode(sample.path.name)  # a name that is not text has bytes too
            digest.update(name + f" {len(sample.labels)}\n".encode())
            for part in (sample.labels.boxes_xyxy, sample.labels.classes, sample.labels.ignore):
                digest.update(part.tobytes())
        digest.update(b"\n")
    return digest.hexdigest()


def _image_digest(*splits: Split) -> str:
    """SHA-256 (hex) of the contents of images, so that a run is resumed where they lie now, but on no other images."""
    digests = [content_digest(sample.path) for split in splits for sample in split.photos]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _file_digest(*paths: Path) -> str:
    """SHA-256 (hex) of the contents of files, one after another."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
