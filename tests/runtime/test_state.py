"""What is loaded, as values that replace one another."""

from typing import Any

import numpy as np
import pytest
from vocabularies import learned, unit_rows

from prompt_tune.contract import LEAST_SCORE
from prompt_tune.runtime.room import most_rows
from prompt_tune.runtime.state import Loaded, State, Wanted
from prompt_tune.vocabulary.vocabulary import guide_digest


@pytest.fixture
def uploads() -> list[np.ndarray]:
    """What was uploaded, in order."""
    return []


def own(*names: str, n_prompts: int = 1) -> Any:
    embeddings = unit_rows(len(names), n_prompts)
    return learned(*names, n_prompts=n_prompts, guide_mode="own", guide=guide_digest(embeddings))


def start(uploads: list[np.ndarray]) -> State:
    embeddings = unit_rows(3, 1)
    original = learned("a", "b", "c", kind="original", guide=guide_digest(embeddings))
    return State.of("original", original, lambda array, guides: uploads.append(array) or array)  # type: ignore[func-returns-value]


def following(state: State, uploads: list[np.ndarray], **vocabularies: Any) -> State:
    return state.with_learned(vocabularies, lambda array, guides: uploads.append(array) or array)  # type: ignore[func-returns-value]


def test_state_lists_classes_in_the_order_of_detections(uploads: list[np.ndarray]) -> None:
    state = start(uploads)
    assert state.classes == (("original", "a"), ("original", "b"), ("original", "c")) and state.n_rows == 3
    more = following(state, uploads, own=own("x"), one=learned("y", n_prompts=2), two=learned("z"))
    assert more.classes[3:] == (("one", "y"), ("two", "z"), ("own", "x"))
    assert list(more.learned) == ["own", "one", "two"] and state.learned == {}


def test_rows_are_those_of_the_largest_pass(uploads: list[np.ndarray]) -> None:
    state = start(uploads)
    for vocabularies, rows in (
        ({"one": learned("y", n_prompts=4), "two": learned("z")}, 3 + 2 * 4),  # padded
        ({"own": own("x", "y", n_prompts=2)}, 4),
        ({"own": own("x")}, 3),
        ({}, 3),
    ):
        assert following(state, uploads, **vocabularies).n_rows == rows
        original = learned("a", "b", "c", kind="original", guide=guide_digest(unit_rows(3, 1)))
        assert most_rows(original, vocabularies.values()) == rows


def test_only_what_is_new_is_uploaded(uploads: list[np.ndarray]) -> None:
    state = following(start(uploads), uploads, own=own("x"))
    count = len(uploads)
    state = following(state, uploads, own=state.learned["own"], more=own("y"))
    assert len(uploads) == count + 1
    state = following(state, uploads, own=state.learned["own"])
    assert len(uploads) == count + 1 and state.together is state.nothing


@pytest.mark.parametrize(("conf", "limit"), [(None, 0.25), (0.6, 0.6)])
def test_wanted_takes_the_callers_numbers_and_classes(
    uploads: list[np.ndarray], conf: float | None, limit: float
) -> None:
    loaded = Loaded.of({"one": learned("y", "z", nms_iou=[0.5, 0.6])}, lambda array, *, guides: array, guides=False)
    wanted = Wanted.of(loaded, conf, None, frozenset({("one", "z")}))
    assert wanted.shown.tolist() == [False, True] and wanted.limits.tolist() == [np.float32(limit)] * 2
    assert wanted.conf == np.float32(limit) and wanted.nms_iou.tolist() == [0.5, np.float32(0.6)]
    assert Wanted.of(loaded, conf, None, frozenset()).conf == 1.0


def test_thresholds_of_a_file_have_a_floor_that_the_callers_number_does_not_have() -> None:
    # the calibration of the second class lets any score through
    fields: dict[str, Any] = {"thresholds": [0.0, 0.5], "calibration": [[1, 0], [1e-6, 20]]}
    loaded = Loaded.of({"one": learned("y", "z", **fields)}, lambda array, *, guides: array, guides=False)
    chosen = frozenset(loaded.packed.classes)
    assert Wanted.of(loaded, None, None, chosen).conf == 0.0
    assert Wanted.of(loaded, None, None, chosen, least=LEAST_SCORE).conf == LEAST_SCORE == 0.001
    assert Wanted.of(loaded, None, None, frozenset({("one", "z")}), least=LEAST_SCORE).conf == LEAST_SCORE
    assert Wanted.of(loaded, 0.0, None, chosen, least=LEAST_SCORE).conf == 0.0
    higher = Loaded.of({"one": learned("y", thresholds=0.25)}, lambda array, *, guides: array, guides=False)
    assert Wanted.of(higher, None, None, frozenset({("one", "y")}), least=LEAST_SCORE).conf == 0.25
