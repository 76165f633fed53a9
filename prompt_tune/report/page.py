"""`report.html`: what a fit learned or a verification found, as one self-contained page. Light: no torch.

Pictures are data URIs and there are no scripts, so the file can be mailed, archived and opened anywhere.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tune.contract import SAME_BOX_IOU
from prompt_tune.errors import RunError
from prompt_tune.evaluation.baselines import Baseline
from prompt_tune.evaluation.matching import HIT_IOU
from prompt_tune.evaluation.outcomes import ClassOutcome, Example
from prompt_tune.evaluation.thresholds import hardly_learned
from prompt_tune.files import saving
from prompt_tune.report.figures import SVG_SIDE
from prompt_tune.report.pictures import Picture, pictures
from prompt_tune.runtime.detections import ORIGINAL
from prompt_tune.runtime.labels import load_labelled
from prompt_tune.version import __version__
from prompt_tune.vocabulary.format import GRAPH_FILE, LEARNED_FILE, ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary
from prompt_tune.wording import counted

if TYPE_CHECKING:
    from prompt_tune.evaluation.verify import FalseAlarms, Verification
    from prompt_tune.models.interpretation import Movement, TokenDistances

NO_NUMBER = "\N{EN DASH}"
TABLE_ROWS = 50  # rows of a table of confusions, false alarms or collisions
PICTURED = 24  # classes with pictures of false alarms, and pairs of classes with a picture of a collision: about 1.5 MB


@dataclass(frozen=True, eq=False)
class ClassSection:
    """One learned class in the report of a fit.

    Attributes:
        name: The class name.
        prompts: The name and its synonyms.
        ap50: In 0..1; nan if no image has an object of the class.
        threshold: The score above which a detection counts.
        outcome: Hits, misses and false alarms at the threshold.
        curve: The precision-recall curve, from `svg_precision_recall`.
        hits: Pictures; empty for a class that is left out to keep the page small.
        misses: Likewise.
        false_alarms: Likewise.
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
        """Whether to expect many false alarms."""
        return hardly_learned(self.threshold, self.outcome.precision)


@dataclass(frozen=True, eq=False)
class MovedBoxes:
    """How the boxes of a class are moved to where its labels are drawn.

    Attributes:
        name: The class.
        text: What was found, in words.
        objects: The number of labelled objects in training images from which this comes; 0 if that is unknown.
        iou_before: Their mean IoU with the detector's own boxes; nan if unknown.
        iou_after: The same with boxes moved by the offsets of other images.
        moved: Whether boxes are moved.
        pictures: Some detections in validation images, before and after.
    """

    name: str
    text: str
    objects: int
    iou_before: float
    iou_after: float
    moved: bool
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Confusion:
    """An original class that is detected on labelled objects of a learned class.

    Attributes:
        learned: The learned class.
        original: The original class.
        count: The number of objects on which the original class is detected.
        objects: The number of labelled objects of the learned class.
    """

    learned: str
    original: str
    count: int
    objects: int


@dataclass(frozen=True, eq=False)
class FitReport:
    """Everything that the report of a fit shows.

    Attributes:
        title: The name of the run folder.
        ap: Of the kept epoch, in 0..1, measured over all scores above `lowest_score`.
        ap50: Likewise.
        lowest_score: The score from which detections enter AP.
        epoch: The epoch that was kept, from 1.
        epochs: The number of epochs in the settings.
        train_images: The number of training images.
        val_images: The number of validation images.
        folds: The number of folds if the images were cross-validated; see `Provenance`.
        original_classes: The number of original classes.
        classes: The learned classes.
        pictured: The number of classes with pictures: those with the lowest AP50 if there are many.
        unread: A line for each validation image that could not be read again.
        unlearned: What the names give without learning, on the same images.
        verdict: What to say of a fit that came to nothing; empty if it did not.
        training: Training images with their boxes.
        figures: The figures of the run folder.
        confusions: Confusions with original classes, most frequent first.
        boxes: How boxes are moved, by class; empty if boxes are frozen.
        movements: How each embedding moved.
        tokens: The tokens nearest to the context vectors.
        facts: What the run was made from: names and values by heading.
    """

    title: str
    ap: float
    ap50: float
    lowest_score: float
    epoch: int
    epochs: int
    train_images: int
    val_images: int
    folds: int
    original_classes: int
    classes: tuple[ClassSection, ...]
    pictured: int
    unread: tuple[str, ...]
    unlearned: tuple[Baseline, ...]
    verdict: str
    training: tuple[Picture, ...]
    figures: tuple[Picture, ...]
    confusions: tuple[Confusion, ...]
    boxes: tuple[MovedBoxes, ...]
    movements: "tuple[Movement, ...]"
    tokens: "TokenDistances"
    facts: Mapping[str, Mapping[str, str]]

    @property
    def objects(self) -> int:
        """The number of labelled objects in the validation images."""
        return sum(section.outcome.objects for section in self.classes)


@dataclass(frozen=True, eq=False)
class _AlarmPictures:
    """Pictures of a verification.

    Attributes:
        alarms: Classes with the false alarms that have the highest scores.
        collisions: One collision of each pair of classes.
        unread: A line for each image that could not be read again.
    """

    alarms: "tuple[tuple[FalseAlarms, tuple[Picture, ...]], ...]"
    collisions: tuple[Picture, ...]
    unread: tuple[str, ...]


def write_fit_page(path: Path, report: FitReport) -> None:
    """Write the report of a fit.

    Args:
        path: The HTML file to write.
        report: What it shows.

    Raises:
        RunError: The file cannot be written.
    """
    _write(path, "fit.html.j2", {"report": report})


def write_verification_page(
    path: Path, result: "Verification", bundle: str | Path, learned: Sequence[str | Path] = ()
) -> None:
    """Write the report of a verification.

    Args:
        path: The HTML file to write.
        result: From `verify`.
        bundle: The bundle that was verified.
        learned: The further vocabulary files that were verified, as `verify` takes them.

    Raises:
        VocabularyError: A vocabulary file is gone.
        RunError: The HTML file cannot be written.
    """
    first = Vocabulary.load(Path(bundle) / ORIGINAL_FILE)
    vocabularies = [(ORIGINAL, first), *load_labelled([Path(bundle) / LEARNED_FILE, *learned]).items()]
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
    """The versions of prompt-tune, of Python, and of those packages that are installed."""
    found = {"prompt-tune": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # ONNX Runtime comes as one of two packages
            continue
    return found


def _alarm_pictures(result: "Verification") -> _AlarmPictures:
    """Pictures of the most frequent false alarms and collisions; the images are read again."""
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
    """Render a template, with every value escaped, and write the page whole."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("prompt_tune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["counted"] = counted
    constants = {
        "hit_iou": HIT_IOU,
        "same_box_iou": SAME_BOX_IOU,
        "side": SVG_SIDE,
        "table_rows": TABLE_ROWS,
        "version": __version__,
    }
    text = environment.get_template(template).render({**constants, **content})
    with saving(path, RunError) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may not be text


def _number(value: float | None) -> str:
    """A number with three decimals; a dash for None and nan."""
    return NO_NUMBER if value is None or value != value else f"{value:.3f}"
