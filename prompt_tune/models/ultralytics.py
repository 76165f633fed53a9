"""The only module that imports ultralytics: its checkpoints, its layers, and an import without side effects.

The first import of ultralytics prints, writes settings into the home folder, replaces `torch.save`, `Image.open` and
other functions, and changes print options, warning filters and the number of OpenCV's threads. Here none of that stays.
"""

import importlib
import logging
import os
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prompt_tune.contract import EMBED_DIM
from prompt_tune.errors import ModelError
from prompt_tune.privacy import quiet_imports
from prompt_tune.runtime.detections import Detections
from prompt_tune.texts import MAX_YAML_BYTES, parse_yaml, regular_bytes
from prompt_tune.version import install

OFFICIAL = tuple(f"yolov8{scale}-world{version}.pt" for version in ("v2", "") for scale in "smlx")
RELEASE_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0"  # as in ultralytics' downloads.py
PROBE_SECONDS = 5.0  # ultralytics itself waits 30 s for a connection, four times
_PATCHED = {  # replaced on import, or for it
    "torch": ("save",),
    "PIL.Image": ("open",),
    "cv2": ("imread", "imwrite", "imshow"),
    "uuid": ("getnode",),
}
_NO_CARD = 0  # the address of the network card, as ultralytics sees it: it makes an ID for its analytics from it
_SILENCED = ("coremltools", "sentry_sdk")  # loggers whose level the import raises


def load_checkpoint(path: Path) -> nn.Module:
    """Loads the model of an ultralytics checkpoint. Loading a `.pt` runs code that is in it.

    Args:
        path: An existing `.pt` file.

    Returns:
        The pickled module (the moving average, if the checkpoint has one), float32, in eval mode, on the CPU.

    Raises:
        ModelError: ultralytics cannot load the file.
    """
    tasks = quiet_import("ultralytics.nn.tasks")
    try:
        # by its bare name, ultralytics would download a damaged official checkpoint again
        model: nn.Module = tasks.load_checkpoint(str(path.absolute()))[0]
    except Exception as error:  # unpickling a foreign file can raise anything
        raise ModelError(
            f"'{path}' is not a checkpoint that ultralytics can load ({type(error).__name__}); "
            f"give the .pt of a YOLO-World, such as {OFFICIAL[0]}."
        ) from error
    return model


