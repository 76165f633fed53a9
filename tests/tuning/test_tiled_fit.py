"""`fit --tile` end to end: its numbers are those of sliced detection, and it resumes, as what it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_objects import write_mosaics

from prompt_tune.config import FitConfig
from prompt_tune.datasets.reading import read_split
from prompt_tune.datasets.replay import ReplaySource
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.errors import PromptTuneError, RunError
from prompt_tune.evaluation.metrics import average_precision
from prompt_tune.evaluation.validate import validate_run
from prompt_tune.run import RunFolder
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.slices import Slices, detect_sliced
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs, prepare
from prompt_tune.vocabulary.vocabulary import Vocabulary

CONFIG = FitConfig(epochs=2, views=1, tile=256)
TILED = "tile 256, overlap 0.2: "  # a picture of 512 x 512 pixels has nine slices


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mosaics(tmp_path_factory.mktemp("mosaics") / "set", (3, 2, 0), side=2)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("tiled")
    return RunFolder(fit(FitInputs("tiny", data, cache=folder / "cache"), folder / "run", config=CONFIG).run)


def test_numbers_are_those_of_sliced_detection_in_the_bundle(data: Path, run: RunFolder, tmp_path: Path) -> None:
    export_bundle(run.folder, tmp_path / "bundle")
    detector = Detector(tmp_path / "bundle")
    label = str(detector.bundled)
    names, split = read_split(data, "val")
    options: dict[str, Any] = {"show": [f"{label}:*"], "conf": 0.001}
    found = [detect_sliced(detector, sample.path, Slices(256), **options) for sample in split.samples]
    deployed = average_precision([sample.labels for sample in split.samples], found, len(names))
    learned = Vocabulary.load(run.learned)
    assert learned.provenance["val_ap50"] == pytest.approx(deployed.ap50, abs=0.01)  # the cache holds float16
    assert learned.provenance["val_ap"] == pytest.approx(deployed.ap, abs=0.01)
    assert deployed.ap50 > 0.5
    validated = validate_run(run.folder, data, slices=Slices(256)).learned
    assert validated is not None and validated.ap50 == pytest.approx(learned.provenance["val_ap50"], abs=0.01)
    whole = [detector.detect([sample.path], **options)[0] for sample in split.samples]
    assert average_precision([sample.labels for sample in split.samples], whole, len(names)).ap50 < deployed.ap50 - 0.1


def test_report_and_provenance_say_what_was_cut(run: RunFolder) -> None:
    provenance = Vocabulary.load(run.learned).provenance
    assert provenance["tiled"]["tile"] == 256 and provenance["tiled"]["photos"] == 5
    assert provenance["tiled"]["slices"] + provenance["tiled"]["left_out"] == 45
    assert (provenance["train_images"], provenance["val_images"]) == (3, 2)
    page = run.report.read_text("utf-8")
    assert f"{TILED}{provenance['tiled']['slices']} slices of 5 photos" in page and "trained on 3 images" in page
    assert run.read_config()["settings"]["tile"] == 256


def test_tiled_run_resumes_to_the_same_bytes_and_only_with_the_same_tiles(
    data: Path, run: RunFolder, tmp_path: Path
) -> None:
    inputs = FitInputs("tiny", data, cache=run.folder.parent / "cache")

    def interrupt(stage: str, done: int, total: int | None, note: str) -> None:
        if stage == "train":
            raise KeyboardInterrupt

    fit(inputs, tmp_path / "cut", config=CONFIG, progress=interrupt)
    for other, message in (
        (FitConfig(epochs=2, views=1), r"was started with `tile` 256\. Received: None\. Resume it with the same"),
        (FitConfig(epochs=2, views=1, tile=300), r"was started with `tile` 256\. Received: 300\."),
        (FitConfig(epochs=2, views=1, tile=256, tile_overlap=0.3), r"with `tile_overlap` 0\.2\. Received: 0\.3\."),
    ):
        with pytest.raises(RunError, match=message):
            fit(inputs, tmp_path / "cut", config=other, resume=True)
    resumed = fit(inputs, tmp_path / "cut", config=CONFIG, resume=True)
    assert RunFolder(resumed.run).learned.read_bytes() == run.learned.read_bytes()


def test_caches_of_tiled_and_plain_fits_share_no_file(data: Path, run: RunFolder, tmp_path: Path) -> None:
    fit(FitInputs("tiny", data, cache=tmp_path / "cache"), tmp_path / "plain", config=FitConfig(epochs=1, views=1))
    plain, tiled = ({path.name for path in (at / "cache").iterdir()} for at in (tmp_path, run.folder.parent))
    assert len(plain) == 5 and len(tiled) > 20 and not plain & tiled
    assert "tile" not in RunFolder(tmp_path / "plain").read_config()["settings"]
    assert "tiled" not in Vocabulary.load(tmp_path / "plain" / "learned.vocab.safetensors").provenance


def test_few_photos_are_cross_validated_with_all_windows_of_a_photo_in_one_fold(tmp_path: Path) -> None:
    data = write_mosaics(tmp_path / "few", (3, 0, 0), side=2)
    write_mosaics(tmp_path / "others", (0, 4, 0), side=2, seed=1)
    replay = [ReplaySource(str(tmp_path / "others" / "images"), 1.0)]
    inputs = FitInputs("tiny", data, replay=replay)
    config = FitConfig(epochs=1, views=1, tile=256, calibrate=True)
    result = fit(inputs, tmp_path / "run", config=config)
    provenance = Vocabulary.load(RunFolder(result.run).learned).provenance
    assert result.folds == 3 and provenance["cross_validated"] == 3 and provenance["val_images"] == 3
    assert str(result.tiling) == f"{TILED}27 slices of 3 photos"
    assert provenance["replay_images"] == 6 and result.ap50 > 0.2  # three replayed photos, and a slice for each


def test_learned_guide_works_in_tiles_too(data: Path, tmp_path: Path) -> None:
    config = FitConfig(epochs=1, updates=1, tile=500, tile_overlap=0, guide="own")
    result = fit(FitInputs("tiny", data), tmp_path / "run", config=config)
    assert str(result.tiling).startswith("tile 500, overlap 0: ") and np.isfinite(result.ap50)


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (FitConfig(tile=16), (), r"^A slice must have at least 32 pixels\. Received: 16\.$"),
        (FitConfig(tile_overlap=0.3), (), r"^`tile_overlap` says how far slices overlap, and needs their size\."),
        (FitConfig(), ("tile_overlap",), r"^`tile_overlap` says how far slices overlap, and needs their size\."),
        (FitConfig(tile=512), (), r"^No photo is larger than `tile` 512, so none would be cut\."),
    ],
)
def test_tiles_that_cannot_be_are_refused_in_one_line(
    config: FitConfig, given: tuple[str, ...], message: str, data: Path
) -> None:
    with pytest.raises(PromptTuneError, match=message):
        prepare(FitInputs("tiny", data, given=frozenset(given)), config, "cpu")


def test_run_that_continues_a_tiled_one_is_tiled_alike_unless_it_says_otherwise(data: Path, run: RunFolder) -> None:
    inputs = FitInputs("tiny", data, from_run=run.folder)
    job = prepare(inputs, FitConfig(), "cpu")
    assert (job.config.tile, job.config.tile_overlap) == (256, 0.2) and job.tiling is not None
    job = prepare(FitInputs("tiny", data, from_run=run.folder, given=frozenset({"tile"})), FitConfig(), "cpu")
    assert job.config.tile == 0 and job.tiling is None
