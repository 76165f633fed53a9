"""The Hugging Face Hub: what `hf://user/name` stands for, its files in huggingface_hub's own cache, and its errors.

huggingface_hub decides about cache (HF_HOME), place (HF_ENDPOINT), network (HF_HUB_OFFLINE) and token (HF_TOKEN, or
`hf auth login`). Nothing here reads or writes a token.
"""

import glob
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from prompt_tune.errors import PromptTuneError
from prompt_tune.privacy import quiet_imports
from prompt_tune.version import install
from prompt_tune.wording import brief

NO_BUNDLE = "It is not a bundle of `prompt-tune push`. Give one."
RULE = "The rule is hf://USER/NAME, with @REVISION and /PATH after it where they are needed."
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
# as text, or as a path, which loses one of the two slashes
_PLACE = re.compile(r"hf:/{1,2}(?P<user>[^/@]+)/(?P<name>[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.*))?", re.DOTALL)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """A repository of models on the Hub, or a part of it.

    Attributes:
        repo: "user/name".
        revision: A branch, tag or commit. None is the main branch.
        path: A file or folder in it, or "".
    """

    repo: str
    revision: str | None = None
    path: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{revision}" + (f"/{self.path}" if self.path else "")


def is_on_hub(place: object) -> bool:
    """Whether a text or path names something on the Hub."""
    return str(place).replace("\\", "/").startswith("hf:/")


def named(place: str | Path) -> str:
    """A place as it was typed: a path loses one of the slashes of `hf://`."""
    return str(parse(place)) if is_on_hub(place) else str(place)


