"""The folder that a labelling job writes: what it was made with, and Parquet files that are there whole or not at all.

`label.json` says what the rows were made with; `rows/` has the Parquet files. A run writes into a hidden folder of its
own and gives each finished file its name in `rows/`. The next run removes that folder before it looks at what is there:
a process that outlived the run that started it can then give nothing a name, so no image gets a second row.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prompt_tune import strict_json
from prompt_tune.errors import DataError, PromptTuneError
from prompt_tune.files import saving, told
from prompt_tune.runtime.detections import ClassKey
from prompt_tune.services.rows import Row, read_paths, read_rows, write_rows
from prompt_tune.wording import shown

SETTINGS_FILE = "label.json"
ROWS_FOLDER = "rows"
_RUN = ".run-"
_DIGEST = 16  # bytes: among a billion images, two are taken for one with a probability of 1e-21
TRIES = 3  # workers that may die with one part
OTHER = "Choose another --out."


class Results:
    """A folder of rows."""

    def __init__(self, folder: Path | str) -> None:
        """Open a folder that is there, or is not yet. Nothing is read or written.

        Args:
            folder: Its path.
        """
        self.folder = Path(folder)
        self.rows_folder = self.folder / ROWS_FOLDER

    def begin(self, settings: dict[str, Any]) -> Path:
        """Begin a run: end the right of earlier ones to write here, and make a folder for this one.

        Args:
            settings: Plain JSON: what the rows are made with. Its `info` and `classes` are for conversions.

        Returns:
            The folder that the parts of this run are written in.

        Raises:
            DataError: The rows there were made with other settings, or the folder cannot be written.
        """
        with told(self.folder, DataError):
            self.rows_folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / SETTINGS_FILE
            if path.exists():
                self._check(settings)
            for old in self.folder.glob(f"{_RUN}*"):
                shutil.rmtree(old)
            if not path.exists():
                with saving(path, DataError) as temporary:
                    temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            run = self.folder / f"{_RUN}{secrets.token_hex(8)}"
            run.mkdir()
        return run

    def settings(self) -> dict[str, Any]:
        """What the rows were made with.

        Raises:
            DataError: This is no folder of `label`, or the file is damaged.
        """
        path = self.folder / SETTINGS_FILE
        try:
            settings = strict_json.parse(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"`{self.folder}` has no {SETTINGS_FILE}: it is not from `prompt-tune label`.") from error
        except (OSError, ValueError) as error:
            raise DataError(f"`{path}` cannot be read ({error}). {OTHER}") from error
        if not isinstance(settings, dict) or not {"info", "classes", "batch"} <= settings.keys():
            raise DataError(f"`{path}` is damaged: keys are missing. {OTHER}")
        return settings

    def parts(self) -> list[Path]:
        """The Parquet files, in the order in which their images were found."""
        return sorted(self.rows_folder.glob("*.parquet"))

    def done(self) -> set[bytes]:
        """Digests of the paths that have a row, see `digest`."""
        return {digest(path) for part in self.parts() for path in read_paths(part)}

    def paths(self) -> Iterator[str]:
        """The paths of all rows."""
        for part in self.parts():
            yield from read_paths(part)

    def rows(self) -> Iterator[Row]:
        """All rows, a few in memory at a time."""
        numbers: dict[str, int] = {}
        class_ids: dict[ClassKey, int] = {}
        for label, name in self.settings()["classes"]:
            class_ids[label, name] = numbers.get(label, 0)
            numbers[label] = numbers.get(label, 0) + 1
        for part in self.parts():
            yield from read_rows(part, class_ids)

    def _check(self, settings: dict[str, Any]) -> None:
        """Refuse to add rows that were made otherwise than those that are there."""
        there = self.settings()
        for settings_of, old in ((settings["info"], there["info"]), (settings, there)):
            for key, value in settings_of.items():
                if key not in ("info", "description") and value != old.get(key):
                    raise DataError(
                        f"`{self.folder}` has rows that were made with `{key}` {shown(old.get(key))}. Received: "
                        f"{shown(value)}. Give the same, or choose another --out."
                    )


def digest(path: str) -> bytes:
    """A short name for a path, so that a million of them fit into memory."""
    return hashlib.blake2b(path.encode(), digest_size=_DIGEST).digest()


def part_name(first: int, paths: Sequence[str]) -> str:
    """The name of a Parquet file: the number of its first image, and a digest of all of them."""
    return f"{first:010}-{digest(chr(0).join(paths)).hex()}.parquet"


def begin_part(run: Path, name: str, what: str) -> None:
    """Note in the folder of a run that a part is begun: one that ends its workers must not end every new one too.

    Args:
        run: The folder.
        name: Of the part.
        what: What the error calls it.

    Raises:
        DataError: Another run has begun in the same folder, or the folder cannot be written.
        PromptTuneError: `TRIES` workers began it and died.
    """
    for number in range(TRIES):
        try:
            (run / f"{name}.{number}").touch(exist_ok=False)
            return
        except FileExistsError:
            continue
        except FileNotFoundError as error:
            raise DataError(_replaced(run)) from error
        except OSError as error:
            raise DataError(f"Cannot write {run}: {error.strerror or error}. {OTHER}") from error
    raise PromptTuneError(
        f"{TRIES} workers died while they labelled {what}: out of memory, or an image that crashes its decoder. Run "
        "again with a smaller --batch or fewer --workers; what is written stays."
    )


def write_part(run: Path, name: str, rows: Sequence[Row]) -> None:
    """Write a Parquet file into the folder of a run, then give it its place in one step.

    Raises:
        DataError: Another run has begun in the same folder, or the disk is full.
    """
    place = run.parent / ROWS_FOLDER / name
    temporary = run / f"{secrets.token_hex(4)}-{name}"  # another worker may have the same part, after a failure
    if not run.is_dir():
        raise DataError(_replaced(run))
    try:
        with told(place, DataError):
            write_rows(temporary, rows)
            os.replace(temporary, place)
    except DataError as error:
        if not run.is_dir():
            raise DataError(_replaced(run)) from error
        raise


def end(run: Path) -> None:
    """End a run: its folder goes."""
    shutil.rmtree(run, ignore_errors=True)


def _replaced(run: Path) -> str:
    return f"Another run has begun in `{run.parent}`, so this one ended. Run one at a time for each --out."
