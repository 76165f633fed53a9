"""Validation on `tiny`: torch and ONNX Runtime agree, and calibration leaves AP as it is."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from prompt_tune.config import FitConfig
from prompt_tune.datasets.held_out import content_digest
from prompt_tune.datasets.reading import read_dataset, read_split
from prompt_tune.datasets.sample import write_sample
from prompt_tune.datasets.samples import Sample
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.errors import DataError, ProviderError, VocabularyError
from prompt_tune.evaluation.validate import Validation, validate_bundle, validate_run
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs
from prompt_tune.vocabulary.vocabulary import Vocabulary

LEARNED_FILE = "learned.vocab.safetensors"
AGREE = 0.001  # 0.1 AP: what two engines may differ by
SIX = ["forklift", "gizmo", "sprocket", "widget", "flange", "doodad"]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample set: its folder."""
    folder = tmp_path_factory.mktemp("sample") / "set"
    write_sample(folder, n_images=10)
    return folder


@pytest.fixture(scope="module")
def custom(sample: Path) -> Path:
    return sample / "custom" / "custom.yaml"


@pytest.fixture(scope="module")
def original(sample: Path) -> Path:
    return sample / "original" / "original.yaml"


@pytest.fixture(scope="module")
def run(custom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something."""
    out = tmp_path_factory.mktemp("run") / "run"
    fit(FitInputs("tiny", custom), out, config=FitConfig(epochs=12))
    shutil.rmtree(out / "regions")
    return out


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    export_bundle(run, run.parent / "bundle")
    return run.parent / "bundle"


@pytest.fixture(scope="module")
def both(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that labels original and learned classes, and one class that nobody has; it has a test split alone."""
    folder = tmp_path_factory.mktemp("both")
    names = yaml.safe_load((sample / "original" / "original.yaml").read_text())["names"]
    names = [*names.values(), *SIX, "unheard of"]
    for part, images, first in (("original", "val", 0), ("custom", "test", len(names) - 7)):
        for image in sorted((sample / part / "images" / images).iterdir()):
            label = sample / part / "labels" / images / f"{image.stem}.txt"
            rows = [line.split(maxsplit=1) for line in label.read_text().splitlines()]
            for place, name in (("images", image.name), ("labels", label.name)):
                (folder / place).mkdir(exist_ok=True)
                shutil.copy(image if place == "images" else label, folder / place / f"{part}-{name}")
            lines = [f"{int(k) + first} {box}\n" for k, box in rows]
            (folder / "labels" / f"{part}-{label.name}").write_text("".join(lines))
    (folder / "data.yaml").write_text(yaml.safe_dump({"test": "images", "names": names}))
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def measured(run: Path, custom: Path) -> Validation:
    """The run on the test split of its own data set."""
    return validate_run(run, custom, split="test")


@pytest.fixture(scope="module")
def measured_both(run: Path, both: Path) -> Validation:
    """The run on `both`."""
    return validate_run(run, both, split="test")


def measure(place: Path, data: Path, **options: Any) -> Validation:
    """A run or a bundle on a data set."""
    return (validate_bundle if (place / "detector.onnx").is_file() else validate_run)(place, data, **options)


def copy(folder: Path, out: Path, change: Callable[[Vocabulary], Vocabulary]) -> Path:
    """A run or bundle with another learned vocabulary."""
    shutil.copytree(folder, out)
    change(Vocabulary.load(out / LEARNED_FILE)).save(out / LEARNED_FILE)
    return out


def numbers(result: Validation) -> np.ndarray:
    """All metrics as one list."""
    means = [result.learned, result.original, result.together, *(row.metrics for row in result.classes)]
    return np.array([value for part in means if part is not None for value in asdict(part).values()])


def assert_agree(one: Validation, two: Validation, tolerance: float = AGREE) -> None:
    assert [row.name for row in one.classes] == [row.name for row in two.classes]
    np.testing.assert_allclose(numbers(one), numbers(two), rtol=0, atol=tolerance)
    for first, second in zip(one.classes, two.classes, strict=True):
        assert (first.objects, first.threshold) == (second.objects, second.threshold)
        assert (first.precision, first.recall) == pytest.approx((second.precision, second.recall), nan_ok=True)


def test_torch_and_onnx_runtime_agree_on_learned_classes(measured: Validation, bundle: Path, custom: Path) -> None:
    by_onnx = validate_bundle(bundle, custom, split="test")
    assert (measured.engine, by_onnx.engine) == ("torch", "onnx")
    assert measured.learned is not None and measured.learned.ap > 0.1
    assert measured.original is None and measured.learned == measured.together
    assert measured.images == by_onnx.images == 10
    assert_agree(measured, by_onnx)


def test_torch_and_onnx_runtime_agree_on_both_vocabularies_apart_and_together(
    measured_both: Validation, bundle: Path, both: Path
) -> None:
    assert_agree(measured_both, validate_bundle(bundle, both, split="test"))
    learned, original, together = measured_both.learned, measured_both.original, measured_both.together
    assert learned is not None and original is not None
    rows = measured_both.classes
    n_learned = sum(row.vocabulary == "learned" for row in rows)
    assert 0 < n_learned < len(rows) and {row.name for row in rows[-n_learned:]} <= set(SIX)
    assert original.ap == pytest.approx(np.mean([row.metrics.ap for row in rows[:-n_learned]]))
    assert learned.ap == pytest.approx(np.mean([row.metrics.ap for row in rows[-n_learned:]]))
    assert together.ap == pytest.approx(np.mean([row.metrics.ap for row in rows]))
    assert measured_both.curves.shape == (len(rows), 101)


def test_confusion_agrees_with_precision_and_recall_and_between_engines(
    measured_both: Validation, bundle: Path, both: Path
) -> None:
    by_onnx = validate_bundle(bundle, both, split="test")
    for result in (measured_both, by_onnx):
        confusion, rows = result.confusion, {(row.vocabulary, row.name): row for row in result.classes}
        own = confusion.counts[confusion.is_own()]
        for c, column in enumerate(confusion.columns):
            key = column.vocabulary, column.name
            if column.on_nothing is None:  # not labelled
                assert key not in rows and column.name in result.unlabelled and confusion.counts[:, c].sum() > 0
                continue
            detections = confusion.counts[:, c].sum() + column.second_boxes + column.on_nothing
            hits = confusion.counts[confusion.is_own()[:, c], c].sum()
            assert hits == pytest.approx(rows[key].recall * rows[key].objects)
            if detections:
                assert hits / detections == pytest.approx(rows[key].precision)
        known = [row for row in confusion.rows if row.missed is not None]
        assert sum(row.objects - (row.missed or 0) for row in known) == own.sum()
        assert [row.name for row in confusion.rows if row.missed is None] == []  # `unheard of` has no label
        assert confusion.columns[0].vocabulary == "learned" and confusion.columns[-1].vocabulary == "original"
    assert by_onnx.confusion.to_json() == measured_both.confusion.to_json()


def test_images_agree_with_the_classes(measured_both: Validation) -> None:
    for vocabulary in ("original", "learned"):
        images = [image for image in measured_both.per_image if image.vocabulary == vocabulary]
        rows = [row for row in measured_both.classes if row.vocabulary == vocabulary]
        assert len(images) == measured_both.images
        assert sum(image.objects for image in images) == sum(row.objects for row in rows)
        assert sum(image.hits for image in images) == pytest.approx(sum(row.recall * row.objects for row in rows))
        columns = [part for part in measured_both.confusion.columns if part.vocabulary == vocabulary]
        wrong = sum(part.second_boxes + part.on_nothing for part in columns if part.on_nothing is not None)
        measured = [part.on_nothing is not None for part in measured_both.confusion.columns]
        of = [part.vocabulary == vocabulary for part in measured_both.confusion.columns]
        chosen = np.array(measured) & np.array(of)
        others = np.where(measured_both.confusion.is_own(), 0, measured_both.confusion.counts)[:, chosen].sum()
        assert sum(image.false_alarms for image in images) == wrong + others


def test_classes_that_cannot_be_measured_are_left_out_and_named(
    measured: Validation, measured_both: Validation
) -> None:
    assert measured_both.unknown == ("unheard of",)
    names = {row.name for row in measured_both.classes}
    assert names.isdisjoint(measured_both.unlabelled) and len(names) + len(measured_both.unlabelled) == 86
    rows = {row.name: row for row in measured_both.classes}
    assert [row.objects for row in measured.classes] == [rows[row.name].objects for row in measured.classes]


def test_fit_expects_what_validation_finds(run: Path, custom: Path) -> None:
    """Thresholds are chosen on cached float16 features; the run itself must keep what they promise."""
    learned = Vocabulary.load(run / LEARNED_FILE)
    chosen = learned.provenance["thresholds"]
    assert chosen["rule"] == "best F1 at IoU 0.5" and len(chosen["expected"]) >= 4
    assert len(set(learned.thresholds.tolist())) >= 4
    rows = {row.name: row for row in validate_run(run, custom).classes}
    for name, expected in chosen["expected"].items():
        assert rows[name].threshold == pytest.approx(learned.thresholds[learned.names.index(name)])
        if expected["precision"] > 0.5:  # else hundreds count, and one of them may be on the other side
            assert rows[name].precision == pytest.approx(expected["precision"], abs=0.02)
            assert rows[name].recall == pytest.approx(expected["recall"], abs=0.02)


def calibrate(vocabulary: Vocabulary) -> Vocabulary:
    """Strong calibrations of five classes, which move scores far over and far under the metric's cut."""
    rows = [[2.5, 1.5], [0.3, -3.0], [1.0, 0.0], [4.0, -6.0], [0.5, 4.0], [1.2, 0.1]]
    return replace(vocabulary, calibration=np.array(rows, np.float32))


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_calibration_leaves_average_precision(
    engine: str, measured: Validation, run: Path, bundle: Path, custom: Path, tmp_path: Path
) -> None:
    place = run if engine == "torch" else bundle
    plain = measured if engine == "torch" else measure(place, custom, split="test")
    calibrated = measure(copy(place, tmp_path / "calibrated", calibrate), custom, split="test")
    np.testing.assert_allclose(numbers(calibrated), numbers(plain), rtol=0, atol=1e-6)
    changed = [row.recall for row in calibrated.classes] != [row.recall for row in plain.classes]
    assert changed  # thresholds are of calibrated scores


def test_fit_with_calibration_keeps_its_promises_in_both_engines(custom: Path, tmp_path: Path) -> None:
    fit(FitInputs("tiny", custom), tmp_path / "run", config=FitConfig(epochs=12, calibrate=True, precision=0.9))
    learned = Vocabulary.load(tmp_path / "run" / LEARNED_FILE)
    assert learned.calibration is not None and (learned.calibration != [1, 0]).any()
    assert (tmp_path / "run" / "reliability.png").stat().st_size > 10_000
    chosen = learned.provenance["thresholds"]
    assert chosen["rule"] == "lowest score with precision 0.9 at IoU 0.5"
    export_bundle(tmp_path / "run", tmp_path / "bundle")
    by_torch, by_onnx = validate_run(tmp_path / "run", custom), validate_bundle(tmp_path / "bundle", custom)
    assert_agree(by_torch, by_onnx)
    for row in by_onnx.classes:
        expected = chosen["expected"].get(row.name, {"precision": 0})["precision"]
        if expected > 0.5:
            assert row.precision == pytest.approx(expected, abs=0.02)
    plain = copy(tmp_path / "run", tmp_path / "plain", lambda vocabulary: replace(vocabulary, calibration=None))
    np.testing.assert_allclose(numbers(validate_run(plain, custom)), numbers(by_torch), rtol=0, atol=1e-6)


def test_vocabulary_that_guides_itself_is_measured_with_its_own_guide(
    measured: Validation, run: Path, bundle: Path, custom: Path, tmp_path: Path
) -> None:
    def own(vocabulary: Vocabulary) -> Vocabulary:
        return replace(vocabulary, guide_mode="own", guide=vocabulary.digest)

    by_torch, by_onnx = (
        measure(copy(place, tmp_path / place.name, own), custom, split="test") for place in (run, bundle)
    )
    assert_agree(by_torch, by_onnx)
    assert np.nanmax(np.abs(numbers(by_torch) - numbers(measured))) > 0.01


def test_name_that_both_vocabularies_have_is_measured_in_both(
    measured_both: Validation, run: Path, bundle: Path, both: Path, tmp_path: Path
) -> None:
    shared = next(row.name for row in measured_both.classes if row.vocabulary == "original")

    def rename(vocabulary: Vocabulary) -> Vocabulary:
        return vocabulary.rename({"gizmo": shared})

    by_torch, by_onnx = (measure(copy(p, tmp_path / p.name, rename), both, split="test") for p in (run, bundle))
    assert_agree(by_torch, by_onnx)
    rows = [row for row in by_torch.classes if row.name == shared]
    assert [row.vocabulary for row in rows] == ["original", "learned"]
    assert rows[0].objects == rows[1].objects and rows[0].metrics != rows[1].metrics


def test_data_set_without_validation_images_is_split_as_fit_splits_it(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "set", n_images=100)[0].parent
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": str(folder / "images" / "train"), "names": SIX}))
    fit(
        FitInputs("tiny", tmp_path / "data.yaml"),
        tmp_path / "run",
        config=FitConfig(epochs=1, updates=1, views=1, seed=5),
    )
    dataset = read_dataset(tmp_path / "data.yaml", seed=5)
    held_out = sum(int((~image.labels.ignore).sum()) for image in dataset.val.samples)
    result = validate_run(tmp_path / "run", tmp_path / "data.yaml")
    assert (result.images, sum(row.objects for row in result.classes)) == (len(dataset.val.samples), held_out)
    for split, wanted in (("train", dataset.train), ("val", dataset.val)):
        _, images = read_split(tmp_path / "data.yaml", split, seed=5)  # type: ignore[arg-type]
        assert [image.path for image in images.samples] == [image.path for image in wanted.samples]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["held_out"] == sorted(content_digest(image.path) for image in dataset.val.samples)
    others = {"held_out": [content_digest(image.path) for image in dataset.train.samples[:3]]}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | others))
    assert validate_run(tmp_path / "run", tmp_path / "data.yaml").images == 3
    del config["held_out"]  # a run from before: the draw of its time
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert validate_run(tmp_path / "run", tmp_path / "data.yaml").images == len(dataset.val.samples)


