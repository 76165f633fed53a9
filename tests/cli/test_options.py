"""Options that commands share."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from commands import run_command
from places import ROOT

from prompt_tune.cli import command as prompt_tune
from prompt_tune.cli.options import Command, Number, device_option


@pytest.mark.parametrize("device", [None, "cpu", "auto", "cuda", "cuda:1", "0", "gpu"])
def test_device_is_one_of_those_of_the_runtime_and_the_cpu_by_default(device: str | None) -> None:
    @click.command()
    @device_option
    def command(device: str) -> None:
        click.echo(device)

    done = CliRunner().invoke(command, [] if device is None else ["--device", device])
    if device == "gpu":
        assert done.exit_code == 2 and "must be cpu, cuda, cuda:N" in done.output and "'gpu'" in done.output
    else:
        assert done.output == f"{device or 'cpu'}\n"


def test_every_number_is_finite() -> None:
    """NaN is below no limit and above none, so click's own range takes it."""
    ranges = [
        (command.name, option.opts[0], option.type)
        for command in commands()
        for option in command.params
        if isinstance(option.type, click.FloatRange)
    ]
    assert len(ranges) > 10
    for command, name, kind in ranges:
        for text in ("nan", "inf", "-inf"):
            with pytest.raises(click.BadParameter, match=r"finite|range"):
                kind(text)
                pytest.fail(f"{command} {name} {text}")
    assert Number(0, 1)("0.5") == 0.5


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--data", "a", "--data", "b"], "Option '--data' can be given only once. Received: 2 times."),
        (["--data=a", "--on", "--off"], "Option '--on/--off' can be given only once. Received: 2 times."),
        (["--data", "a", "--pair", "1", "2", "--pair", "3", "4"], "'--pair' can be given only once"),
        (["--data", "a", "--each", "1", "--each", "2", "--json", "--json", "--on", "x", "y"], None),
        (["--each", "1"], "Missing option '--data'"),
        (["--data"], "Option '--data' requires an argument"),
    ],
)
def test_option_given_twice_is_taken_whole_or_refused(arguments: list[str], complaint: str | None) -> None:
    @click.command(cls=Command)
    @click.argument("rest", nargs=-1)
    @click.option("--data", required=True)
    @click.option("--pair", nargs=2)
    @click.option("--each", multiple=True)
    @click.option("--json", is_flag=True)
    @click.option("--on/--off")
    def command(**values: object) -> None:
        click.echo(f"{values['each']} {values['rest']}")

    done = CliRunner().invoke(command, arguments)
    if complaint is None:
        assert (done.exit_code, done.output) == (0, "('1', '2') ('x', 'y')\n")
    else:
        assert done.exit_code == 2 and complaint in done.output


def commands(group: click.Command = prompt_tune) -> Iterator[click.Command]:
    """Every command, also those of groups."""
    assert isinstance(group, click.Group)
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found)
        else:
            yield found


def test_every_command_refuses_options_given_twice() -> None:
    found = list(commands())
    assert len(found) > 15 and [each.name for each in found if not isinstance(each, Command)] == []


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("fit --model tiny --data a --out b --imgsz 320", "image_size", 320),
        ("fit --model tiny --data a --out b --iou 0.5", "nms_iou", 0.5),
        ("fit --model tiny --data a --out b --batch 8", "batch", 8),
        ("fit --model tiny --data a --out b --device 0", "device", "0"),
        ("fit --model tiny --data a --out b --classes cat,dog", "names", "cat,dog"),
        ("detect a b --out c --imgsz 320", "image_size", 320),
        ("detect a b --out c --conf 0.4", "conf", 0.4),
        ("detect a b --out c --iou 0.5", "iou", 0.5),
        ("detect a b --out c --workers 2", "threads", 2),
        ("detect a b --out c --classes cat --classes dog", "show", ("cat", "dog")),
        ("detect a b --out c --device 0", "device", "0"),
        ("verify a b --device 0", "device", "0"),
        ("mine a b --out c --device 0", "device", "0"),
        ("bake a --out c --device 0", "device", "0"),
        ("val a --data b --classes cat,dog", "names", "cat,dog"),
        ("val a --data b --device 0", "device", "0"),
        ("vocab build --model tiny --classes cat --out c", "names", "cat"),
    ],
)
def test_spelling_that_people_type_is_one_of_ours(words: str, name: str, value: object) -> None:
    group: click.Command = prompt_tune
    arguments = words.split()
    context = click.Context(group)
    while isinstance(group, click.Group):
        _, found, arguments = group.resolve_command(context, arguments)
        assert found is not None
        group, context = found, click.Context(found, parent=context)
    group.parse_args(context, arguments)
    assert context.params[name] == value


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("detect BUNDLE PHOTO --out OUT", "classes"),
        ("mine BUNDLE PHOTO --out OUT", "candidates"),
        ("vocab show LEARNED", "classes"),
        ("vocab diff LEARNED LEARNED", "added"),
        ("verify BUNDLE PHOTO", "settings"),
    ],
)
def test_table_is_printed_as_json_too(words: str, key: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = ROOT / "tests" / "data"
    places = {"BUNDLE": data / "bundle", "PHOTO": data / "photo.png", "OUT": tmp_path / "out"}
    places["LEARNED"] = data / "bundle" / "learned.vocab.safetensors"
    done = run_command(capfd, *(places.get(word, word) for word in words.split()), "--json")
    assert done.status == 0, done.err
    assert key in json.loads(done.out)


def test_every_command_that_prints_a_table_has_json() -> None:
    """Tables are made with rich's `Table`; the commands of such a module that print none are named here."""
    without = {"build", "merge", "rename", "remove", "convert"}  # of `vocab`
    checked = set()
    for path in sorted((ROOT / "prompt_tune" / "cli").glob("*.py")):
        if "import Table" not in path.read_text("utf-8") or path.stem == "vocab_tables":
            continue
        found = importlib.import_module(f"prompt_tune.cli.{path.stem}").command
        commands = found.commands.values() if isinstance(found, click.Group) else [found]
        for each in commands:
            if each.name not in without:
                assert "--json" in {option for part in each.params for option in part.opts}, each.name
                checked.add(path.stem)
    assert {"demo", "detect", "mine", "pretrain", "val", "verify"} <= checked
