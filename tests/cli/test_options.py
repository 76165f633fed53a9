"""Options that commands share."""

import click
import pytest
from click.testing import CliRunner

from prompt_tune.cli.options import device_option
from prompt_tune.runtime.providers import DEVICES


@pytest.mark.parametrize("device", [None, *DEVICES, "gpu"])
def test_device_is_one_of_those_of_the_runtime_and_the_cpu_by_default(device: str | None) -> None:
    @click.command()
    @device_option
    def command(device: str) -> None:
        click.echo(device)

    done = CliRunner().invoke(command, [] if device is None else ["--device", device])
    if device == "gpu":
        assert done.exit_code == 2 and "'gpu' is not one of" in done.output
    else:
        assert done.output == f"{device or 'cpu'}\n"
