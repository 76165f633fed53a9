"""Image files: which formats are read, what is said of the others, and the files that paths and patterns name."""

import glob
import logging
import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from prompt_tune.errors import DataError
from prompt_tune.files import is_special
from prompt_tune.runtime.folders import expanded, is_broken_link, matching, walk
from prompt_tune.wording import counted

WRITTEN_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # every viewer and trainer reads them
_HEIC = (".heic", ".heif", ".hif")
_OTHERS = (".apng", ".avif", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpf", ".jpx", ".mpo")
_PLAIN = (".pbm", ".pgm", ".pnm", ".ppm")
IMAGE_SUFFIXES = tuple(sorted((*WRITTEN_SUFFIXES, *_OTHERS, *_PLAIN, *(_HEIC if find_spec("pillow_heif") else ()))))
_RAW = (
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl "
    ".sr2 .srf .srw .x3f"
)
_RARE = (
    ".bpg .cur .dcm .dds .dib .emf .exr .fits .flif .hdr .icns .ico .jls .jxl .jxr .pcx .pfm .qoi .ras .sgi .tga .wdp "
    ".wmf .xbm .xpm"
)
_UNREAD = {  # by suffix: the kind of a picture that is not read, and the cure
    suffix: (kind, cure)
    for suffixes, kind, cure in (
        (" ".join(_HEIC), "HEIC", "`pip install pillow-heif` makes them readable"),
        (_RAW, "camera raw", "develop them to JPEG or TIFF"),
        (".ai .eps .svg .svgz", "vector graphics", "export them as PNG"),
        (".afphoto .kra .ora .psb .psd .xcf", "files of image editors", "export them as PNG"),
        (_RARE, "other formats", "save them as PNG or JPEG"),
    )
    for suffix in suffixes.split()
    if suffix not in IMAGE_SUFFIXES
}
_NAMED = 3  # files of a kind that a line names
log = logging.getLogger(__name__)
Places = str | Path | Sequence[str | Path]  # where images are: one path or pattern, or several


def as_places(source: Places) -> list[str | Path]:
    """One path or pattern as a list of one; several as a list."""
    return [source] if isinstance(source, (str, Path)) else list(source)


def unread_picture(path: Path) -> str | None:
    """Why a picture is not looked at, by its suffix, with the cure; None for a file that is read, or is no picture."""
    kind = _UNREAD.get(path.suffix.lower())
    return kind and f"{kind[0]}: {kind[1]}"


def unread_line(paths: Iterable[Path]) -> str:
    """One line that counts pictures that are not looked at, names the first of each kind, and gives the cure."""
    kinds: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(paths):
        kinds.setdefault(_UNREAD[path.suffix.lower()], []).append(path)
    parts = [f"{len(files)} {kind} ({_first(files)}): {cure}" for (kind, cure), files in kinds.items()]
    count = sum(map(len, kinds.values()))
    return f"{counted(count, 'picture')} {'is' if count == 1 else 'are'} not looked at: {'; '.join(parts)}."


def find_images(source: Places, *, recursive: bool = True, strict: bool = False) -> list[Path]:
    """The images that paths or patterns name: those of each one sorted, and each image once.

    Args:
        source: An image file, a folder, or a glob pattern; or several of them.
        recursive: Whether folders are read with their subfolders.
        strict: Whether a picture in a format that is not read, or a link that leads nowhere, is an error.

    Raises:
        DataError: There is no such file or folder, or one of them has no images; or `strict`, and something is left
            out.
    """
    return find_all(as_places(source), IMAGE_SUFFIXES, "image", recursive=recursive, strict=strict)


def find_all(
    sources: Sequence[str | Path],
    suffixes: Sequence[str],
    what: str,
    *,
    recursive: bool = True,
    without: Path | None = None,
    strict: bool = False,
) -> list[Path]:
    """The files of several sources, see `find_files`: in the order given, and each file once.

    Warnings name, in one line each: pictures in formats that are not read, links that lead nowhere, pipes and
    devices, and subfolders that cannot be read.

    Raises:
        DataError: There are no sources, or one of them has no such files; or `strict`, and a picture or a link is left
            out.
    """
    if not sources:
        raise DataError(f"No {what} was given. Give at least one, a folder of them, or a glob pattern.")
    passed: list[Path] = []
    found = [
        path
        for source in sources
        for path in find_files(source, suffixes, what, recursive=recursive, without=without, passed=passed)
    ]
    passed = list(dict.fromkeys(passed))
    if strict and passed:
        raise DataError(
            f"Something is left out, which --strict forbids: {_first(passed)}. Convert or remove it, or go on without "
            "--strict."
        )
    if unread := [path for path in passed if unread_picture(path) and not is_broken_link(path)]:
        log.warning("%s", unread_line(unread))
    if broken := [path for path in passed if is_broken_link(path)]:
        leads = "1 link leads nowhere and is" if len(broken) == 1 else f"{len(broken)} links lead nowhere and are"
        log.warning("%s left out: %s", leads, _first(broken))
    if special := [path for path in passed if _is_blocked(path, suffixes)]:
        are = (
            "1 is a pipe, a socket or a device and is" if len(special) == 1 else f"{len(special)} are no files and are"
        )
        log.warning("%s left out: %s", are, _first(special))
    by_place: dict[Path, Path] = {}
    for path in found:
        by_place.setdefault(path.parent.resolve() / path.name, path)  # links to one file are files of their own
    return list(by_place.values())


def find_files(
    source: str | Path,
    suffixes: Sequence[str],
    what: str,
    *,
    recursive: bool = True,
    without: Path | None = None,
    passed: list[Path] | None = None,
) -> list[Path]:
    """The files with certain suffixes that a path or pattern names, sorted.

    Args:
        source: A file with any suffix, a folder, or a glob pattern. Hidden files and folders and what computers add
            (`._*`, `Thumbs.db`, `__MACOSX`, ...) are left out.
        suffixes: In lower case, with the dot.
        what: What the files are, as the error names them.
        recursive: Whether a folder is read with its subfolders. Links are followed.
        without: A subfolder of the folder that is left out.
        passed: Receives pictures in formats that are not read, links that lead nowhere, and what is no file.

    Raises:
        DataError: There is no such file or folder, or it has no such files.
    """
    place = expanded(source)
    unreadable: list[str] = []
    if os.path.isfile(place):  # unlike Path.is_file, it takes any name
        return [place]
    if os.path.isdir(place):
        found = list(walk(place, recursive=recursive, without=without, unreadable=unreadable))
        cure = f"Give a folder that has some, or a pattern such as '{place}/**/*.jpg'."
    elif glob.has_magic(str(source)):
        found = matching(place, unreadable)
        cure = "Check the pattern."
    else:
        known = "a link that leads nowhere" if is_broken_link(place) else "no such file or folder"
        if is_special(place):
            known = "a pipe, a socket or a device"
        raise DataError(f"`{source}`: {known}. Give an {what}, a folder of them, or a glob pattern.")
    for reason in unreadable:
        log.warning("%s", reason)
    files = sorted(path for path in found if path.suffix.lower() in suffixes and os.path.isfile(path))
    left = [path for path in found if unread_picture(path) or is_broken_link(path) or _is_blocked(path, suffixes)]
    if passed is not None:
        passed += left
    if not files:
        unread = [path for path in left if unread_picture(path)]
        reason = f" {unread_line(unread)}" if unread else f" {cure}"
        raise DataError(f"`{source}` has no {what} ({' '.join(suffixes)}).{reason}")
    return files


def _is_blocked(path: Path, suffixes: Sequence[str]) -> bool:
    """Whether a path has one of the suffixes, but is a pipe, a socket or a device."""
    return path.suffix.lower() in suffixes and is_special(path)


def _first(paths: Sequence[Path]) -> str:
    """The first few of several files, for a line that counts them."""
    return ", ".join(f"`{path}`" for path in paths[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")
