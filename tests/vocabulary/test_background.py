"""Background rows: their names, their marks, and what a vocabulary does with them."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from vocabularies import DETECTOR, TOWER, learned, refusal_of, unit_rows

from prompt_tune.vocabulary.background import checked_background, free_name, named
from prompt_tune.vocabulary.diff import Change, diff
from prompt_tune.vocabulary.names import name_hints
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

MARK = (("<background>", " "),)


def original(*names: str, seed: int = 0, **fields: Any) -> Vocabulary:
    rows = unit_rows(len(names), 1, seed=seed)
    return learned(*names, seed=seed, kind="original", guide=guide_digest(rows), **fields)


def test_blank_texts_become_background_rows_with_free_names() -> None:
    assert named(["person", "", "dog", " "]) == (
        ("person", "<background>", "dog", "<background 2>"),
        (("<background>", ""), ("<background 2>", " ")),
    )
    assert named(["a", "<background>", " "])[1] == (("<background 2>", " "),)
    assert named(["a", "b"]) == (("a", "b"), ())
    assert free_name({"<background>", "<background 2>", "a"}) == "<background 3>"


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        ("ab", "original", "must be pairs of a name and the text that was encoded, both text. Received: 'ab'."),
        (None, "original", "must be pairs"),
        ([["b"]], "original", "Received: ['b']."),
        ([["b", None]], "original", "Received: ['b', None]."),
        ([["c", " "]], "original", "must name rows of the vocabulary, each once and in their order. Received: ['c']."),
        ([["b", " "], ["b", " "]], "original", "each once"),
        ([["b", ""], ["a", ""]], "original", "in their order"),
        ([["a", ""], ["b", ""]], "original", "at least one class beside its background rows"),
        ([["b", "\n"]], "original", "must not have control characters"),
        ([["b", " "]], "plain", "Only a vocabulary of kind `original` has background rows. Received: kind `plain`"),
    ],
)
def test_marks_that_break_a_rule_are_refused(value: object, kind: str, reason: str) -> None:
    assert reason in refusal_of(lambda: checked_background(value, ("a", "b"), kind))


def test_file_has_the_mark_and_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "a.vocab.safetensors"
    made = original("person", "<background>", "dog", background=MARK)
    made.save(path)
    read = Vocabulary.load(path)
    assert (read.names, read.background) == (("person", "<background>", "dog"), MARK)
    assert read.class_names == ("person", "dog") and read.is_background.tolist() == [False, True, False]
    assert b'\\"background\\": [[\\"<background>\\", \\" \\"]], \\"content\\": ' in path.read_bytes()
    assert b'\\"version\\": 2}' in path.read_bytes()
    assert read.to_bytes() == pickle.loads(pickle.dumps(read)).to_bytes() == made.to_bytes()
    assert b"background" not in original("person", "dog").to_bytes()  # and version 1, as before
    assert repr(read) == "<Vocabulary of 2 original classes: 'person', 'dog'>"


def test_mark_goes_with_its_row_and_not_with_the_name() -> None:
    made = original("a", "<background>", "b", "void", background=(*MARK, ("void", "")))
    renamed = made.rename({"<background>": "a", "a": "<background>"})
    assert renamed.class_names == ("<background>", "b") and renamed.background == (("a", " "), ("void", ""))
    chosen = made.select(["void", "b", "<background>"])
    assert chosen.background == (("void", ""), *MARK) and chosen.guide == chosen.digest != made.guide
    assert made.remove(["<background>"]).background == (("void", ""),)
    assert "at least one class" in refusal_of(lambda: made.remove(["a", "b"]))


def test_diff_names_the_marks_that_changed() -> None:
    made = original("a", "<background>", background=MARK)
    plain = original("a", "<background>")
    assert diff(plain, made).metadata == (Change("background", None, {"<background>": " "}),)
    assert diff(made, made).is_empty


def test_learned_class_named_like_the_row_gets_no_hint() -> None:
    made = original("a", "<background>", background=MARK)
    assert name_hints(["<background>"], made.class_names) == []
    assert (made.detector, made.text_tower) == (DETECTOR, TOWER)
