from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from vocabularies import DETECTOR, GUIDE, learned, refusal_of, unit_rows

from prompt_tune.errors import RunError, VocabularyError
from prompt_tune.vocabulary.checks import (
    MAX_ROWS,
    check_made_for,
    checked_box_offsets,
    checked_calibration,
    checked_embeddings,
    checked_nms_iou,
    extent,
    frozen,
    listing,
    plain_json,
    short,
)


def test_short_is_the_beginning_of_a_digest_or_any() -> None:
    assert (short(DETECTOR), short("")) == ("d" * 12, "any")


def test_frozen_copy_is_apart_from_its_source() -> None:
    source = np.asfortranarray(np.ones((2, 3)))
    copy = frozen(source)
    source[:] = 0
    assert copy.dtype == np.float32 and copy.flags.c_contiguous and not copy.flags.writeable and copy.all()


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (lambda value: checked_embeddings(value, ["a", "b"]), unit_rows(2, 1)),
        (lambda value: checked_calibration(value, 2), np.array([[0.5, -3], [2, 0]])),
        (lambda value: checked_nms_iou(value, 2), np.array([0.001, 1])),
        (lambda value: checked_box_offsets(value, 1), np.array([[-0.4, 0.4, 0, 0.125]])),
    ],
)
def test_values_within_the_rules_are_copied(check: Callable[[Any], np.ndarray], value: np.ndarray) -> None:
    kept = check(value)
    np.testing.assert_array_equal(kept, value.astype(np.float32))
    assert not kept.flags.writeable and not np.shares_memory(kept, value)
    assert check(value.tolist()).tobytes() == kept.tobytes()


@pytest.mark.parametrize(
    ("check", "value", "reason"),
    [
        (
            lambda v: checked_embeddings(v, ["a"]),
            unit_rows(2, 1),
            "must be (1, n_prompts, 512). Received: (2, 1,",
        ),
        (
            lambda v: checked_embeddings(v, ["a"]),
            unit_rows(1, 1) * 1.001,
            "'a' have values from 1.001 to 1.001.",
        ),
        (lambda v: checked_calibration(v, 1), [[0, 1]], "must be (1, 2) finite numbers: a scale above 0 and a shift"),
        (lambda v: checked_box_offsets(v, 1), [[0, 0, 0, 0.41]], "must be (1, 4) numbers from -0.4 to 0.4: for each"),
        (lambda v: checked_box_offsets(v, 1), [[0, 0, 0, np.nan]], "must be (1, 4) numbers from -0.4 to 0.4: for each"),
        (lambda v: checked_box_offsets(v, 1), [0, 0, 0, 0], "must be (1, 4) numbers from -0.4 to 0.4: for each"),
        (lambda v: checked_nms_iou(v, 1), [1.5], "must be 1 numbers above 0 and at most 1, one per class."),
        (plain_json, [], "`provenance` must be a JSON object. Received: list."),
    ],
)
def test_value_that_breaks_a_rule_is_refused(check: Callable[[Any], object], value: Any, reason: str) -> None:
    assert reason in refusal_of(lambda: check(value))


def test_vocabulary_over_the_row_limit_is_refused_uncopied() -> None:
    rows = np.broadcast_to(unit_rows(), (1, MAX_ROWS + 1, 512))  # a view: 2 GiB if it were copied
    text = refusal_of(lambda: replace(learned("lorry"), embeddings=rows))
    assert text == f"A vocabulary has at most {MAX_ROWS} prompts in all. Received: 1 x {MAX_ROWS + 1}."


def test_words_for_errors_by_hand() -> None:
    assert extent(np.array([[0.25, -1]])) == "values from -1 to 0.25" and extent(np.zeros(0)) == "no values"
    assert listing(["a"]) == "'a'" and listing([]) == "" and listing("abc", most=2) == "'a', 'b', ... (3 in all)"


@pytest.mark.parametrize("made_for", [{}, {"detector": DETECTOR}, {"detector": ""}, {"detector": "", "guide": GUIDE}])
def test_what_was_made_for_this_or_any_passes(made_for: dict[str, str]) -> None:
    check_made_for("x", made_for, {"detector": DETECTOR, "guide": GUIDE}, holder="y", cure="")


def test_what_was_made_for_something_else_is_refused_in_the_callers_words() -> None:
    here = {"detector": DETECTOR, "guide": GUIDE}
    with pytest.raises(RunError) as refusal:
        check_made_for("x", {**here, "guide": "0" * 64}, here, holder="y", cure="Take z.", error=RunError)
    assert str(refusal.value) == f"x was made for guide {'0' * 12}, but y has {GUIDE[:12]}. Take z."
    with pytest.raises(VocabularyError, match="has any"):  # a holder that is for any does not have this one
        check_made_for("x", here, here | {"detector": ""}, holder="y", cure="")
