"""What fits into memory, and into a graph of fixed shapes. `test_state.py` compares the rows with those of a state."""

from functools import partial

import pytest
from vocabularies import learned, refusal_of, unit_rows

from prompt_tune.runtime.room import MOST_SCORES, check_memory, check_slots, most_rows
from prompt_tune.runtime.slots import Slots
from prompt_tune.vocabulary.vocabulary import guide_digest

ORIGINAL = learned("a", "b", "c", kind="original", guide=guide_digest(unit_rows(3, 1)))
BESIDE = learned("x", "y", n_prompts=2)


def test_memory_holds_so_many_prompts_and_no_more() -> None:
    assert most_rows(ORIGINAL, [BESIDE]) == 3 + 2 * 2
    most = MOST_SCORES // 7  # anchors
    check_memory("`a`", ORIGINAL, [BESIDE], n_anchors=most, image_size=640)
    text = refusal_of(partial(check_memory, "`a`", ORIGINAL, [BESIDE], n_anchors=most + 1, image_size=640))
    assert text == (
        "`a` cannot be loaded: with it, 7 prompts are compared with an image at once (classes, times the most prompts "
        "of a class). At 640 px, at most 6 fit into memory. Unload other vocabularies, or split this one."
    )


@pytest.mark.parametrize("slots", [None, Slots(3, 1, 2), Slots(9, 4, 2)])
def test_slots_hold_what_fits(slots: Slots | None) -> None:
    check_slots("`a`", ORIGINAL, [BESIDE], slots)


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        (Slots(2, 1, 2), "with it, 3 classes would go into an input of the graph, which was exported with --slots 2."),
        (Slots(3, 1, 1), "it has 2 prompts a class, and the graph was exported with --slots for at most 1."),
    ],
)
def test_slots_that_are_too_few_are_said(slots: Slots, reason: str) -> None:
    assert f"`a` cannot be loaded: {reason}" in refusal_of(partial(check_slots, "`a`", ORIGINAL, [BESIDE], slots))
