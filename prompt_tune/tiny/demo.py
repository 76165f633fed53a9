"""The whole workflow on `tiny`: sample set, fit, export, and detection with and without the learned vocabulary."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from prompt_tune.config import FitConfig
from prompt_tune.contract import METRIC_CONF
from prompt_tune.datasets.reading import read_split
from prompt_tune.datasets.sample import CLASSES, write_sample
from prompt_tune.datasets.samples import Sample
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.errors import RunError
from prompt_tune.evaluation.metrics import average_precision
from prompt_tune.evaluation.verify import changed_bits
from prompt_tune.files import saving
from prompt_tune.media.draw import draw, side_by_side
from prompt_tune.models.embeddings import build_vocabulary
from prompt_tune.models.world import TINY
from prompt_tune.progress import Progress, silent
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import letterbox, read_rgb
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs
from prompt_tune.vocabulary.format import LEARNED_FILE

PICTURE_ROWS, PICTURE_SCALE = 3, 2  # test images in the picture, and by how much they are enlarged
SHOWN_CONF = 0.4  # the picture shows detections above this score


@dataclass(frozen=True)
class Summary:
    """The content of `summary.json`. Average precision is in 0..1.

    Attributes:
        zero_shot_ap50: Of the six classes on the test split, with plain names.
        learned_ap50: The same with learned prompts.
        original_ap50_before: Of tiny's 80 classes on the original scenes, without the learned vocabulary.
        original_ap50_after: The same with the learned vocabulary loaded.
        original_bits_changed: Bits of original detections that changed, over all test images and original scenes.
        seconds: The time that everything took.
    """

    zero_shot_ap50: float
    learned_ap50: float
    original_ap50_before: float
    original_ap50_after: float
    original_bits_changed: int
    seconds: float


def demo(out: Path, *, n_images: int = 100, seed: int = 0, device: str = "cpu", progress: Progress = silent) -> Summary:
    """Teach `tiny` six new classes, export them, and measure what they find and what they change.

    Args:
        out: A new or empty folder for sample/, run/, bundle/, plain.vocab.safetensors, summary.json and demo.png.
        n_images: The number of images in each split of the sample set.
        seed: The seed of the sample set and of the fit.
        device: "cpu", "cuda" or a GPU such as "cuda:1", for the fit and for ONNX Runtime.
        progress: Called as the work goes on.

    Returns:
        The summary, which is also in summary.json.

    Raises:
        RunError: `out` is not an empty folder.
        PromptTuneError: A file cannot be written.
    """
    started = time.perf_counter()
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out} is not an empty folder; the demo needs one of its own. Give another --out.")
    except OSError as error:
        raise RunError(f"{out} cannot be used: {error.strerror}. Give another --out.") from error
    custom, original = write_sample(out / "sample", n_images=n_images, seed=seed, progress=progress)
    fit(FitInputs(TINY, custom), out / "run", config=FitConfig(seed=seed), device=device, progress=progress)
    progress("export", 0, 1, "")
    export_bundle(out / "run", out / "bundle")
    progress("export", 1, 1, "checked against torch")
    plain = out / "plain.vocab.safetensors"
    build_vocabulary(TINY, [(name,) for name in CLASSES]).save(plain)

    _, test = read_split(custom, "test")
    _, scenes = read_split(original, "val")
    alone = _detect(out / "bundle", None, [*test.samples, *scenes.samples], "detect, original", device, progress)
    both = _detect(out / "bundle", LEARNED_FILE, [*test.samples, *scenes.samples], "detect, learned", device, progress)
    named = _detect(out / "bundle", str(plain), test.samples, "detect, plain", device, progress)

    n_test = len(test.samples)
    summary = Summary(
        zero_shot_ap50=_ap50(test.samples, named.learned, len(CLASSES)),
        learned_ap50=_ap50(test.samples, both.learned[:n_test], len(CLASSES)),
        original_ap50_before=_ap50(scenes.samples, alone.original[n_test:], alone.n_original),
        original_ap50_after=_ap50(scenes.samples, both.original[n_test:], both.n_original),
        original_bits_changed=sum(map(changed_bits, alone.raw, both.raw)),
        seconds=round(time.perf_counter() - started, 1),
    )
    _draw(out / "demo.png", test.samples, alone.original, both)
    with saving(out / "summary.json", RunError) as path:
        path.write_text(json.dumps(asdict(summary), indent=1, sort_keys=True) + "\n")
    return summary


@dataclass(frozen=True, eq=False)
class _Pass:
    """The results of one pass over some images.

    Attributes:
        raw: For each image, the graph's rows of original detections, which are compared bit by bit.
        all: For each image, the detections of all vocabularies.
        n_original: The number of original classes.
    """

    raw: list[np.ndarray]
    all: list[Detections]
    n_original: int

    @property
    def original(self) -> list[Detections]:
        """The detections of the original vocabulary."""
        return [found.of(ORIGINAL) for found in self.all]

    @property
    def learned(self) -> list[Detections]:
        """The detections of the learned vocabulary."""
        return [found.select(np.array([v != ORIGINAL for v in found.vocabularies], bool)) for found in self.all]


def _ap50(samples: Sequence[Sample], founds: Sequence[Detections], n_cls: int) -> float:
    """AP50 of detections, in original pixels, against the labels."""
    return average_precision([sample.labels for sample in samples], founds, n_cls).ap50


def _detect(
    bundle: Path, learned: str | None, samples: Sequence[Sample], stage: str, device: str, progress: Progress
) -> _Pass:
    """Run a bundle on images one by one, with a learned vocabulary (the bundle's own, a file, or None) loaded."""
    own = learned == LEARNED_FILE
    detector = Detector(bundle, device=device, use_bundled=own, learned=[] if own or learned is None else [learned])
    raw, found = [], []
    for done, sample in enumerate(samples, 1):
        image = read_rgb(sample.path)
        pixels = letterbox(image, detector.image_size)[0].astype(np.float32) / 255
        raw.append(detector.raw(pixels.transpose(2, 0, 1)[None])[0])  # (1, 3, size, size)
        found += detector.detect([image], original_conf=METRIC_CONF, learned_conf=METRIC_CONF)
        progress(stage, done, len(samples), "")
    return _Pass(raw, found, len(detector.vocabularies[ORIGINAL].names))


def _draw(path: Path, samples: Sequence[Sample], original: Sequence[Detections], both: _Pass) -> None:
    """Draw the test images with the most new objects, without and with the learned vocabulary."""
    most = sorted(range(len(samples)), key=lambda i: -len(samples[i].labels))[:PICTURE_ROWS]
    rows = []
    for i in most:
        image = Image.fromarray(read_rgb(samples[i].path))
        image = image.resize((image.width * PICTURE_SCALE, image.height * PICTURE_SCALE), Image.Resampling.BICUBIC)
        pictures = [draw(image, _shown(found)) for found in (original[i], both.all[i])]
        rows.append(side_by_side(pictures, ["original vocabulary alone", "with the learned vocabulary"]))
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for k, row in enumerate(rows):
        sheet.paste(row, (0, sum(r.height for r in rows[:k])))
    with saving(path, RunError) as temporary:
        sheet.save(temporary, "PNG")


def _shown(found: Detections) -> Detections:
    """The confident detections, with boxes scaled up like the picture."""
    kept = found.select(found.scores > SHOWN_CONF)
    return replace(
        kept,
        boxes_xyxy=kept.boxes_xyxy * PICTURE_SCALE,
        size_wh=(kept.size_wh[0] * PICTURE_SCALE, kept.size_wh[1] * PICTURE_SCALE),
    )
