"""`prompt-tune fit`: every bad input gives one line on standard error and status 1, and leaves nothing half-written."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import click
import numpy as np
import pytest
from commands import run_command
from PIL import Image
from small_objects import write_mosaics

from prompt_tune.cli.fit import command
from prompt_tune.config import FitConfig
from prompt_tune.datasets.sample import write_sample
from prompt_tune.vocabulary.vocabulary import Vocabulary

SETTING_NAMES = [field.name for field in fields(FitConfig)]


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small custom job: its YAML."""
    return write_sample(tmp_path_factory.mktemp("sample") / "set", n_images=6)[0]


def _yolo(folder: Path, labels: str = "0 0.5 0.5 0.4 0.4\n", names: str = "[box]", image: bytes | None = None) -> Path:
    """An ultralytics data set of one image: its YAML."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for stem in ("a", "b"):
        Image.new("RGB", (64, 48), (90, 120, 40)).save(folder / "images" / f"{stem}.png")
        if image is not None:
            (folder / "images" / f"{stem}.png").write_bytes(image)
        (folder / "labels" / f"{stem}.txt").write_text(labels)
    (folder / "data.yaml").write_text(f"train: images\nval: images\nnames: {names}\n")
    return folder / "data.yaml"


def _plain_detector(folder: Path) -> Path:
    """A checkpoint of a YOLO that is not a YOLO-World."""
    import torch

    from prompt_tune.models import ultralytics

    model = ultralytics.quiet_import("ultralytics.nn.tasks").DetectionModel("yolov8n.yaml", ch=3, nc=4, verbose=False)
    torch.save({"model": model, "ema": None, "train_args": {}}, folder / "plain.pt")
    return folder / "plain.pt"


def _garbage(folder: Path) -> Path:
    """A file that is not a checkpoint."""
    (folder / "garbage.pt").write_bytes(b"not a checkpoint at all" * 50)
    return folder / "garbage.pt"


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: folder / "nothing.pt", "nothing.pt"),
    "not a checkpoint": (_garbage, "garbage.pt"),
    "another YOLO": (_plain_detector, "is not a YOLO-World"),
}
DATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: folder / "nowhere", "nowhere"),
    "no boxes": (lambda folder: _yolo(folder / "d", labels=""), "no box"),
    "id outside the names": (lambda folder: _yolo(folder / "d", labels="3 0.5 0.5 0.4 0.4\n"), "3"),
    "box outside the image": (lambda folder: _yolo(folder / "d", labels="0 1.9 0.5 0.4 0.4\n"), "a.txt"),
    "all images damaged": (lambda folder: _yolo(folder / "d", image=b"\x89PNG\r\n\x1a\nrubbish"), "a.png"),
    "empty name": (lambda folder: _yolo(folder / "d", names="['']"), "name"),
    "repeated name": (lambda folder: _yolo(folder / "d", names="[box, box]"), "box"),
}
SETTINGS: dict[str, tuple[list[str], str]] = {
    "wrong number of names": (["--names", "one, two"], "2"),
    "repeated names": (["--names", "one, one, two, three, four, five"], "one"),
    "name longer than the window": (["--names", "a" + " very" * 80 + " long name, b, c, d, e, f"], "77"),
    "context longer than the window": (["--context-length", "76"], "context length"),
    "initial words of another length": (["--initial-words", "a photo"], "2 tokens"),
    "several shared prompts": (
        ["--prompts-per-class", "2", "--shared-context"],
        "Leave --prompts-per-class",
    ),
    "no prompt for a class": (["--prompts-per-class", "0"], "prompts_per_class"),
    "teacher that pushes away": (["--teacher-weight", "-1"], "teacher_weight"),
    "earlier run that is not there": (["--from", "nowhere"], "Give another --from"),
    "nothing that is old": (["--freeze-old"], "Name it with --from"),
    "replay that is not there": (["--replay", "nowhere"], "nowhere"),
    "replay without an image": (["--replay", "nowhere=0"], "ratio"),
    "replay of words": (["--replay", "nowhere=much"], "such as `nowhere=0.5`"),
    "image size between strides": (["--image-size", "250"], "multiple of 32"),
    "learning rate of zero": (["--learning-rate", "0"], "learning_rate"),
    "device that is not there": (["--device", "cuda:63"], "cuda:63"),
    "GPU by its number alone": (["--device", "63"], "the device '63'"),
    "GPUs that are not there": (["--device", "cuda:63,64"], "the device 'cuda:63'"),
    "devices of two kinds": (["--device", "cpu,cuda:1"], "Received: 'cpu,cuda:1'"),
    "device that nobody knows": (["--device", "abacus"], "abacus"),
    "text tower that is not there": (["--text-tower", "local-dir:/nowhere"], "/nowhere"),
    "original vocabulary that is not there": (["--original", "nowhere.vocab.safetensors"], "nowhere.vocab"),
}


@pytest.mark.parametrize("case", MODELS)
def test_fit_with_a_bad_model_is_one_line_and_status_1(
    case: str, custom: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, hint = MODELS[case]
    out = tmp_path / "run"
    outcome = run_command(capfd, "fit", "--model", make(tmp_path), "--data", custom, "--out", out)
    _check_error(outcome.status, outcome.err, hint)
    assert not out.exists()


@pytest.mark.parametrize("case", DATA)
def test_fit_with_bad_data_is_one_line_and_status_1(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, hint = DATA[case]
    out = tmp_path / "run"
    outcome = run_command(capfd, "fit", "--model", "tiny", "--data", make(tmp_path), "--out", out)
    _check_error(outcome.status, outcome.err, hint)
    assert not out.exists()


@pytest.mark.parametrize("case", SETTINGS)
def test_fit_with_bad_settings_is_one_line_and_status_1(
    case: str, custom: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options, hint = SETTINGS[case]
    out = tmp_path / "run"
    outcome = run_command(capfd, "fit", "--model", "tiny", "--data", custom, "--out", out, *options)
    _check_error(outcome.status, outcome.err, hint)
    assert not out.exists()


def test_every_setting_is_an_option_with_its_default_help_and_choices() -> None:
    options = {option.name: option for option in command.params if isinstance(option, click.Option)}
    assert [name for name in options if name in SETTING_NAMES and name != "freeze_old"] == [
        name for name in SETTING_NAMES if name != "freeze_old"
    ]  # in the order of the fields; `freeze_old` stands beside --from
    for field in fields(FitConfig):
        option = options[field.name]
        assert (option.default, option.help) == (field.default, field.metadata["help"]), field.name
        choices = tuple(option.type.choices) if isinstance(option.type, click.Choice) else ()
        assert choices == tuple(field.metadata["choices"]), field.name


def test_fit_with_an_unknown_option_is_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(capfd, "fit", "--modle", "tiny").status == 2


def test_fit_shared_context_embeds_names_that_it_never_saw(
    custom: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """fit, then `vocab build --prompts` with another name; class-specific context refuses the same."""
    for option, status in (("--shared-context", 0), ("--class-specific", 1)):
        run, out = tmp_path / option, tmp_path / f"{option}.vocab.safetensors"
        common = ("--model", "tiny", "--data", custom, "--epochs", 1)
        assert run_command(capfd, "fit", *common, "--out", run, option, "--cache", tmp_path / "cache").status == 0
        prompts = run / "prompts.safetensors"
        outcome = run_command(
            capfd, "vocab", "build", "--model", "tiny", "--names", "crate", "--prompts", prompts, "--out", out
        )
        assert outcome.status == status, outcome.err
        assert out.exists() == (status == 0)


@pytest.mark.parametrize("option", [("--guide", "joint"), ("--token-position", "left"), ("--teacher-weight", "much")])
def test_fit_with_a_value_that_an_option_does_not_take_is_a_usage_error(
    option: tuple[str, str], custom: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = run_command(capfd, "fit", "--model", "tiny", "--data", custom, "--out", tmp_path / "run", *option)
    assert outcome.status == 2 and option[0] in outcome.err


def test_fit_from_a_run_with_replay_and_several_prompts_goes_through_every_command(
    custom: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """fit, fit --from with replayed images, `vocab build --prompts`, export and detect."""
    replay = custom.parent.parent / "original" / "images"
    common = ("--model", "tiny", "--data", custom, "--epochs", 1, "--cache", tmp_path / "cache")
    first, second, built = tmp_path / "first", tmp_path / "second", tmp_path / "built.vocab.safetensors"
    prompts = second / "prompts.safetensors"
    commands: list[tuple[object, ...]] = [
        ("fit", *common, "--out", first, "--prompts-per-class", 2, "--token-position", "middle"),
        ("fit", *common, "--out", second, "--from", first, "--replay", f"{replay}=0.5", "--teacher-weight", 1),
        ("vocab", "build", "--model", "tiny", "--names", "gizmo", "--prompts", prompts, "--out", built),
        ("export", second, "--out", tmp_path / "bundle"),
        ("detect", tmp_path / "bundle", "--source", replay / "val", "--learned", built, "--out", tmp_path / "found"),
    ]
    for arguments in commands:
        outcome = run_command(capfd, *arguments)
        assert outcome.status == 0, outcome.err
    config = json.loads((second / "config.json").read_text())
    settings = config["settings"]
    assert (settings["prompts_per_class"], settings["token_position"]) == (2, "middle")
    assert config["replay"] == [[str(replay), 0.5]] and len(config["from"]) == 64
    learned, further = Vocabulary.load(second / "learned.vocab.safetensors"), Vocabulary.load(built)
    assert learned.provenance["replay_images"] == 3 and further.n_prompts == learned.n_prompts == 2
    row = learned.embeddings[learned.names.index("gizmo")]
    np.testing.assert_allclose(further.embeddings[0], row, atol=1e-5)


def test_fit_writes_the_run_folder_that_the_design_names(
    custom: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    outcome = run_command(capfd, "fit", "--model", "tiny", "--data", custom, "--out", out, "--epochs", 2)
    assert outcome.status == 0, outcome.err
    assert "epoch" in outcome.out and "export" in outcome.out
    assert "\nAP50 before and after: plain name 0." in outcome.out and ", learned " in outcome.out
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    config = json.loads((out / "config.json").read_text())
    assert config["image_size"] == 256 and set(config["digests"]) == {"detector", "text_tower", "guide"}
    assert Image.open(out / "curves.png").size[0] > 400
    names = {"config.json", "curves.png", "learned.vocab.safetensors", "metrics.jsonl", "original.vocab.safetensors"}
    names |= {"prompts.safetensors", "regions", "reliability.png", "report.html", "state.safetensors"}
    assert names == {path.name for path in out.iterdir()}


def test_fit_from_a_run_names_an_option_that_was_given_and_is_not_used(
    custom: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also if its value is the default: only the command line can tell that it was given."""
    common = ("--model", "tiny", "--data", custom, "--epochs", 1, "--cache", tmp_path / "cache")
    assert run_command(capfd, "fit", *common, "--out", tmp_path / "a", "--token-position", "front").status == 0
    for options, named in (((), False), (("--token-position", "end"), True)):
        out = tmp_path / f"b{named}"
        outcome = run_command(capfd, "fit", *common, "--out", out, "--from", tmp_path / "a", *options)
        assert outcome.status == 0, outcome.err
        assert ("`token_position` is 'front'" in outcome.err and "'end' is not used" in outcome.err) == named


