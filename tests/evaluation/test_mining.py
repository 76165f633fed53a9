"""Which unlabelled images are worth labelling next."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from subsets import write_subset

from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.sample import write_sample
from prompt_tune.errors import DataError
from prompt_tune.evaluation.mining import Candidate, judge, mine
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.labels import LEARNED

BUNDLE = Path(__file__).parents[1] / "data" / "bundle"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("mine") / "set", n_images=12)[0].parents[1]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(BUNDLE)


def found(*rows: tuple[str, str, float, tuple[float, float, float, float]], detector: Detector) -> Detections:
    """Detections of (vocabulary, class, score, box)."""
    names = {label: part.names for label, part in detector.vocabularies.items()}
    return Detections(
        np.array([row[3] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.float32),
        np.array([names[row[0]].index(row[1]) for row in rows], np.int64),
        tuple(row[1] for row in rows),
        tuple(row[0] for row in rows),
        (100, 100),
    )


def value(*rows: tuple[str, str, float, tuple[float, float, float, float]], detector: Detector) -> Candidate | None:
    return judge(Path("a.jpg"), found(*rows, detector=detector), detector)


def test_doubt_is_highest_at_the_threshold_and_falls_to_both_sides(detector: Detector) -> None:
    name = detector.vocabularies[LEARNED].names[0]
    threshold = float(detector.vocabularies[LEARNED].thresholds[0])
    box = (10.0, 10.0, 50.0, 50.0)
    at, above, below = (
        value((LEARNED, name, score, box), detector=detector)
        for score in (threshold, threshold + (1 - threshold) / 2, threshold / 2)
    )
    assert at is not None and above is not None and below is not None
    assert at.value == pytest.approx(1, abs=1e-4) and above.value < 0.7 and below.value < 0.7
    assert at.reason == f"{name} {threshold:.2f}, threshold {threshold:.2f}"


def test_a_sure_original_class_on_the_same_box_counts_with_its_score(detector: Detector) -> None:
    name, other = detector.vocabularies[LEARNED].names[0], detector.vocabularies[ORIGINAL].names[1]
    box, apart = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)
    fires = (LEARNED, name, 0.999, box)
    alone, away, on = (
        value(fires, *more, detector=detector)
        for more in ([], [(ORIGINAL, other, 0.9, apart)], [(ORIGINAL, other, 0.9, box)])
    )
    assert alone is not None and away is not None and on is not None
    assert alone.value == away.value < 0.1
    assert on.value == pytest.approx(0.9) and on.reason == f"{name} 1.00 on {other} 0.90"
    assert value((ORIGINAL, other, 0.9, box), detector=detector) is None


def test_the_best_images_are_written_to_be_corrected_and_learned_from(
    detector: Detector, sample: Path, tmp_path: Path
) -> None:
    source = sample / "custom" / "images" / "test"
    (tmp_path / "copies").mkdir()
    for image in source.iterdir():
        for name in ("a", "b"):
            (tmp_path / "copies" / f"{name}{image.name}").write_bytes(image.read_bytes())
    (tmp_path / "copies" / "broken.jpg").write_bytes(b"nothing")
    join = write_subset(sample / "custom" / "custom.yaml", tmp_path / "two", ["gizmo", "forklift"])
    mined = mine(detector, tmp_path / "copies", tmp_path / "out", top=4, join=join)
    assert (len(mined.candidates), mined.images, len(mined.skipped)) == (4, 25, 1)
    assert len({candidate.path.name[1:] for candidate in mined.candidates}) == 4  # each picture once
    values = [candidate.value for candidate in mined.candidates]
    assert values == sorted(values, reverse=True) and 0 < values[-1] <= values[0] <= 1
    with (tmp_path / "out" / "ranking.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["image"] for row in rows] == [str(candidate.path) for candidate in mined.candidates]
    pictures = {path.name for path in (tmp_path / "out" / "pictures").iterdir()}
    assert pictures == {candidate.path.name for candidate in mined.candidates}
    before, after = read_dataset(join), read_dataset(mined.data)
    assert after.names == before.names == ("gizmo", "forklift")
    assert len(after.train.samples) == len(before.train.samples) + 4
    assert [sample.path for sample in after.val.samples] == [sample.path for sample in before.val.samples]
    coco = json.loads((tmp_path / "out" / "detections.json").read_text("utf-8"))
    labelled = [len(sample.labels) for sample in after.train.samples if sample.path.parent.parent.name == "yolo"]
    assert 0.9 * len(coco["annotations"]) <= sum(labelled) <= len(coco["annotations"])  # of equal rows one counts
    with pytest.raises(DataError, match="is not an empty folder"):
        mine(detector, source, tmp_path / "out")


def test_validation_images_that_repeat_training_images_are_not_joined(
    detector: Detector, sample: Path, tmp_path: Path
) -> None:
    """`hold_out` in a YAML says that its `val` is there for other tools."""
    join = write_subset(sample / "custom" / "custom.yaml", tmp_path / "two", ["gizmo", "forklift"])
    content = yaml.safe_load(join.read_text())
    join.write_text(yaml.safe_dump(content | {"val": content["train"], "hold_out": True}))
    mined = mine(detector, sample / "custom/images/test", tmp_path / "out", top=2, join=join)
    assert "val" not in yaml.safe_load(mined.data.read_text("utf-8"))


def test_a_data_set_of_other_classes_cannot_be_joined(detector: Detector, sample: Path, tmp_path: Path) -> None:
    description = tmp_path / "other.yaml"
    description.write_text(yaml.safe_dump({"train": str(sample / "custom/images/train"), "names": ["lorry"]}))
    with pytest.raises(
        DataError,
        match=r"an ultralytics YAML with the learned classes, in their order: gizmo, forklift\. Received: lorry\.",
    ):
        mine(detector, sample / "custom/images/test", tmp_path / "out", join=description)
    with pytest.raises(DataError, match="`top`"):
        mine(detector, sample / "custom/images/test", tmp_path / "out", top=0)
    assert not (tmp_path / "out").exists()
