"""The tables of `prompt-tune vocab`, cell by cell."""

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table
from vocabularies import golden, learned

from prompt_tune.cli.vocab_tables import classes_table, differences_table, fitted, origin_table
from prompt_tune.vocabulary.diff import diff


def rows(table: Table) -> list[list[str]]:
    """The cells of a table, as text."""
    file = io.StringIO()
    Console(file=file, width=200).print(table)
    return [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        for line in file.getvalue().splitlines()
        if line[0] in "│┃"
    ]


@pytest.mark.parametrize(
    ("fields", "columns", "cells"),
    [
        ({}, [], []),
        ({"calibration": [[2, 0.5]]}, ["scale, shift"], ["2, 0.5"]),
        ({"nms_iou": np.array([0.45], np.float32)}, ["NMS IoU"], ["0.45"]),
        ({"box_offsets": np.array([[-0.05, 0, 0.125, 0]])}, ["box offsets in %"], ["-5.0 +0.0 +12.5 +0.0"]),
    ],
)
def test_classes_table_has_a_column_for_each_field_that_is_there(
    fields: dict[str, Any], columns: list[str], cells: list[str]
) -> None:
    table = classes_table(learned("[red] car", n_prompts=3, thresholds=0.125, **fields), 80)
    head, row = rows(table)
    assert head == ["id", "class", "prompts", "threshold", *columns]
    assert row == ["0", "[red] car", "3", "0.125", *cells]


def test_classes_table_does_not_count_prompts_that_pad() -> None:
    assert [row[2] for row in rows(classes_table(golden(), 80))[1:]] == ["2", "1"]


def test_origin_table_has_shortened_digests() -> None:
    file = io.StringIO()
    Console(file=file, width=200).print(origin_table(golden()))
    lines = dict(line.split(None, 1) for line in file.getvalue().replace("text tower", "text_tower").splitlines())
    assert (lines["classes"].strip(), lines["kind"].strip()) == ("2", "learned")
    assert [lines[what].strip() for what in ("detector", "text_tower", "guide")] == ["d" * 12, "7" * 12, "9" * 12]


def test_differences_table_has_one_row_for_each_change() -> None:
    before = learned("car", "lorry", thresholds=0.5)
    after = learned("car", "van", thresholds=[0.25, 0.5], detector="e" * 64)
    found = rows(differences_table(diff(before, after), 80))
    assert found[0] == ["what", "class", "before", "after"]
    assert ["added", "van", "", ""] in found and ["removed", "lorry", "", ""] in found
    assert ["threshold", "car", "0.5", "0.25"] in found
    assert ["detector", "", "d" * 12, "e" * 12] in found


def test_narrow_table_breaks_at_spaces_and_after_the_dots_of_keys_only() -> None:
    row = ("provenance.thresholds.expected.precision", "a long name", "1.0", "0.5")
    columns = ("what", "class", "before", "after")
    for width, what in (
        (80, ["provenance.thresholds.expected.precision"]),
        (50, ["provenance.", "thresholds.expected.", "precision"]),
        (42, ["provenance.", "thresholds.expected.", "precision"]),
    ):
        file = io.StringIO()
        Console(file=file, width=width).print(fitted(columns, [row], width, left=columns))
        words = file.getvalue().replace("│", " ").split()
        assert [word for word in words if word.startswith(("prov", "thr", "prec"))] == what
        assert {"a", "long", "name", "1.0", "0.5"} <= set(words)
        assert max(map(len, file.getvalue().splitlines())) <= width
