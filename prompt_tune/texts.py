"""Text, JSON and YAML that other people wrote: read with limits, and without waiting for what is no regular file.

Errors are an `OSError` or a `ParseError`; the rooms above turn them into one line for users.
"""

import errno
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

MAX_YAML_BYTES = 2**20  # a YAML with the names of ImageNet's 21,000 classes has 0.6 MB
MAX_YAML_NODES = 2**16  # values in a YAML, with what an alias stands for counted each time
MAX_DEPTH = 64  # lists and mappings inside one another; data sets have up to six
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_PIECE = 2**20
_ESCAPE = re.compile(r"\\.", re.DOTALL)
_STRING = re.compile(rb'"[^"]*"')
_NOT_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))


class ParseError(ValueError):
    """A text cannot be read. Its message is a clause.

    Attributes:
        line: The line, from 1; None if it is unknown.
        is_limit: Whether the text breaks a limit, and not the syntax.
    """

    def __init__(self, problem: str, line: int | None = None, *, is_limit: bool = False) -> None:
        super().__init__(problem)
        self.line = line
        self.is_limit = is_limit


def regular_bytes(path: Path | str, most: int) -> bytes:
    """The content of a regular file. A pipe, a socket or a device is never opened, since reading could take forever.

    Args:
        path: The file. Links are followed.
        most: The most bytes that it may have.

    Raises:
        OSError: There is no such file, it cannot be read, it is no regular file, or it is too large. Its `strerror`
            says which.
    """
    try:
        _require_regular(os.stat(path))
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            found = os.fstat(file.fileno())
            _require_regular(found)
            content = file.read(min(found.st_size, most) + 1)
            while len(content) <= most and (more := file.read(_PIECE)):  # it has grown, or says no size
                content += more
    except ValueError as error:  # a null byte, or characters that no file name can have
        raise OSError(errno.EINVAL, "no file can have this name") from error
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes")
    return content


def parse_json(text: str, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON text.

    Args:
        text: The text.
        object_hook: See `json.loads`.

    Raises:
        ParseError: It is not JSON, is nested more than `MAX_DEPTH` deep, or has a whole number of more digits than
            Python converts (4,300).
    """
    if _is_deep(text):
        raise ParseError(f"it is nested more than {MAX_DEPTH} deep", is_limit=True)
    try:
        return json.loads(text, object_hook=object_hook)
    except json.JSONDecodeError as error:
        raise ParseError(str(error), error.lineno) from error
    except RecursionError as error:
        raise ParseError(f"it is nested more than {MAX_DEPTH} deep", is_limit=True) from error
    except ValueError as error:
        digits = sys.get_int_max_str_digits()
        raise ParseError(f"a whole number has more than {digits:,} digits", is_limit=True) from error


def parse_yaml(text: str) -> Any:
    """The content of a YAML text, with the plain types of `yaml.safe_load`.

    Raises:
        ParseError: It is not YAML, a value cannot be read (such as a date that does not exist), or it breaks one of the
            limits above.
    """
    import yaml

    if len(text) > MAX_YAML_BYTES:
        raise ParseError(f"it has more than {MAX_YAML_BYTES:,} characters", is_limit=True)
    try:
        return _bounded_loader()(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable"
        raise ParseError(problem, mark.line + 1 if mark else None) from error
    except RecursionError as error:
        raise ParseError(f"it is nested more than {MAX_DEPTH} deep", is_limit=True) from error


def _require_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file but a pipe, a socket or a device")


def _is_deep(text: str) -> bool:
    """Whether a JSON text is nested more than `MAX_DEPTH` deep; without recursion, and fast for gigabytes."""
    if "\\" in text:
        text = _ESCAPE.sub("", text)  # of quotes in strings, above all
    pieces = (text[start : start + _PIECE].encode("utf-8", "surrogatepass") for start in range(0, len(text), _PIECE))
    brackets = _STRING.sub(b"", b"".join(piece.translate(None, _NOT_BRACKETS) for piece in pieces))
    for _ in range(MAX_DEPTH):
        before = len(brackets)
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(brackets) == before:  # all is gone, or the brackets do not match, which the parser says better
            return _opens_deep(brackets)
    return bool(brackets)


def _opens_deep(brackets: bytes) -> bool:
    """Whether brackets that do not match open more than `MAX_DEPTH` levels."""
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _bounded_loader() -> "type[yaml.SafeLoader]":
    """A loader that counts what it composes, and says which line has a value that cannot be read."""
    import yaml

    class BoundedLoader(yaml.SafeLoader):
        def __init__(self, stream: str) -> None:
            super().__init__(stream)
            self._depth = self._nodes = 0
            self._sizes: dict[str, int] = {}  # nodes that the alias of an anchor stands for

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent):
                name = str(event.anchor)
                if name in self.anchors and name not in self._sizes:
                    raise _limit("an alias stands inside what it names", event)
                self._count(self._sizes.get(name, 1), event)
                return super().compose_node(parent, index)
            before = self._nodes
            self._count(1, event)
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise _limit(f"it is nested more than {MAX_DEPTH} deep", event)
            node = super().compose_node(parent, index)
            self._depth -= 1
            if event.anchor is not None:
                self._sizes[event.anchor] = self._nodes - before
            return node

        def _count(self, nodes: int, event: yaml.Event) -> None:
            self._nodes += nodes
            if self._nodes > MAX_YAML_NODES:
                raise _limit(f"it has more than {MAX_YAML_NODES:,} values", event)

        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            try:
                value = super().construct_object(node, deep)
                if isinstance(value, int):
                    str(value)  # one with more digits than Python writes could be in no message
                if isinstance(value, str) and _PAIR.search(value):  # JSON is YAML, and writes emoji as two halves
                    return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
                return value
            except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
                kind = node.tag.rpartition(":")[2]
                problem = f"this is no {kind} that can be read; as text, it stands in quotes"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def _limit(problem: str, event: Any) -> yaml.MarkedYAMLError:
        return yaml.composer.ComposerError(None, None, problem, event.start_mark)

    return BoundedLoader
