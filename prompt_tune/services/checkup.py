"""The whole chain on one checkpoint, in some minutes: how a model that we cannot get is learned about.

Each step stands for itself: where one fails, those that do not need it still run.
"""

import importlib.util
import logging
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from prompt_tune.config import IMAGE_SIZE, TINY_IMAGE_SIZE, FitConfig
from prompt_tune.contract import METRIC_CONF, NMS_IOU
from prompt_tune.datasets.sample import CLASSES, original_scene, write_sample
from prompt_tune.datasets.scenes import TRAINED
from prompt_tune.deployment.graph import DetectorGraph, export_graph, raw_session
from prompt_tune.errors import ModelError, PromptTuneError
from prompt_tune.evaluation.verify import changed_bits
from prompt_tune.models.embeddings import check_tower, default_tower, original_vocabulary
from prompt_tune.models.own_classes import row_texts
from prompt_tune.models.text_tower import LOCAL_PREFIX, TextTower
from prompt_tune.models.ultralytics import OFFICIAL
from prompt_tune.models.world import TINY, World
from prompt_tune.progress import Progress, silent
from prompt_tune.runtime.images import letterbox, read_rgb
from prompt_tune.runtime.session import GraphSession
from prompt_tune.services.anonymity import anonymous
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs
from prompt_tune.vocabulary.checks import short
from prompt_tune.vocabulary.format import GRAPH_FILE

