"""Bundles for other runtimes, whose graph has fixed shapes or no suppression: their sizes, inputs and README."""

from pathlib import Path

import numpy as np

from prompt_tune.contract import MAX_SLOTS
from prompt_tune.errors import GraphError
from prompt_tune.runtime.slots import Slots
from prompt_tune.vocabulary.format import INPUTS_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary


def fitting_slots(count: int, original: Vocabulary, learned: Vocabulary) -> Slots:
    """The shapes of a graph in which two vocabularies have room.

    Args:
        count: Classes of each vocabulary input.
        original: What guides.
        learned: What lies beside it or, in guide mode `own`, takes its place in another pass.

    Raises:
        GraphError: A vocabulary has more classes, or `count` is over its limit.
    """
    most = max(len(original.names), len(learned.names))
    if not most <= count <= MAX_SLOTS:
        raise GraphError(
            f"--slots must be from {most}, the classes of the larger vocabulary, to {MAX_SLOTS}. Received: {count}."
        )
    if learned.guide_mode == "own":
        return Slots(count, max(original.n_prompts, learned.n_prompts), 1)
    return Slots(count, original.n_prompts, learned.n_prompts)


def write_inputs(path: Path, slots: Slots, original: Vocabulary, learned: Vocabulary) -> None:
    """Writes the vocabularies as the graph takes them, for programs that do not have prompt-tune.

    Args:
        path: The file, .npz with `original` and `learned`; in guide mode `own`, `learned` holds no class, and `own` is
            what takes the place of `original` in another pass.
        slots: The shapes of the graph.
        original: See `fitting_slots`.
        learned: See `fitting_slots`.
    """
    guiding = slots.filled(original.embeddings, guides=True)
    if learned.guide_mode == "own":
        own, nothing = slots.filled(learned.embeddings, guides=True), learned.embeddings[:0, :1]
        np.savez(path, original=guiding, learned=slots.filled(nothing, guides=False), own=own)
    else:
        np.savez(path, original=guiding, learned=slots.filled(learned.embeddings, guides=False))


def described(side: int, slots: Slots | None, *, suppression: bool) -> dict[str, object]:
    """What fills in the template of the README of a bundle with such a graph.

    Args:
        side: Of the network's input in pixels.
        slots: The fixed shapes, or None if they are free.
        suppression: Whether the graph suppresses.
    """
    options, purposes = [], []
    if slots:
        options, purposes = [f"--slots {slots.count}"], ["need fixed shapes"]
    if not suppression:
        options, purposes = [*options, "--no-nms"], [*purposes, "suppress boxes themselves"]
    batch = 1 if slots else "batch"
    n, m = (slots.count, slots.count) if slots else ("n", "m")
    rows = "`learned` may be empty."
    if slots:
        rows = (
            f"Of the {slots.count} classes of each, the first ones are those of the vocabulary. The others repeat the "
            "first class in `original`, since they guide the detector: drop what is found for them. In `learned` they "
            "are zero, and the graph gives them a score of 0."
        )
    outputs = (
        "`original_detections` and `learned_detections` float32 (n, 7): image index, x1, y1, x2, y2 in pixels of the "
        "network's input, score, class; sorted by image, class and falling score."
    )
    if not suppression:
        outputs = (
            f"`boxes` float32 ({batch}, A, 4), x1, y1, x2, y2 in pixels of the network's input; `original_scores` "
            f"({batch}, {n}, A) and `learned_scores` ({batch}, {m}, A), in 0..1. What is left to do for each image and "
            "class: take scores above the class's threshold, the best first, drop each box with an IoU above 0.7 with "
            "a better one that stays, and stop at 300. "
            "`nms_iou`, `box_offsets` and `calibration` of a vocabulary come after that."
        )
    return {
        "purpose": " and ".join(purposes),
        "options": " ".join(options),
        "inputs_row": f"\n| `{INPUTS_FILE}` | NumPy arrays for the inputs `original` and `learned` |" if slots else "",
        "batch": batch,
        "side": f"{side}, {side}" if slots else "height, width",
        "shape": f"{n}, {slots.n_prompts if slots else 'n_prompts'}",
        "learned_shape": f"{m}, {slots.n_learned_prompts if slots else 'n_prompts'}",
        "limits": "; and `iou`, `original_conf` and `learned_conf` float32 (1,)" if suppression else "",
        "rows": rows,
        "outputs": outputs,
    }
