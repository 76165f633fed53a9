"""Imports of other libraries that neither write into the home folder nor report usage.

Whatever a library that we import would store or send on its own is switched off here, in one place. ONNX Runtime's
telemetry is switched off in `runtime.providers`, without a temporary folder.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

SWITCHES = {  # read once, when the library is imported
    "HF_HUB_DISABLE_TELEMETRY": "1",  # open_clip downloads with huggingface_hub
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray reports what a cluster has and runs
    "FIFTYONE_DO_NOT_TRACK": "true",  # it reports each import and each use
    "NO_ALBUMENTATIONS_UPDATE": "1",  # ultralytics imports albumentations if it is there, which asks for updates
}
OPENVINO_QUIET = {"TF_BUILD": "1"}  # OpenVINO reports each import, to Google Analytics, but not those of CI jobs
TRACKERS_QUIET = {  # while a run is logged: read whenever they report
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # not privacy: it would tell of each table that it creates
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # nor this: a server that is gone would stop `fit` for minutes
    "WANDB_ERROR_REPORTING": "false",
}


@contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """A block in which these variables are set, unless the user has set them; then all is as before."""
    before = dict(os.environ)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """A block for the first import of a library: nothing of it stays in the environment, or outside temporary folders.

    What the user has set in the environment stays in force.
    """
    wanted = SWITCHES | {
        "YOLO_CONFIG_DIR": str(_scratch_folder()),  # ultralytics' settings, with a digest of the network card's address
        "TORCHINDUCTOR_CACHE_DIR": str(_scratch_folder()),  # torchvision makes torch create it
    }
    if not any(folder.is_dir() for folder in _matplotlib_folders()):
        wanted["MPLCONFIGDIR"] = str(_scratch_folder())  # its list of fonts
    with environment(wanted):
        yield


@cache
def _scratch_folder() -> Path:
    """A temporary folder, which is removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="prompt-tune-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _matplotlib_folders() -> list[Path]:
    """Where matplotlib keeps its settings and its list of fonts. Who has one of them uses matplotlib already."""
    home = Path(os.path.expanduser("~"))
    roots = (("XDG_CONFIG_HOME", home / ".config"), ("XDG_CACHE_HOME", home / ".cache"))
    return [home / ".matplotlib", *(Path(os.environ.get(name) or root) / "matplotlib" for name, root in roots)]
