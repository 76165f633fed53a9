"""The model `prompt_tune` of a Triton server: it takes an image, and gives the boxes of the vocabularies asked for.

It decodes and scales the image, lets the model `prompt_tune_graph` run the network, and applies what vocabularies say:
thresholds, calibration, limits of overlap. It needs NumPy, Pillow and the files beside it,
which are those of a bundle's program.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kit_detector
import numpy as np
import triton_python_backend_utils as pb_utils  # Triton adds its classes after the import: name them in functions only
from kit_images import PAD_GREY, Letterboxed, letterbox, network_input, read_image
from kit_vocabulary import read_vocabulary
from PIL import Image

HERE = Path(__file__).resolve().parent
GRAPH = "prompt_tune_graph"
TABLES = ["original_detections", "learned_detections"]
# Triton does not promise to pass an empty tensor. No score exceeds the threshold, 1, that goes with this row.
NO_CLASSES = np.eye(1, 512, dtype=np.float32)[None]  # (1, 1, 512)


@dataclass(frozen=True)
class Wish:
    """What one request asks for."""

    placed: Letterboxed
    vocabularies: frozenset[str]
    iou: float | None  # None: 0.7, and the classes' own limits
    conf: float | None  # None: the classes' own thresholds


class TritonPythonModel:
    """Called by Triton: `initialize` once, then `execute` with the requests that Triton joined."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the vocabularies. If one is damaged or was made for another detector, the model does not load."""
        config = json.loads(args["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.side = int(settings["image_size"])
        self.batched = config.get("max_batch_size", 0) > 0  # then tensors begin with one more dimension, of one image
        strides = [int(stride) for stride in settings["strides"].split()]
        graph = {"detector": settings["detector"], "image_size": self.side, "strides": strides}
        try:
            original = read_vocabulary(HERE / "original.vocab.safetensors")
            files = sorted((HERE / "vocabularies").glob("*.vocab.safetensors"))
            learned = [read_vocabulary(path) for path in files]
            kit_detector.check_together(original, learned, graph)
        except SystemExit as error:  # the message of a program
            raise pb_utils.TritonModelException(str(error.code)) from error
        fits = (
            kit_detector.MOST_SCORES // 2 // kit_detector.n_scores(original, learned, graph)
        )  # images, as in prompt-tune
        self.batch = max(1, min(config.get("max_batch_size", 0), fits))
        self.labels = [vocabulary.label for vocabulary in (original, *learned)]
        self.passes = kit_detector.passes(original, learned)
        self.embeddings = [
            [kit_detector.packed(group) if group else NO_CLASSES for group in one] for one in self.passes
        ]

    def execute(self, requests: "list[pb_utils.InferenceRequest]") -> "list[pb_utils.InferenceResponse]":
        """One response for each request. A request that fails gets an error of its own, and the others go on."""
        responses: dict[int, pb_utils.InferenceResponse] = {}
        together: dict[tuple[float | None, float | None], list[tuple[int, Wish]]] = {}
        for number, request in enumerate(requests):
            try:
                wish = self.read(request)
                together.setdefault((wish.iou, wish.conf), []).append((number, wish))
            except Exception as error:
                responses[number] = failed(error)
        for asked in together.values():
            for first in range(0, len(asked), self.batch):
                part = asked[first : first + self.batch]
                try:
                    tables = self.detect([wish for _, wish in part])
                    responses |= {number: self.response(found) for (number, _), found in zip(part, tables, strict=True)}
                except Exception as error:
                    responses |= {number: failed(error) for number, _ in part}
        return [responses[number] for number in range(len(requests))]

    def read(self, request: "pb_utils.InferenceRequest") -> Wish:
        """The image of a request, ready for the network, and its settings. Raises ValueError if a value is wrong."""
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if self.batched:
            if any(len(array) != 1 for array in given.values()):
                raise ValueError("A request has one image: send several requests, which the server runs together.")
            given = {name: array[0] for name, array in given.items()}
        if ("image" in given) == ("raw" in given):
            raise ValueError("Give either `image`, the content of an image file, or `raw`, RGB pixels.")
        chosen = self.labels
        if "vocabularies" in given:
            chosen = [name.decode(errors="replace") for name in given["vocabularies"]]
            if unknown := sorted(set(chosen) - set(self.labels)):
                loaded = ", ".join(self.labels)
                raise ValueError(f"No vocabulary `{unknown[0]:.100}` is loaded. Loaded: {loaded}.")
        numbers = {}
        for name in ("iou", "conf"):
            values = given.get(name)
            if values is not None and not (values.shape == (1,) and 0 <= values[0] <= 1):
                raise ValueError(
                    f"`{name}` must be one number from 0 to 1. Received: {values.reshape(-1)[:3].tolist()}."
                )
            numbers[name] = None if values is None else float(values[0])
        image = decoded(given["image"]) if "image" in given else from_pixels(given["raw"])
        return Wish(letterbox(image, self.side), frozenset(chosen), **numbers)

    def detect(self, wishes: list[Wish]) -> list[list[dict[str, Any]]]:
        """Detections for at most `batch` wishes with the same `iou` and `conf`.

        The network always gets `batch` images, so that a detection has the same bits whoever else asks.
        """
        pixels = np.full((self.batch, self.side, self.side, 3), PAD_GREY, np.uint8)
        for number, wish in enumerate(wishes):
            pixels[number] = wish.placed.pixels
        images, (iou, conf) = network_input(pixels), (wishes[0].iou, wishes[0].conf)
        asked = frozenset().union(*(wish.vocabularies for wish in wishes))
        found: list[list[dict[str, Any]]] = [[] for _ in wishes]
        for groups, embeddings in zip(self.passes, self.embeddings, strict=True):
            if asked.isdisjoint(part.label for group in groups for part in group):
                continue
            confs = [kit_detector.graph_conf(group, conf) for group in groups]
            tables = run_graph(images, embeddings, kit_detector.IOU if iou is None else iou, confs)
            for group, table in zip(groups, tables, strict=True):
                for number, wish in enumerate(wishes):
                    rows = kit_detector.detections(table[table[:, 0] == number], group, wish.placed, conf, iou)
                    found[number] += [row for row in rows if row["vocabulary"] in wish.vocabularies]
        return found

    def response(self, found: list[dict[str, Any]]) -> "pb_utils.InferenceResponse":
        """The tensors of one answer."""
        arrays = {
            "boxes": np.array([row["box_xyxy"] for row in found], np.float32).reshape(-1, 4),
            "scores": np.array([row["score"] for row in found], np.float32),
            "labels": np.array([row["class"].encode() for row in found], np.object_),
            "vocabulary": np.array([row["vocabulary"].encode() for row in found], np.object_),
        }
        tensors = [pb_utils.Tensor(name, array[None] if self.batched else array) for name, array in arrays.items()]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def decoded(contents: np.ndarray) -> Image.Image:
    """The image in `image`, upright RGB."""
    if contents.shape != (1,):
        raise ValueError(f"`image` must hold the content of one file. Received: {contents.size}.")
    return read_image(contents[0])


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """The image in `raw`, (height, width, 3)."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"`raw` must be (height, width, 3) pixels. Received: {pixels.shape}.")
    return Image.fromarray(pixels)


def run_graph(
    images: np.ndarray, embeddings: Sequence[np.ndarray], iou: float, confs: Sequence[float]
) -> list[np.ndarray]:
    """Have the other model run the network: the rows (n, 7) of the guiding classes, and of those beside them."""
    feed = {"images": images, "original": embeddings[0], "learned": embeddings[1]}
    for name, value in zip(("iou", "original_conf", "learned_conf"), (iou, *confs), strict=True):
        feed[name] = np.array([value], np.float32)
    request = pb_utils.InferenceRequest(
        model_name=GRAPH,
        requested_output_names=TABLES,
        inputs=[pb_utils.Tensor(name, array) for name, array in feed.items()],
        # else the tables of a graph on a GPU stay there, where NumPy cannot read them
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
    )
    response = request.exec()
    if response.has_error():
        raise RuntimeError(f"{GRAPH} fails: {response.error().message()}")
    tables = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    return [tables[name] for name in TABLES]


def failed(error: Exception) -> "pb_utils.InferenceResponse":
    """The response to one request: an error in what was sent, or in the server."""
    kinds = pb_utils.TritonError
    code = kinds.INVALID_ARG if isinstance(error, ValueError) else kinds.INTERNAL
    return pb_utils.InferenceResponse(error=kinds(str(error) or type(error).__name__, code))