def test_bundle_from_before_the_draw_changed_is_measured_on_the_images_of_its_time(
    sample: Path, bundle: Path, tmp_path: Path
) -> None:
    """Every picture has a copy: the first draw tears copies apart, the present one does not."""
    source = sample / "custom"
    for part, suffix in (("images", "jpg"), ("labels", "txt")):
        (tmp_path / "set" / part).mkdir(parents=True)
        for file in sorted((source / part / "train").glob(f"*.{suffix}"))[:10]:
            for copy_of in "ab":
                shutil.copy(file, tmp_path / "set" / part / f"{file.stem}{copy_of}.{suffix}")
    data = tmp_path / "set" / "data.yaml"
    data.write_text(yaml.safe_dump({"train": "images", "names": SIX}))
    now, then = (read_split(data, "val", seed=0, recorded=recorded)[1].samples for recorded in (None, ()))

    def objects(images: Sequence[Sample]) -> list[int]:
        counts = np.bincount(np.concatenate([image.labels.classes for image in images]), minlength=6)
        return [int(count) for count in counts if count]

    assert objects(now) != objects(then)
    for held_out, images in (({"held_out": len(now)}, now), ({}, then)):  # 0.1.0 did not say so
        place = copy(bundle, tmp_path / f"bundle{len(held_out)}", partial(_with_provenance, more=held_out))
        assert [row.objects for row in validate_bundle(place, data).classes] == objects(images)


