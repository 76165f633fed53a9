"""Limits and addresses of a server, and its API key."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prompt_tune.errors import PromptTuneError
from prompt_tune.services.batching import SIZES

KEY_VARIABLE = "PROMPT_TUNE_API_KEY"
LEAST_KEY = 16  # characters: a shorter one can be guessed
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class ServeConfig:
    """How a server works.

    Attributes:
        host: The address on which it listens.
        port: 0 means any free one.
        batch_sizes: Of batches, see `Batcher`.
        max_requests: How many requests may be in work; more are refused with status 503.
        max_bytes: Of the body of a request.
        max_megapixels: Of an image.
        max_slices: Of an image that a request wants cut.
        timeout: Seconds for the body of a request to come, and then for its answer to be ready.
        drain: Seconds in which a server that is asked to stop still takes requests, so that whoever shares them out
            takes note.
        readers: Threads that read images; 0 means as many as there are cores.
        allow_upload: Whether vocabularies can be loaded and unloaded over HTTP.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    batch_sizes: tuple[int, ...] = SIZES
    max_requests: int = 64
    max_bytes: int = 32 * MEGABYTE
    max_megapixels: int = 100
    max_slices: int = 64
    timeout: float = 30.0
    drain: float = 1.0
    readers: int = 0
    allow_upload: bool = False


def is_local(host: str) -> bool:
    """Whether only programs on this machine reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_api_key(file: Path | None, *, host: str, environment: Mapping[str, str] | None = None) -> str | None:
    """The API key from a file, or else from the environment variable `KEY_VARIABLE`.

    Args:
        file: Whose content is the key; None if there is none.
        host: The address on which the server listens.
        environment: In place of that of the process.

    Returns:
        The key, or None where only this machine reaches the server.

    Raises:
        PromptTuneError: The file cannot be read, the key is not one, or it is needed and there is none.
    """
    place, key = f"`{KEY_VARIABLE}`", (os.environ if environment is None else environment).get(KEY_VARIABLE, "")
    if file is not None:
        place = f"`{file}`"
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise PromptTuneError(f"The API key in {place} cannot be read: {reason}. Check the path.") from error
    elif not key:
        if is_local(host):
            return None
        raise PromptTuneError(
            f"A server on `{host}` can be reached from elsewhere and needs an API key. Set {KEY_VARIABLE} or give "
            "--api-key-file, or listen on 127.0.0.1."
        )
    if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise PromptTuneError(
            f"The API key in {place} must have {LEAST_KEY} or more ASCII characters without spaces. Received: "
            f"{len(key)}. Make one: openssl rand -hex 32"
        )
    return key
