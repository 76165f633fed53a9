"""Rows in Parquet: the schema, and every bit of what was written."""

from pathlib import Path

import extras
import numpy as np

# ruff: noqa: E402
extras.needs("pyarrow")

import pyarrow as pa
from pyarrow import parquet
from small_bundle import content

from prompt_tune.runtime.detections import Detections, concatenate
from prompt_tune.services.rows import Row, read_paths, read_rows, schema, write_rows

IDS = {("original", "car"): 4, ("learned", "gizmo"): 0}


def rows() -> list[Row]:
    generator = np.random.default_rng(0)
    keys = [("original", "car"), ("learned", "gizmo"), ("original", "car")]
    found = Detections(
        generator.random((3, 4), np.float32) * 100,
        generator.random(3, np.float32),
        np.array([4, 0, 4]),
        tuple(name for _, name in keys),
        tuple(label for label, _ in keys),
        (640, 480),
    )
    return [Row("a.png", found), Row("b\u00e4.png", concatenate([], (32, 16))), Row.damaged("c.png", "It is damaged.")]


def test_rows_come_back_bit_for_bit(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", rows())
    back = list(read_rows(tmp_path / "rows.parquet", IDS))
    assert [(row.path, row.error, content(row.found)) for row in back] == [
        (row.path, row.error, content(row.found)) for row in rows()
    ]
    assert list(read_paths(tmp_path / "rows.parquet")) == ["a.png", "b\u00e4.png", "c.png"]


def test_file_has_the_schema_with_empty_lists_and_no_nulls(tmp_path: Path) -> None:
    for name, part in (("all", rows()), ("empty", rows()[1:]), ("none", [])):
        if part:
            write_rows(tmp_path / f"{name}.parquet", part)
            table = parquet.read_table(tmp_path / f"{name}.parquet")
            assert table.schema.equals(schema()) and all(column.null_count == 0 for column in table.columns)
    assert str(schema()).splitlines() == [
        *("path: string not null", "width: int32 not null", "height: int32 not null"),
        *("label: list<item: string> not null", "  child 0, item: string"),
        *("class: list<item: string> not null", "  child 0, item: string"),
        *("score: list<item: float> not null", "  child 0, item: float"),
        "box: list<item: fixed_size_list<item: float>[4]> not null",
        "  child 0, item: fixed_size_list<item: float>[4]",
        *("      child 0, item: float", "error: string not null"),
    ]
    plain = parquet.read_table(tmp_path / "all.parquet").to_pylist()
    assert plain[1] == {
        **{"path": "b\u00e4.png", "width": 32, "height": 16, "error": ""},
        **{"label": [], "class": [], "score": [], "box": []},
    }
    assert plain[2]["error"] == "It is damaged." and (plain[2]["width"], plain[2]["box"]) == (0, [])
    assert plain[0]["class"] == ["car", "gizmo", "car"] and len(plain[0]["box"][0]) == 4


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_rows(tmp_path / name, rows())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert pa.__version__ in (tmp_path / "one").read_bytes().decode("latin-1")  # another pyarrow: other bytes
