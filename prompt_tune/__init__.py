"""prompt-tune: teach YOLO-World new classes by learning only the words in front of their names."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tune.version import __version__

if TYPE_CHECKING:
    from prompt_tune.config import FitConfig
    from prompt_tune.errors import PromptTuneError
    from prompt_tune.media.draw import draw
    from prompt_tune.runtime.detections import Detection, Detections
    from prompt_tune.runtime.detector import Detector
    from prompt_tune.services import cluster
    from prompt_tune.tuning.fit import fit
    from prompt_tune.tuning.job import FitInputs
    from prompt_tune.vocabulary.vocabulary import Vocabulary

if not (Path(__file__).parent / "prompts").is_dir():  # a checkout, where `prompts` and `export` are beside the package
    __path__.append(str(Path(__file__).parents[1]))

__all__ = [
    "Detection",
    "Detections",
    "Detector",
    "FitConfig",
    "FitInputs",
    "PromptTuneError",
    "Vocabulary",
    "__version__",
    "cluster",
    "draw",
    "fit",
]
_HOMES = {
    "Detection": "prompt_tune.runtime.detections",
    "Detections": "prompt_tune.runtime.detections",
    "Detector": "prompt_tune.runtime.detector",
    "FitConfig": "prompt_tune.config",
    "FitInputs": "prompt_tune.tuning.job",
    "PromptTuneError": "prompt_tune.errors",
    "Vocabulary": "prompt_tune.vocabulary.vocabulary",
    "draw": "prompt_tune.media.draw",
    "fit": "prompt_tune.tuning.fit",
}


def __getattr__(name: str) -> object:
    """A public name, imported at its first use, so that `import prompt_tune` loads neither NumPy nor ONNX Runtime."""
    if name == "cluster":
        return import_module("prompt_tune.services.cluster")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'prompt_tune' has no attribute {name!r}")
