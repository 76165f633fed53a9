"""`verify` on `tiny`: it must catch a graph that leaks, and count what can be counted by hand."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from bundles import TWIN, learned_for_tiny, make_bundle, original_vocabulary
from vocabularies import unit_rows

from prompt_tune import Detector
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.sample import write_sample
from prompt_tune.errors import DataError, GraphError, PromptTuneError, VocabularyError
from prompt_tune.evaluation.metrics import coco_evaluation
from prompt_tune.evaluation.verify import Collision, FalseAlarms, Setting, Verification, changed_bits, verify
from prompt_tune.runtime.image_files import find_images


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample set: its folder."""
    folder = tmp_path_factory.mktemp("sample") / "set"
    write_sample(folder, n_images=6)
    return folder


@pytest.fixture(scope="module")
def scenes(sample: Path) -> Path:
    """Images of original classes, without anything that is learned."""
    return sample / "original" / "images" / "val"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("true") / "bundle")


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("leaky") / "bundle", leaky=True)


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A second learned vocabulary, which finds nothing."""
    path = tmp_path / "more.vocab.safetensors"
    learned_for_tiny(("thing", "other thing"), unit_rows(2, 3, seed=5), thresholds=1.0).save(path)
    return path


def detected(bundle: Path, images: Path | str) -> Counter[str]:
    """How often each original class is above its threshold, with nothing else loaded."""
    detector = Detector(bundle, use_bundled=False)
    return Counter(name for path in find_images(images) for name in detector.detect([path])[0].class_names)


def test_true_bundle_changes_no_bit_in_any_setting(bundle: Path, scenes: Path, more: Path) -> None:
    result = verify(bundle, scenes, learned=[more])
    assert result.settings == (
        Setting(("learned",), 0),
        Setting(("more",), 0),
        Setting(("learned", "more"), 0),
        Setting(("more", "learned"), 0),
    )
    assert result.original_bits_changed == 0
    assert (result.images, result.skipped) == (6, ())
    assert result.original_detections > 100


def test_graph_whose_guide_takes_all_classes_is_caught(leaky: Path, scenes: Path, more: Path) -> None:
    result = verify(leaky, scenes, learned=[more])
    assert len(result.settings) == 4
    assert all(setting.bits_changed > 0 for setting in result.settings)
    assert result.original_bits_changed == sum(setting.bits_changed for setting in result.settings)


def test_graph_that_leaks_is_itself_until_something_is_learned(bundle: Path, leaky: Path, scenes: Path) -> None:
    """The two bundles differ in the guide alone, or the test above would prove nothing."""
    assert detected(leaky, scenes) == detected(bundle, scenes)


def test_one_learned_vocabulary_is_compared_once(bundle: Path, scenes: Path) -> None:
    assert verify(bundle, scenes).settings == (Setting(("learned",), 0),)


def test_twins_of_original_classes_collide_with_them_on_every_box(bundle: Path, sample: Path) -> None:
    images = sample / "**" / "*.jpg"
    expected = detected(bundle, images)
    assert sum(expected.values()) > 0
    result = verify(bundle, images)
    assert result.images == 24
    assert {row.learned.removeprefix(TWIN): row.count for row in result.false_alarms} == dict(expected)
    assert {row.vocabulary for row in result.false_alarms} == {"learned"}
    assert result.false_alarms_per_1000 == 1000 * sum(expected.values()) / 24
    assert {p.original: p.count for p in result.collisions if p.learned == TWIN + p.original} == dict(expected)
    for counts in ([row.count for row in result.false_alarms], [pair.count for pair in result.collisions]):
        assert counts == sorted(counts, reverse=True)


def test_examples_are_kept_for_pictures_and_stay_out_of_the_json(bundle: Path, sample: Path) -> None:
    result = verify(bundle, sample / "**" / "*.jpg")
    assert result.examples is not None
    thresholds = dict(zip(original_vocabulary().names, original_vocabulary().thresholds, strict=True))
    for row in result.false_alarms:
        shown = result.examples.alarms[row.vocabulary, row.learned]
        assert len(shown) == min(row.count, 6)
        name = row.learned.removeprefix(TWIN)
        for example in shown:  # a twin lies on the box of what it copies, with its score
            score = example.note.split(",")[0].removeprefix("score ")
            assert example.note.startswith(f"score {score}, threshold {thresholds[name]:.3f}, on the box of ")
            assert example.path.is_file()
    for pair in result.collisions:
        assert result.examples.collisions[(pair.vocabulary, pair.learned), pair.original].reference_xyxy is not None
    assert "examples" not in result.to_json() and "jpg" not in json.dumps(result.to_json())


def test_vocabulary_of_guide_mode_own_is_counted_in_its_own_pass(bundle: Path, scenes: Path, tmp_path: Path) -> None:
    """It guides with the original embeddings under other names, so it finds what the original vocabulary finds."""
    original = original_vocabulary()
    names = tuple(f"my {name}" for name in original.names)
    own = replace(original, names=names, kind="learned", guide_mode="own")
    own.save(tmp_path / "own.vocab.safetensors")
    result = verify(bundle, scenes, learned=[tmp_path / "own.vocab.safetensors"])
    assert result.original_bits_changed == 0
    expected = detected(bundle, scenes)
    assert sum(expected.values()) > 0
    alarms = {row.learned.removeprefix("my "): row.count for row in result.false_alarms if row.vocabulary == "own"}
    assert alarms == dict(expected)
    collisions = {pair.original: pair.count for pair in result.collisions if pair.learned == f"my {pair.original}"}
    assert collisions == dict(expected)


def test_precision_is_that_of_the_detections_before_and_after(bundle: Path, sample: Path, scenes: Path) -> None:
    data = sample / "original" / "original.yaml"
    dataset, names = read_dataset(data), original_vocabulary().names
    result = verify(bundle, scenes, data=data)
    detector = Detector(bundle, use_bundled=False)
    truths, founds = [], []
    for image in dataset.val.samples:
        rows = np.array([names.index(dataset.names[k]) for k in image.labels.classes], np.int64)
        truths.append(replace(image.labels, classes=rows))
        founds.append(detector.detect([image.path], original_conf=0.001)[0])
    expected = coco_evaluation(truths, founds, len(names)).metrics(range(len(names)))
    assert expected.ap50 > 0.1
    assert (result.original_ap_before, result.original_ap50_before) == (expected.ap, expected.ap50)
    assert (result.original_ap_after, result.original_ap50_after) == (expected.ap, expected.ap50)
    assert (result.images, result.labelled_images) == (6, 6)
    # an image in both places is run once
    assert result.original_detections == verify(bundle, scenes).original_detections


def test_precision_matches_classes_by_name_not_by_order(bundle: Path, sample: Path, scenes: Path) -> None:
    data = sample / "original" / "original.yaml"
    content = yaml.safe_load(data.read_text())
    names = [content["names"][i] for i in range(len(content["names"]))]
    backwards = data.with_name("backwards")
    for image in scenes.iterdir():
        copy = backwards / "images" / "val" / image.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(image.read_bytes())
        lines = (sample / "original" / "labels" / "val" / f"{image.stem}.txt").read_text().splitlines()
        turned = [f"{len(names) - 1 - int(line.split()[0])} {line.split(maxsplit=1)[1]}\n" for line in lines]
        label = backwards / "labels" / "val" / f"{image.stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("".join(turned))
    content["names"] = dict(enumerate(reversed(names)))
    (backwards / "data.yaml").write_text(yaml.safe_dump(content))
    one, other = (verify(bundle, scenes, data=place) for place in (data, backwards / "data.yaml"))
    assert one.original_ap_before == other.original_ap_before
    assert other.original_ap50_before is not None and other.original_ap50_before > 0.1


def test_labels_of_unknown_classes_are_refused(bundle: Path, sample: Path, scenes: Path) -> None:
    data = sample / "custom" / "custom.yaml"
    with pytest.raises(DataError) as refusal:
        verify(bundle, scenes, data=data)
    assert str(refusal.value) == (
        f"`{data}` has classes that the original vocabulary lacks (6): 'forklift', 'gizmo', 'sprocket', 'widget', "
        "'flange', .... Name the classes as the bundle's original vocabulary does."
    )


def test_damaged_image_is_skipped_and_named(bundle: Path, scenes: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "a.jpg", tmp_path / "b.jpg"
    content = sorted(scenes.iterdir())[0].read_bytes()
    whole.write_bytes(content)
    broken.write_bytes(content[:500])
    result = verify(bundle, tmp_path)
    assert result.images == 1 and len(result.skipped) == 1 and "b.jpg" in result.skipped[0]
    whole.unlink()
    with pytest.raises(DataError, match=r"none of its 1 images can be read\. The first: .*b\.jpg"):
        verify(bundle, tmp_path)


def test_missing_parts_are_refused(bundle: Path, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"has no detector\.onnx"):
        verify(tmp_path, scenes)
    with pytest.raises(VocabularyError, match="no such file"):
        verify(bundle, scenes, learned=["nowhere.vocab.safetensors"])
    with pytest.raises(DataError, match="no such file or folder"):
        verify(bundle, tmp_path / "nowhere")


def test_nothing_to_compare_is_said(
    bundle: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("prompt_tune.evaluation.verify.COMPARED_CONF", 1.0)  # no score is above it
    with caplog.at_level("WARNING", logger="prompt_tune"):
        assert verify(bundle, scenes).original_detections == 0
    assert "Nothing was compared" in caplog.text


def test_progress_is_called_for_each_image(bundle: Path, scenes: Path) -> None:
    calls: list[tuple[str, int, int, str]] = []
    verify(bundle, scenes, progress=lambda *call: calls.append(call))
    assert calls == [("verify", done, 6, "") for done in range(1, 7)]


def test_json_has_totals_and_leaves_precision_out_without_labels() -> None:
    setting, alarm = Setting(("learned",), 3), FalseAlarms("learned", "gizmo", 2)
    collision = Collision("learned", "gizmo", "red circle", 1)
    result = Verification(8, ("reason",), 50, (setting, Setting(("a", "b"), 4)), (alarm,), (collision,))
    assert result.to_json() == {
        "original_bits_changed": 7,
        "false_alarms_per_1000": 250.0,
        "images": 8,
        "skipped": ("reason",),
        "original_detections": 50,
        "settings": ({"loaded": ("learned",), "bits_changed": 3}, {"loaded": ("a", "b"), "bits_changed": 4}),
        "false_alarms": ({"vocabulary": "learned", "learned": "gizmo", "count": 2},),
        "collisions": ({"vocabulary": "learned", "learned": "gizmo", "original": "red circle", "count": 1},),
        "labelled_images": 0,
    }


ALARMS = Verification(
    8, (), 50, (Setting(("learned",), 0),), (FalseAlarms("learned", "gizmo", 2),), ()
)  # 250 in 1,000 images


@pytest.mark.parametrize(
    ("limit", "bits", "verdict"),
    [
        (
            None,
            0,
            "Passed: not one bit of 50 original detections changed. 250.0 false alarms per 1,000 images; no limit is "
            "set (--max-false-alarms).",
        ),
        (
            250,
            0,
            "Passed: not one bit of 50 original detections changed. 250.0 false alarms per 1,000 images, within "
            "--max-false-alarms 250.",
        ),
        (
            249.5,
            0,
            "Failed: not one bit of 50 original detections changed. 250.0 false alarms per 1,000 images (2 in 8) "
            "exceed --max-false-alarms 249.5. Fit with --replay on images like these.",
        ),
        (
            1000,
            1,
            "Failed: 1 bit of 50 original detections changed. 250.0 false alarms per 1,000 images, within "
            "--max-false-alarms 1000.",
        ),
    ],
)
def test_verdict_speaks_of_bits_and_of_false_alarms(limit: float | None, bits: int, verdict: str) -> None:
    result = replace(ALARMS, max_false_alarms=limit, settings=(Setting(("learned",), bits),))
    assert result.verdict == verdict
    assert result.failed == verdict.startswith("Failed")
    assert result.to_json().get("max_false_alarms") == limit
    assert result.to_json().get("too_many_false_alarms") == (None if limit is None else limit < 250)


def test_verdict_without_any_alarm_or_anything_to_compare() -> None:
    quiet = replace(ALARMS, false_alarms=())
    assert quiet.verdict.endswith(" changed. 0.0 false alarms per 1,000 images.")
    assert not replace(quiet, max_false_alarms=0).failed
    nothing = replace(quiet, original_detections=0)
    assert nothing.verdict.startswith("Nothing was compared: ") and not nothing.failed


@pytest.mark.parametrize("limit", [-1.0, float("nan"), float("inf")])
def test_limit_of_false_alarms_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(PromptTuneError, match=r"max_false_alarms is .* Leave it out for no limit"):
        verify("nowhere", "nowhere", max_false_alarms=limit)


def table(*scores: float) -> np.ndarray:
    """Rows of the graph that differ in their scores."""
    return np.array([[0, 1, 2, 3, 4, score, 5] for score in scores], np.float32).reshape(-1, 7)


@pytest.mark.parametrize("rows", [(), (0.5,), (0.5, 0.25)])
def test_changed_bits_of_equal_tables_is_zero(rows: tuple[float, ...]) -> None:
    assert changed_bits(table(*rows), table(*rows)) == 0


def test_changed_bits_of_one_last_bit_is_one() -> None:
    after = table(0.5, 0.25)
    after[1, 5] = np.nextafter(np.float32(0.25), np.float32(1))
    assert changed_bits(table(0.5, 0.25), after) == 1


def test_changed_bits_counts_the_sign_of_zero() -> None:
    assert changed_bits(table(0.0), table(-0.0)) == 1


def test_changed_bits_of_another_order_is_not_zero() -> None:
    assert changed_bits(table(0.5, 0.25), table(0.25, 0.5)) > 0


def test_changed_bits_of_a_missing_row_counts_all_its_bits() -> None:
    assert changed_bits(table(0.5, 0.25), table(0.5)) == changed_bits(table(0.5), table(0.5, 0.25)) == 7 * 32
    assert changed_bits(table(), table(0.5)) == 7 * 32