def load_folder(folder: Path) -> nn.Module:
    """Loads a detector in the layout of `tiny`: its YAML, and its state dict as safetensors of any float type.

    Raises:
        ModelError: A file is missing, or YAML and weights do not make a YOLO-World.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for part in ("detector.yaml", "detector.safetensors"):
        if not (folder / part).is_file():
            raise ModelError(f"'{folder}' is not a detector: it has no {part}.")
    try:
        text = regular_bytes(folder / "detector.yaml", MAX_YAML_BYTES).decode("utf-8")
        content = parse_yaml(text)
        _refuse_code(content, folder)
        model = build_world(content)
        state = load_file(folder / "detector.safetensors")
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    except (OSError, SafetensorError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"'{folder}' is damaged: YAML and weights do not make a YOLO-World ({error!r:.150})."
        ) from error
    return model


def download(name: str) -> Path:
    """Downloads an official checkpoint from ultralytics' release into the current folder.

    Args:
        name: One of `OFFICIAL`.

    Returns:
        The path of the file. A file that exists is not downloaded again.

    Raises:
        ModelError: There is no network, or the download failed.
    """
    downloads = quiet_import("ultralytics.utils.downloads")
    url = f"{RELEASE_URL}/{name}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS):
            pass
        return Path(downloads.attempt_download_asset(name))
    except (OSError, MemoryError) as error:  # URLError, timeouts and requests' errors are OSErrors
        raise ModelError(
            f"'{name}' is not in this folder and cannot be downloaded (no connection to github.com: "
            f"{type(error).__name__}); fetch {url} elsewhere and give the file's path."
        ) from error


class Predictor:
    """ultralytics' own `predict` at its defaults, for a checkpoint with classes of its own.

    It keeps only the best class of a box, and letterboxes an image to the smallest rectangle.
    """

    def __init__(self, path: Path, *, device: str) -> None:
        """Loads a checkpoint. Loading a `.pt` runs code that is in it.

        Args:
            path: An existing `.pt` file.
            device: A torch device.
        """
        self._model = quiet_import("ultralytics").YOLOWorld(str(path))
        self._device = device

    def __call__(self, rgb: np.ndarray) -> Detections:
        """The detections in an image, uint8 (h, w, 3) RGB, in its pixels."""
        bgr = np.ascontiguousarray(rgb[..., ::-1])  # what `predict` takes an array for
        (result,) = self._model.predict(bgr, device=self._device, verbose=False)
        boxes = result.boxes.cpu().numpy()
        return Detections(boxes.xyxy.astype(np.float32), boxes.conf.astype(np.float32), boxes.cls.astype(np.int64))


def build_world(yaml: dict[str, Any]) -> nn.Module:
    """Builds a `WorldModel` from its YAML, with random weights. Torch's random state stays as it was.

    Args:
        yaml: The mapping in the model's YAML, with `nc`, `backbone`, `head` and, if it has `scales`, `scale`.

    Returns:
        The module in training mode, on the CPU.
    """
    tasks = quiet_import("ultralytics.nn.tasks")
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = tasks.WorldModel(dict(yaml), ch=3, verbose=False)
    return model


def _refuse_code(content: dict[str, Any], folder: Path) -> None:
    """Refuses a YAML that would run code in ultralytics: `activation` goes to `eval`, and a layer may be a function."""
    modules = quiet_import("ultralytics.nn.modules")
    if content.get("activation") is not None:
        raise ModelError(f"'{folder}': detector.yaml has `activation`, which would run as code. Remove it.")
    for layer in [*content["backbone"], *content["head"]]:
        name = str(layer[2])
        home, own = (nn, name.removeprefix("nn.")) if name.startswith("nn.") else (modules, name)
        kind = getattr(home, own, None)
        if not isinstance(kind, type) or not issubclass(kind, nn.Module):
            raise ModelError(
                f"'{folder}': detector.yaml has `{name}`, which is not a layer. Use the YAML of a YOLO-World."
            )


def check_world(model: nn.Module, source_name: str) -> None:
    """Refuses a model that is not a YOLO-World, or that cannot be split at guide and head.

    Args:
        model: The model.
        source_name: What it was loaded from, for error texts.

    Raises:
        ModelError: The model is refused.
    """
    cure = f"give a YOLO-World, such as {OFFICIAL[0]}."
    kind = type(model).__name__
    if not isinstance(model, quiet_import("ultralytics.nn.tasks").WorldModel):
        raise ModelError(f"'{source_name}' is not a YOLO-World but a {kind}; {cure}")
    layers: Any = model.model
    if not isinstance(layers[-1], quiet_import("ultralytics.nn.modules.head").WorldDetect):
        raise ModelError(f"'{source_name}' has the head of another model, {type(layers[-1]).__name__}; {cure}")
    if not all(hasattr(contrast, "logit_scale") for contrast in layers[-1].cv4):
        raise ModelError(f"'{source_name}' has a fused contrastive head, which takes no new classes; give it unfused.")
    if any(branch[-1].out_channels != EMBED_DIM for branch in layers[-1].cv3):
        raise ModelError(f"'{source_name}' does not compare with {EMBED_DIM}-d class embeddings; {cure}")


def block(name: str) -> Any:
    """One of ultralytics' classes of layers, by name."""
    return getattr(quiet_import("ultralytics.nn.modules.block"), name)


def layer_inputs(layer: Any, x: Any, outputs: list[Tensor | None]) -> Any:
    """Gathers the input of one of ultralytics' layers.

    Args:
        layer: The layer; its `f` names where its input comes from.
        x: The output of the layer before it, which `f` calls -1.
        outputs: The outputs of all layers so far that are needed later.

    Returns:
        A tensor, or a list of tensors if `f` is a list.
    """
    if layer.f == -1:
        return x
    if isinstance(layer.f, int):
        return outputs[layer.f]
    return [x if index == -1 else outputs[index] for index in layer.f]


def quiet_import(name: str) -> ModuleType:
    """Imports a module of ultralytics without the side effects of its first import.

    Args:
        name: The dotted name, such as "ultralytics.utils.tal".

    Raises:
        ModelError: ultralytics is not installed.
    """
    try:
        if "ultralytics" in sys.modules:
            return importlib.import_module(name)
        with _quiet():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("ultralytics", "cv2"):  # ultralytics requires OpenCV
            raise ModelError(f"'{error.name}' is not installed: {install('fit')}") from error
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """The first import: offline, with settings in a temporary folder, and everything that it changes is put back."""
    import uuid

    import cv2

    threads = cv2.getNumThreads()
    places = [(importlib.import_module(module), name) for module, names in _PATCHED.items() for name in names]
    functions = [(module, name, getattr(module, name)) for module, name in places]
    levels = {name: logging.getLogger(name).level for name in _SILENCED}
    try:
        with (
            quiet_imports(),
            warnings.catch_warnings(),
            np.printoptions(),
            torch._tensor_str.printoptions(),
        ):
            os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false")
            uuid.getnode = lambda: _NO_CARD
            importlib.import_module("ultralytics")
            yield
    finally:
        cv2.setNumThreads(threads)
        for module, name, function in functions:
            setattr(module, name, function)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
