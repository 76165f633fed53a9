"""Vocabularies for a detector, made with its text tower: original, plain, or from learned prompts."""

import hashlib
import importlib.metadata
import logging
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tune.contract import GuideMode, Kind
from prompt_tune.errors import ModelError, RunError, VocabularyError
from prompt_tune.models.own_classes import MIN_COSINE, differing, row_texts
from prompt_tune.models.prompts_file import embed_with_prompts, read_guide_mode
from prompt_tune.models.text_tower import DEFAULT_TOWER, LOCAL_PREFIX, TextTower
from prompt_tune.models.world import TINY, World
from prompt_tune.run import CONFIG_FILE, RunFolder
from prompt_tune.version import __version__
from prompt_tune.vocabulary.background import Background, free_name, named
from prompt_tune.vocabulary.checks import check_made_for
from prompt_tune.vocabulary.format import LEARNED_FILE, ORIGINAL_FILE, Provenance
from prompt_tune.vocabulary.names import read_classes
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

DEFAULT_ORIGINAL = "coco"  # the classes of YOLO-World's official checkpoints
TOWER_FOLDER = "tower"  # in a detector's folder, as in `tiny`
logger = logging.getLogger(__name__)


def build_vocabulary(
    model: str | Path,
    classes: Sequence[tuple[str, ...]],
    *,
    kind: Kind = "plain",
    text_tower: str | None = None,
    original: str | Path | None = None,
    prompts: str | Path | None = None,
    background: Sequence[str] = (),
) -> Vocabulary:
    """Builds a vocabulary of the given classes for a detector.

    Args:
        model: What `World.load` takes.
        classes: n_cls tuples (name, synonym, ...), as `names.read_classes` returns them.
        kind: "plain", "original" for a vocabulary that is to guide the neck, or "learned", which needs `prompts`.
        text_tower: What `TextTower.load` takes; None is the detector's own (`default_tower`).
        original: The original vocabulary that it goes with: a file, or what `read_classes` takes. None is the one
            beside `prompts`, or the detector's own (`original_vocabulary`). Not allowed with kind "original".
        prompts: `prompts.safetensors` of a run, whose context vectors are put before the names. If they were learned
            with guide mode `own`, the vocabulary is its own guide.
        background: Texts of background rows, such as " ", which come after the classes. Only with kind "original".

    Returns:
        The vocabulary, with thresholds of 0.25.

    Raises:
        ModelError: The detector or the tower cannot be used, or they do not belong together.
        VocabularyError: A class name or another vocabulary breaks a rule, or the arguments do not go together.
    """
    if (kind == "learned") != (prompts is not None):
        raise VocabularyError(f"Kind `learned` goes with prompts, and only that. Received: kind {kind!r}, {prompts=}.")
    if kind == "original" and original is not None:
        raise VocabularyError("A vocabulary of kind `original` is a guide itself: leave the argument `original` out.")
    if background and kind != "original":
        raise VocabularyError(f"Only a vocabulary of kind `original` has background rows. Received: kind {kind!r}.")
    world = World.load(model)
    tower = TextTower.load(text_tower or default_tower(model))
    names = tuple(prompts_of_class[0] for prompts_of_class in classes)
    marks: Background = ()
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
            names, marks, embeddings = _with_background(tower, names, embeddings, background)
            guide = guide_digest(embeddings)
        else:
            guide = original_vocabulary(world, tower, original).guide
    return Vocabulary(
        names,
        embeddings,
        kind=kind,
        guide_mode=guide_mode,
        detector=world.digest,
        text_tower=tower.digest,
        guide=guide,
        background=marks,
        provenance=provenance,
    )