def _with_provenance(learned: Vocabulary, more: dict[str, int]) -> Vocabulary:
    provenance: Any = learned.provenance | more
    return replace(learned, provenance=provenance)


def test_run_measures_the_names_without_learning_on_the_same_images(measured: Validation, run: Path) -> None:
    plain, template = measured.unlearned
    assert measured.learned is not None and plain.metrics.ap50 < 0.5 < measured.learned.ap50
    assert template.template == measured.in_fit[1].template
    assert template.chosen == "the best of 7 templates on the validation images of its fit"
    assert set(plain.class_ap50) == {row.name for row in measured.classes}
    assert np.mean(list(plain.class_ap50.values())) == pytest.approx(plain.metrics.ap50)
    found = measured.to_json()
    assert [part["ap50"] for part in found["unlearned"]] == [plain.metrics.ap50, template.metrics.ap50]
    assert found["unlearned"][0]["class_ap50"] == plain.class_ap50 and measured.note == ""


def test_run_from_before_chooses_the_template_on_the_images_and_says_so(
    run: Path, custom: Path, measured: Validation, tmp_path: Path
) -> None:
    def without_record(learned: Vocabulary) -> Vocabulary:
        before = learned.provenance.copy()
        del before["unlearned"]
        return replace(learned, provenance=before)

    found = validate_run(copy(run, tmp_path / "old", without_record), custom, split="test")
    assert found.in_fit == () and found.unlearned[0] == measured.unlearned[0]
    assert found.unlearned[1].chosen == "the best of 7 templates on these images"
    assert found.unlearned[1].metrics.ap50 >= measured.unlearned[1].metrics.ap50
    assert numbers(found).tolist() == pytest.approx(numbers(measured).tolist(), nan_ok=True)