def parse(place: str | Path) -> Reference:
    """Read `hf://user/name[@revision][/path]`. A slash in a revision is written %2F.

    Raises:
        PromptTuneError: It has another form.
    """
    match = _PLACE.fullmatch(str(place).replace("\\", "/"))
    if match is None:
        raise PromptTuneError(f"'{place}' does not name anything on the Hub. {RULE}")
    parts = [part for part in (match["path"] or "").split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise PromptTuneError(f"'{place}' has a path that leaves its folder. {RULE}")
    repo = checked_repo(f"{match['user']}/{match['name']}")
    return Reference(repo, unquote(match["revision"]) if match["revision"] else None, "/".join(parts))


def checked_repo(repo: str) -> str:
    """The name of a repository, if it can be one.

    Raises:
        PromptTuneError: The Hub has no such names.
    """
    user, slash, name = repo.partition("/")
    parts = (user, name)
    if not slash or not all(re.fullmatch(r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", part, re.A) for part in parts):
        raise PromptTuneError(
            f"A repository is called USER/NAME, with letters, digits and - _ . inside each. Received: '{brief(repo)}'."
        )
    if "--" in repo or ".." in repo or repo.endswith(".git"):
        raise PromptTuneError(f"The Hub refuses '{repo}': no name has -- or .. or ends in .git. Choose another.")
    return repo


def local_folder(place: str | Path, needed: Sequence[str], cure: str = NO_BUNDLE) -> Path:
    """A folder with these files: the place itself, or what is downloaded for a place on the Hub.

    Args:
        place: A folder, which is given back as it is, or `hf://...`.
        needed: Names of the files that are downloaded. No other file is.
        cure: What to do if the repository lacks one, a sentence.

    Returns:
        The folder. One from the Hub is in huggingface_hub's cache, and belongs to a single commit.

    Raises:
        PromptTuneError: The repository, or one of the files, cannot be had, or huggingface_hub is not installed.
    """
    if not is_on_hub(place):
        return Path(place)
    wanted = parse(place)
    folder = _download(wanted, [str(PurePosixPath(wanted.path, name)) for name in needed]) / wanted.path
    for name in needed:
        if not (folder / name).is_file():
            raise PromptTuneError(f"{wanted} has no {name}. {cure}")
    return folder


def local_file(place: str | Path) -> Path:
    """A file: the place itself, or what is downloaded for `hf://user/name/file`.

    Raises:
        PromptTuneError: See `local_folder`.
    """
    if not is_on_hub(place):
        return Path(place)
    wanted = parse(place)
    if not wanted.path:
        raise PromptTuneError(f"{wanted} is a repository, and a file is needed. {RULE}")
    file = _download(wanted, [wanted.path]) / wanted.path
    if not file.is_file():
        raise PromptTuneError(f"{wanted.repo} has no file {wanted.path}. Look at the list of its files on the Hub.")
    return file


def commit_of(file: Path) -> str:
    """The commit that a file or folder in the cache belongs to, or "unknown"."""
    found = [part for part in file.parts if re.fullmatch(r"[0-9a-f]{40}", part)]
    return found[-1] if found else "unknown"


def library(name: str = "huggingface_hub") -> Any:
    """huggingface_hub, or a module of it, imported with its reports of usage off.

    Raises:
        PromptTuneError: It is not installed.
    """
    try:
        with quiet_imports():
            import_module("huggingface_hub")
            return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "huggingface_hub":
            raise PromptTuneError(f"huggingface_hub is not installed, and hf:// needs it: {install('hub')}") from error
        raise


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into one line for users.

    Args:
        what: The begin of the line, such as "Cannot download hf://user/name".

    Raises:
        PromptTuneError: The block raised such an error.
    """
    library()
    bars, logs = library("huggingface_hub.utils.tqdm"), library("huggingface_hub.utils.logging")
    level = logs.get_verbosity()
    quiet = not sys.stderr.isatty() and not bars.are_progress_bars_disabled()
    try:
        logs.set_verbosity_error()  # it would tell of each try
        if quiet:
            bars.disable_progress_bars()
        yield
    except PromptTuneError:
        raise
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        raise PromptTuneError(f"{what}: {reason}") from error
    finally:
        logs.set_verbosity(level)
        if quiet:
            bars.enable_progress_bars()


def _download(wanted: Reference, files: Sequence[str]) -> Path:
    """The folder of the repository's commit in the cache, with those of the files that the repository has."""
    hub = library()
    patterns = [glob.escape(file) for file in files]
    with told(f"Cannot download {wanted}"):
        return Path(hub.snapshot_download(wanted.repo, revision=wanted.revision, allow_patterns=patterns))


def _reason(error: BaseException) -> str | None:
    """What went wrong and what to do about it; None if it is no error of the Hub or of the way to it."""
    errors = library("huggingface_hub.errors")
    host = library("huggingface_hub.constants").ENDPOINT
    unreachable = f"{host} cannot be reached. Check the network, or HF_ENDPOINT if it is set."
    if isinstance(error, errors.HFValidationError):
        return f"{_first_line(error)} {RULE}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            return _reason(error.__cause__)
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled) or error.__cause__ is None:
            return "it is not in the cache, and HF_HUB_OFFLINE forbids the network. Unset it and try again."
        return f"it is not in the cache, and {unreachable}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids the network. Unset it and try again."
    if isinstance(error, errors.GatedRepoError):
        return f"its owner lets only some people in. Ask for access on its page. {LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{host} has no such repository, or it is private and this account may not see it. {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision. Name a branch, tag or commit of it."
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return "the repository has no such file. Look at the list of its files."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return LOG_IN
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error.response.status_code, error)
    if isinstance(error, errors.HTTPError):  # of the HTTP client below: no name, no connection, no answer
        return unreachable
    if isinstance(error, (RuntimeError, ValueError)) and error.__cause__ is not None:  # while a file was uploaded
        return _reason(error.__cause__)
    if isinstance(error, (ValueError, RuntimeError)):  # a refusal in the answer: a quota, or metadata of the card
        return f"{host} refused: {_first_line(error)}"
    if isinstance(error, OSError):
        return f"{error.strerror or error}. Make room or allow writing, in the cache too (HF_HOME)."
    return None


def _refusal(status: int, error: Any) -> str:
    """What an HTTP status means here."""
    said = brief(str(getattr(error, "server_message", None) or "").strip().rstrip("."))
    said = f" It says: {said}." if said else ""
    if status == 401:
        return f"the token is missing or no longer valid (401). {LOG_IN}"
    if status == 403:
        return f"this account may not do that (403).{said} Use a token with permission to write, or another name."
    if status in (402, 413, 507):
        return f"it is too large, or the account's room is used up ({status}).{said} Make room there."
    if status == 429:
        return f"too many requests (429).{said} Wait some minutes and try again."
    if status >= 500:
        return f"the Hub has a problem ({status}).{said} Try again later: what has arrived is not sent again."
    return f"the Hub refused ({status}).{said} Check name and revision."


def _first_line(error: BaseException) -> str:
    """What an error says, as one line that ends with a full stop."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    return brief(" ".join(lines[:2]) or type(error).__name__).rstrip(".") + "."
