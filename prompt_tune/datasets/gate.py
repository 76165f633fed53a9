"""The gate on paths: a data set that other people made must not pull in other files of the machine.

What the user names is the user's: the file or folder on the command line, and the `path` and the absolute entries of a
YAML, which is short enough to be read. Lists, JSON files and relative entries are not: what they name must lie, by its
written path, inside the folder that holds them, or inside its parent (Roboflow writes `../train`), or below what the
user names. Links are not followed for this, so links that the user made lead where they lead.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prompt_tune.errors import DataError
from prompt_tune.wording import shown

_CURE = (
    "Put it, or a link to it, into that folder; or, if it belongs to the data set, name a folder above it as `path` in "
    "the YAML of the data set."
)


@dataclass(frozen=True)
class Gate:
    """The folders that a data set may name files in.

    Attributes:
        folders: Absolute, without `..`; the first one is that of the description.
    """

    folders: tuple[Path, ...]

    @classmethod
    def of(cls, descriptions: Iterable[Path], named: Iterable[Path] = ()) -> "Gate":
        """The gate of a data set.

        Args:
            descriptions: The folders that hold its descriptions. Their parents are open too, but never a whole disk.
            named: Folders that the user names.
        """
        folders: dict[Path, None] = {}
        for folder in descriptions:
            written = _folded(folder)
            for place in (written, Path(os.path.realpath(written))):  # `link/../train` is beside where the link leads
                folders |= dict.fromkeys((place, place.parent))
        folders |= {_folded(folder): None for folder in named}
        return cls(tuple(folder for folder in folders if folder != folder.parent))

    def with_folders(self, descriptions: Iterable[Path], named: Iterable[Path] = ()) -> "Gate":
        """The gate with further folders; see `of`."""
        return Gate((*self.folders, *Gate.of(descriptions, named).folders))

    def has(self, path: Path) -> bool:
        """Whether a path, as it is written, lies inside one of the folders."""
        written = _folded(path)
        return any(written.is_relative_to(folder) for folder in self.folders)

    def check(self, path: Path, where: str, named: str) -> None:
        """Refuse a path that lies elsewhere, whether or not there is such a file.

        Args:
            path: The path as it would be opened.
            where: What names it, as the error begins.
            named: The name as it stands there.

        Raises:
            DataError: It lies elsewhere.
        """
        if not self.has(path):
            own = f" (`{self.folders[0]}`)" if self.folders else ""
            raise DataError(
                f"{where}: {shown(named)} lies outside the folder of the data set{own} and the one above it, so it is "
                f"not opened. {_CURE}"
            )


def _folded(path: Path) -> Path:
    return Path(os.path.normpath(os.path.abspath(path)))
