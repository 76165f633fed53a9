"""The command: options that cannot be are refused before anything is loaded."""

from pathlib import Path

import extras
import pytest
from click.testing import CliRunner

extras.needs("starlette", "uvicorn", "prometheus_client")

from places import TESTS  # noqa: E402

from prompt_tune.cli.serve import command  # noqa: E402
from prompt_tune.errors import GraphError, PromptTuneError  # noqa: E402

BUNDLE = TESTS / "data" / "bundle"


@pytest.mark.parametrize("sizes", ["", "0", "1,,2", "a", "-1", "2000", "1;2"])
def test_sizes_of_batches_are_whole_numbers(sizes: str) -> None:
    ran = CliRunner().invoke(command, [str(BUNDLE), "--batch-sizes", sizes])
    assert ran.exit_code == 2 and "must be whole numbers from 1 to 1024" in ran.output


def test_open_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPT_TUNE_API_KEY", raising=False)
    with pytest.raises(PromptTuneError, match="needs an API key"):
        CliRunner().invoke(command, [str(BUNDLE), "--host", "0.0.0.0"], catch_exceptions=False)


def test_bundle_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="is not a complete bundle"):
        CliRunner().invoke(command, [str(tmp_path), "--port", "0"], catch_exceptions=False)


def test_key_cannot_stand_on_the_command_line() -> None:
    ran = CliRunner().invoke(command, [str(BUNDLE), "--api-key", "0123456789abcdef"])
    assert ran.exit_code == 2 and "--api-key-file" in ran.output
