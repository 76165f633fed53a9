"""Room for vocabularies: what fits into memory, and into a graph of fixed shapes."""

from collections.abc import Collection

from prompt_tune.errors import VocabularyError
from prompt_tune.runtime.slots import Slots
from prompt_tune.vocabulary.vocabulary import Vocabulary

# scores of the images in the network at once, one per row of embeddings and anchor: 1 GiB of float32, and at most seven
# times that in all
MAX_SCORES = 2**28
MOST_SCORES = 2 * MAX_SCORES  # of a single image: vocabularies that need more cannot be loaded beside each other


def most_rows(original: Vocabulary, learned: Collection[Vocabulary]) -> int:
    """Rows of embeddings in the largest pass, before anything is packed; see `State.n_rows`."""
    together = [part for part in learned if part.guide_mode == "original"]
    passes = [[part] for part in learned if part.guide_mode == "own"] + [together]
    rows = [
        sum(len(part.names) for part in parts) * max((part.n_prompts for part in parts), default=1) for parts in passes
    ]
    return max(rows[-1] + len(original.names) * original.n_prompts, *rows)


def check_memory(
    place: str, original: Vocabulary, learned: Collection[Vocabulary], *, n_anchors: int, image_size: int
) -> None:
    """Refuse a vocabulary with which the scores of one image would not fit into memory.

    Args:
        place: The vocabulary, as the error names it.
        original: What guides.
        learned: The others, that one included.
        n_anchors: Anchor points of one image.
        image_size: Side of the network's input in pixels, as the error names it.

    Raises:
        VocabularyError: They do not fit.
    """
    n_rows = most_rows(original, learned)
    if n_rows * n_anchors > MOST_SCORES:
        raise VocabularyError(
            f"{place} cannot be loaded: with it, {n_rows:,} prompts are compared with an image at once (classes, times "
            f"the most prompts of a class). At {image_size} px, at most {MOST_SCORES // n_anchors:,} fit into memory. "
            "Unload other vocabularies, or split this one."
        )


def check_slots(place: str, original: Vocabulary, learned: Collection[Vocabulary], slots: Slots | None) -> None:
    """Refuse vocabularies that need more classes or prompts than a graph of fixed shapes has.

    Args:
        place: See `check_memory`.
        original: See `check_memory`.
        learned: See `check_memory`.
        slots: The shapes of the graph; None if they are free.

    Raises:
        VocabularyError: They do not fit.
    """
    if slots is None:
        return
    guides = [original, *(part for part in learned if part.guide_mode == "own")]
    together = [part for part in learned if part.guide_mode == "original"]
    for parts, n_prompts in (*(([part], slots.n_prompts) for part in guides), (together, slots.n_learned_prompts)):
        n_cls, most = sum(len(part.names) for part in parts), max((part.n_prompts for part in parts), default=1)
        if n_cls > slots.count:
            raise VocabularyError(
                f"{place} cannot be loaded: with it, {n_cls:,} classes would go into an input of the graph, which was "
                f"exported with --slots {slots.count}. Unload others, or export with more."
            )
        if most > n_prompts:
            raise VocabularyError(
                f"{place} cannot be loaded: it has {most} prompts a class, and the graph was exported with --slots for "
                f"at most {n_prompts}. Export a run that has as many."
            )
