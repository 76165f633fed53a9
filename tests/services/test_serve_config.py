"""Who may reach a server without a key, and which keys are taken."""

from pathlib import Path

import pytest

from prompt_tune.errors import PromptTuneError
from prompt_tune.services.serve_config import ServeConfig, is_local, read_api_key

KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_only_loopback_is_local(host: str, local: bool) -> None:
    assert is_local(host) is local
    if local:
        assert read_api_key(None, host=host, environment={}) is None
    else:
        with pytest.raises(PromptTuneError, match=r"needs an API key. Set PROMPT_TUNE_API_KEY or give --api-key-file"):
            read_api_key(None, host=host, environment={})


def test_key_comes_from_the_file_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}-file\n")
    variables = {"PROMPT_TUNE_API_KEY": f"{KEY}-variable"}
    assert read_api_key(file, host="0.0.0.0", environment=variables) == f"{KEY}-file"
    assert read_api_key(None, host="0.0.0.0", environment=variables) == f"{KEY}-variable"
    assert read_api_key(None, host="127.0.0.1", environment=variables) == f"{KEY}-variable"


@pytest.mark.parametrize("key", ["", "short", KEY[:15], f"{KEY} {KEY}", f"{KEY}\n{KEY}", f"{KEY}é"])
def test_key_that_is_none_is_refused_and_not_shown(tmp_path: Path, key: str) -> None:
    file = tmp_path / "key"
    file.write_text(key)
    with pytest.raises(PromptTuneError, match="must have 16 or more ASCII characters") as caught:
        read_api_key(file, host="127.0.0.1", environment={})
    assert not key or key not in str(caught.value)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptTuneError, match="No such file or directory"):
        read_api_key(tmp_path / "none", host="127.0.0.1", environment={"PROMPT_TUNE_API_KEY": KEY})


def test_default_is_closed_to_others() -> None:
    config = ServeConfig()
    assert (config.host, config.allow_upload) == ("127.0.0.1", False)
