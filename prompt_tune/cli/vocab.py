"""`prompt-tune vocab`: build, show and edit vocabulary files."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from rich.table import Table

    from prompt_tune.vocabulary import Vocabulary
    from prompt_tune.vocabulary_diff import VocabularyDiff

FILE = click.Path(path_type=Path)
OUT = click.option("--out", required=True, type=FILE, help="The vocabulary file to write (*.vocab.safetensors).")


@click.group(name="vocab")
def command() -> None:
    """Build, show, compare and edit vocabulary files.

    A vocabulary file (*.vocab.safetensors) holds class names, their embeddings, a threshold for each, and the digests
    of the detector, text tower and guide that it was made for. Only `build` needs PyTorch.
    """


@command.command()
@click.option("--model", required=True, help="The detector: `tiny`, a YOLO-World v2 checkpoint, or an official name.")
@click.option(
    "--names",
    required=True,
    help='The classes: names with commas between them and synonyms after semicolons ("lorry; truck, car"), a .txt file '
    "with one class a line, or a built-in list: coco, lvis, objects365, tiny.",
)
@OUT
@click.option(
    "--kind",
    type=click.Choice(["plain", "original"]),
    default="plain",
    show_default=True,
    help="Whether the classes are added to an original vocabulary, or are one that guides the detector.",
)
@click.option(
    "--text-tower", show_default="the detector's own", help="NAME:TAG of open_clip, local-dir:FOLDER, or `tiny`."
)
@click.option(
    "--prompts",
    type=FILE,
    help="prompts.safetensors of a run: its context vectors go in front of the names, and the kind is `learned`.",
)
@click.option(
    "--original",
    "--guide",
    "original",
    show_default="that of the run or the detector",
    help="The original vocabulary that the file is for: a vocabulary file, or what --names takes.",
)
def build(
    model: str,
    names: str,
    out: Path,
    kind: Literal["plain", "original"],
    text_tower: str | None,
    prompts: Path | None,
    original: str | None,
) -> None:
    """Make a vocabulary file from class names, with the detector's text tower."""
    if kind == "original" and (prompts is not None or original is not None):
        raise click.UsageError("--kind original goes with neither --prompts nor --original: it is a guide itself.")
    from prompt_tune.names import read_classes

    classes = read_classes(names)  # a mistake here is told before anything heavy is loaded
    from prompt_tune.build import build_vocabulary

    vocabulary = build_vocabulary(
        model,
        classes,
        kind="learned" if prompts is not None else kind,
        text_tower=text_tower,
        original=original,
        prompts=prompts,
    )
    _save(vocabulary, out)


@command.command()
@click.argument("file", type=FILE)
def show(file: Path) -> None:
    """Print what a vocabulary file holds: its classes, and what it was made for."""
    from rich.console import Console

    from prompt_tune.vocabulary import Vocabulary

    vocabulary = Vocabulary.load(file)
    console = Console(highlight=False)
    console.print(_classes(vocabulary))
    console.print(_origin(vocabulary))


@command.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@OUT
def merge(files: tuple[Path, ...], out: Path) -> None:
    """Put the classes of several vocabulary files, for one detector and guide, into one file."""
    from prompt_tune.vocabulary import Vocabulary
    from prompt_tune.vocabulary import merge as merge_vocabularies

    _save(merge_vocabularies([Vocabulary.load(file) for file in files]), out)


@command.command()
@click.argument("file", type=FILE)
@click.argument("names", nargs=-1, required=True, metavar="OLD NEW [OLD NEW]...")
@OUT
def rename(file: Path, names: tuple[str, ...], out: Path) -> None:
    """Give classes other names: an old and a new one at a time. Embeddings and scores stay as they are."""
    if len(names) % 2:
        raise click.UsageError(f"Names go in pairs, OLD NEW. Received: {len(names)}.")
    old, new = names[::2], names[1::2]
    if len(set(old)) < len(old):
        raise click.UsageError("A class gets one new name; an OLD stands twice.")
    from prompt_tune.vocabulary import Vocabulary

    _save(Vocabulary.load(file).rename(dict(zip(old, new, strict=True))), out)


