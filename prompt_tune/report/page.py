"""`report.html`: what a fit learned, or what a verification found, as one self-contained page. Light: no torch.

Pictures are data URIs and there are no scripts, so that the file can be mailed, archived and opened anywhere.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tune.evaluation.matching import HIT_IOU
from prompt_tune.evaluation.outcomes import ClassOutcome, Example
from prompt_tune.evaluation.thresholds import hardly_learned
from prompt_tune.files import replacing
from prompt_tune.report.figures import CURVE_SIDE
from prompt_tune.report.pictures import Picture, pictures
from prompt_tune.version import __version__
from prompt_tune.vocabulary.format import GRAPH_FILE, LEARNED_FILE, ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from prompt_tune.evaluation.verify import FalseAlarms, Verification
    from prompt_tune.models.interpretation import Movement, TokenDistances

NO_NUMBER = "\N{EN DASH}"
TABLE_ROWS = 50  # of confusions, false alarms and collisions
PICTURED = 24  # classes with pictures of false alarms, and pairs with one of a collision: about 1.5 MB


@dataclass(frozen=True, eq=False)
class ClassSection:
    """One learned class in a fit's report.

    ap50: nan where it has no object. curve: points of an SVG polyline, recall to the right and precision up, both from
    0 to `CURVE_SIDE`. hits, misses, false_alarms: pictures, none for a class that is left out for want of room.
    """

    name: str
    prompts: tuple[str, ...]
    ap50: float
    threshold: float
    outcome: ClassOutcome
    curve: str
    hits: tuple[Picture, ...] = ()
    misses: tuple[Picture, ...] = ()
    false_alarms: tuple[Picture, ...] = ()

    @property
    def hardly_learned(self) -> bool:
        """Whether many false alarms are to be expected."""
        return hardly_learned(self.threshold, self.outcome.precision)


@dataclass(frozen=True)
class Confusion:
    """On how many of a learned class's labelled objects an original class is detected too."""

    learned: str
    original: str
    count: int
    objects: int


@dataclass(frozen=True, eq=False)
class FitReport:
    """All that a fit's report shows.

    ap, ap50: of the kept epoch, in 0..1, from scores above lowest_score. pictured: how many classes have pictures,
    those with the lowest AP50 where there are many. unread: a line for each validation image that could not be read
    again. facts: what the run was made from, names and values by heading.
    """

    title: str
    ap: float
    ap50: float
    lowest_score: float
    epoch: int
    epochs: int
    train_images: int
    val_images: int
    original_classes: int
    classes: tuple[ClassSection, ...]
    pictured: int
    unread: tuple[str, ...]
    figures: tuple[Picture, ...]
    confusions: tuple[Confusion, ...]
    movements: "tuple[Movement, ...]"
    tokens: "TokenDistances"
    facts: Mapping[str, Mapping[str, str]]

    @property
    def objects(self) -> int:
        """Labelled validation objects."""
        return sum(section.outcome.objects for section in self.classes)


@dataclass(frozen=True, eq=False)
class _AlarmPictures:
    """Of a verification: classes with their surest false alarms, one collision of each pair, and a line for each image
    that could not be read again."""

    alarms: "tuple[tuple[FalseAlarms, tuple[Picture, ...]], ...]"
    collisions: tuple[Picture, ...]
    unread: tuple[str, ...]


def write_fit_page(path: Path, report: FitReport) -> None:
    """Write a fit's report."""
    _write(path, "fit.html.j2", {"report": report})


def write_verification_page(
    path: Path, result: "Verification", bundle: str | Path, learned: Sequence[str | Path] = ()
) -> None:
    """Write the report of a verification.

    Args:   path: the HTML file to write. result: of `verify`. bundle, learned: what it was given.
    Raises: VocabularyError: a vocabulary is not there any more.
    """
    files = [Path(bundle) / ORIGINAL_FILE, Path(bundle) / LEARNED_FILE, *map(Path, learned)]
    vocabularies = [(file.name.removesuffix(".vocab.safetensors"), Vocabulary.load(file)) for file in files]
    first = vocabularies[0][1]
    facts = {
        "Bundle": {
            "folder": Path(bundle).absolute().name,
            "graph": GRAPH_FILE,
            "detector": first.detector,
            "text tower": first.text_tower,
            "guide": first.guide,
        },
        "Versions": versions("numpy", "onnxruntime-gpu", "onnxruntime", "pillow"),
    }
    content = {"result": result, "shown": _alarm_pictures(result), "vocabularies": vocabularies, "facts": facts}
    _write(path, "verify.html.j2", content)


def versions(*packages: str) -> dict[str, str]:
    """Versions of prompt-tune, Python and those of the packages that are installed."""
    found = {"prompt-tune": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # onnxruntime comes as one of two packages
            continue
    return found


def _alarm_pictures(result: "Verification") -> _AlarmPictures:
    """Of the classes and the pairs of classes that have most; the images are read again."""
    if result.examples is None:
        return _AlarmPictures((), (), ())
    alarms = [(row, result.examples.alarms[row.vocabulary, row.learned]) for row in result.false_alarms[:PICTURED]]
    collisions = [
        (row.learned, result.examples.collisions[(row.vocabulary, row.learned), row.original])
        for row in result.collisions[:PICTURED]
    ]
    wanted = [(example, row.learned, "false alarm") for row, examples in alarms for example in examples]
    drawn, unread = pictures(wanted + [(example, learned, "collision") for learned, example in collisions])

    def captioned(example: Example, heading: str = "") -> Picture:
        return replace(drawn[example], caption=f"{heading}{example.path.name}: {example.note}")

    return _AlarmPictures(
        alarms=tuple((row, tuple(captioned(one) for one in examples if one in drawn)) for row, examples in alarms),
        collisions=tuple(captioned(one, f"{learned}, ") for learned, one in collisions if one in drawn),
        unread=unread,
    )


def _write(path: Path, template: str, content: Mapping[str, object]) -> None:
    """Render a template with everything escaped, and write it whole."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("prompt_tune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    constants = {"hit_iou": HIT_IOU, "side": CURVE_SIDE, "table_rows": TABLE_ROWS, "version": __version__}
    text = environment.get_template(template).render({**constants, **content})
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _number(value: float | None) -> str:
    """Three decimals; a dash where there is no number."""
    return NO_NUMBER if value is None or value != value else f"{value:.3f}"
