"""Data sets in Pascal VOC's format: lists, missing files, and mistakes in the XML."""

from pathlib import Path

import pytest
from data_sets import TRAIN, VAL, write_devkit, write_voc

from prompt_tune.datasets.reading import read_dataset
from prompt_tune.errors import DataError


def test_read_voc_trainval_list_stands_in_for_train(tmp_path: Path) -> None:
    write_devkit(tmp_path, {"train": TRAIN, "val": VAL})
    lists = tmp_path / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("a\nb\nc\nd\n")
    (lists / "lorry_train.txt").write_text("a  1\nb -1\n")  # the devkit's lists of one class are not read
    (lists / "train.txt").unlink()
    data = read_dataset(tmp_path)
    assert data.held_out
    assert sorted(s.path.stem for split in (data.train, data.val) for s in split.samples) == ["a", "b", "c", "d"]


def test_read_voc_image_without_xml_is_background(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "annotations" / "b.xml").unlink()
    assert [len(sample.labels.classes) for sample in read_dataset(tmp_path).train.samples] == [2, 0, 0]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation>", r"b\.xml` is not valid XML: .*line 1"),
        ("<a><object><bndbox/></object></a>", r"b\.xml`, object 1 has no name"),
        ("<a><object><name>x</name></object></a>", r"object 1: `<bndbox>` must have `<xmin>`, a number"),
        (
            "<a><object><name>x</name><bndbox><xmin>one</xmin></bndbox></object></a>",
            r"must have `<xmin>`, a number. Received: 'one'",
        ),
    ],
)
def test_read_voc_bad_xml_raises(tmp_path: Path, xml: str, message: str) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "annotations" / "b.xml").write_text(xml)
    with pytest.raises(DataError, match=message):
        read_dataset(source)
