"""`prompt-tune vocab`: builds, shows, compares, edits and converts vocabulary files."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from prompt_tune.cli.options import Group, json_option, model_option, text_tower_option
from prompt_tune.cli.terminal import echo, note
from prompt_tune.wording import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from prompt_tune.vocabulary.vocabulary import Vocabulary

MOST_COLUMNS = 1000  # of a table that goes into a file or pipe: wider than any that people read
FILE = click.Path(path_type=Path)
OUT = click.option("--out", required=True, type=FILE, help="The vocabulary file to write (*.vocab.safetensors).")


@click.group(name="vocab", cls=Group)
def command() -> None:
    """Build, show, compare, edit and convert vocabulary files.

    A vocabulary file (*.vocab.safetensors) holds class names, the embeddings and threshold of each class, and the
    digests of the detector, text tower and guide that it was made for. Only `build` needs PyTorch.
    """


@command.command()
@model_option
@click.option(
    "--names",
    "--classes",
    "names",
    required=True,
    help='The classes: names separated by commas, synonyms after semicolons ("lorry; truck, car"), a .txt file '
    "with one class per line, or a built-in list: coco, lvis, objects365, tiny.",
)
@OUT
@click.option(
    "--kind",
    type=click.Choice(["plain", "original"]),
    default="plain",
    show_default=True,
    help="plain: classes to load beside an original vocabulary. original: a vocabulary that guides the detector.",
)
@text_tower_option
@click.option(
    "--prompts",
    type=FILE,
    help="prompts.safetensors of a run. Its context vectors are put in front of the names, and the kind is `learned`. "
    "Names that the run did not learn need a run with `fit --shared-context`.",
)
@click.option(
    "--original",
    "--guide",
    "original",
    show_default="that of the run or the detector",
    help="The original vocabulary that the file is made for: a vocabulary file, or classes as for --names.",
)
@click.option(
    "--background",
    multiple=True,
    metavar="TEXT",
    help='A row that guides and scores and is never shown: YOLO-World\'s authors add " ", ultralytics "". '
    "Only with --kind original. Can be given several times.",
)
def build(
    model: str,
    names: str,
    out: Path,
    kind: Literal["plain", "original"],
    text_tower: str | None,
    prompts: Path | None,
    original: str | None,
    background: tuple[str, ...],
) -> None:
    """Make a vocabulary file from class names, with the detector's text tower."""
    if kind == "original" and (prompts is not None or original is not None):
        raise click.UsageError("--kind original takes neither --prompts nor --original: it is a guide itself.")
    if background and kind != "original":
        raise click.UsageError("--background needs --kind original: only a guide has background rows.")
    from prompt_tune.vocabulary.names import read_classes

    classes = read_classes(names)  # here, so that a mistake shows before anything heavy is loaded
    from prompt_tune.models.embeddings import build_vocabulary

    vocabulary = build_vocabulary(
        model,
        classes,
        kind="learned" if prompts is not None else kind,
        text_tower=text_tower,
        original=original,
        prompts=prompts,
        background=background,
    )
    _save(vocabulary, out)


@command.command()
@click.argument("file", type=FILE)
@click.option("--all", "whole", is_flag=True, help="Also print the provenance: how the file was made.")
@json_option
def show(file: Path, whole: bool, as_json: bool) -> None:
    """Print the classes of a vocabulary file, and what it was made for."""
    from prompt_tune.cli.vocab_tables import classes_table, content_json, origin_table, provenance_lines
    from prompt_tune.vocabulary.vocabulary import Vocabulary

    vocabulary = Vocabulary.load(file)
    if as_json:
        click.echo(json.dumps(content_json(vocabulary, whole=whole), indent=1))
        return
    console = _console()
    _print(console, origin_table(vocabulary))
    _print(console, classes_table(vocabulary, console.width))
    for line in provenance_lines(vocabulary, console.width) if whole else ():
        echo(line)


@command.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@OUT
def merge(files: tuple[Path, ...], out: Path) -> None:
    """Merge the classes of several vocabulary files into one. All must be for the same detector and guide."""
    from prompt_tune.vocabulary.vocabulary import Vocabulary
    from prompt_tune.vocabulary.vocabulary import merge as merge_vocabularies

    _save(merge_vocabularies([Vocabulary.load(file) for file in files]), out)


