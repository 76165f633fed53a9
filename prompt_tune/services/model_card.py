"""The model card of a bundle on the Hugging Face Hub: YAML that its pages read, and plain sentences for people.

Every number is one that the learned vocabulary has recorded. Names and texts of other people are shown as they are, and
never as Markdown or HTML.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prompt_tune.evaluation.baselines import recorded_baselines
from prompt_tune.hub import library, told
from prompt_tune.version import NAME, PUBLISHED
from prompt_tune.vocabulary.vocabulary import Vocabulary
from prompt_tune.wording import counted, printable

CARD_FILE = "README.md"
LIBRARY = "prompt-tune"  # the Hub's name for who can load the files
TAGS = ["object-detection", "open-vocabulary", "yolo-world", "prompt-learning", "onnx"]
METRICS = (("val_ap50", "AP50", "ap50"), ("val_ap", "AP, COCO", "ap"))  # key of the provenance, name, the Hub's type
MOST_NAMES = 200  # that a sentence lists; the table has all
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>~&$])")


@dataclass(frozen=True)
class About:
    """What a card says that no file knows.

    Attributes:
        repo: "user/name".
        licence: As the Hub calls it, such as "agpl-3.0", or "other".
        purpose: What it was made for, in the author's words. Empty if nobody has said.
        revision: The branch that the files go to. None is the main one.
    """

    repo: str
    licence: str
    purpose: str = ""
    revision: str | None = None

    @property
    def place(self) -> str:
        """What loads it."""
        return f"hf://{self.repo}" + (f"@{self.revision.replace('/', '%2F')}" if self.revision else "")


def model_card(
    about: About, original: Vocabulary, learned: Vocabulary, files: Mapping[str, int], pictures: Mapping[str, str]
) -> str:
    """The card, README.md of the repository.

    Args:
        about: What no file knows.
        original: The original vocabulary of the bundle.
        learned: Its learned vocabulary, whose provenance has the numbers.
        files: Sizes in bytes by path in the repository.
        pictures: What they show, by path in the repository.

    Raises:
        PromptTuneError: huggingface_hub is not installed.
    """
    sections = (
        _first(about, original, learned),
        _use(about),
        f"## What it was made for\n\n{_plain(about.purpose) or 'Its author has not said what it was made for.'}",
        _numbers(learned),
        _classes(learned),
        "\n\n".join(f"![{_plain(text)}]({path})" for path, text in pictures.items()),
        _limits(learned),
        _files(files),
        _licence(about),
    )
    return f"---\n{_front_matter(about, learned)}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _front_matter(about: About, learned: Vocabulary) -> str:
    """The YAML of the card, in the form that the Hub's pages read."""
    repocard = library("huggingface_hub.repocard_data")
    found = [(name, kind, value) for key, name, kind in METRICS if (value := _number(learned, key)) is not None]
    images = learned.provenance.get("val_images")
    data = f"Own validation images ({images})" if isinstance(images, int) else "Own validation images"
    results = [
        repocard.EvalResult(
            task_type="object-detection",
            dataset_type="custom",
            dataset_name=data,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for name, kind, value in found
    ]
    with told("Cannot write the model card"):
        card = repocard.ModelCardData(
            license=about.licence,
            library_name=LIBRARY,
            pipeline_tag="object-detection",
            tags=TAGS,
            **({"model_name": about.repo.split("/")[1], "eval_results": results} if results else {}),
        )
    return str(card.to_yaml()).strip()


def _first(about: About, original: Vocabulary, learned: Vocabulary) -> str:
    """The heading, and what it is."""
    names = [_plain(name) for name in learned.class_names[:MOST_NAMES]]
    more = f" and {len(learned.class_names) - MOST_NAMES} more" if len(learned.class_names) > MOST_NAMES else ""
    known = counted(len(original.class_names), "original class")
    return (
        f"# {about.repo.split('/')[1]}\n\n"
        f"A YOLO-World detector for {known} and {counted(len(learned.class_names), 'learned class')}: "
        f"{', '.join(names)}{more}.\n\n"
        "It was made with prompt-tune. Only the words in front of the learned names were learned: detector and text "
        "tower are frozen. No detection of an original class depends on the learned ones."
    )


def _use(about: About) -> str:
    """How to run it."""
    where = "" if PUBLISHED else " in a checkout of prompt-tune"
    return (
        f"## Use\n\nInstall prompt-tune: `pip install '{NAME}[hub]'`{where}. Then, in Python:\n\n"
        f'```python\nfrom prompt_tune import Detector\n\ndetector = Detector("{about.place}")\n'
        f'(found,) = detector.detect(["photo.jpg"])\n```\n\n'
        f"Or on the command line:\n\n```bash\nprompt-tune detect {about.place} --source photo.jpg --out results\n```"
    )


def _numbers(learned: Vocabulary) -> str:
    """What `fit` has measured, in sentences."""
    return "## Numbers\n\n" + (" ".join(_sentences(learned)) or "Its files record no measurement.")


def _sentences(learned: Vocabulary) -> Iterator[str]:
    """One sentence for each thing that was measured, and on what."""
    provenance: Mapping[str, Any] = learned.provenance
    ap50, ap = _number(learned, "val_ap50"), _number(learned, "val_ap")
    if ap50 is None or ap is None:
        return
    images, folds = provenance.get("val_images"), provenance.get("cross_validated")
    where = f"on {counted(images, 'validation image')}" if isinstance(images, int) else "on validation images"
    if folds == 1:
        where = "on the images that it was trained on, so expect less on others"
    elif isinstance(folds, int):
        where = f"in a {folds}-fold cross-validation on its training images"
    yield f"The learned classes reach AP50 {ap50:.3f} and COCO's AP {ap:.3f} {where}."
    if not isinstance(folds, int):
        yield "These images took no part in learning, but the epoch and the thresholds were chosen on them."
    if known := recorded_baselines(provenance):
        before = " and ".join(f"{part.metrics.ap50:.3f} with the {part.label}" for part in known)
        yield f"Without learning, AP50 there is {before}."
    if isinstance(trained := provenance.get("train_images"), int):
        replayed = provenance.get("replay_images")
        beside = f", and {counted(replayed, 'image')} without the new objects" if isinstance(replayed, int) else ""
        yield f"It was trained on {counted(trained, 'labelled image')}{beside if replayed else ''}."


def _classes(learned: Vocabulary) -> str:
    """The table of the learned classes."""
    expected = learned.provenance.get("thresholds", {})
    expected = expected.get("expected", {}) if isinstance(expected, dict) else {}
    rows = ["| class | shown above score | precision | recall |", "| --- | --- | --- | --- |"]
    thresholds = dict(zip(learned.names, learned.thresholds.tolist(), strict=True))
    for name in learned.class_names:
        found = expected.get(name) if isinstance(expected, dict) else None
        numbers = [_shown(found.get(key) if isinstance(found, dict) else None) for key in ("precision", "recall")]
        rows.append(f"| {_plain(name)} | {thresholds[name]:.3f} | {numbers[0]} | {numbers[1]} |")
    told_of = "\n\nPrecision and recall are those at IoU 0.5 above the score, on the same images." if expected else ""
    return "\n".join(rows) + told_of


def _limits(learned: Vocabulary) -> str:
    """What nobody should expect."""
    names = "class is" if len(learned.class_names) == 1 else "classes are"
    return (
        "## Limits\n\n"
        f"The learned {names} known from the images of one data set. Other cameras, places and light can give other "
        "numbers: measure on your own images with `prompt-tune val` before you rely on it."
    )


def _files(files: Mapping[str, int]) -> str:
    """The table of the files."""
    rows = [f"| `{path}` | {shown_size(size)} |" for path, size in sorted(files.items())]
    return "\n".join(["## Files", "", "| file | size |", "| --- | --- |", *rows])


def _licence(about: About) -> str:
    """Who may use it."""
    return (
        f"## Licence\n\n{_plain(about.licence)}, as its author has declared. If the graph is made from a checkpoint of "
        "ultralytics, its licence goes with it: AGPL-3.0, unless they gave its author another one."
    )


def shown_size(size: int) -> str:
    """A size for people: "15.0 kB"."""
    for unit, bytes_of_unit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_of_unit:
            return f"{size / bytes_of_unit:.1f} {unit}"
    return f"{size} B"


def _number(learned: Vocabulary, key: str) -> float | None:
    """A number of the provenance; None if it has none."""
    value = learned.provenance.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _shown(value: object) -> str:
    """A number in 0..1 in a table, or a dash."""
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def _plain(text: str) -> str:
    """A text on one line that Markdown and HTML show as it is."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(text.split())))