def test_run_whose_text_tower_cannot_be_had_is_measured_without_names(
    run: Path, custom: Path, measured: Validation, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text()) | {"text_tower": "local-dir:gone"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    found = validate_run(tmp_path / "run", custom, split="test")
    assert found.unlearned == () and "Plain names are not measured" in found.note and "gone" in found.note
    assert found.learned == measured.learned


def test_bundle_says_what_its_fit_recorded_of_the_names(bundle: Path, custom: Path) -> None:
    found = validate_bundle(bundle, custom, split="test")
    assert found.unlearned == () and len(found.in_fit) == 2
    assert f"plain name {found.in_fit[0].metrics.ap50:.3f}, best template" in found.note


def test_names_take_the_place_of_the_data_sets_own(
    measured: Validation, run: Path, sample: Path, tmp_path: Path
) -> None:
    shutil.copytree(sample / "custom", tmp_path / "set")
    content = yaml.safe_load((tmp_path / "set" / "custom.yaml").read_text()) | {"names": list("abcdef")}
    (tmp_path / "set" / "custom.yaml").write_text(yaml.safe_dump(content))
    named = validate_run(run, tmp_path / "set", split="test", names=SIX)
    assert numbers(named).tolist() == pytest.approx(numbers(measured).tolist(), nan_ok=True)


def test_damaged_image_is_skipped_and_named(run: Path, sample: Path, tmp_path: Path) -> None:
    shutil.copytree(sample / "custom", tmp_path / "set")
    damaged = tmp_path / "set" / "images" / "val" / "0003.jpg"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:300] + b"\0" * 400 + content[-2:])
    result = validate_run(run, tmp_path / "set")
    assert result.images + len(result.skipped) == 10 and len(result.skipped) == 1
    assert "0003.jpg" in result.skipped[0]
    with pytest.raises(DataError, match=r"0003\.jpg"):
        validate_run(run, tmp_path / "set", strict=True)


