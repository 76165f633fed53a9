"""The names that tools give to the splits of a data set, and the folders and files that have such names."""

import re
from collections.abc import Iterable
from pathlib import Path

from prompt_tune.runtime.folders import is_metadata

_NAMES = {
    "train": ("train", "training", "default"),  # CVAT calls a task without a subset `default`
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_YEAR = re.compile(r"[_-]?20\d\d$")  # `train2017`


def split_of(name: str) -> str | None:
    """The split that a name means: "train", "val" or "test"; None for other names."""
    plain = _YEAR.sub("", name.casefold())
    return next((split for split, names in _NAMES.items() if plain in names), None)


def by_split(places: Iterable[Path]) -> dict[str, Path]:
    """Files or folders by the splits that their stems mean. Of two for one split, the usual spelling comes first."""
    found: dict[str, list[Path]] = {}
    for place in places:
        if split := split_of(place.stem):
            found.setdefault(split, []).append(place)
    return {split: min(found[split], key=_rank) for split in _NAMES if split in found}


def split_folders(folder: Path) -> dict[str, Path]:
    """The subfolders of a folder that are named after splits, by split."""
    return by_split(path for path in sorted(folder.iterdir()) if path.is_dir() and not is_metadata(path.name))


def _rank(place: Path) -> tuple[int, str]:
    names = [name for group in _NAMES.values() for name in group]
    stem = place.stem.casefold()
    return (names.index(stem) if stem in names else len(names), place.name)
