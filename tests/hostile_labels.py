"""Data sets that mean harm: valid ones, changed at random places. Only `DataError` may come out of reading them.

`cases(seed, count)` writes them one after another; `read(place)` reads one as `fit`, `val` and `--replay` do. A stress
run calls `check(folder, seed, count)` with more cases: `python tests/hostile_labels.py --cases 10000 --seed 5`.
"""

import contextlib
import json
import logging
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import yaml
from data_sets import (
    NAMES,
    TRAIN,
    VAL,
    grounding_content,
    write_coco,
    write_devkit,
    write_roboflow,
    write_voc,
    write_yolo,
)
from exports import WRITERS

from prompt_tune.datasets.reading import read_dataset, read_split
from prompt_tune.datasets.replay import read_replay
from prompt_tune.errors import PromptTuneError

SECONDS = 20  # a case may take as long; each is a few kilobytes
BILLION_LAUGHS = (
    '<!DOCTYPE x [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>"
)
# Raw texts for values in JSON and YAML; JSON's parser takes the first ones
LITERALS = (
    *("NaN", "Infinity", "-Infinity", "1" + "0" * 400, "-1" + "0" * 400, "1e400", "-1e308", "1e308", "5e-324", "-0.0"),
    *("9" * 5000, "null", "true", "false", "0", "-1", "1.0", "2.5", "18446744073709551616", '""', '" "', '"7"', "[]"),
    *("{}", "[[]]", "[1, 2]", '{"a": 1}', '"\\ud800"', '"\\u0000"', '"a\\u0000b"', '"\\u001b[2J"', '"\\u202e"'),
    *('"~nouser/x.png"', '"../../../etc/passwd"', '"/etc/passwd"', '"/dev/zero"', '"."', '".."', '"/"', '"~/nowhere"'),
    *('"' + "x" * 300 + '"', '"' + "x/" * 3000 + '"', '"%00"', '"%2e%2e/%2e%2e/x.png"', '"..\\\\..\\\\x.png"'),
    *("[" * 70 + "]" * 70, '{"a":' * 70 + "1" + "}" * 70, "[" * 3000 + "]" * 3000),
)
YAML_LITERALS = (
    *(
        "2020-01-01",
        "2020-13-45",
        "2020-01-01T00:00:00+99:99",
        "2001-12-14 21:59:43.10 -5",
        "0b_",
        "0x_",
        "1_0",
        "1:99",
    ),
    *(
        "0x" + "f" * 5000,
        ".inf",
        ".nan",
        "~",
        "no",
        "!!binary x",
        "!!int q",
        "!!float ''",
        "!!set {x}",
        "!!omap [x: y]",
    ),
    *(
        "!!python/object:os.system x",
        "&a [*a]",
        "*gone",
        "? [a]",
        "<<: 3",
        "=",
        "!!timestamp x",
        "\x00",
        "\t",
        "'",
        "{",
    ),
    *("[" * 2000, "&a [x, x, x, x, x, x, x, x]", "!<tag:yaml.org,2002:bool> maybe", "%YAML 9", "---", "...", "- - - -"),
)
ROWS = (
    *("", "0", "0 0.5 0.5 0.2", "0 0.5 0.5 0.2 0.2 0.9", "x y z w v", "1e400 0.5 0.5 0.2 0.2", "nan nan nan nan nan"),
    *("-1 0.5 0.5 0.2 0.2", "1e30 0.5 0.5 0.2 0.2", "0 inf 0.5 0.2 0.2", "0 1e308 1e308 1e308 1e308", "0 -0 -0 -0 -0"),
    *(
        "0 " + "9" * 6000 + " 0.5 0.2 0.2",
        "\x00",
        "\x1b[2J",
        "\ufeff0 0.5 0.5 0.2 0.2",
        "0\u20280.5",
        "0 " * 4000,
        "0.5 " * 9,
    ),
    *(
        "0 0.1 0.1 0.2 0.1 0.2 0.2",
        "0 0.1 0.1 nan 0.1 0.2 0.2",
        "٣ 0.5 0.5 0.2 0.2",
        "0_1 0.5 0.5 0.2 0.2",
        "\r",
        "0\x0b0",
    ),
)
LINES = (
    *("", ".", "..", "/", "~", "~nouser/a.png", "/etc/passwd", "/dev/zero", "../../../../etc/passwd", "a\x00b.png"),
    *(
        "x" * 300,
        "x/" * 3000,
        "x" * 9000 + ".png",
        "%00.png",
        "%2e%2e/%2e%2e/%2e%2e/x.png",
        "..\\..\\..\\x.png",
        "\x1b[2J",
    ),
    *("./", "//", "images", "images/", "./../../../..", ".png", ". .", "\ud800", "#", "a/../../../../b.png"),
)