@command.command()
@click.argument("file", type=FILE)
@click.argument("names", nargs=-1, required=True, metavar="OLD NEW [OLD NEW]...")
@OUT
def rename(file: Path, names: tuple[str, ...], out: Path) -> None:
    """Rename classes, given as pairs of an old and a new name. Embeddings and scores stay the same."""
    if len(names) % 2:
        raise click.UsageError(f"Names must be pairs, OLD NEW. Received: {len(names)}.")
    old, new = names[::2], names[1::2]
    if len(set(old)) < len(old):
        raise click.UsageError("Each OLD name can be given only once.")
    from prompt_tune.vocabulary.vocabulary import Vocabulary

    _save(Vocabulary.load(file).rename(dict(zip(old, new, strict=True))), out)


@command.command()
@click.argument("file", type=FILE)
@click.argument("names", nargs=-1, required=True)
@OUT
def remove(file: Path, names: tuple[str, ...], out: Path) -> None:
    """Remove classes by their names."""
    from prompt_tune.vocabulary.vocabulary import Vocabulary

    _save(Vocabulary.load(file).remove(names), out)


@command.command(name="diff")
@click.argument("before", metavar="A", type=FILE)
@click.argument("after", metavar="B", type=FILE)
@json_option
@click.option("--all", "whole", is_flag=True, help="Also list changes of the provenance: how the files were made.")
def diff_files(before: Path, after: Path, as_json: bool, whole: bool) -> None:
    """Print what changed from file A to file B, to review a vocabulary.

    Lists the classes that were added or removed; the classes of both files whose embeddings moved (with the cosine; 1
    means the same direction) or whose threshold, calibration, NMS IoU or box offsets changed; and changes of the whole
    file, such as its digests.
    """
    from prompt_tune.cli.vocab_tables import differences_table, is_provenance
    from prompt_tune.vocabulary.diff import diff
    from prompt_tune.vocabulary.vocabulary import Vocabulary

    found = diff(Vocabulary.load(before), Vocabulary.load(after))
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    elif found.identical:
        echo("identical")
    elif found.is_empty:
        echo("No class or field differs. The files differ only in the order or repetition of prompts.")
    else:
        console = _console()
        table = differences_table(found, console.width, whole=whole)
        if table.row_count:
            _print(console, table)
        else:
            echo("No class differs.")
        hidden = 0 if whole else sum(map(is_provenance, found.metadata))
        if hidden:
            echo(f"{counted(hidden, 'change')} of the provenance not shown: --all lists all.")


@command.command()
@click.argument("source", metavar="IN", type=FILE)
@click.argument("out", metavar="OUT", type=FILE)
@click.option(
    "--classes",
    type=FILE,
    show_default="beside the .npy, as .json",
    help="The JSON file with the class texts of a .npy file.",
)
@click.option(
    "--original",
    type=FILE,
    help="The original vocabulary that the new vocabulary file is for, or the bundle or run that has it.",
)
@click.option(
    "--kind",
    type=click.Choice(["plain", "learned", "original"]),
    default="plain",
    show_default=True,
    help="plain: embeddings of unchanged class names. learned: tuned embeddings. original: a guide.",
)
@click.option(
    "--normalise", is_flag=True, help="Scale rows to unit norm if they nearly have it, such as those made in float16."
)
def convert(
    source: Path,
    out: Path,
    classes: Path | None,
    original: Path | None,
    kind: Literal["plain", "learned", "original"],
    normalise: bool,
) -> None:
    """Convert vocabulary files to and from the formats of other projects. The suffix selects the format.

    \b
    .npy   AILab-CVC/YOLO-World: embeddings, and class texts as JSON in a second file
    .npz   ibaiGorordo/ONNX-YOLO-World-Open-Vocabulary-Object-Detection
    .npz   ultralytics 8.4, `save_prompt_embeddings` (only read)

    Embeddings stay the same, bit for bit. These formats have one embedding per class.
    """
    from prompt_tune.vocabulary.foreign import convert as convert_file

    written = convert_file(source, out, classes=classes, original=original, kind=kind, normalise=normalise)
    note(f"Wrote {' and '.join(map(str, written))}.")


def _console() -> "Console":
    """The console to print tables on: as wide as the terminal, or as COLUMNS says; a file or pipe has any width."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = MOST_COLUMNS
    return console


def _print(console: "Console", table: "Table") -> None:
    """Print a table, also if its words make it wider than the terminal: then the terminal folds its lines."""
    from rich.measure import Measurement

    width, console.width = console.width, MOST_COLUMNS
    console.width = max(width, Measurement.get(console, console.options, table).maximum)
    console.print(table)


def _save(vocabulary: "Vocabulary", out: Path) -> None:
    vocabulary.save(out)
    note(f"Wrote {out}: {counted(len(vocabulary.class_names), 'class')}, kind {vocabulary.kind}.")
