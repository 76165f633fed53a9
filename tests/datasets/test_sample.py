"""The sample set: what is in it, and that ultralytics' layout holds it."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import run_command
from disks import full_disk
from PIL import Image

from prompt_tune.datasets.reading import read_dataset, read_split
from prompt_tune.datasets.sample import CLASSES, SPLITS, custom_scene, original_scene, write_sample
from prompt_tune.datasets.scenes import HELD_OUT, TRAINED
from prompt_tune.errors import DataError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sample set of five images a split: its two descriptions."""
    return write_sample(tmp_path_factory.mktemp("sample") / "set", n_images=5)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_sample_is_read_back_with_the_boxes_that_were_drawn(written: tuple[Path, Path]) -> None:
    dataset = read_dataset(written[0])
    assert dataset.names == tuple(CLASSES) and dataset.kind == "yolo" and not dataset.held_out
    looks = list(CLASSES.values())
    for name, split in zip(SPLITS, (dataset.train, dataset.val, read_split(written[0], "test")[1]), strict=True):
        assert len(split.samples) == 5 and not split.left_out
        for index, sample in enumerate(split.samples):
            scene = custom_scene(0, name, index)
            own = [i for i, look in enumerate(scene.looks) if any(look is known for known in looks)]
            np.testing.assert_allclose(sample.labels.boxes_xyxy, scene.boxes_xyxy[own].reshape(-1, 4), atol=1e-3)
            assert [looks[k] for k in sample.labels.classes] == [scene.looks[i] for i in own]
            with Image.open(sample.path) as image:
                assert np.abs(np.asarray(image).astype(int) - scene.image).mean() < 4  # JPEG


def test_original_scenes_are_labelled_with_the_names_of_tiny(written: tuple[Path, Path]) -> None:
    description = yaml.safe_load(written[1].read_text())
    assert list(description["names"].values()) == [f"{colour} {shape}" for colour, shape in TRAINED]
    samples = read_dataset(written[1]).val.samples
    for index, sample in enumerate(samples):
        looks = original_scene(0, index).looks
        assert [TRAINED[k] for k in sample.labels.classes] == [
            (look.layers[0].colour, look.layers[0].shape) for look in looks
        ]
    assert len(samples) == 5


def test_every_image_of_the_job_has_distractors_and_every_class_comes_up() -> None:
    looks, seen = list(CLASSES.values()), set()
    for split in SPLITS:
        for index in range(25):
            scene = custom_scene(0, split, index)
            own = [next((i for i, known in enumerate(looks) if look is known), None) for look in scene.looks]
            assert None in own
            seen |= set(own)
    assert seen == {None, *range(6)}


def test_no_original_scene_has_one_of_the_six() -> None:
    for index in range(25):
        for look in original_scene(0, index).looks:
            assert len(look.layers) == 1 and (look.layers[0].colour, look.layers[0].shape) in TRAINED


def test_classes_are_composites_or_combinations_that_tiny_never_saw() -> None:
    assert len(CLASSES) == 6
    single = [look.layers[0] for look in CLASSES.values() if len(look.layers) == 1]
    assert len(single) == 3 and all((layer.colour, layer.shape) in HELD_OUT for layer in single)


def test_sample_of_the_same_seed_has_the_same_bytes(written: tuple[Path, Path], tmp_path: Path) -> None:
    write_sample(tmp_path / "same", n_images=5)
    write_sample(tmp_path / "other", n_images=5, seed=1)
    assert contents(tmp_path / "same") == contents(written[0].parents[1])
    same, other = contents(tmp_path / "same"), contents(tmp_path / "other")
    assert same.keys() == other.keys() and not any(same[name] == other[name] for name in same if name.endswith(".jpg"))


def test_scenes_of_different_splits_differ() -> None:
    images = [custom_scene(0, split, 0).image.tobytes() for split in SPLITS] + [original_scene(0, 0).image.tobytes()]
    assert len(set(images)) == 4


def test_progress_is_reported_up_to_the_total(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int, str]] = []
    write_sample(tmp_path / "set", n_images=1, progress=lambda *call: calls.append(call))
    assert [(done, total) for _, done, total, _ in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_folder_with_other_files_is_refused_and_an_empty_one_used(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    for place in (tmp_path / "full", tmp_path / "full" / "a.txt"):
        with pytest.raises(DataError, match="is not an empty folder"):
            write_sample(place, n_images=1)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["a.txt"]
    (tmp_path / "empty").mkdir()
    write_sample(tmp_path / "empty", n_images=1)


def test_sample_onto_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    below_a_file, on_a_full_disk = tmp_path / "file" / "set", tmp_path / "set"
    done = run_command(capfd, "sample", "--out", below_a_file, "--images", 1)
    assert done.status == 1 and "Traceback" not in done.err
    assert f"{below_a_file} cannot be written: Not a directory. Give another --out." in done.err
    with pytest.raises(DataError) as error, full_disk():
        write_sample(on_a_full_disk, n_images=1)
    assert str(error.value) == f"{on_a_full_disk} cannot be written: File too large. Give another --out."