def cases(folder: Path, seed: int, count: int) -> Iterator[Path]:
    """Data sets in all formats, each with one to three changes; the folder has one at a time."""
    makers: tuple[Callable[[Path, random.Random], Path], ...] = (_yolo, _coco, _roboflow, _voc, _devkit, _grounding)
    makers = (*makers, *[_export] * len(makers))
    for number in range(count):
        random_ = random.Random(f"{seed}/{number}")
        root = folder / "above" / f"case{number}"
        place = random_.choice(makers)(root, random_)
        yield place
        shutil.rmtree(folder / "above", ignore_errors=True)


def read(place: Path) -> str:
    """Reads a data set in one of the ways of the commands; returns what came: "read", or the class of the error."""
    try:
        if place.suffix == ".json" or "grounding" in place.name:
            read_replay(place, [("dog",)])
        else:
            read_dataset(place)
            read_split(place, "val")
            read_replay(place, [("lorry",)], count=2)
    except PromptTuneError as error:
        text = str(error)
        assert len(text) < 12_000, f"{place}: an error of {len(text)} characters"
        return type(error).__name__
    return "read"


def check(folder: Path, seed: int, count: int) -> Counter[str]:
    """Reads `count` cases and counts what came.

    Raises:
        AssertionError: Something else than a `PromptTuneError` came, or a case took too long. Its text has the seed.
    """
    found: Counter[str] = Counter()
    for number, place in enumerate(cases(folder, seed, count)):
        start = time.monotonic()
        try:
            with _alarm(SECONDS):
                found[read(place)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            kept = Path(tempfile.mkdtemp(prefix="hostile-"))
            shutil.copytree(folder / "above", kept / "above", symlinks=True, ignore=_fifos)
            raise AssertionError(
                f"seed {seed}, case {number}: {type(error).__name__}: {error!s:.300} ({kept})"
            ) from error
        assert time.monotonic() - start < SECONDS
    return found


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """Ends a case that hangs."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _fifos(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]


def _yolo(root: Path, random_: random.Random) -> Path:
    description = write_yolo(root, {"train": TRAIN, "val": VAL})
    if random_.random() < 0.4:  # lists instead of folders
        (root / "train.txt").write_text("".join(f"images/train/{stem}.png\n" for stem in TRAIN))
        content = yaml.safe_load(description.read_text()) | {"train": "train.txt"}
        description.write_text(yaml.safe_dump(content))
    for _ in range(random_.randint(1, 3)):
        way = random_.random()
        if way < 0.45:
            _change_yaml(description, random_)
        elif way < 0.6 and (root / "train.txt").is_file():
            _change_lines(root / "train.txt", LINES, random_)
        elif way < 0.85:
            _change_lines(random_.choice(sorted((root / "labels").rglob("*.txt"))), ROWS, random_)
        else:
            _change_file(root, random_)
    return description


def _coco(root: Path, random_: random.Random) -> Path:
    place = write_coco(root, {"train": TRAIN, "val": VAL})
    _change_jsons(root, [root / "train.json", root / "val.json"], random_)
    if random_.random() < 0.3:
        _change_yaml(place, random_)
    return place


def _roboflow(root: Path, random_: random.Random) -> Path:
    place = write_roboflow(root, {"train": TRAIN, "val": VAL})
    _change_jsons(root, sorted(root.rglob("*.json")), random_)
    return place


def _grounding(root: Path, random_: random.Random) -> Path:
    (root / "images").mkdir(parents=True)
    write_yolo(root / "other", {"train": TRAIN})
    for picture in sorted((root / "other/images/train").iterdir()):
        shutil.copy(picture, root / "images")
    rows: list[Any] = [
        ("a.png", "a dog and a cat", [(["dog"], 1, 2, 30, 40)]),
        ("b.png", "a cat", [(["cat"], 0, 0, 9, 9)]),
    ]
    file = root / "set.json"
    file.write_text(json.dumps(grounding_content(rows)))
    description = root / "grounding.yaml"
    description.write_text("images: images\ngrounding: set.json\n")
    _change_jsons(root, [file], random_)
    if random_.random() < 0.5:
        return file
    if random_.random() < 0.5:
        _change_yaml(description, random_)
    return description


def _export(root: Path, random_: random.Random) -> Path:
    """What an annotation tool exports, with a change in whatever files it has."""
    writer, has_val, _ = WRITERS[random_.choice(sorted(WRITERS))]
    writer(root, {"train": TRAIN, "val": VAL} if has_val else {"train": TRAIN})
    for _ in range(random_.randint(1, 3)):
        files = [path for path in sorted(root.rglob("*")) if path.suffix in _CHANGES and path.is_file()]
        if not files or random_.random() < 0.1:
            _change_file(root, random_)
        else:
            file = random_.choice(files)
            _CHANGES[file.suffix](file, random_)
    return root


def _voc(root: Path, random_: random.Random) -> Path:
    return _changed_voc(write_voc(root, {"train": TRAIN, "val": VAL}), random_)


def _devkit(root: Path, random_: random.Random) -> Path:
    return _changed_voc(write_devkit(root, {"train": TRAIN, "val": VAL}), random_)


def _changed_voc(root: Path, random_: random.Random) -> Path:
    for _ in range(random_.randint(1, 3)):
        files, lists = sorted(root.rglob("*.xml")), sorted(root.rglob("*.txt"))
        way = random_.random()
        if way < 0.6 and files:
            _change_xml(random_.choice(files), random_)
        elif way < 0.85 and lists:
            _change_lines(random_.choice(lists), LINES, random_)
        else:
            _change_file(root, random_)
    return root


def _change_jsons(root: Path, files: list[Path], random_: random.Random) -> None:
    for _ in range(random_.randint(1, 3)):
        file = random_.choice(files)
        if random_.random() < 0.1:
            _change_file(root, random_)
        elif file.is_file():
            _change_json(file, random_)


def _change_json(file: Path, random_: random.Random) -> None:
    """Replaces, removes or doubles a value of a JSON file, or damages its text."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError):
        return
    if random_.random() < 0.1:
        file.write_bytes(_damaged(file.read_bytes(), random_))
        return
    marker = "@@@"
    changed = _change(content, marker, random_)
    text = json.dumps(changed).replace(f'"{marker}"', random_.choice(LITERALS))
    file.write_text(text, "utf-8")


def _change_yaml(file: Path, random_: random.Random) -> None:
    if not file.is_file():
        return
    try:
        content = json.loads(json.dumps(yaml.safe_load(file.read_text("utf-8"))))
    except Exception:  # it was changed before, and PyYAML raises whatever it likes
        return
    way = random_.random()
    if way < 0.1:
        file.write_bytes(_damaged(file.read_bytes(), random_))
    elif way < 0.3 and isinstance(content, dict):
        key = random_.choice(
            ["path", "nc", "names", "hold_out", "kpt_shape", "val", "test", "validation", "7", "grounding"]
        )
        literal = random_.choice([*LITERALS, *YAML_LITERALS])
        file.write_text(f"{file.read_text('utf-8')}\n{key}: {literal}\n", "utf-8", "surrogatepass")
    else:
        text = json.dumps(_change(content, "@@@", random_)).replace(
            '"@@@"', random_.choice([*LITERALS, *YAML_LITERALS])
        )
        file.write_text(text, "utf-8", "surrogatepass")


def _change(content: Any, value: Any, random_: random.Random) -> Any:
    """A copy of a JSON value with one part replaced, removed, doubled or exchanged with another one."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    if not isinstance(content, dict | list):
        return value
    visit(content)
    if not places or random_.random() < 0.02:
        return value
    node, key = random_.choice(places)
    way = random_.random()
    if way < 0.6:
        node[key] = value
    elif way < 0.7:
        del node[key]
    elif way < 0.8:
        other, name = random_.choice(places)
        with contextlib.suppress(KeyError, IndexError):
            node[key] = json.loads(json.dumps(other[name]))
    elif isinstance(node, list):
        node.insert(key, json.loads(json.dumps(node[key])))
    else:
        node[random_.choice(["id", "rotation", "segmentation", "attributes", "angle", "keypoints", "iscrowd"])] = value
    return content


def _change_lines(file: Path, others: tuple[str, ...], random_: random.Random) -> None:
    if not file.is_file():
        return
    lines = file.read_text("utf-8", "surrogateescape").split("\n")
    lines[random_.randrange(len(lines))] = random_.choice(others)
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    file.write_bytes(_damaged(content, random_) if random_.random() < 0.1 else content)


def _change_table(file: Path, random_: random.Random) -> None:
    """Replaces a field of a CSV file or of a list, or a line of it."""
    lines = file.read_text("utf-8", "replace").split("\n")
    number = random_.randrange(len(lines))
    fields = lines[number].split(",")
    if random_.random() < 0.3 or len(fields) < 2:
        _change_lines(file, (*LINES, *ROWS), random_)
        return
    values = (*LINES, *ROWS, "1e999", "nan", "-inf", '"', '""",', "9" * 5000, "x" * 200_000)
    fields[random_.randrange(len(fields))] = random_.choice(values)
    lines[number] = ",".join(fields)
    file.write_text("\n".join(lines), "utf-8", "surrogatepass")


def _change_xml(file: Path, random_: random.Random) -> None:
    if not file.is_file():
        return
    text = file.read_text("utf-8", "replace")
    values = [*LITERALS, *LINES, "&x;", "&#x1b;", "<x/>", "<![CDATA[x]]>", "\u202e"]
    way = random_.random()
    if way < 0.1:
        text = random_.choice(
            [
                BILLION_LAUGHS + text.replace(NAMES[0], "&i;"),
                '<!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + text.replace(NAMES[0], "&x;"),
                '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">' + text,
                '<?xml version="1.0" encoding="utf-7"?>' + text,
                '<?xml version="1.0" encoding="no such"?>' + text,
                "<annotation>" + "<object>" * 3000 + "</object>" * 3000 + "</annotation>",
            ]
        )
    elif way < 0.4 and '="' in text:  # an attribute
        start = random_.choice([i for i in range(len(text)) if text.startswith('="', i)]) + 2
        value = random_.choice([*LITERALS, *LINES]).replace('"', "'").replace("<", "")
        text = text[:start] + value + text[text.find('"', start) :]
    elif way < 0.75:
        starts = [i for i, letter in enumerate(text) if letter == ">" and text[i + 1 : i + 2] not in ("", "<", "\n")]
        if starts:
            start = random_.choice(starts) + 1
            end = text.find("<", start)
            text = text[:start] + random_.choice(values) + text[end:]
    elif way < 0.85:
        shape = random_.choice(["polygon", "robndbox", "attributes", "filename", "size", "object", "name", "bndbox"])
        text = text.replace(random_.choice(["bndbox", "size", "name", "object", "xmin"]), shape)
    elif way < 0.95:
        text = text.replace("<annotation>", f"<annotation><filename>{random_.choice(LINES)}</filename>", 1)
    content = text.encode("utf-8", "surrogatepass")
    file.write_bytes(_damaged(content, random_) if way > 0.95 else content)


def _change_file(root: Path, random_: random.Random) -> None:
    """Replaces a file by what is none, by a link, or by nothing."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    if not files:
        return
    file = random_.choice(files)
    file.unlink()
    way = random_.randrange(7)
    if way == 0:
        os.mkfifo(file)
    elif way == 1:
        file.mkdir()
    elif way == 2:
        file.symlink_to(random_.choice(["/dev/zero", "/nowhere", ".", "..", file.name, "/dev/null"]))
    elif way == 3:
        file.write_bytes(b"")
    elif way == 4:
        file.write_bytes(random_.randbytes(200))
    elif way == 5:
        file.write_bytes(b"\xff\xfe" + random_.randbytes(51))
    # else: it is gone


_CHANGES: dict[str, Callable[[Path, random.Random], None]] = {
    ".json": _change_json,
    ".xml": _change_xml,
    ".yaml": _change_yaml,
    ".csv": _change_table,
    ".txt": _change_table,
    ".names": _change_table,
    ".labels": _change_table,
}


def _damaged(content: bytes, random_: random.Random) -> bytes:
    at = random_.randrange(len(content) + 1)
    way = random_.randrange(3)
    if way == 0:
        return content[:at]
    if way == 1:
        return content[:at] + random_.randbytes(3) + content[at + 3 :]
    return content[:at] + bytes([random_.choice(b"\x00\xff\xfe{}[]\"'<>&:,-\n\t\x1b")]) + content[at:]


@click.command()
@click.option("--cases", default=1000, type=click.IntRange(1))
@click.option("--seed", default=0)
def main(cases: int, seed: int) -> None:
    """Read many cases and print what came of them."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        click.echo(f"hostile_labels: {dict(check(Path(folder), seed, cases))}; 0 faults")


if __name__ == "__main__":
    main()
