"""One row per labelled image, in Parquet files of one fixed schema."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tune.runtime.detections import ClassKey, Detections, concatenate
from prompt_tune.services.arrow import arrow_module, parquet_module

_READ = 256  # rows in memory at once


@dataclass(frozen=True, eq=False)
class Row:
    """One image.

    Attributes:
        path: Its unique name, see `items.Item`.
        found: Its detections; none, and a size of (0, 0), if it cannot be read.
        error: Why it cannot be read, or empty.
    """

    path: str
    found: Detections
    error: str = ""

    @classmethod
    def damaged(cls, path: str, error: str) -> "Row":
        """The row of an image that cannot be read."""
        return cls(path, concatenate([], (0, 0)), error)


@cache
def schema() -> Any:
    """The schema of every file: no column has nulls, and an image without detections has empty lists.

    The four lists have equal lengths: label of the vocabulary, class name, score, and box (left, top, right, bottom in
    pixels of the image).
    """
    arrow = arrow_module()
    columns = {
        "path": arrow.string(),
        "width": arrow.int32(),
        "height": arrow.int32(),
        "label": arrow.list_(arrow.string()),
        "class": arrow.list_(arrow.string()),
        "score": arrow.list_(arrow.float32()),
        "box": arrow.list_(arrow.list_(arrow.float32(), 4)),
        "error": arrow.string(),
    }
    return arrow.schema([arrow.field(name, kind, nullable=False) for name, kind in columns.items()])


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a Parquet file. Equal rows give equal bytes.

    Raises:
        OSError: It cannot be written.
    """
    arrow = arrow_module()
    found = [row.found for row in rows]
    offsets = arrow.array(np.cumsum([0, *map(len, found)]), arrow.int32())  # (n_rows + 1,)
    boxes = np.concatenate([one.boxes_xyxy for one in found]).reshape(-1)  # (4 n,)
    values = {
        "label": arrow.array([label for one in found for label in one.vocabularies], arrow.string()),
        "class": arrow.array([name for one in found for name in one.class_names], arrow.string()),
        "score": arrow.array(np.concatenate([one.scores for one in found]), arrow.float32()),
        "box": arrow.FixedSizeListArray.from_arrays(arrow.array(boxes, arrow.float32()), 4),
    }
    columns = {
        "path": arrow.array([row.path for row in rows], arrow.string()),
        "width": arrow.array([one.size_wh[0] for one in found], arrow.int32()),
        "height": arrow.array([one.size_wh[1] for one in found], arrow.int32()),
        **{name: arrow.ListArray.from_arrays(offsets, part) for name, part in values.items()},
        "error": arrow.array([row.error for row in rows], arrow.string()),
    }
    arrays = [columns[name].cast(schema().field(name).type) for name in schema().names]
    table = arrow.Table.from_arrays(arrays, schema=schema())
    parquet_module().write_table(table, path)


def read_paths(path: Path) -> Iterator[str]:
    """The images that a Parquet file of rows has."""
    for batch in parquet_module().ParquetFile(path).iter_batches(columns=["path"]):
        yield from batch.column(0).to_pylist()


def read_rows(path: Path, class_ids: Mapping[ClassKey, int]) -> Iterator[Row]:
    """The rows of a Parquet file, bit for bit as they were written.

    Args:
        path: The file.
        class_ids: The row of each class, by (vocabulary label, class name), in its own vocabulary.
    """
    for batch in parquet_module().ParquetFile(path).iter_batches(batch_size=_READ):
        for row in batch.to_pylist():
            keys = list(zip(row["label"], row["class"], strict=True))
            found = Detections(
                boxes_xyxy=np.array(row["box"], np.float32).reshape(-1, 4),  # (n, 4)
                scores=np.array(row["score"], np.float32),  # (n,)
                class_ids=np.array([class_ids[key] for key in keys], np.int64),  # (n,)
                class_names=tuple(row["class"]),
                vocabularies=tuple(row["label"]),
                size_wh=(row["width"], row["height"]),
            )
            yield Row(row["path"], found, row["error"])
