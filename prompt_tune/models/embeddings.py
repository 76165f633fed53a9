"""Vocabularies made with a text tower for a detector: original, plain, or from learned context vectors."""

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_tune.contract import GuideMode, Kind
from prompt_tune.errors import ModelError, RunError, VocabularyError
from prompt_tune.models.prompts_file import embed_with_prompts, read_guide_mode
from prompt_tune.models.text_tower import DEFAULT_TOWER, LOCAL_PREFIX, TextTower
from prompt_tune.models.world import TINY, World
from prompt_tune.run import CONFIG_FILE
from prompt_tune.version import __version__
from prompt_tune.vocabulary.checks import short
from prompt_tune.vocabulary.format import LEARNED_FILE, ORIGINAL_FILE
from prompt_tune.vocabulary.names import read_classes
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

if TYPE_CHECKING:
    from prompt_tune.models.world import World

DEFAULT_ORIGINAL = "coco"  # what YOLO-World's official checkpoints carry
TOWER_FOLDER = "tower"  # beside a detector folder's weights, as in `tiny`
MIN_COSINE = 0.999  # of one name's embeddings from a checkpoint and from its own tower: float16 keeps 0.99999
logger = logging.getLogger(__name__)


def build_vocabulary(
    model: str | Path,
    classes: Sequence[tuple[str, ...]],
    *,
    kind: Kind = "plain",
    text_tower: str | None = None,
    original: str | Path | None = None,
    prompts: str | Path | None = None,
) -> Vocabulary:
    """A vocabulary of these classes for a detector.

    Args:    model: what `World.load` takes.
             classes: n_cls tuples (name, synonym, ...), as `names.read_classes` gives them.
             kind: "plain"; "original" for one that is to guide the neck; "learned" goes with `prompts`.
             text_tower: what `TextTower.load` takes; None is the detector's own (`default_tower`).
             original: the original vocabulary it is for, a file or what `read_classes` takes; None is the one beside
                 `prompts`, or the detector's own (`original_vocabulary`). Not for kind "original".
             prompts: `prompts.safetensors` of a run, whose context vectors go beside the names; those learned under
                 guide `own` give a vocabulary that guides itself.
    Returns: the vocabulary, with thresholds of 0.25.
    Raises:  ModelError: detector or tower cannot be used, or do not belong together.
             VocabularyError: a class name or another vocabulary breaks a rule, or arguments do not go together.
    """
    if (kind == "learned") != (prompts is not None):
        raise VocabularyError(f"Kind `learned` goes with prompts, and only that. Received: kind {kind!r}, {prompts=}.")
    if kind == "original" and original is not None:
        raise VocabularyError("A vocabulary of kind `original` is a guide itself: leave the argument `original` out.")
    world = World.load(model)
    tower = TextTower.load(text_tower or default_tower(model))
    guide_mode: GuideMode = "original"
    if prompts is not None:
        guide = _guide_of_run(world, tower, Path(prompts), original)
        embeddings = embed_with_prompts(Path(prompts), tower, classes)
        guide_mode = read_guide_mode(Path(prompts), tower)
        if guide_mode == "own":
            guide = guide_digest(embeddings)
        provenance = _provenance() | {"prompts": hashlib.sha256(Path(prompts).read_bytes()).hexdigest()}
    else:
        embeddings, provenance = tower.embed_classes(classes), _provenance()
        if kind == "original":
            check_tower(world, tower)
            guide = guide_digest(embeddings)
        else:
            guide = original_vocabulary(world, tower, original).guide
    return Vocabulary(
        tuple(prompts_of_class[0] for prompts_of_class in classes),
        embeddings,
        kind=kind,
        guide_mode=guide_mode,
        detector=world.digest,
        text_tower=tower.digest,
        guide=guide,
        provenance=provenance,
    )