def original_vocabulary(world: World, tower: TextTower, source: str | Path | None = None) -> Vocabulary:
    """Reads or builds the original vocabulary of a detector.

    Args:
        world: The detector.
        tower: Its text tower.
        source: A vocabulary file of kind `original`, or what `names.read_classes` takes. None is the detector's own:
            the file beside its weights, or else the text features in its checkpoint, or else COCO's 80 names, which a
            log line says. A class of a checkpoint with a blank name is a background row.

    Returns:
        A vocabulary of kind `original` for this detector and tower.

    Raises:
        ModelError: The tower does not belong to the detector, or names and text features of its checkpoint differ in
            number and there is no `source`.
        VocabularyError: The file is not an original vocabulary, or was made for another detector or tower.
    """
    check_tower(world, tower)
    if source is None:
        shipped = _shipped(world)
        if shipped is not None:
            return shipped
        if world.names is not None and world.class_embeddings is not None:
            texts = row_texts(world, tower)
            if texts is None:
                raise differing(world, tower)
            rows = world.class_embeddings.cpu().numpy()[:, None]  # (n_cls, 1, 512)
            return _original(world, tower, *named(texts), rows)
        source = DEFAULT_ORIGINAL
        logger.info(
            "'%s' has no text features of its own: COCO's 80 names guide it. --original names other classes.",
            world.source_name,
        )
    if str(source).endswith(".safetensors"):
        vocabulary = Vocabulary.load(source)
        _check_original(vocabulary, world, tower, str(source))
        return vocabulary
    classes = read_classes(source)
    return _original(world, tower, [prompts[0] for prompts in classes], (), tower.embed_classes(classes))


def default_tower(model: str | Path) -> str:
    """Names the text tower of a detector: that of `tiny`, the one in the detector's folder, or OpenAI's ViT-B/32.

    Args:
        model: What `World.load` takes.

    Returns:
        What `TextTower.load` takes.
    """
    if str(model) == TINY:
        return TINY
    folder = Path(model) / TOWER_FOLDER
    return f"{LOCAL_PREFIX}{folder}" if folder.is_dir() else DEFAULT_TOWER


def check_tower(world: World, tower: TextTower) -> None:
    """Refuses a text tower that does not belong to the detector.

    The tower is compared with the original vocabulary beside the detector's weights, or else with the text features in
    its checkpoint. If there are none, a log line says that nothing was checked.

    Raises:
        ModelError: The embeddings that came with the detector are not this tower's.
    """
    shipped = _shipped(world)
    if shipped is not None:
        check_made_for(
            f"'{world.source_name}'",
            {"text tower": shipped.text_tower},
            {"text tower": tower.digest},
            holder=f"'{tower.spec}'",
            cure="Leave --text-tower out to use the detector's own.",
            error=ModelError,
        )
        return
    known = world.names is not None and world.class_embeddings is not None
    texts = row_texts(world, tower) if known else None
    if texts is None or world.class_embeddings is None:
        logger.info(
            "'%s' has %s: whether the text tower '%s' belongs to it was not checked.",
            world.source_name,
            "not one text feature per class name" if known else "no text embeddings of its own",
            tower.spec,
        )
        return
    ours, theirs = tower.embed(texts, blank=True), world.class_embeddings.cpu().numpy()
    cosines = np.einsum("nd,nd->n", ours, theirs)  # (n_cls,)
    worst = int(cosines.argmin())
    if not cosines[worst] > MIN_COSINE:
        raise ModelError(
            f"Text tower '{tower.spec}' does not belong to the detector '{world.source_name}': their embeddings of "
            f"{texts[worst]!r} have a cosine of {cosines[worst]:.4f}; the rule is above {MIN_COSINE}. "
            f"Give the tower that the detector was trained with; YOLO-World's is {DEFAULT_TOWER}."
        )


def load_run(run: Path, device: str = "cpu") -> tuple[dict[str, Any], World, Vocabulary, Vocabulary]:
    """Loads the parts of a run folder of `fit`, and checks that they belong together.

    Args:
        run: The folder.
        device: A torch device for the detector.

    Returns:
        "model", "image_size" and "digests" of the run's configuration; its detector; its original vocabulary; its
        learned vocabulary.

    Raises:
        RunError: The folder is incomplete, or its parts were not made for one another.
        ModelError: The run's detector is missing or cannot be used.
        VocabularyError: A vocabulary is damaged.
    """
    config = _read_config(run)
    original, learned = (Vocabulary.load(run / name) for name in (ORIGINAL_FILE, LEARNED_FILE))
    world = World.load(config["model"], device=device)
    _check_run(run, config, world.digest, original, learned)
    return config, world, original, learned


