"""Limits on JSON and YAML from other people, and files that are none."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from prompt_tune.texts import (
    MAX_DEPTH,
    MAX_YAML_BYTES,
    MAX_YAML_NODES,
    ParseError,
    parse_json,
    parse_yaml,
    regular_bytes,
)

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 1", {"a": 1}),
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        ("a: &x {k: 1}\nb:\n  <<: *x\n  l: 2", {"a": {"k": 1}, "b": {"k": 1, "l": 2}}),
        ("&a x: *a", {"x": "x"}),
        ('{"\\ud83d\\ude9a": "a\\ud83d\\ude9a"}', {"\U0001f69a": "a\U0001f69a"}),  # as JSON writes it in ASCII
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)),
    ],
)
def test_yaml_within_the_limits_is_read(text: str, value: object) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, f"it has more than {MAX_YAML_NODES:,} values"),
        (MERGES, f"it has more than {MAX_YAML_NODES:,} values"),
        ("a: &a [*a]", "an alias stands inside what it names"),
        ("a: &a\n  <<: *a", "an alias stands inside what it names"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "it is nested more than 64 deep"),
        ("{a: " * 10_000, "it is nested more than 64 deep"),
        ("- " * 10_000, "it is nested more than 64 deep"),
        ("x" * (MAX_YAML_BYTES + 1), f"it has more than {MAX_YAML_BYTES:,} characters"),
        ("a: 2020-13-45", "this is no timestamp that can be read; as text, it stands in quotes"),
        ("a: 2020-01-01T00:00:00+99:99", "this is no timestamp that can be read"),
        ("a: 0b_", "this is no int that can be read"),
        ("a: 0x_", "this is no int that can be read"),
        ("a: " + "1" * 5000, "this is no int that can be read"),
        ("a: 0x" + "f" * 5000, "this is no int that can be read"),  # Python reads it, but cannot write it
        ("a: !!float ''", "this is no float that can be read"),
        ("a: !<tag:yaml.org,2002:bool> maybe", "this is no bool that can be read"),
        ("a: !!timestamp x", "this is no timestamp that can be read"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: \x00", "special characters are not allowed"),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_yaml_beyond_the_limits_is_refused_within_a_second(text: str, problem: str) -> None:
    start = time.monotonic()
    with pytest.raises(ParseError) as refusal:
        parse_yaml(text)
    assert problem in str(refusal.value)
    assert time.monotonic() - start < 1


def test_line_of_a_value_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ParseError) as refusal:
        parse_yaml("names:\n- a\n- 2020-99-99\n")
    assert (refusal.value.line, refusal.value.is_limit) == (3, False)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 65 + "]" * 65, "it is nested more than 64 deep"),
        ("[" * 100_000 + "]" * 100_000, "it is nested more than 64 deep"),
        ("[" * 100_000, "it is nested more than 64 deep"),
        ('["\\n", ' + "[" * 65 + "]" * 66, "it is nested more than 64 deep"),  # the string ends at its quote
        ('["\\\\", ' + "[" * 65 + "]" * 66, "it is nested more than 64 deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "it is nested more than 64 deep"),
        ("1" * 5000, "a whole number has more than 4,300 digits"),
        ("[1]]", "Extra data"),
        ("]" * 100, "Expecting value"),
        ("", "Expecting value"),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_json_beyond_the_limits_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ParseError) as refusal:
        parse_json(text)
    assert problem in str(refusal.value)


@pytest.mark.parametrize(
    "text", ["[" * 64 + "]" * 64, '"' + "[" * 100 + '"', '["\\"' + "[{" * 50 + '"]', '{"\\\\": [[]]}']
)
def test_json_within_the_limits_is_read(text: str) -> None:
    assert parse_json(text) == json.loads(text)


def test_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    waiting = threading.Timer(5, lambda: os.close(os.open(tmp_path / "pipe", os.O_RDWR)))  # ends a reader that hangs
    waiting.daemon = True
    waiting.start()
    start = time.monotonic()
    with pytest.raises(OSError, match="no regular file but a pipe"):
        regular_bytes(tmp_path / "pipe", 10)
    assert time.monotonic() - start < 4
    waiting.cancel()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a\0b", "no file can have this name"),
        ("\ud800", "no file can have this name"),
        ("x" * 300, "File name too long"),
        (".", "Is a directory"),
        ("gone", "No such file"),
        ("/dev/zero", "no regular file but a pipe, a socket or a device"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(OSError, match=problem):
        regular_bytes(tmp_path / name, 10)


def test_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert regular_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="it has more than 4 bytes"):
        regular_bytes(tmp_path / "a", 4)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux has /proc")
def test_file_that_says_no_size_is_read_whole() -> None:
    assert b"VmRSS" in regular_bytes("/proc/self/status", 2**20)
