"""Texts that users send to others, without their paths and names."""

import contextlib
import getpass
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path

SHORTEST = 3  # characters of a name that is replaced: a shorter one stands in other words
_PATH = re.compile(r"(?<![\w:/])(?:[A-Za-z]:)?(?:[\\/]|~[\\/])[^\s'\"`,;:|()<>]*[\\/][^\s'\"`,;:|()<>]*")


def anonymous(text: str, private: Iterable[str] = ()) -> str:
    """The text with every absolute path, the user's name and the machine's name replaced by a word in angle brackets.

    Args:
        text: Any text. Addresses of the web stay.
        private: What else to replace: paths as the user wrote them, names of files and classes in their quotes. A plain
            word, such as the name of a folder, is replaced only in quotes and before a slash: `tower` is also a word.
    """
    for word in sorted({word for word in private if len(word) >= SHORTEST}, key=len, reverse=True):
        if re.fullmatch(r"[\w-]+", word):
            text = re.sub(
                rf"(?<=['\"`:]){re.escape(word)}(?=['\"`/\\])|(?<![\w-]){re.escape(word)}(?=[/\\])", "<private>", text
            )
        else:
            text = text.replace(word, "<private>")
    text = _PATH.sub("<path>", text)
    for name in _own_names():
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "<name>", text)
    return text


def _own_names() -> list[str]:
    """The names of the user and of the machine, as far as the system knows them."""
    names = {socket.gethostname(), socket.gethostname().partition(".")[0], Path(os.path.expanduser("~")).name}
    with contextlib.suppress(KeyError, OSError, ImportError):  # a user without an entry, as in some containers
        names.add(getpass.getuser())
    return sorted((name for name in names if len(name) >= SHORTEST), key=len, reverse=True)