def _check_error(status: int, err: str, hint: str) -> None:
    """Status 1; the error is the last line, and it names what came."""
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert status == 1 and len(lines) == 1, err
    assert hint in lines[0] and "Traceback" not in err, err


def test_fit_in_tiles_says_what_was_cut_and_how_to_detect(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_mosaics(tmp_path / "set", (2, 2, 0), side=2)  # 512 x 512 pixels
    (tmp_path / "fit.yaml").write_text("tile: 400\ntile-overlap: 0.5\nepochs: 1\nupdates: 1\n")
    settings = ("--model", "tiny", "--data", data, "--config", tmp_path / "fit.yaml", "--out", tmp_path / "run")
    done = run_command(capfd, "fit", *settings)
    assert done.status == 0, done.err
    assert " on the validation images, in slices. Cached in " in done.out
    told = "Cut: tile 400, overlap 0.5: 16 slices of 4 photos. Detect with --slice 400 --slice-overlap 0.5 too."
    assert told in " ".join(done.out.split())
    alone = run_command(capfd, "fit", *settings[:4], "--tile-overlap", "0.2", "--out", tmp_path / "other")
    assert alone.status == 1 and not (tmp_path / "other").exists()
    told = "Error: `tile_overlap` says how far slices overlap, and needs their size. Give --tile too."
    assert alone.err.strip() == told
