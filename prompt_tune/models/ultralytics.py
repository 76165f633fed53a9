"""The only module that imports ultralytics, whose import prints, writes settings into the home folder, replaces
`torch.save` and may install packages. Here it does none of that; the modules that it defines are used as they are.
"""

import atexit
import importlib
import os
import shutil
import sys
import tempfile
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from prompt_tune.contract import EMBED_DIM
from prompt_tune.errors import ModelError

OFFICIAL = tuple(f"yolov8{scale}-world{version}.pt" for version in ("v2", "") for scale in "smlx")
RELEASE_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0"  # as in ultralytics' downloads.py
PROBE_SECONDS = 5.0  # ultralytics itself waits 30 s for a connection, four times


def load_folder(folder: Path) -> nn.Module:
    """A detector in the layout of `tiny`: its YAML, and its state dict as safetensors (any float type)."""
    import yaml
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for part in ("detector.yaml", "detector.safetensors"):
        if not (folder / part).is_file():
            raise ModelError(f"'{folder}' is not a detector: it has no {part}.")
    try:
        model = build_world(yaml.safe_load((folder / "detector.yaml").read_text(encoding="utf-8")))
        state = load_file(folder / "detector.safetensors")
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    except (yaml.YAMLError, SafetensorError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"'{folder}' is damaged: YAML and weights do not make a YOLO-World ({error!r:.150})."
        ) from error
    return model


def block(name: str) -> Any:
    """A class of ultralytics' building blocks."""
    return getattr(quiet_import("ultralytics.nn.modules.block"), name)


def check_world(model: nn.Module, source_name: str) -> None:
    """Refuses whatever is not a YOLO-World that can be split at guide and head."""
    cure = f"give a YOLO-World, such as {OFFICIAL[0]}."
    kind = type(model).__name__
    if not isinstance(model, quiet_import("ultralytics.nn.tasks").WorldModel):
        raise ModelError(f"'{source_name}' is no YOLO-World but a {kind}; {cure}")
    layers: Any = model.model
    if not isinstance(layers[-1], quiet_import("ultralytics.nn.modules.head").WorldDetect):
        raise ModelError(f"'{source_name}' has the head of another model, {type(layers[-1]).__name__}; {cure}")
    if not all(hasattr(contrast, "logit_scale") for contrast in layers[-1].cv4):
        raise ModelError(f"'{source_name}' has a fused contrastive head, which takes no new classes; give it unfused.")
    if any(branch[-1].out_channels != EMBED_DIM for branch in layers[-1].cv3):
        raise ModelError(f"'{source_name}' does not compare with {EMBED_DIM}-d class embeddings; {cure}")


def quiet_import(name: str) -> ModuleType:
    """A module of ultralytics, imported without the side effects of its first import.

    Args:    name: dotted name, e.g. "ultralytics.utils.tal".
    Returns: the module.
    Raises:  ModelError: ultralytics is not installed.
    """
    try:
        if "ultralytics" in sys.modules:
            return importlib.import_module(name)
        with _quiet():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "ultralytics":
            raise ModelError(f"'{error.name}' is not installed; `pip install prompt-tune[fit]` brings it.") from error
        raise


def load_checkpoint(path: Path) -> nn.Module:
    """The model in an ultralytics checkpoint, float32 and in eval mode. Loading a `.pt` runs code that is in it.

    Args:    path: an existing `.pt` file.
    Returns: the pickled module (the moving average where the checkpoint has one), on the CPU.
    Raises:  ModelError: the file is not one that ultralytics can load.
    """
    tasks = quiet_import("ultralytics.nn.tasks")
    try:
        model: nn.Module = tasks.load_checkpoint(str(path))[0]
    except Exception as error:  # unpickling a foreign file can raise anything
        raise ModelError(
            f"'{path}' is not a checkpoint that ultralytics can load ({type(error).__name__}); "
            f"give the .pt of a YOLO-World, such as {OFFICIAL[0]}."
        ) from error
    return model


def build_world(yaml: dict[str, Any]) -> nn.Module:
    """A `WorldModel` built from its YAML, weights not loaded yet. Torch's random state stays as it was.

    Args:    yaml: the model's YAML as a dict, with `nc`, `backbone`, `head` and, where it has `scales`, `scale`.
    Returns: the module in training mode, on the CPU.
    """

    tasks = quiet_import("ultralytics.nn.tasks")
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = tasks.WorldModel(dict(yaml), ch=3, verbose=False)
    return model


def download(name: str) -> Path:
    """An official checkpoint, fetched as ultralytics does: from its release, into the current folder.

    Args:    name: one of `OFFICIAL`.
    Returns: path of the file; one that is there already is not fetched again.
    Raises:  ModelError: there is no network, or the download failed.
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


@contextmanager
def _quiet() -> Iterator[None]:
    """First import of ultralytics: settings in a temporary folder, no network, and what it changes is put back."""
    import numpy as np
    from PIL import Image

    environment, save, image_open = dict(os.environ), torch.save, Image.open
    if "YOLO_CONFIG_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="prompt-tune-ultralytics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["YOLO_CONFIG_DIR"] = folder
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false")
    try:
        with warnings.catch_warnings(), np.printoptions():
            importlib.import_module("ultralytics")
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.save = save
        Image.open = image_open  # theirs installs a package when a file is no image
        torch.set_printoptions(profile="default")
