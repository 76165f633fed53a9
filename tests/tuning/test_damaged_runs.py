"""A run folder in which something was damaged: `--resume` says so in one line, or ends with the same bytes."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from disks import full_disk

from prompt_tune.config import FitConfig
from prompt_tune.datasets.sample import write_sample
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.errors import PromptTuneError
from prompt_tune.evaluation.validate import validate_run
from prompt_tune.files import read_tensors, tensor_bytes
from prompt_tune.run import RunFolder
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs

CONFIG = FitConfig(epochs=2, updates=2, views=1)


class Stopped:
    """A run that was stopped after its first epoch, a whole one, and what they were made from."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        data = write_sample(folder / "set", n_images=8)[0]
        content = yaml.safe_load(data.read_text())
        self.data = data.with_name("few.yaml")  # no `val`: with a cross-validation
        self.data.write_text(yaml.safe_dump({key: content[key] for key in ("train", "names")}))

        def interrupt(stage: str, done: int, total: int | None, note: str) -> None:
            if stage == "train" and done == 1:
                raise KeyboardInterrupt

        self.fit(folder / "whole")
        fit(self.inputs, folder / "stopped", config=CONFIG, progress=interrupt)

    @property
    def inputs(self) -> FitInputs:
        return FitInputs("tiny", self.data, cache=self.cache)

    def fit(self, run: Path, *, resume: bool = False) -> None:
        fit(self.inputs, run, config=CONFIG, resume=resume)

    def learned(self, run: Path) -> bytes:
        return RunFolder(run).learned.read_bytes()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    return Stopped(tmp_path_factory.mktemp("stopped"))


def flip(part: float) -> Callable[[Path], None]:
    """Flips a bit at a share of the file."""

    def change(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(len(content) * part)] ^= 4
        file.write_bytes(content)

    return change


def rewrite(text: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(text)


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def with_field(name: str, value: object) -> Callable[[Path], None]:
    """Another value in the metadata of a file without a digest, such as an early version wrote."""

    def change(file: Path) -> None:
        fields, tensors = read_tensors(file, lambda *_: None)
        fields.pop("content")
        file.write_bytes(tensor_bytes(tensors, fields | {name: value}))

    return change


def nan(file: Path) -> None:
    """Numbers that are none, in a file without a digest."""
    fields, tensors = read_tensors(file, lambda *_: None)
    fields.pop("content")
    file.write_bytes(tensor_bytes({name: array * float("nan") for name, array in tensors.items()}, fields))


def other_settings(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"settings": [1]}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": rewrite(""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "flipped near the start": flip(0.02),
    "flipped in the middle": flip(0.5),
    "flipped near the end": flip(0.99),
    "no text": lambda file: file.write_bytes(b"\xff\xfe\x00" * 50),
    "another JSON": rewrite("[1, 2]\n"),
    "deep JSON": rewrite("[" * 100_000),
    "a number of JSON": rewrite("7\n"),
    "a folder": folder_instead,
}
FILES = ("config.json", "metrics.jsonl", "state.safetensors", "folds.safetensors")
SPECIAL: list[tuple[str, str, Callable[[Path], object]]] = [
    ("config.json", "settings of another type", other_settings),
    ("metrics.jsonl", "a line without an epoch", rewrite('{"loss": 1}\n')),
    ("metrics.jsonl", "an epoch that is a text", rewrite('{"epoch": "1", "loss": 1}\n')),
    ("state.safetensors", "an epoch that is a text", with_field("epoch", "1")),
    ("state.safetensors", "an epoch that is a list", with_field("epoch", [1])),
    ("state.safetensors", "an epoch below 1", with_field("epoch", -3)),
    ("state.safetensors", "an unknown field", with_field("more", 1)),
    ("state.safetensors", "NaN", nan),
    ("folds.safetensors", "NaN", nan),
]


@pytest.mark.parametrize(
    ("name", "damage"),
    [pytest.param(name, damage, id=f"{name} {what}") for name in FILES for what, damage in DAMAGES.items()]
    + [pytest.param(name, damage, id=f"{name} {what}") for name, what, damage in SPECIAL],
)
def test_resume_of_a_damaged_run_is_refused_in_one_line_or_ends_with_the_same_bytes(
    name: str, damage: Callable[[Path], object], stopped: Stopped, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped.folder / "stopped", run)
    damage(run / name)
    try:
        stopped.fit(run, resume=True)
    except PromptTuneError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 600
        assert name in text or (name == "config.json" and re.search("is not a run of `fit`|was started with", text))
    else:
        assert stopped.learned(run) == stopped.learned(stopped.folder / "whole")


def test_a_disk_that_fills_late_is_one_line_and_resume_goes_on_to_the_same_bytes(
    stopped: Stopped, tmp_path: Path
) -> None:
    whole = stopped.folder / "whole"
    sizes = {path.name: path.stat().st_size for path in whole.iterdir() if path.is_file()}
    failed = 0
    for room in sorted({size - 1 for size in sizes.values() if size > 3000}):  # each time, another file is too large
        run = tmp_path / f"{room}"
        try:
            with full_disk(room):
                stopped.fit(run)
        except PromptTuneError as error:
            failed += 1
            assert "\n" not in str(error) and re.search("[Mm]ake room", str(error))
        stopped.fit(run, resume=True)
        assert stopped.learned(run) == stopped.learned(whole)
        assert (run / "report.html").stat().st_size > 0.9 * sizes["report.html"]  # paths and times differ
    assert failed > 2


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGES.values(),
        other_settings,
        *(
            lambda file, key=key, value=value: file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
            for key, value in (
                ("settings", None),
                ("settings", {"seed": "x"}),
                ("data", 5),
                ("model", None),
                ("digests", [1]),
            )
        ),
    ],
)
def test_export_and_validation_of_a_run_with_damaged_settings_are_one_line_or_work(
    damage: Callable[[Path], object], stopped: Stopped, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped.folder / "whole", run)
    damage(run / "config.json")
    for call in (
        lambda: export_bundle(run, tmp_path / "bundle"),
        lambda: validate_run(run, stopped.data, split="train"),
    ):
        with contextlib.suppress(PromptTuneError):
            call()
