"""prompt-tune: teach YOLO-World new classes by learning only the words in front of their names."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_tune.errors import PromptTuneError
    from prompt_tune.runtime import Detector
    from prompt_tune.vocabulary import Vocabulary

if not (Path(__file__).parent / "prompts").is_dir():  # a checkout: `prompts` and `export` stand beside the package
    __path__.append(str(Path(__file__).parents[1]))

try:
    __version__ = version("prompt-tune")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"

__all__ = ["Detector", "PromptTuneError", "Vocabulary", "__version__"]
_HOMES = {
    "Detector": "prompt_tune.runtime",
    "PromptTuneError": "prompt_tune.errors",
    "Vocabulary": "prompt_tune.vocabulary",
}


def __getattr__(name: str) -> object:
    """The public names, each imported at its first use: importing the package loads neither NumPy nor ONNX Runtime."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'prompt_tune' has no attribute {name!r}")
