"""The detections of one image, and their conversion to COCO's JSON, `supervision` and `fiftyone`. NumPy only."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, overload

import numpy as np

from prompt_tune.errors import PromptTuneError, VocabularyError
from prompt_tune.privacy import quiet_imports
from prompt_tune.runtime.boxes import distinct
from prompt_tune.version import install
from prompt_tune.wording import counted

if TYPE_CHECKING:
    import fiftyone
    import supervision

ORIGINAL = "original"  # the label of the vocabulary that the detector is deployed with
PIXEL_DECIMALS = 3  # in JSON: a thousandth of a pixel, far below the precision of a box
SCORE_DECIMALS = 6  # in JSON: a float32 in 0..1 has about seven decimal digits
SHOWN = 5  # classes in the text of `Detections`
ClassKey = tuple[str, str]  # (vocabulary label, class name): two vocabularies may have a class of the same name


@dataclass(frozen=True)
class Detection:
    """One detection, in plain Python types.

    Attributes:
        class_name: Of its class, or empty.
        vocabulary: The label of the class's vocabulary, "original" or that of a learned vocabulary, or empty.
        score: In 0..1.
        box_xyxy: Left, top, right and bottom in pixels of the original image.
        class_id: The row of the class in its own vocabulary.
        hidden: Whether `overlap` of `Detector.detect` hid it behind another box on the same object.
        track_id: The number of the object in its video, among those of its class, or None.
    """

    class_name: str
    vocabulary: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    class_id: int
    hidden: bool = False
    track_id: int | None = None


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of one image, from the graph to the picture.

    Loops give one `Detection` at a time. An index gives one `Detection`; a slice, a mask or a list of rows gives
    `Detections`.

    From the runtime, those of the original vocabulary come first, in the graph's order, then the learned ones.
    Training and evaluation know classes only by number; there, names and vocabularies are empty.

    Attributes:
        boxes_xyxy: (n, 4) float32. From the runtime: in pixels of the original image, and inside it.
        scores: (n,) float32 in 0..1, calibrated if the vocabulary has a calibration.
        class_ids: (n,) int64, the row of the class in its own vocabulary.
        class_names: n class names, or empty.
        vocabularies: n vocabulary labels, "original" or that of a learned vocabulary, or empty.
        size_wh: Width and height of the original image in pixels, or (0, 0) if it does not matter.
        hidden: (n,) bool, the rows that `overlap` of `Detector.detect` hid behind another box on the same object. They
            are still here; `shown` has the others. None if nothing was to be hidden.
        track_ids: (n,) int64, the number of each object in its video, from 1 among those of its class, or 0 for one
            without a number. None if nothing was tracked.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    class_names: tuple[str, ...] = ()
    vocabularies: tuple[str, ...] = ()
    size_wh: tuple[int, int] = (0, 0)
    hidden: np.ndarray | None = None
    track_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[row] for row in range(len(self)))

    @overload
    def __getitem__(self, rows: int | np.integer) -> Detection: ...

    @overload
    def __getitem__(self, rows: slice | np.ndarray | Sequence[int] | Sequence[bool]) -> "Detections": ...

    def __getitem__(
        self, rows: int | np.integer | slice | np.ndarray | Sequence[int] | Sequence[bool]
    ) -> "Detection | Detections":
        if isinstance(rows, slice):
            return self.select(np.arange(len(self))[rows])
        if isinstance(rows, (np.ndarray, Sequence)):
            if isinstance(rows, str):
                raise TypeError("`Detections` are indexed by row. For a class, compare each `class_name`.")
            return self.select(np.asarray(rows) if len(rows) else np.zeros(0, np.int64))
        row = range(len(self))[rows]  # an IndexError ends a loop that counts up, and negative rows count from the end
        left, top, right, bottom = (float(value) for value in self.boxes_xyxy[row])
        return Detection(
            class_name=self.class_names[row] if self.class_names else "",
            vocabulary=self.vocabularies[row] if self.vocabularies else "",
            score=float(self.scores[row]),
            box_xyxy=(left, top, right, bottom),
            class_id=int(self.class_ids[row]),
            hidden=self.hidden is not None and bool(self.hidden[row]),
            track_id=None if self.track_ids is None else int(self.track_ids[row]) or None,
        )

    def __repr__(self) -> str:
        """One line: how many there are of each class, those of learned vocabularies first. Hidden ones are counted."""
        if self.hidden is not None and self.hidden.any():
            return f"{repr(self.shown)[:-1]}; {int(self.hidden.sum())} hidden>"
        counts: dict[tuple[str, str], int] = {}
        names = self.class_names or tuple(f"class {number}" for number in self.class_ids)
        for key in zip(self.vocabularies or ("",) * len(self), names, strict=True):
            counts[key] = counts.get(key, 0) + 1
        ranked = sorted(counts.items(), key=lambda item: (item[0][0] == ORIGINAL, -item[1]))
        parts = [f"{count} {name!r}{f' ({label})' * bool(label)}" for (label, name), count in ranked[:SHOWN]]
        if len(ranked) > SHOWN:
            parts.append(f"{counted(len(ranked) - SHOWN, 'more class')}")
        place = "" if self.size_wh == (0, 0) else " in {} x {} pixels".format(*self.size_wh)
        return f"<{counted(len(self), 'detection')}{place}{': ' * bool(parts)}{', '.join(parts)}>"

    def select(self, keep: np.ndarray) -> "Detections":
        """Some of the detections.

        Args:
            keep: (n,) bool, or (k,) integer rows in the order of the result.
        """
        rows = np.arange(len(self))[keep]
        return Detections(
            boxes_xyxy=self.boxes_xyxy[rows],
            scores=self.scores[rows],
            class_ids=self.class_ids[rows],
            class_names=tuple(self.class_names[row] for row in rows) if self.class_names else (),
            vocabularies=tuple(self.vocabularies[row] for row in rows) if self.vocabularies else (),
            size_wh=self.size_wh,
            hidden=None if self.hidden is None else self.hidden[rows],
            track_ids=None if self.track_ids is None else self.track_ids[rows],
        )

    @property
    def shown(self) -> "Detections":
        """Those that are not hidden."""
        return self if self.hidden is None else replace(self.select(~self.hidden), hidden=None)

    def scaled(self, size_wh: tuple[int, int]) -> "Detections":
        """The detections in the frame of the same image at another size.

        Args:
            size_wh: Its width and height in pixels. Detections without a size stay as they are.
        """
        if self.size_wh in (size_wh, (0, 0)):
            return self
        factors = np.array(size_wh * 2, np.float32) / np.array(self.size_wh * 2, np.float32)  # (4,)
        return replace(self, boxes_xyxy=self.boxes_xyxy * factors, size_wh=size_wh)

    def distinct(self, nms_iou: np.ndarray) -> "Detections":
        """The detections that a further suppression keeps, see `boxes.distinct`.

        Args:
            nms_iou: (n_cls,) float32 in 0..1, a limit for each class.
        """
        return self.select(distinct(self.boxes_xyxy, self.scores, self.class_ids, nms_iou))

    def of(self, vocabulary: str) -> "Detections":
        """The detections of one vocabulary, by its label."""
        return self.select(np.array([label == vocabulary for label in self.vocabularies], dtype=bool))

    def to_coco(
        self, image_id: int, category_ids: Mapping[ClassKey, int], *, first_id: int = 1
    ) -> list[dict[str, object]]:
        """The detections as entries of a COCO `annotations` list, which `pycocotools` also takes as results.

        Args:
            image_id: The image's id in the document.
            category_ids: The id of each (vocabulary label, class name).
            first_id: The id of the first entry. The following entries count up.

        Returns:
            One dictionary per detection: `id`, `image_id`, `category_id`, `bbox` [x, y, width, height] and `area` in
            original pixels, `iscrowd` 0, `score`, and `vocabulary`, the label of its vocabulary. If some may be hidden,
            `hidden` says which. If they were tracked, `track_id` is the number of the object, or None.
        """
        entries: list[dict[str, object]] = []
        for row, (label, name) in enumerate(zip(self.vocabularies, self.class_names, strict=True)):
            left, top, right, bottom = (float(value) for value in self.boxes_xyxy[row])
            entries.append(
                {
                    "id": first_id + row,
                    "image_id": image_id,
                    "category_id": category_ids[label, name],
                    "bbox": [round(value, PIXEL_DECIMALS) for value in (left, top, right - left, bottom - top)],
                    "area": round((right - left) * (bottom - top), PIXEL_DECIMALS),
                    "iscrowd": 0,
                    "score": round(float(self.scores[row]), SCORE_DECIMALS),
                    "vocabulary": label,
                }
                | ({} if self.hidden is None else {"hidden": bool(self.hidden[row])})
                | ({} if self.track_ids is None else {"track_id": int(self.track_ids[row]) or None})
            )
        return entries

    def to_supervision(self, classes: Sequence[ClassKey]) -> "supervision.Detections":
        """The detections for Roboflow's `supervision`: its annotators, trackers, zones and filters.

        The `class_id` is the row in `classes`, not in the class's vocabulary: otherwise row 0 of two vocabularies would
        share a colour, a track and suppression. The ids of original classes do not depend on what else is loaded; the
        others change when vocabularies are loaded or unloaded.

        Args:
            classes: (vocabulary label, class name) of all classes, such as `Detector.classes`.

        Returns:
            `xyxy` in original pixels, `confidence`, `class_id` and, in `data`, `class_name` and `vocabulary`. Hidden
            rows are left out.

        Raises:
            PromptTuneError: supervision is not installed.
            VocabularyError: A class is not one of `classes`.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise PromptTuneError(
                f"supervision is not installed, and this needs it: {install('supervision')}"
            ) from error
        if self.hidden is not None:
            return self.shown.to_supervision(classes)
        row_of = {key: row for row, key in enumerate(classes)}
        keys = list(zip(self.vocabularies, self.class_names, strict=True))
        if unknown := [key for key in keys if key not in row_of]:
            raise VocabularyError(
                f"{':'.join(unknown[0])!r} is not one of the {len(row_of)} `classes`. Give the classes that the "
                "detector had when it found this."
            )
        return supervision.Detections(
            xyxy=self.boxes_xyxy,
            confidence=self.scores,
            class_id=np.array([row_of[key] for key in keys], dtype=np.int64),  # (n,)
            data={
                "class_name": np.array(self.class_names, dtype=str),  # (n,)
                "vocabulary": np.array(self.vocabularies, dtype=str),  # (n,)
            },
        )

    def to_fiftyone(self) -> "fiftyone.Detections":
        """The detections for FiftyOne: a field of a sample, as in `sample["found"] = found.to_fiftyone()`.

        Returns:
            One detection each, with `label`, `bounding_box` (left, top, width and height as shares of the image),
            `confidence`, and `vocabulary`, the label of its vocabulary.

        Raises:
            PromptTuneError: fiftyone is not installed, or the size of the image is not known.
        """
        width, height = self.size_wh
        if min(width, height) <= 0:
            raise PromptTuneError("FiftyOne wants boxes as shares of the image, and these have no `size_wh`. Set it.")
        try:
            with quiet_imports():
                import fiftyone
        except ModuleNotFoundError as error:
            raise PromptTuneError(f"fiftyone is not installed, and this needs it: {install('fiftyone')}") from error
        found = []
        for one in self.shown:
            left, top, right, bottom = one.box_xyxy
            box = [left / width, top / height, (right - left) / width, (bottom - top) / height]
            found.append(
                fiftyone.Detection(
                    label=one.class_name, bounding_box=box, confidence=one.score, vocabulary=one.vocabulary
                )
            )
        return fiftyone.Detections(detections=found)