def test_json_has_everything_but_nan(measured: Validation) -> None:
    found = json.loads(json.dumps(measured.to_json(), allow_nan=False))
    assert measured.learned is not None
    assert found["learned"]["ap50"] == measured.learned.ap50 and found["original"] is None
    assert found["together"] == found["learned"]
    assert {row["name"] for row in found["classes"]} <= set(SIX)
    assert found["classes"][0].keys() == {
        *("vocabulary", "name", "objects", "threshold", "precision", "recall"),
        *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_1", "ar_10", "ar_100"),
    }
    assert any(value is None for row in found["classes"] for value in row.values())  # no object is that large


def test_progress_counts_the_images(run: Path, custom: Path) -> None:
    calls: list[tuple[str, int, int, str]] = []
    validate_run(run, custom, progress=lambda *call: calls.append(call))
    assert calls == [("validate", done, 10, "") for done in range(1, 11)]


def test_split_that_is_not_there_is_refused(run: Path, both: Path, original: Path) -> None:
    with pytest.raises(DataError, match=r"has no `val` images\. It has: test\."):
        validate_run(run, both)
    with pytest.raises(DataError, match=r"has no `test` images\. It has: train, val\."):
        validate_run(run, original, split="test")


def test_device_or_file_that_is_not_there_is_refused(run: Path, bundle: Path, custom: Path, tmp_path: Path) -> None:
    for place in (run, bundle):
        with pytest.raises(ProviderError, match="abacus"):
            measure(place, custom, device="abacus")
    broken = shutil.copytree(run, tmp_path / "broken")
    (broken / LEARNED_FILE).unlink()
    with pytest.raises(VocabularyError, match="no such file"):
        validate_run(broken, custom)
