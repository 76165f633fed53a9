"""`fit --config` and `--save-config`: options in a YAML file."""

from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.core import ParameterSource
from commands import run_command

from prompt_tune.cli.config_file import save_config
from prompt_tune.cli.fit import command
from prompt_tune.datasets.sample import write_sample
from prompt_tune.errors import DataError

REQUIRED = "model: tiny\ndata: d.yaml\nout: run\n"


def parsed(*arguments: object) -> click.Context:
    context = click.Context(command, info_name="fit")
    command.parse_args(context, [str(argument) for argument in arguments])
    return context


def config(folder: Path, text: str) -> Path:
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return folder / "run.yaml"


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("epochs: 20", "epochs", 20),
        ("image-size: 320", "image_size", 320),
        ("image_size: 320", "image_size", 320),
        ("imgsz: 320", "image_size", 320),
        ("learning-rate: 1e-2", "learning_rate", 0.01),
        ("device: 0", "device", "0"),
        ("class-specific: false", "class_specific", False),
        ("shared-context: true", "class_specific", False),
        ("calibrate: yes", "calibrate", True),
        ("strict: true", "strict", True),
        ("region-budget: [5, 6, 7]", "region_budget", (5, 6, 7)),
        ("replay: [a, b=2]", "replay", ("a", "b=2")),
        ("replay: a", "replay", ("a",)),
        ("against: [x.vocab.safetensors]", "against", (Path("x.vocab.safetensors"),)),
        ("from: earlier", "from_run", Path("earlier")),
        ("names: lorry; truck, car", "names", "lorry; truck, car"),
        ("epochs:", "epochs", 10),
    ],
)
def test_option_of_the_file_is_taken(line: str, name: str, value: Any, tmp_path: Path) -> None:
    context = parsed("--config", config(tmp_path, REQUIRED + line))
    assert context.params[name] == value and type(context.params[name]) is type(value)
    assert context.params["model"] == "tiny" and context.params["out"] == Path("run")
    given = context.get_parameter_source(name) is not ParameterSource.DEFAULT  # what `fit --from` asks
    assert given == (not line.endswith(":"))


def test_command_line_overrides_the_file(tmp_path: Path) -> None:
    place = config(tmp_path, REQUIRED + "epochs: 20\nreplay: [a]\nclass-specific: false\n")
    context = parsed("--epochs", 5, "--config", place, "--replay", "b", "--class-specific", "--out", "other")
    taken = [context.params[name] for name in ("epochs", "replay", "class_specific", "out", "data")]
    assert taken == [5, ("b",), True, Path("other"), "d.yaml"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("epoch: 3", "`epoch` is not an option of `prompt-tune fit`. Did you mean `epochs`?"),
        ("xyz: 3", "See `prompt-tune fit --help`."),
        ("nonsense: 3", "See `prompt-tune fit --help`."),  # no name is near
        ("", "must hold options, such as `epochs: 20`. Received: NoneType."),
        ("- epochs", "must hold options, such as `epochs: 20`. Received: list."),
        ("config: other.yaml", "`config` is not an option"),
        ("epochs: many", "`epochs`: 'many' is not a valid integer."),
        ("epochs: 2.5", "`epochs`: '2.5' is not a valid integer."),
        ("epochs: [1, 2]", "`epochs` must be one value. Received: [1, 2]."),
        ("epochs: true", "`epochs` must be text or a number. Received: True."),
        ("guide: joint", "`guide`: 'joint' is not one of 'original', 'own'."),
        ("strict: maybe", "`strict` must be true or false. Received: 'maybe'."),
        ("region-budget: 5", "`region-budget` must be a list of 3. Received: 5."),
        ("region-budget: [5, 6]", "`region-budget`: "),
        ("replay: [[a]]", "`replay` must be text or a number."),
        ("imgsz: 320\nimage-size: 320", "`image-size` says what another line says too."),
        ("shared-context: true\nclass-specific: false", "says what another line says too"),
        ("- a", ""),
    ],
)
def test_file_that_is_wrong_is_one_line_that_names_it(text: str, complaint: str, tmp_path: Path) -> None:
    place = config(tmp_path, text)
    with pytest.raises(DataError) as failed:
        parsed("--config", place)
    assert complaint in str(failed.value) and str(place) in str(failed.value) and "\n" not in str(failed.value)


def test_saved_file_gives_the_same_call(tmp_path: Path) -> None:
    first = parsed(
        *("--model", "tiny", "--data", "d.yaml", "--out", tmp_path / "run", "--shared-context", "--imgsz", 320),
        *("--replay", "a", "--replay", "b=2", "--region-budget", 5, 6, 7, "--names", "Lkw: groß, 0123", "--seed", 0),
    )
    save_config(first, tmp_path / "saved.yaml")
    content = yaml.safe_load((tmp_path / "saved.yaml").read_text("utf-8"))
    assert list(content) == [
        *("model", "data", "out", "names", "replay", "class-specific", "image-size", "region-budget", "seed")
    ]
    second = parsed("--config", tmp_path / "saved.yaml")
    assert second.params == first.params
    text = (tmp_path / "saved.yaml").read_text("utf-8")
    assert "\n# epochs: 10\n" in text and "groß" in text
    uncommented = "".join(line.removeprefix("# ") + "\n" for line in text.split("defaults of", 1)[1].splitlines()[1:])
    all_defaults = parsed("--config", config(tmp_path, REQUIRED + uncommented))
    assert all_defaults.params == parsed("--model", "tiny", "--data", "d.yaml", "--out", "run").params


def test_fit_runs_from_a_file_and_writes_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, _ = write_sample(tmp_path / "sample", n_images=4)
    place = config(tmp_path, f"model: tiny\ndata: {data}\nepochs: 1\nviews: 1\nupdates: 1\n")
    done = run_command(
        capfd, "fit", "--config", place, "--out", tmp_path / "run", "--save-config", tmp_path / "saved.yaml", "--quiet"
    )
    assert done.status == 0, done.err
    assert (tmp_path / "run" / "learned.vocab.safetensors").is_file()
    saved = yaml.safe_load((tmp_path / "saved.yaml").read_text("utf-8"))
    expected = {"model": "tiny", "data": str(data), "out": str(tmp_path / "run"), "epochs": 1, "updates": 1, "views": 1}
    assert saved == expected


def test_file_that_is_missing_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = run_command(capfd, "fit", "--config", tmp_path / "none.yaml")
    assert done.status == 1 and done.err.startswith("Error: ") and done.err.count("\n") == 1 and "none.yaml" in done.err
