"""What the steps of the GPU check run on: YOLO-World of random weights, its graphs, and random vocabularies."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import full_size
import numpy as np
from PIL import Image
from small_bundle import photo
from vocabularies import TOWER, unit_rows

from prompt_tune.contract import GRAPH_VERSION
from prompt_tune.vocabulary.format import GRAPH_FILE, LEARNED_FILE, ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

if TYPE_CHECKING:
    from prompt_tune.datasets.samples import Sample
    from prompt_tune.models.world import World

N_ORIGINAL = 80
BOXES = 8  # of a labelled image
Json = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        scales: Of ultralytics' yolov8-worldv2.yaml; the first one serves where one is enough.
        image_size: Side of the network's input in pixels.
        batches: Numbers of images that go through the network at once.
        learned: Numbers of learned classes.
        classes: Numbers of classes that are trained.
        rounds: Timed calls; medians are reported.
        images: Images of the caching step.
        threads: Threads that detect at the same time.
        seconds: For which they do.
    """

    scales: tuple[str, ...]
    image_size: int
    batches: tuple[int, ...]
    learned: tuple[int, ...]
    classes: tuple[int, ...]
    rounds: int
    images: int
    threads: int
    seconds: float


FULL = Sizes(("s", "l"), 640, (1, 8, 32), (1, 20, 1123), (10, 100, 1203), 30, 512, 8, 15.0)
SMALL = Sizes(("n",), 160, (1, 2), (1, 20), (10, 70), 3, 24, 4, 1.0)  # for the CPU, and for the tests


class Parts:
    """Makes files when a step needs them first, and keeps them in a folder."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder, self.sizes = folder, sizes

    def world(self, scale: str, device: str = "cpu") -> "World":
        """The detector of a scale."""
        from prompt_tune.models.world import World

        tower = full_size.write_tower(self.folder / "tower")
        path = full_size.write_checkpoint(self.folder / f"yolov8{scale}-worldv2.pt", tower, scale=scale)
        return World.load(path, device=device)

    @property
    def tower(self) -> str:
        """The text tower, as `--text-tower` takes it."""
        return full_size.write_tower(self.folder / "tower")

    def bundle(self, scale: str, *, half: bool = False) -> Path:
        """A bundle with one learned class. Its graph is not compared with torch, which would take a minute."""
        folder = self.folder / f"bundle-{scale}{'-half' if half else ''}"
        if (folder / ORIGINAL_FILE).is_file():
            return folder
        from prompt_tune.deployment.graph import OPSET, DetectorGraph, _label, _trace
        from prompt_tune.deployment.half import half_world

        world = self.world(scale)
        folder.mkdir(parents=True, exist_ok=True)
        _trace(DetectorGraph(half_world(world) if half else world), folder / GRAPH_FILE, OPSET)
        metadata: Json = {"version": GRAPH_VERSION, "detector": world.digest, "embed_dim": world.embed_dim}
        metadata |= {"image_size": self.sizes.image_size, "strides": list(world.strides)}
        _label(folder / GRAPH_FILE, metadata | {"precision": "float16" if half else "float32"})
        self.vocabulary(scale, 1, digest=world.digest).save(folder / LEARNED_FILE)
        rows = unit_rows(N_ORIGINAL, 1)
        names = tuple(f"thing {i}" for i in range(N_ORIGINAL))
        guide = guide_digest(rows)
        origin: Json = {"kind": "original", "detector": world.digest, "text_tower": TOWER, "guide": guide}
        Vocabulary(names, rows, thresholds=low(len(rows)), **origin).save(folder / ORIGINAL_FILE)
        return folder

    def vocabulary(self, scale: str, n_cls: int, *, digest: str | None = None, seed: int = 1) -> Vocabulary:
        """A learned vocabulary of random classes for the bundle of a scale."""
        rows = unit_rows(n_cls, 1, seed=seed)
        return Vocabulary(
            tuple(f"class {seed}-{i}" for i in range(n_cls)),
            rows,
            kind="learned",
            detector=self.world(scale).digest if digest is None else digest,
            text_tower=TOWER,
            guide=guide_digest(unit_rows(N_ORIGINAL, 1)),
            thresholds=low(n_cls),
        )

    def labelled(self, count: int, n_cls: int) -> "list[Sample]":
        """JPEGs with eight random boxes each, of classes that come in turn."""
        from prompt_tune.datasets.samples import Labels, Sample

        folder = self.folder / "photos"
        folder.mkdir(exist_ok=True)
        photos, rng, samples = self.photos(16), np.random.default_rng(0), []
        for i in range(count):
            picture = photos[i % len(photos)]
            path = folder / f"{i}.jpg"
            if not path.is_file():
                Image.fromarray(np.roll(picture, i // len(photos), axis=1)).save(path, quality=90)
            size_wh = picture.shape[1], picture.shape[0]
            corners = rng.uniform(0, 0.6, (BOXES, 2))
            boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.4, (BOXES, 2))], 1) * (size_wh * 2)
            classes = (BOXES * i + np.arange(BOXES)) % n_cls
            samples.append(Sample(path, Labels(boxes.astype(np.float32), classes, np.zeros(BOXES, bool)), size_wh))
        return samples

    def photos(self, count: int) -> list[np.ndarray]:
        """Random pictures of 1280 x 720, or smaller ones for a small network: uint8 (h, w, 3)."""
        height = self.sizes.image_size * 9 // 8
        return [photo(height, height * 16 // 9, seed=seed) for seed in range(count)]


def low(n_cls: int) -> np.ndarray:
    """Thresholds below which random weights give few detections."""
    return np.full(n_cls, 0.1, np.float32)
