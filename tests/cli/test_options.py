"""Options that commands share."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from prompt_tune.cli import command as prompt_tune
from prompt_tune.cli.options import Command, device_option


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


def test_every_command_refuses_options_given_twice() -> None:
    def commands(group: click.Group, context: click.Context) -> Iterator[click.Command]:
        for name in group.list_commands(context):
            found = group.get_command(context, name)
            assert found is not None
            if isinstance(found, click.Group):
                yield from commands(found, context)
            else:
                yield found

    assert isinstance(prompt_tune, click.Group)
    found = list(commands(prompt_tune, click.Context(prompt_tune)))
    assert len(found) > 15 and [each.name for each in found if not isinstance(each, Command)] == []
