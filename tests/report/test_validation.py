"""The folder of `val`: whole files, a table that no spreadsheet runs, and a full disk as one line."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disks import full_disk

from prompt_tune.errors import RunError
from prompt_tune.evaluation.confusion import Column, Confusion, Row
from prompt_tune.evaluation.matching import Matched
from prompt_tune.evaluation.metrics import Metrics
from prompt_tune.evaluation.per_image import ImageResult
from prompt_tune.evaluation.validate import ClassResult, Validation
from prompt_tune.report.validation import FILES, title, write_validation


def validation(*vocabularies: str) -> Validation:
    """One class of each vocabulary, and one image."""
    metrics = Metrics(*[0.5] * 9)
    parts: dict[str, Any] = {"learned": metrics, "original": None, "together": metrics, "unknown": (), "skipped": ()}
    return Validation(
        engine="onnx",
        split="val",
        images=1,
        classes=tuple(ClassResult(label, "=thing", 2, metrics, 0.5, 1.0, 0.5) for label in vocabularies),
        curves=np.ones((len(vocabularies), 101)),
        matched=(Matched(np.array([0.9], np.float32), np.array([True]), 2),) * len(vocabularies),
        confusion=Confusion((Row("=thing", 2, 1),), (Column("learned", "=thing", 0, 0),), np.array([[1]])),
        per_image=(ImageResult(Path("=a.jpg"), "learned", 3, 1, 0, (("=thing", 1), ("other", 1)), ()),),
        unlabelled=(),
        **parts,
    )


def test_folder_has_every_file_and_formulas_are_texts(tmp_path: Path) -> None:
    write_validation(tmp_path / "out", validation("learned"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
    assert json.loads((tmp_path / "out" / "val.json").read_text()) == validation("learned").to_json()
    with (tmp_path / "out" / "images.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {
        **{"image": "'=a.jpg", "vocabulary": "learned", "objects": "3", "hits": "1", "misses": "2"},
        **{"false_alarms": "0", "missed_classes": "1 =thing, 1 other", "wrong_classes": ""},
    }


def test_title_names_the_vocabulary_if_there_are_several() -> None:
    one, two = validation("learned"), validation("learned", "night")
    assert title(one.classes[0], one) == "=thing"
    assert [title(row, two) for row in two.classes] == ["learned: =thing", "night: =thing"]


def test_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^Cannot write .*: File too large\."), full_disk():
        write_validation(tmp_path, validation("learned"))
    assert list(tmp_path.iterdir()) == []