def _with_background(
    tower: TextTower, names: tuple[str, ...], embeddings: np.ndarray, texts: Sequence[str]
) -> tuple[tuple[str, ...], Background, np.ndarray]:
    """Names, background rows and embeddings (n_cls, n_prompts, 512) with a row more for each text."""
    taken, marks = set(names), []
    for text in texts:
        marks.append((free_name(taken), text))
        taken.add(marks[-1][0])
    rows = tower.embed(texts, blank=True)[:, None].repeat(embeddings.shape[1], axis=1)  # (n, n_prompts, 512)
    return (*names, *(name for name, _ in marks)), tuple(marks), np.concatenate([embeddings, rows])


def _original(
    world: World, tower: TextTower, names: Sequence[str], background: Background, embeddings: np.ndarray
) -> Vocabulary:
    return Vocabulary(
        tuple(names),
        embeddings,
        kind="original",
        detector=world.digest,
        text_tower=tower.digest,
        guide=guide_digest(embeddings),
        background=background,
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
    check_made_for(
        str(file),
        {"detector": vocabulary.detector},
        {"detector": world.digest},
        holder=f"'{world.source_name}'",
        cure="Put back the files that belong together.",
    )
    return vocabulary


def _check_original(vocabulary: Vocabulary, world: World, tower: TextTower, source: str) -> None:
    """Refuses a vocabulary file that cannot be the original vocabulary of a detector."""
    if vocabulary.kind != "original":
        raise VocabularyError(
            f"{source} is a vocabulary of kind `{vocabulary.kind}`; a guide must be of kind `original`. Make one with "
            "`prompt-tune vocab build --kind original`."
        )
    for what, was, here, holder in (
        ("detector", vocabulary.detector, world.digest, world.source_name),
        ("text tower", vocabulary.text_tower, tower.digest, tower.spec),
    ):
        check_made_for(source, {what: was}, {what: here}, holder=f"'{holder}'", cure="Build it again.")


def _guide_of_run(world: World, tower: TextTower, prompts: Path, original: str | Path | None) -> str:
    """The digest of the guide that context vectors were learned with: that of the original vocabulary beside them."""
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


def _provenance() -> Provenance:
    packages = {"torch": "torch", "open_clip": "open_clip_torch"}
    versions = {name: importlib.metadata.version(package) for name, package in packages.items()}
    return {"versions": {"prompt_tune": __version__, **versions}}


def _read_config(run: Path) -> dict[str, Any]:
    """The keys of a run's configuration that an export needs."""
    path = run / CONFIG_FILE
    if not path.is_file():
        raise RunError(f"'{run}' is not a run folder: no readable {CONFIG_FILE}. Make one with `prompt-tune fit`.")
    config = RunFolder(run).read_config()
    needed = {"model": str, "image_size": int, "digests": dict}
    for key, kind in needed.items():
        if not isinstance(config.get(key), kind):
            raise RunError(f"'{path}' is damaged: it has no `{key}`. Run `prompt-tune fit` again.")
    return {key: config[key] for key in needed}


def _check_run(run: Path, config: dict[str, Any], detector: str, original: Vocabulary, learned: Vocabulary) -> None:
    """Refuses parts of a run that were not made for one another, and a detector that has changed since."""
    model, own, digests = config["model"], CONFIG_FILE, {key: value or None for key, value in config["digests"].items()}
    tower = digests.get("text_tower")
    guide = (ORIGINAL_FILE, original.digest) if learned.guide_mode == "original" else (LEARNED_FILE, learned.digest)
    for part, what, was, holder, here in (
        (own, "detector", digests.get("detector"), model, detector),
        (ORIGINAL_FILE, "detector", original.detector, model, detector),
        (LEARNED_FILE, "detector", learned.detector, model, detector),
        (ORIGINAL_FILE, "text tower", original.text_tower, own, tower),
        (LEARNED_FILE, "text tower", learned.text_tower, own, tower),
        (own, "guide", digests.get("guide"), ORIGINAL_FILE, original.digest),
        (LEARNED_FILE, "guide", learned.guide, *guide),
    ):
        check_made_for(
            f"'{run / part}'",
            {what: was},
            {what: here},
            holder=f"'{holder}'",
            cure="Use the detector and the files of one `prompt-tune fit`.",
            error=RunError,
        )
