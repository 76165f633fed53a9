"""Which of an original and a learned box on the same object is hidden, by hand and at random."""

from typing import Any

import numpy as np
import pytest
from vocabularies import learned, refusal_of, unit_rows

from prompt_tune.errors import PromptTuneError
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.overlap import Overlap, check_overlap, hidden_rows
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

WHOLE, NEAR, PART = (0, 0, 10, 10), (0, 0, 10, 8), (0, 0, 10, 6)  # NEAR has IoU 0.8 with WHOLE and 0.75 with PART
APART = (50, 50, 60, 60)


def vocabularies(**fields: Any) -> dict[str, Vocabulary]:
    """Thresholds: bear 0.2, cat 0.5; raccoon 0.6, gizmo 0.1 by default; shelf 0.5."""
    guide = guide_digest(unit_rows(2, 1))
    return {
        "original": learned("bear", "cat", kind="original", guide=guide, thresholds=[0.2, 0.5]),
        "learned": learned("raccoon", "gizmo", **({"thresholds": [0.6, 0.1]} | fields)),
        "more": learned("shelf", thresholds=[0.5]),
    }


def found(*rows: tuple[str, int, float, tuple[int, int, int, int]]) -> Detections:
    names = {"original": ("bear", "cat"), "learned": ("raccoon", "gizmo"), "more": ("shelf",)}
    return Detections(
        boxes_xyxy=np.array([row[3] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row[2] for row in rows], np.float32),
        class_ids=np.array([row[1] for row in rows], np.int64),
        class_names=tuple(names[row[0]][row[1]] for row in rows),
        vocabularies=tuple(row[0] for row in rows),
    )


@pytest.mark.parametrize(
    ("how", "rows", "hidden"),
    [
        ("keep", [("original", 0, 0.3, WHOLE), ("learned", 0, 0.9, WHOLE)], []),
        ("learned", [("original", 0, 0.99, WHOLE), ("learned", 0, 0.7, NEAR)], [0]),
        ("learned", [("original", 0, 0.99, WHOLE), ("learned", 0, 0.7, PART)], []),  # IoU 0.6
        ("learned", [("original", 0, 0.9, WHOLE), ("learned", 0, 0.5, WHOLE)], []),  # below its own threshold
        ("learned", [("original", 0, 0.9, APART), ("original", 1, 0.9, WHOLE), ("more", 0, 0.6, WHOLE)], [1]),
        ("learned", [("learned", 0, 0.9, WHOLE), ("more", 0, 0.9, WHOLE)], []),  # no original one
        ("learned", [("original", 0, 0.9, WHOLE), ("original", 1, 0.9, WHOLE)], []),
        ("learned", [], []),
        # shares of what is above the threshold: bear 0.9 has 0.875, raccoon 0.9 has 0.75, gizmo 0.9 has 0.889
        ("score", [("original", 0, 0.9, WHOLE), ("learned", 0, 0.9, WHOLE)], [1]),
        ("score", [("original", 0, 0.9, WHOLE), ("learned", 1, 0.9, WHOLE)], [0]),
        ("score", [("original", 1, 0.75, WHOLE), ("more", 0, 0.75, WHOLE)], [0]),  # equal: the learned one stays
        ("score", [("original", 0, 0.3, WHOLE), ("original", 1, 0.9, WHOLE), ("learned", 0, 0.8, WHOLE)], [2]),
        # the surest hides its neighbour, which then hides nothing: WHOLE and PART do not touch
        ("score", [("original", 0, 0.9, WHOLE), ("learned", 0, 0.9, NEAR), ("original", 1, 0.6, PART)], [1]),
        ("score", [("learned", 0, 0.9, WHOLE), ("more", 0, 0.6, WHOLE), ("original", 0, 0.9, APART)], []),
        ("score", [("original", 0, 0.9, WHOLE), ("original", 1, 0.6, WHOLE)], []),
    ],
)
def test_hidden_rows_by_hand(how: Overlap, rows: list[Any], hidden: list[int]) -> None:
    mask = hidden_rows(found(*rows), vocabularies(), how)
    assert mask.dtype == bool and np.flatnonzero(mask).tolist() == hidden


def test_original_box_is_compared_as_the_learned_class_draws_it() -> None:
    """A class whose labels leave out the lower two fifths: its box on the same anchor has IoU 0.6 with the other."""
    rows = found(("original", 0, 0.9, WHOLE), ("learned", 0, 0.9, PART))
    assert not hidden_rows(rows, vocabularies(), "learned").any()
    offsets = np.array([[0, 0, 0, -0.4], [0, 0, 0, 0]], np.float32)
    assert hidden_rows(rows, vocabularies(box_offsets=offsets), "learned").tolist() == [True, False]


def test_thresholds_of_one_and_numbers_of_the_caller_do_not_divide_by_zero() -> None:
    rows = found(("original", 0, 0.5, WHOLE), ("learned", 0, 0.5, WHOLE))
    with np.errstate(all="raise"):
        assert hidden_rows(rows, vocabularies(thresholds=[1, 1]), "score").tolist() == [False, True]


def test_no_visible_pair_is_left_and_every_hidden_row_has_a_reason() -> None:
    rng = np.random.default_rng(0)
    labels = ("original", "learned", "more")
    for _ in range(30):
        rows = []
        for _ in range(rng.integers(1, 40)):
            label = labels[rng.integers(3)]
            left, top = rng.integers(0, 6, 2)
            box = (int(left), int(top), int(left + rng.integers(8, 11)), int(top + rng.integers(8, 11)))
            rows.append((label, int(rng.integers(1 if label == "more" else 2)), float(rng.random()), box))
        all_of_them, parts = found(*rows), vocabularies()
        original = np.array([label == "original" for label, *_ in rows])
        limits = np.array([parts[label].thresholds[k] for label, k, *_ in rows])
        near = (box_iou(all_of_them.boxes_xyxy, all_of_them.boxes_xyxy) >= 0.7) & (original[:, None] != original)
        hidden = hidden_rows(all_of_them, parts, "score")
        assert not near[np.ix_(~hidden, ~hidden)].any()
        assert near[np.ix_(hidden, ~hidden)].any(1).all()
        covering = near & (~original & (all_of_them.scores > limits))
        assert hidden_rows(all_of_them, parts, "learned").tolist() == (covering.any(1) & original).tolist()


def test_another_word_is_refused() -> None:
    with pytest.raises(PromptTuneError, match=r"^`overlap` must be one of keep, learned, score\. Received: 'both'\.$"):
        check_overlap("both")
    assert "guide" in refusal_of(lambda: learned("a", kind="original"))