def concatenate(parts: Iterable[Detections], size_wh: tuple[int, int]) -> Detections:
    """The detections of one image from several vocabularies as one, in the order given.

    Args:
        parts: Those of each vocabulary, of which none is hidden. There may be none.
        size_wh: Width and height of the image in pixels.
    """
    parts = list(parts)
    return Detections(
        boxes_xyxy=np.concatenate([part.boxes_xyxy for part in parts] or [np.zeros((0, 4), np.float32)]),  # (n, 4)
        scores=np.concatenate([part.scores for part in parts] or [np.zeros(0, np.float32)]),  # (n,)
        class_ids=np.concatenate([part.class_ids for part in parts] or [np.zeros(0, np.int64)]),  # (n,)
        class_names=tuple(name for part in parts for name in part.class_names),
        vocabularies=tuple(label for part in parts for label in part.vocabularies),
        size_wh=size_wh,
    )


def choose_classes(
    classes: Sequence[ClassKey], *, show: Sequence[str] | None = None, hide: Sequence[str] | None = None
) -> frozenset[ClassKey]:
    """The classes that are wanted.

    "NAME" means that class in every vocabulary, "LABEL:NAME" in one, and "LABEL:*" all classes of one vocabulary.

    Args:
        classes: (vocabulary label, class name) of all classes.
        show: Only these. By default, all.
        hide: Not these.

    Raises:
        VocabularyError: A name matches no class. The message lists similar names.
    """
    chosen = frozenset(classes) if show is None else _matching(classes, show)
    return chosen - _matching(classes, hide or ())


def coco_categories(classes: Sequence[ClassKey]) -> list[dict[str, object]]:
    """COCO's `categories`, with ids from 1 in the order given. Label: `vocabulary`, and also `supercategory`."""
    return [
        {"id": number, "name": name, "supercategory": label, "vocabulary": label}
        for number, (label, name) in enumerate(classes, start=1)
    ]


def _matching(classes: Sequence[ClassKey], wanted: Sequence[str]) -> frozenset[ClassKey]:
    """The classes that any of the strings `wanted` means."""
    if not wanted:  # saves 15 ms per call of `detect` with 10,000 classes
        return frozenset()
    meanings: dict[str, set[ClassKey]] = {}
    for label, name in classes:
        for text in (name, f"{label}:{name}", f"{label}:*"):
            meanings.setdefault(text, set()).add((label, name))
    for text in wanted:
        if text not in meanings:
            near = difflib.get_close_matches(text, meanings, n=5) or sorted({f"{label}:*" for label, _ in classes})
            raise VocabularyError(f"No loaded class is named {text!r}. Near: {', '.join(near)}.")
    return frozenset(key for text in wanted for key in meanings[text])