@command.command()
@click.argument("file", type=FILE)
@click.argument("names", nargs=-1, required=True)
@OUT
def remove(file: Path, names: tuple[str, ...], out: Path) -> None:
    """Leave classes out, by their names."""
    from prompt_tune.vocabulary import Vocabulary

    _save(Vocabulary.load(file).remove(names), out)


@command.command(name="diff")
@click.argument("before", metavar="A", type=FILE)
@click.argument("after", metavar="B", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, digests in full, instead of a table.")
def diff_files(before: Path, after: Path, as_json: bool) -> None:
    """Print what changed from file A to file B, for reviewing a vocabulary.

    Classes that were added or removed; those that both have whose embeddings moved (with their cosine: 1 is the same
    direction), whose threshold or whose calibration changed; and what changed of the whole file, such as its digests.
    """
    import json

    from rich.console import Console

    from prompt_tune.vocabulary import Vocabulary
    from prompt_tune.vocabulary_diff import diff

    found = diff(Vocabulary.load(before), Vocabulary.load(after))
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    elif found.identical:
        click.echo("identical")
    elif found.is_empty:
        click.echo("No class and no field differs: the files differ in the order or repetition of prompts alone.")
    else:
        Console(highlight=False).print(_differences(found))


def _save(vocabulary: "Vocabulary", out: Path) -> None:
    vocabulary.save(out)
    count = len(vocabulary.names)
    click.echo(f"Wrote {out}: {count} class{'es' if count > 1 else ''}, kind {vocabulary.kind}.")


def _classes(vocabulary: "Vocabulary") -> "Table":
    """A row for each class."""
    import numpy as np
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("id", justify="right")
    table.add_column("class", overflow="fold")
    table.add_column("prompts", justify="right")
    table.add_column("threshold", justify="right")
    if vocabulary.calibration is not None:
        table.add_column("scale, shift", justify="right")
    for i, name in enumerate(vocabulary.names):
        n_prompts = len(np.unique(vocabulary.embeddings[i], axis=0))  # those repeated to pad are one
        cells: list[str | Text] = [str(i), Text(name), str(n_prompts), f"{vocabulary.thresholds[i]:.3g}"]
        if vocabulary.calibration is not None:
            cells.append("{:.3g}, {:.3g}".format(*vocabulary.calibration[i]))
        table.add_row(*cells)
    return table


def _origin(vocabulary: "Vocabulary") -> "Table":
    """A line for each thing that is so of the whole file; digests by their first digits."""
    import json

    from rich.table import Table
    from rich.text import Text

    from prompt_tune.vocabulary import short

    table = Table.grid(padding=(0, 2))
    for what, value in (
        ("classes", str(len(vocabulary.names))),
        ("kind", vocabulary.kind),
        ("guide mode", vocabulary.guide_mode),
        ("digest", short(vocabulary.digest)),
        ("detector", short(vocabulary.detector)),
        ("text tower", short(vocabulary.text_tower)),
        ("guide", short(vocabulary.guide)),
        ("provenance", json.dumps(vocabulary.provenance, sort_keys=True)),
    ):
        table.add_row(what, Text(value, overflow="fold"))
    return table


def _differences(found: "VocabularyDiff") -> "Table":
    """A row for each thing that changed; digests by their first digits."""
    import json

    from rich.table import Table
    from rich.text import Text

    from prompt_tune.vocabulary import short

    def shown(value: object, name: str = "") -> str:
        if value is None:
            return "none"
        if name in ("detector", "text_tower", "guide"):
            return short(str(value))
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True).strip("[]")

    rows = [("added", name, "", "") for name in found.added]
    rows += [("removed", name, "", "") for name in found.removed]
    rows += [("moved", moved.name, "", f"cosine {moved.cosine:.6f}") for moved in found.moved]
    for what, changes in (("threshold", found.rethresholded), ("scale, shift", found.recalibrated)):
        rows += [(what, change.name, shown(change.before), shown(change.after)) for change in changes]
    if found.reordered:
        rows.append(("order", "", "", "other class ids"))
    rows += [(c.name, "", shown(c.before, c.name), shown(c.after, c.name)) for c in found.metadata]
    table = Table("what", "class", "before", "after")
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    return table
