"""Labels of a data set as classes of the vocabularies: matched by name, and what cannot be measured is named."""

from pathlib import Path

import numpy as np
import pytest
from data_sets import TRAIN, VAL, Boxes, write_voc, write_yolo
from vocabularies import learned, unit_rows

from prompt_tune.errors import DataError
from prompt_tune.evaluation.ground_truth import GroundTruth
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

SHARED_NAME = "traffic light"
CALIBRATION = np.array([[1, 0], [2, -1]], np.float32)


@pytest.fixture
def vocabularies() -> dict[str, Vocabulary]:
    """Both vocabularies have `traffic light`; `bus` is never labelled."""
    return {
        "original": learned(SHARED_NAME, "bus", thresholds=np.array([0.25, 0.5], np.float32)),
        "learned": learned("lorry", SHARED_NAME, thresholds=np.float32(0.75), calibration=CALIBRATION),
    }


def test_class_with_two_vocabularies_is_measured_in_both(vocabularies: dict[str, Vocabulary], tmp_path: Path) -> None:
    truth = GroundTruth.read(write_voc(tmp_path, {"train": TRAIN, "val": VAL}), "train", None, vocabularies)
    keys = [("original", SHARED_NAME), ("learned", "lorry"), ("learned", SHARED_NAME)]
    assert list(truth.keys) == keys
    assert truth.others == (("original", "bus"),) and truth.others_of("original") == [3]
    assert truth.thresholds.tolist() == [0.25, 0.75, 0.75, 0.5]
    assert truth.calibration.tolist() == [[1, 0], [1, 0], [2, -1], [1, 0]] and truth.nms_iou.tolist() == [1] * 4
    np.testing.assert_allclose(truth.least_scores, [0.001, 0.001, 0.001, 0.5])  # no metric needs the bus below 0.5
    assert (truth.of_vocabulary("original"), truth.of_vocabulary("learned")) == ([0], [1, 2])
    a, b, c = (truth.labels(sample) for sample in truth.samples)
    # a lorry and a traffic light, the latter once for each vocabulary; a traffic light and an ignored lorry; nothing
    assert sorted(a.classes.tolist()) == [0, 1, 2] and not a.ignore.any()
    assert dict(zip(b.classes.tolist(), b.ignore.tolist(), strict=True)) == {0: False, 1: True, 2: False}
    assert a.boxes_xyxy[a.classes == 0].tolist() == a.boxes_xyxy[a.classes == 2].tolist()
    places = truth.places(truth.samples[0])
    assert truth.samples[0].labels.boxes_xyxy[places].tolist() == a.boxes_xyxy.tolist()
    assert [truth.names[truth.samples[0].labels.classes[k]] for k in places] == [keys[k][1] for k in a.classes]
    assert c.boxes_xyxy.shape == (0, 4) and len(c) == 0


def test_classes_that_cannot_be_measured_are_named(vocabularies: dict[str, Vocabulary], tmp_path: Path) -> None:
    data = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    truth = GroundTruth.read(data, "val", None, vocabularies)  # it labels a lorry only
    assert (truth.keys, truth.unlabelled, truth.unknown) == ((("learned", "lorry"),), (SHARED_NAME,), ())
    truth = GroundTruth.read(data, "train", ["van", SHARED_NAME], vocabularies)
    assert (truth.unknown, truth.unlabelled) == (("van",), ())
    assert [len(truth.labels(sample)) for sample in truth.samples] == [2, 2, 0]


def test_class_whose_labels_are_all_ignored_is_not_measured(
    vocabularies: dict[str, Vocabulary], tmp_path: Path
) -> None:
    images: Boxes = {"a": [(0, 0, 0, 9, 9, True), (1, 0, 0, 9, 9, False)]}
    truth = GroundTruth.read(write_voc(tmp_path, {"train": images, "val": images}), "val", None, vocabularies)
    assert [name for _, name in truth.keys] == [SHARED_NAME] * 2 and truth.unlabelled == ("lorry",)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["lory", "y"], r"^No class of `.*` is in the vocabularies: lory, y\. Near: lorry\. Name the classes as the "),
        (["x", "y"], r": x, y\. The vocabularies have: bus, lorry, traffic light, \.\.\.\. Name the classes as the "),
        (
            ["x", "lorry"],
            r"`: no vocabulary has the classes that are labelled in `val`: x\. Choose another split, or name",
        ),
    ],
)
def test_data_set_without_a_label_of_a_known_class_is_refused(
    names: list[str], reason: str, vocabularies: dict[str, Vocabulary], tmp_path: Path
) -> None:
    data = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    with pytest.raises(DataError, match=reason):
        GroundTruth.read(data, "val", names, vocabularies)


def test_held_out_images_are_those_of_the_seed_in_the_provenance(tmp_path: Path) -> None:
    data = write_yolo(tmp_path, {"train": {f"{k:02}": [(0, 0, 0, 9, 9, False)] for k in range(20)}})
    held_out = {}
    for seed in (None, 0, 1):
        provenance = {} if seed is None else {"settings": {"seed": seed}}
        truth = GroundTruth.read(data, "val", None, {"learned": learned("lorry", provenance=provenance)})
        held_out[seed] = [sample.path.stem for sample in truth.samples]
    assert len(held_out[0]) == 4 and held_out[None] == held_out[0] != held_out[1]


def test_label_named_like_a_background_row_is_not_measured_as_it(tmp_path: Path) -> None:
    rows = unit_rows(2, 1)
    guide = guide_digest(rows)
    original = learned("lorry", SHARED_NAME, kind="original", guide=guide, background=((SHARED_NAME, " "),))
    truth = GroundTruth.read(write_voc(tmp_path, {"train": TRAIN, "val": VAL}), "train", None, {"original": original})
    assert truth.keys == (("original", "lorry"),) and truth.unknown == (SHARED_NAME,)