def original_vocabulary(world: World, tower: TextTower, source: str | Path | None = None) -> Vocabulary:
    """The original vocabulary that a detector is deployed with.

    Args:    source: a vocabulary file of kind `original`, or what `names.read_classes` takes; None is what comes with
                 the detector: the file beside its weights, the text features of its checkpoint, else COCO's 80 names.
    Returns: a vocabulary of kind `original` for this detector and tower.
    Raises:  ModelError: the tower does not belong to the detector.
             VocabularyError: the file is not an original vocabulary, or for another detector or tower.
    """
    check_tower(world, tower)
    if source is None:
        shipped = _shipped(world)
        if shipped is not None:
            return shipped
        if world.names is not None and world.class_embeddings is not None:
            rows = world.class_embeddings.cpu().numpy()[:, None]  # (n_cls, 1, 512)
            return _original(world, tower, world.names, rows)
        source = DEFAULT_ORIGINAL
    if str(source).endswith(".safetensors"):
        vocabulary = Vocabulary.load(source)
        _check_original(vocabulary, world, tower, str(source))
        return vocabulary
    classes = read_classes(source)
    return _original(world, tower, [prompts[0] for prompts in classes], tower.embed_classes(classes))


def default_tower(model: str | Path) -> str:
    """The text tower that belongs to a detector: `tiny`'s, that in a detector's folder, else OpenAI's ViT-B/32."""
    if str(model) == TINY:
        return TINY
    folder = Path(model) / TOWER_FOLDER
    return f"{LOCAL_PREFIX}{folder}" if folder.is_dir() else DEFAULT_TOWER


def check_tower(world: World, tower: TextTower) -> None:
    """Refuse a text tower that does not belong to the detector, where that can be seen; one log line where it cannot.

    Raises:  ModelError: the embeddings that came with the detector are not this tower's.
    """
    shipped = _shipped(world)
    if shipped is not None:
        if shipped.text_tower != tower.digest:
            raise ModelError(
                f"Text tower '{tower.spec}' ({short(tower.digest)}) is not that of the detector '{world.source_name}' "
                f"({short(shipped.text_tower)}). Leave --text-tower out to use the detector's own."
            )
        return
    if world.names is None or world.class_embeddings is None:
        logger.info(
            "'%s' has no text embeddings of its own: whether the text tower '%s' belongs to it was not checked.",
            world.source_name,
            tower.spec,
        )
        return
    cosines = np.einsum("nd,nd->n", tower.embed(world.names), world.class_embeddings.cpu().numpy())  # (n_cls,)
    worst = int(cosines.argmin())
    if not cosines[worst] > MIN_COSINE:
        raise ModelError(
            f"Text tower '{tower.spec}' does not belong to the detector '{world.source_name}': their embeddings of "
            f"{world.names[worst]!r} have a cosine of {cosines[worst]:.4f}; the rule is above {MIN_COSINE}. "
            f"Give the tower that the detector was trained with; YOLO-World's is {DEFAULT_TOWER}."
        )


def _original(world: World, tower: TextTower, names: Sequence[str], embeddings: np.ndarray) -> Vocabulary:
    return Vocabulary(
        tuple(names),
        embeddings,
        kind="original",
        detector=world.digest,
        text_tower=tower.digest,
        guide=guide_digest(embeddings),
        provenance=_provenance(),
    )


def _shipped(world: World) -> Vocabulary | None:
    """The original vocabulary beside the weights of `tiny` or of a detector's folder, if there is one."""
    place = files("prompt_tune") / TINY / "weights" if world.source_name == TINY else Path(world.source_name)
    file = place / ORIGINAL_FILE
    if not file.is_file():
        return None
    with as_file(file) as path:
        vocabulary = Vocabulary.load(path)
    if vocabulary.detector != world.digest:
        raise VocabularyError(
            f"{file} is for the detector {short(vocabulary.detector)}; beside it lies {short(world.digest)}. "
            "Put back the files that belong together."
        )
    return vocabulary


