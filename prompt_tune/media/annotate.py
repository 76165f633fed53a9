"""Detects in all frames of a source and writes pictures, videos and labels, in constant memory."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TextIO

from prompt_tune.errors import DataError
from prompt_tune.media.fonts import FONTS
from prompt_tune.media.labels import Coco, Csv, JsonLines, Yolo
from prompt_tune.media.pre_annotations import Cvat, Labelme, LabelStudio
from prompt_tune.media.sinks import Pictures, Sink, Videos
from prompt_tune.media.sources import Frame, Source
from prompt_tune.media.tracks import Tracks
from prompt_tune.progress import Progress
from prompt_tune.runtime.batches import detect_in_batches
from prompt_tune.runtime.detections import ORIGINAL, ClassKey, choose_classes
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import Picture
from prompt_tune.runtime.overlap import Overlap
from prompt_tune.runtime.slices import Slices
from prompt_tune.version import __version__

Output = Literal["pictures", "coco", "yolo", "csv", "label-studio", "cvat", "labelme"]
DEFAULT_OUTPUTS: tuple[Output, ...] = ("pictures", "coco")
SHORT_DIGEST = 12  # characters of a digest that tell two vocabularies apart
MISSING_PLACE = "`out` must be a folder, because `save` names something to write. Received: None."


@dataclass(frozen=True)
class Annotated:
    """What `annotate` did.

    Attributes:
        images: Number of images.
        frames: Number of frames of videos, cameras and streams.
        skipped: One line for each file that cannot be read, or only in part.
        missed: Frames of a live source that passed while earlier ones were processed.
        broken: Why a stream ended too early, or None.
        stopped: Whether `stop` ended the run, or the reader of `lines` closed them.
        detections: Number of detections by (vocabulary label, class name); classes without any are left out.
        images_with: Number of images or frames that have the class, by the same keys.
        hidden: Number of detections that `overlap` hid. The other numbers leave them out.
    """

    images: int
    frames: int
    skipped: tuple[str, ...]
    missed: int
    broken: str | None
    stopped: bool
    detections: Mapping[ClassKey, int]
    images_with: Mapping[ClassKey, int]
    hidden: int = 0


def annotate(
    detector: Detector,
    source: Source,
    *,
    out: Path | str | None = None,
    save: Collection[Output] = DEFAULT_OUTPUTS,
    lines: TextIO | None = None,
    iou: float | None = None,
    original_conf: float | None = None,
    learned_conf: float | None = None,
    show: Sequence[str] | None = None,
    hide: Sequence[str] | None = None,
    overlap: Overlap = "keep",
    slices: Slices | None = None,
    track: bool = False,
    batch: int = 1,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Annotated:
    """Detect in the frames of a source, and write what `save` names.

    Args:
        detector: With its vocabularies loaded.
        source: From `open_source`.
        out: Folder to write to. Files of the same names are replaced, each of them whole or not at all.
        save: "pictures" (annotated pictures and videos), "coco" (detections.json), "yolo" (a data set to learn from,
            with labels of learned classes only unless `show` is given), "csv" (detections.csv), "label-studio", "cvat"
            and "labelme" (images with labels of the same classes, to correct in that tool).
        lines: File that gets one line of JSON per frame at once.
        iou: See `Detector.detect`, as for the next five.
        original_conf: Threshold of the original vocabulary.
        learned_conf: Threshold of all other vocabularies.
        show: Classes to show.
        hide: Classes to hide.
        overlap: What becomes of an original and a learned box on the same object. Labels of text formats keep hidden
            ones with a flag; pictures, videos and YOLO labels leave them out.
        slices: How images are also looked at in slices, see `detect_sliced`. By default, only as a whole.
        track: Whether objects in videos, cameras and streams are numbered, see `Tracks.follow`.
        batch: Number of frames that go through the network at once, see `Detector.detect`. Those of a live source go
            one by one, whatever it is: none waits for the next. With `slices`, the windows of one frame.
        progress: Called with (stage, done, total, note); total is None where it is unknown.
        stop: Called after each frame; if it returns True, the files are finished with the frames so far.

    Returns:
        What was found. A file that cannot be read is skipped, counted and named.

    Raises:
        DataError: Nothing of the source can be read, a picture would replace an image of the source, or `out` cannot
            be written. Then pictures and labels of frames may be left, each of them whole, but no document.
        PromptTuneError: Objects are to be tracked, and trackers is not installed.
    """
    chosen = choose_classes(detector.classes, show=show, hide=hide)
    options: dict[str, float | None] = {"iou": iou, "original_conf": original_conf, "learned_conf": learned_conf}
    may_hide = overlap != "keep"
    tracks = Tracks() if track else None
    sinks: list[Sink] = [] if lines is None else [JsonLines(lines)]
    if save:
        if out is None:
            raise DataError(MISSING_PLACE)
        shown = tuple(key for key in detector.classes if key in chosen)
        labelled = shown if show is not None else tuple(key for key in shown if key[0] != ORIGINAL) or shown
        facts = {**provenance(detector), **options, **({"overlap": overlap} if may_hide else {})}
        if slices:
            facts |= {"slice": slices.size, "slice_overlap": slices.overlap}
        sinks += _sinks(Path(out), save, detector, source, labelled, facts, may_hide=may_hide, has_tracks=track)
    counts, detections, images_with = Counter[bool](), Counter[ClassKey](), Counter[ClassKey]()
    stopped, hidden = False, 0
    with closing(source.frames()) as frames, ExitStack() as opened:
        first = next(frames, None)
        if first is None:
            raise DataError(_nothing(source))
        if "pictures" in save:
            FONTS.prepare(name for _, name in chosen)  # here, so that one line names all characters without a font
        for sink in sinks:  # not earlier: a source that cannot be read leaves no file
            opened.enter_context(sink)

        def images() -> Iterator[tuple[Frame, Picture]]:
            for number, frame in enumerate(chain([first], frames)):
                if progress:
                    progress("detect", number + len(source.skipped), source.total, frame.name)
                yield frame, frame.picture

        at_once = 1 if source.live and not slices else batch
        wanted = {**options, "show": show, "hide": hide, "overlap": overlap}
        for frame, found in detect_in_batches(detector, images(), batch=at_once, slices=slices, **wanted):
            if tracks:
                found = tracks.follow(frame, found)
            try:
                for sink in sinks:
                    sink.write(frame, found)
            except BrokenPipeError:  # the reader of the lines has seen enough
                stopped = True
            counts[frame.index is None] += 1
            seen = found.shown
            hidden += len(found) - len(seen)
            keys = list(zip(seen.vocabularies, seen.class_names, strict=True))
            detections.update(keys)
            images_with.update(set(keys))
            if stopped := stopped or stop():
                break
    if progress:
        total = counts.total() + len(source.skipped)
        progress("detect", total, source.total if stopped else total, "")
    skipped = tuple(source.skipped.values())
    return Annotated(
        counts[True], counts[False], skipped, source.missed, source.broken, stopped, detections, images_with, hidden
    )


def _sinks(
    out: Path,
    save: Collection[Output],
    detector: Detector,
    source: Source,
    labelled: Sequence[ClassKey],
    info: Mapping[str, object],
    *,
    may_hide: bool,
    has_tracks: bool,
) -> list[Sink]:
    """The sinks that `save` names, pictures first."""
    sinks: list[Sink] = []
    if "pictures" in save:
        sinks += [Pictures(out, source.paths), Videos(out, source.paths)]
    if "coco" in save:
        sinks.append(Coco(out, detector.classes, info=info, skipped=source.skipped))
    if "yolo" in save:
        sinks.append(Yolo(out, labelled))
    if "csv" in save:
        sinks.append(Csv(out, may_hide=may_hide, has_tracks=has_tracks))
    if "label-studio" in save:
        sinks.append(LabelStudio(out, labelled, version=model_version(detector)))
    if "cvat" in save:
        sinks.append(Cvat(out, labelled))
    if "labelme" in save:
        sinks.append(Labelme(out, labelled))
    return sinks


def model_version(detector: Detector) -> str:
    """The package and the learned vocabularies, by label and digest; the original one if nothing else is loaded."""
    learned = [key for key in detector.vocabularies if key != ORIGINAL] or [ORIGINAL]
    parts = [f"{label} {detector.vocabularies[label].digest[:SHORT_DIGEST]}" for label in learned]
    return f"prompt-tune {__version__}, {', '.join(parts)}"


def provenance(detector: Detector) -> dict[str, object]:
    """Where the detections come from."""
    vocabularies = {
        label: {
            "kind": part.kind,
            "guide_mode": part.guide_mode,
            "digest": part.digest,
            "classes": len(part.class_names),
        }
        for label, part in detector.vocabularies.items()
    }
    return {
        "description": f"Detections by prompt-tune {__version__}",
        "detector": detector.digest,
        "image_size": detector.image_size,
        "vocabularies": vocabularies,
    }


def _nothing(source: Source) -> str:
    """Why there is no frame at all."""
    if source.broken:
        return source.broken
    first = next(iter(source.skipped.values()), "no image was given.")
    return first if len(source.skipped) == 1 else f"None of {len(source.skipped)} images can be read: {first}"
