"""Model repositories for NVIDIA's Triton Inference Server: the graph, and a Python model in front of it."""

import logging
import shutil
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from prompt_tune.deployment.bundle import write_graph
from prompt_tune.errors import GraphError
from prompt_tune.files import replacing_folder
from prompt_tune.models.embeddings import load_run
from prompt_tune.vocabulary.checks import short
from prompt_tune.vocabulary.format import LEARNED_FILE, ORIGINAL_FILE
from prompt_tune.wording import counted

MODEL = "prompt_tune"
GRAPH = "prompt_tune_graph"
CONFIG_FILE = "config.pbtxt"
KIT_FILES = ("kit_detector.py", "kit_images.py", "kit_vocabulary.py")  # of the bundle's program
GRAPH_FILE = f"{GRAPH}/1/model.onnx"
REPOSITORY_FILES = (
    f"{MODEL}/{CONFIG_FILE}",
    f"{MODEL}/1/model.py",
    *(f"{MODEL}/1/{name}" for name in KIT_FILES),
    f"{MODEL}/1/{ORIGINAL_FILE}",
    f"{MODEL}/1/vocabularies/{LEARNED_FILE}",
    f"{GRAPH}/{CONFIG_FILE}",
    GRAPH_FILE,
)
FORMER_FILES = (f"{MODEL}/1/detect.py",)  # of repositories that earlier versions wrote
MAX_BATCH = 256  # images of 640 px, as float32, are 5 MB each
logger = logging.getLogger(__name__)


def export_triton(run: Path | str, out: Path | str, *, half: bool = False, batch: int = 1) -> None:
    """Writes a model repository of a run.

    If anything fails, `out` stays as it was.

    Args:
        run: A run folder of `fit`.
        out: The repository's folder. An old repository of this function is replaced, unless vocabularies were added.
        half: See `bundle.export_bundle`.
        batch: Number of images of each call of the graph. Above 1, Triton joins requests that wait, missing images are
            grey, and tensors of the model `prompt_tune` have one more dimension, of size 1, in front.

    Raises:
        RunError: The run folder is incomplete, or its parts were not made for one another.
        GraphError: `out` is in the way or cannot be written, `batch` is out of range, or the exported graph disagrees
            with torch.
        ModelError: The run's detector is missing or cannot be used.
        VocabularyError: A vocabulary of the run is damaged.
    """
    run, out = Path(run), Path(out).absolute()
    if not 1 <= batch <= MAX_BATCH:
        raise GraphError(f"`batch` must be from 1 to {MAX_BATCH} images. Received: {batch}.")
    _check_place(out)
    config, world, original, learned = load_run(run)
    values = {
        "image_size": config["image_size"],
        "strides": " ".join(map(str, world.strides)),
        "detector": world.digest,
        # a server that joins requests needs a batch dimension in each tensor, so without a reason there is none
        "max_batch_size": batch if batch > 1 else 0,
        "batching": "dynamic_batching { }" if batch > 1 else "# no dynamic_batching: each request is a call of its own",
    }
    kit = files("prompt_tune.export")
    try:
        with replacing_folder(out) as folder:
            for name in REPOSITORY_FILES:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_graph(folder / GRAPH_FILE, config, world, original, learned, half=half)
            for model in (MODEL, GRAPH):
                text = _filled(kit.joinpath("triton", f"{model}.pbtxt").read_text(encoding="utf-8"), values)
                (folder / model / CONFIG_FILE).write_text(text, encoding="utf-8")
            code = folder / MODEL / "1"
            (code / "model.py").write_bytes(kit.joinpath("triton", "model.py").read_bytes())
            for name in KIT_FILES:
                (code / name).write_bytes(kit.joinpath("python", name).read_bytes())
            shutil.copyfile(run / ORIGINAL_FILE, code / ORIGINAL_FILE)
            shutil.copyfile(run / LEARNED_FILE, code / "vocabularies" / LEARNED_FILE)
    except OSError as error:
        raise GraphError(f"Cannot write the repository '{out}': {error.strerror}. Choose another --out.") from error
    logger.info(
        "%s: detector %s, %d original and %s; the graph agrees with torch on shapes not traced.",
        out,
        short(world.digest),
        len(original.names),
        counted(len(learned.names), "learned class"),
    )


def _filled(template: str, values: dict[str, Any]) -> str:
    """A configuration from its template."""
    return Template(template).substitute(values)


def _check_place(out: Path) -> None:
    """Refuses to replace anything but a repository with nothing added to it, or an empty folder."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise GraphError(f"'{out}' is in the way: it is not a folder. Choose another --out.")
    found = {path.relative_to(out) for path in out.rglob("*") if not path.is_dir() and "__pycache__" not in path.parts}
    if other := sorted(found - {Path(name) for name in (*REPOSITORY_FILES, *FORMER_FILES)}):
        raise GraphError(
            f"'{out}' is in the way: it has `{other[0]}`, which no export writes, so it is not replaced. Choose "
            "another --out."
        )