def _check_original(vocabulary: Vocabulary, world: World, tower: TextTower, source: str) -> None:
    if vocabulary.kind != "original":
        raise VocabularyError(
            f"{source} is a vocabulary of kind `{vocabulary.kind}`; a guide must be of kind `original`. Make one with "
            "`prompt-tune vocab build --kind original`."
        )
    for what, of_file, of_ours in (
        ("detector", vocabulary.detector, world.digest),
        ("text tower", vocabulary.text_tower, tower.digest),
    ):
        if of_file != of_ours:
            raise VocabularyError(
                f"{source} was made for another {what}: {short(of_file)}, not {short(of_ours)}. Build it again."
            )


def _guide_of_run(world: World, tower: TextTower, prompts: Path, original: str | Path | None) -> str:
    """Digest of the guide that context vectors were learned with: that of the original vocabulary beside them."""
    if not prompts.is_file():
        raise VocabularyError(f"There is no prompt file {prompts}. Give prompts.safetensors of a run.")
    beside = prompts.parent / ORIGINAL_FILE
    sources = [source for source in (beside if beside.is_file() else None, original) if source is not None]
    if not sources:
        raise VocabularyError(
            f"{prompts} has no {ORIGINAL_FILE} beside it, which says what guided the neck. Name it with --original."
        )
    guides = {original_vocabulary(world, tower, source).guide for source in sources}
    if len(guides) > 1:
        raise VocabularyError(
            f"{prompts} was learned with the guide {beside}, and {original} is another. Leave --original out."
        )
    return guides.pop()


def _provenance() -> dict[str, Any]:
    packages = {"torch": "torch", "open_clip": "open_clip_torch"}
    versions = {name: importlib.metadata.version(package) for name, package in packages.items()}
    return {"versions": {"prompt_tune": __version__, **versions}}


def load_run(run: Path, device: str = "cpu") -> tuple[dict[str, Any], "World", Vocabulary, Vocabulary]:
    """What a run folder of `fit` is made of, once it is known to belong together.

    Returns: "model", "image_size" and "digests" of its configuration; its detector, on the torch device `device`; its
             original and its learned vocabulary.
    Raises:  RunError, ModelError, VocabularyError: as `export_bundle`.
    """
    from prompt_tune.models.world import World

    config = _read_config(run)
    original, learned = (Vocabulary.load(run / name) for name in (ORIGINAL_FILE, LEARNED_FILE))
    world = World.load(config["model"], device=device)
    _check_run(run, config["digests"], world.digest, original, learned)
    return config, world, original, learned


def _read_config(run: Path) -> dict[str, Any]:
    """The keys of a run's configuration that an export needs."""
    path = run / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(
            f"'{run}' is not a run folder: no readable {CONFIG_FILE}. Make one with `prompt-tune fit`."
        ) from error
    except ValueError as error:
        raise RunError(f"'{path}' is damaged: it is not JSON. Run `prompt-tune fit` again.") from error
    needed = {"model": str, "image_size": int, "digests": dict}
    for key, kind in needed.items():
        if not isinstance(config, dict) or not isinstance(config.get(key), kind):
            raise RunError(f"'{path}' is damaged: it has no `{key}`. Run `prompt-tune fit` again.")
    return {key: config[key] for key in needed}


def _check_run(run: Path, digests: dict[str, str], detector: str, original: Vocabulary, learned: Vocabulary) -> None:
    """The parts of a run were made for one another, and the detector is still the one of then."""
    guide = original.digest if learned.guide_mode == "original" else learned.digest
    table = (
        ("detector", "run", digests.get("detector"), detector),
        ("detector", ORIGINAL_FILE, original.detector, detector),
        ("detector", LEARNED_FILE, learned.detector, detector),
        ("text tower", ORIGINAL_FILE, original.text_tower, digests.get("text_tower")),
        ("text tower", LEARNED_FILE, learned.text_tower, digests.get("text_tower")),
        ("guide", "run", digests.get("guide"), original.digest),
        ("guide", LEARNED_FILE, learned.guide, guide),
    )
    for what, part, was, now in table:
        if was != now:
            raise RunError(
                f"'{run}': the {part} was made for another {what} ({short(str(was))}, here {short(str(now))}). "
                "Export with the detector and the files of one `prompt-tune fit`."
            )
