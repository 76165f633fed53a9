"""Every export of every tool: the same images, boxes and classes come out of each."""

from pathlib import Path

import pytest
from data_sets import NAMES, TRAIN, VAL, Boxes, check_split
from exports import WRITERS

from prompt_tune.datasets.folders import read_folder
from prompt_tune.datasets.reading import find_labels, read_dataset, read_split
from prompt_tune.errors import DataError


@pytest.mark.parametrize("name", WRITERS)
def test_every_export_gives_the_same_data_set(tmp_path: Path, name: str) -> None:
    writer, has_val, can_ignore = WRITERS[name]
    source = writer(tmp_path / "set", {"train": TRAIN, "val": VAL} if has_val else {"train": TRAIN})
    data = read_dataset(source, keep_few=True)
    train: Boxes = {stem: rows for stem, rows in TRAIN.items() if rows or "open_images" not in name}
    assert data.names == tuple(NAMES)
    check_split(data.train, train, with_ignored=can_ignore)
    if has_val:
        assert not data.held_out
        check_split(data.val, VAL, with_ignored=can_ignore)


@pytest.mark.parametrize("name", [name for name, (_, has_val, _) in WRITERS.items() if has_val])
def test_a_test_split_is_found(tmp_path: Path, name: str) -> None:
    source = WRITERS[name][0](tmp_path / "set", {"train": TRAIN, "val": {"e": VAL["d"]}, "test": VAL})
    names, split = read_split(source, "test")
    assert names == tuple(NAMES)
    check_split(split, VAL, with_ignored=False)


def test_read_folder_is_none_for_a_folder_without_labels(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text('{"categories": []}')
    (tmp_path / "notes.xml").write_text("<notes/>")
    assert read_folder(tmp_path) is None
    assert find_labels(tmp_path) is None


def test_tfrecords_are_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/x.tfrecord").write_bytes(b"")
    with pytest.raises(DataError, match="TFRecord files are not read"):
        read_dataset(tmp_path)