ON_PHOTO, NOT_ON_PHOTO = ("person", "bus"), ("giraffe", "pizza")  # of bus.jpg, which comes with ultralytics
MEANT = 0.1  # score that names of what the photo shows must reach
LEARNED_ROWS = (1, 100)
NOISE = 0.3  # of learned rows around original ones, so that they are found in the photo too
PICTURES, EPOCHS, VIEWS = 10, 8, 4  # of the fit
REPEATS = 5  # passes of which the median is the speed
BOX_PIXELS, SCORES = 0.5, 0.01  # by which graph and torch may differ on the photo, as for `export --half`
Part = TypeVar("Part")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One step of the check.

    Attributes:
        name: What was checked.
        result: "ok", "failed", or "skipped" where a step that it needs failed, or there is nothing to check.
        found: What was found, in a sentence.
        seconds: The time that it took.
    """

    name: str
    result: str
    found: str
    seconds: float


@dataclass(frozen=True)
class Checkup:
    """The result of `check_model`.

    Attributes:
        model: An official name, `tiny`, or "a checkpoint": never a name that the user chose.
        steps: In the order in which they ran.
    """

    model: str
    steps: tuple[Step, ...]

    @property
    def failed(self) -> bool:
        """Whether a step failed."""
        return any(step.result == "failed" for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return asdict(self)


class _SkipError(Exception):
    """A step that cannot be made; the text says why."""


class _WrongError(Exception):
    """A step that was made, and found what should not be; the text says what."""


def check_model(
    model: str | Path,
    *,
    text_tower: str | None = None,
    image_size: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Checkup:
    """Runs the chain on a checkpoint; an error in a step is part of the result.

    Args:
        model: What `World.load` takes. Loading a `.pt` runs code that is in it.
        text_tower: What `TextTower.load` takes; None is the detector's own.
        image_size: Side of the network's input in pixels; None is 256 for `tiny` and 640 for others.
        device: Where the fit and ONNX Runtime run: "cpu", "cuda", "cuda:1", 1, or "auto".
        progress: Called before each step and after the last one.
    """
    size = image_size or (TINY_IMAGE_SIZE if str(model) == TINY else IMAGE_SIZE)
    with tempfile.TemporaryDirectory(prefix="prompt-tune-doctor-") as folder:
        chain = _Chain(model, text_tower or default_tower(model), size, device, Path(folder))
        makers: dict[str, Callable[[], str]] = {
            "the checkpoint loads": chain.load,
            "the text tower belongs to it": chain.check_tower,
            "export agrees with torch": chain.export,
            "plain names score on a sample photo": chain.score_names,
            "original detections keep every bit": chain.compare_bits,
            f"a fit on {PICTURES} pictures": chain.fit,
            "speed": chain.time,
        }
        steps = []
        with _unheard():
            for done, (name, make) in enumerate(makers.items()):
                progress("check", done, len(makers), name)
                steps.append(_step(name, make, chain))
        progress("check", len(makers), len(makers), "")
    name = Path(model).name
    return Checkup(name if name in OFFICIAL or str(model) == TINY else "a checkpoint", tuple(steps))


@contextmanager
def _unheard() -> Iterator[None]:
    """A block in which notes and warnings of the steps are not logged: they are about our pictures. Details are."""
    package = logging.getLogger("prompt_tune")
    before = package.level
    if before > logging.DEBUG:
        package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(before)


def _step(name: str, make: Callable[[], str], chain: "_Chain") -> Step:
    """Make a step, and keep what comes of it."""
    started = time.perf_counter()
    result = "failed"
    try:
        result, found = "ok", make()
    except _SkipError as reason:
        result, found = "skipped", str(reason)
    except _WrongError as reason:
        found = str(reason)
    except PromptTuneError as error:
        logger.debug("%s: %s", name, error)
        found = str(error)
    except Exception as error:  # whatever it is, the page is to say it
        logger.debug("%s:\n%s", name, traceback.format_exc())
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error).strip().split("\n")[0]
        found = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}: {text}"
    if result == "failed":
        found = anonymous(found, chain.private)
    return Step(name, result, found, round(time.perf_counter() - started, 1))


class _Chain:
    """What the steps make, and pass on to the next ones."""

    def __init__(self, model: str | Path, tower: str, image_size: int, device: str, folder: Path) -> None:
        self._model, self._spec, self._size, self._device, self._folder = model, tower, image_size, device, folder
        self._torch_device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self._world: World | None = None
        self._tower: TextTower | None = None
        self._graph: Path | None = None
        self._original: np.ndarray | None = None  # (n, n_prompts, 512)

    @property
    def private(self) -> list[str]:
        """What no page may show: places and names that are the user's own."""
        local = self._spec.removeprefix(LOCAL_PREFIX) if self._spec.startswith(LOCAL_PREFIX) else ""
        places = {str(self._folder), local, str(self._model)} - {*OFFICIAL, TINY}
        names = {Path(place).name for place in places} - {*OFFICIAL, TINY}
        own = () if self._world is None or self._world.names is None else self._world.names
        return [*places, *names, *map(repr, own)]

    def load(self) -> str:
        """The detector, and what is in its file."""
        world = World.load(self._model)
        self._world = world
        millions = sum(parameter.numel() for parameter in world.model.parameters()) / 1e6
        rows = np.random.default_rng(0).standard_normal((80, 1, world.embed_dim)).astype(np.float32)
        self._original = rows / np.linalg.norm(rows, axis=2, keepdims=True)
        if world.class_embeddings is not None:
            self._original = world.class_embeddings.cpu().numpy()[:, None]
        if world.names is None:
            own = "no class names of its own"
        else:
            unit = "with" if world.class_embeddings is not None else "without"
            own = f"{len(world.names)} class names {unit} usable text features"
        version = "v2" if world.head.factor is None else "v1"
        scale = world.yaml.get("scale")
        return (
            f"YOLO-World {version}{f', scale {scale}' if scale else ''}, {millions:.1f} million parameters, strides "
            f"{', '.join(map(str, world.strides))}, {own}; digest {short(world.digest)}."
        )

    def check_tower(self) -> str:
        """Whether text tower and detector belong together."""
        world = self._need(self._world, "the checkpoint")
        tower = TextTower.load(self._spec)
        check_tower(world, tower)
        self._tower = tower
        self._original = original_vocabulary(world, tower).embeddings
        if world.names is not None and world.class_embeddings is not None:
            texts = self._need(row_texts(world, tower), "one text feature per class name")
            ours, theirs = tower.embed(texts, blank=True), world.class_embeddings.cpu().numpy()
            cosines = np.einsum("nd,nd->n", ours, theirs)  # (n,)
            least = f"{cosines.min():.5f} at least, over {len(cosines)} names"
            return f"Cosine of its embeddings and the checkpoint's: {least}."
        if str(self._model) == TINY or Path(self._model).is_dir():
            return "Its digest is the one of the vocabulary beside the detector."
        raise _SkipError(
            "The checkpoint has no text features to compare with, so nothing says whether they belong together."
        )

    def export(self) -> str:
        """The graph, compared with torch: by the export on random images, and here on the photo."""
        import onnx

        world = self._need(self._world, "the checkpoint")
        path = self._folder / GRAPH_FILE
        export_graph(world, path, image_size=self._size)
        self._graph = path
        images, original = self._input(self._photo()), self._need(self._original, "the checkpoint")
        learned = original[:3]
        feed = {"images": images, "original": original, "learned": learned}
        limits = {
            name: np.array([value], np.float32) for name, value in (("iou", NMS_IOU), ("original_conf", METRIC_CONF))
        }
        session = raw_session(onnx.load(path))
        boxes, scores = session.run(None, feed | limits | {"learned_conf": limits["original_conf"]})[2:4]
        with torch.no_grad():
            true = DetectorGraph(world).raw(*(torch.tensor(array) for array in feed.values()))
        pixels = float(np.abs(boxes - true[0].numpy()).max())
        score = float(np.abs(scores - true[1].numpy()).max())
        found = f"On the sample photo, boxes differ by {pixels:.2g} px at most and scores by {score:.2g}."
        if not (pixels <= BOX_PIXELS and score <= SCORES):
            raise _WrongError(f"{found} The limits are {BOX_PIXELS} px and {SCORES}.")
        return found

    def score_names(self) -> str:
        """The highest score of each name, of what the photo shows and of what it does not."""
        tower = self._need(self._tower, "the text tower")
        shown, absent = self._photo_names()
        rows = tower.embed([*shown, *absent])[:, None]  # (n, 1, 512)
        session = GraphSession(self._need(self._graph, "the graph"))
        _, found = self._run(session, self._photo(), rows)
        best = [float(found[found[:, 6] == k, 5].max(initial=0)) for k in range(len(rows))]
        parts = [f"{name} {score:.2f}" for name, score in zip((*shown, *absent), best, strict=True)]
        words = f"On the photo: {', '.join(parts[: len(shown)])}. Not on it: {', '.join(parts[len(shown) :])}."
        seen, unseen = best[: len(shown)], best[len(shown) :]
        if min(seen) < MEANT or min(seen) <= max(unseen):
            raise _WrongError(f"{words} What is on it should score above {MEANT} and above what is not.")
        return words

    def compare_bits(self) -> str:
        """Original detections without and with learned rows, on the device, in three pictures."""
        original = self._need(self._original, "the checkpoint")
        session = GraphSession(self._need(self._graph, "the graph"), device=self._device)
        random = np.random.default_rng(0)
        photo = self._photo()
        noise = random.integers(0, 256, photo.shape, np.uint8)
        pictures = (photo, photo[:, ::-1], (photo // 2 + noise // 2).astype(np.uint8))
        bits = dict.fromkeys(LEARNED_ROWS, 0)
        compared = fired = 0
        for picture in pictures:
            before, _ = self._run(session, picture, original[:0, :1])
            compared += len(before)
            for count in LEARNED_ROWS:
                rows = original[random.integers(len(original), size=count), :1]
                rows = rows + NOISE * random.standard_normal(rows.shape).astype(np.float32) / np.sqrt(rows.shape[2])
                rows = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)
                after, learned = self._run(session, picture, rows)
                fired += len(learned)
                bits[count] += changed_bits(before, after)
        words = ", ".join(f"{number} bits with {count} learned rows" for count, number in bits.items())
        found = f"Changed on {session.device}: {words}, of {compared} original detections beside {fired} learned ones."
        if any(bits.values()):
            raise _WrongError(found)
        if not compared:
            raise _SkipError("The photo has no original detection, so nothing can be compared.")
        return found.replace(" 1 learned rows", " 1 learned row")

    def fit(self) -> str:
        """Six new classes from ten pictures of the sample set, measured on ten others."""
        self._need(self._tower, "the text tower")
        custom, _ = write_sample(self._folder / "sample", n_images=PICTURES)
        config = FitConfig(epochs=EPOCHS, views=VIEWS, image_size=self._size)
        inputs = FitInputs(self._model, custom, text_tower=self._spec)
        result = fit(inputs, self._folder / "run", config=config, device=self._torch_device)
        plain = max(part.metrics.ap50 for part in result.unlearned)
        found = (
            f"AP50 {result.ap50:.3f} on {PICTURES} others, and {plain:.3f} with plain names or the best template; "
            f"cached in {result.seconds['cache']:.0f} s, trained in {result.seconds['train']:.0f} s, on "
            f"{self._torch_device}."
        )
        if not result.ap50 > plain:
            raise _WrongError(f"{found} Learning should gain something.")
        return found

    def time(self) -> str:
        """Milliseconds a picture, and of the text tower."""
        world, original = self._need(self._world, "the checkpoint"), self._need(self._original, "the checkpoint")
        photo = self._photo()
        images, guide = torch.tensor(self._input(photo)), torch.tensor(original).flatten(0, 1)
        parts = [f"torch on cpu {_milliseconds(lambda: world.features(images, guide)):.0f} ms"]
        if self._graph is not None:
            session = GraphSession(self._graph, device=self._device)
            many = np.resize(original[:, :1], (LEARNED_ROWS[-1], 1, original.shape[2])).astype(np.float32)
            for rows, with_what in ((many[:0], ""), (many, f" with {len(many)} learned rows")):
                spent = _milliseconds(partial(self._run, session, photo, rows))
                parts.append(f"ONNX Runtime on {session.device}{with_what} {spent:.0f} ms")
        tower = self._tower
        if tower is not None:
            parts.append(f"text tower, {len(CLASSES)} names {_milliseconds(lambda: tower.embed(list(CLASSES))):.0f} ms")
        return f"One picture at {self._size} px, {torch.get_num_threads()} threads of torch: {', '.join(parts)}."

    def _need(self, part: Part | None, what: str) -> Part:
        """A part that an earlier step made."""
        if part is None:
            raise _SkipError(f"It needs {what}, and that step failed.")
        return part

    def _photo(self) -> np.ndarray:
        """(h, w, 3) uint8: a scene of `tiny`'s world for `tiny`, and a photo that comes with ultralytics for others."""
        if str(self._model) == TINY:
            return original_scene(0, 0).image
        place = importlib.util.find_spec("ultralytics")
        folders = place.submodule_search_locations if place else None
        if not folders:
            raise ModelError("ultralytics is not installed, and its photo is needed.")
        return read_rgb(Path(folders[0]) / "assets" / "bus.jpg")

    def _photo_names(self) -> tuple[list[str], list[str]]:
        """Names of what the photo shows, and of what it does not."""
        if str(self._model) != TINY:
            return list(ON_PHOTO), list(NOT_ON_PHOTO)
        pairs = dict.fromkeys((look.layers[0].colour, look.layers[0].shape) for look in original_scene(0, 0).looks)
        alike = {part for pair in pairs for part in pair}
        others = [pair for pair in TRAINED if not alike & set(pair)]
        return [" ".join(pair) for pair in pairs], [" ".join(pair) for pair in others[:2]]

    def _input(self, image: np.ndarray) -> np.ndarray:
        """(1, 3, size, size) float32 in 0..1."""
        pixels = letterbox(image, self._size)[0].transpose(2, 0, 1)[None]
        return np.ascontiguousarray(pixels, np.float32) / np.float32(255)

    def _run(self, session: GraphSession, image: np.ndarray, learned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The graph's two tables for one picture, with every detection that is measured."""
        original = self._need(self._original, "the checkpoint")
        images, guide, rows = (session.upload(np.ascontiguousarray(a)) for a in (self._input(image), original, learned))
        return session.run(images, guide, rows, iou=NMS_IOU, original_conf=METRIC_CONF, learned_conf=METRIC_CONF)


def _milliseconds(work: Callable[[], object]) -> float:
    """The median time of some calls, after one that warms up."""
    work()
    spent = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        spent.append(1000 * (time.perf_counter() - started))
    return statistics.median(spent)
