"""Bundles: folders for the inference box, with ONNX graph, two vocabularies, README and deployment kit."""

import logging
import shutil
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from prompt_tune.deployment.graph import export_graph
from prompt_tune.deployment.half import export_half_graph
from prompt_tune.errors import GraphError
from prompt_tune.files import replacing_folder
from prompt_tune.models.embeddings import load_run
from prompt_tune.vocabulary.checks import short
from prompt_tune.vocabulary.format import GRAPH_FILE, LEARNED_FILE, ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary
from prompt_tune.wording import counted

README_FILE = "README.md"
BUNDLE_FILES = (GRAPH_FILE, ORIGINAL_FILE, LEARNED_FILE, README_FILE)
KITS = ("python", "web")  # the folders of the deployment kit, without subfolders, in every bundle
MADE_IN_KITS = {"__pycache__", "node_modules", "onnxruntime"}  # folders that appear in a kit when it is used
logger = logging.getLogger(__name__)


def export_bundle(run: Path | str, out: Path | str, *, half: bool = False) -> None:
    """Writes the bundle of a run, which is all that `prompt-tune detect` needs.

    If anything fails, `out` stays as it was.

    Args:
        run: A run folder of `fit`.
        out: The bundle's folder. An old bundle is replaced.
        half: Whether convolutions and attention are in float16, for GPUs. Boxes, scores and suppression stay in
            float32.

    Raises:
        RunError: The run folder is incomplete, or its parts were not made for one another.
        GraphError: `out` is in the way or cannot be written, or the exported graph disagrees with torch. With `half`,
            also: float16 is not exact enough for the detector.
        ModelError: The run's detector is missing or cannot be used.
        VocabularyError: A vocabulary of the run is damaged.
    """
    run, out = Path(run), Path(out).absolute()
    _check_place(out)
    config, world, original, learned = load_run(run)
    try:
        with replacing_folder(out) as folder:
            if half:
                vocabularies = {"original": original.embeddings, "learned": learned.embeddings}
                export_half_graph(world, folder / GRAPH_FILE, image_size=config["image_size"], **vocabularies)
            else:
                export_graph(world, folder / GRAPH_FILE, image_size=config["image_size"])
            shutil.copyfile(run / ORIGINAL_FILE, folder / ORIGINAL_FILE)
            shutil.copyfile(run / LEARNED_FILE, folder / LEARNED_FILE)
            (folder / README_FILE).write_text(_readme(out, config, original, learned), encoding="utf-8")
            for kit in KITS:
                (folder / kit).mkdir()
                for name, data in _kit_files(kit).items():
                    (folder / kit / name).write_bytes(data)
    except OSError as error:
        raise GraphError(f"Cannot write the bundle '{out}': {error.strerror}. Choose another --out.") from error
    logger.info(
        "%s: detector %s, %d original and %s; the graph agrees with torch on shapes not traced.",
        out,
        short(world.digest),
        len(original.names),
        counted(len(learned.names), "learned class"),
    )


def _check_place(out: Path) -> None:
    """Refuses to replace anything but a bundle or an empty folder."""
    if not out.exists() and not out.is_symlink():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    known = names <= {*BUNDLE_FILES, *KITS} and all(
        {path.name for path in (out / kit).iterdir()} <= _kit_files(kit).keys() | MADE_IN_KITS
        for kit in KITS
        if (out / kit).is_dir()
    )
    if not out.is_dir() or not known or (names and GRAPH_FILE not in names):
        raise GraphError(f"'{out}' is in the way: it is not a bundle, so it is not replaced. Choose another --out.")


def _kit_files(kit: str) -> dict[str, bytes]:
    """Name and content of each file of a kit, without the folders that appear in a checkout when the kit is used."""
    folder = files("prompt_tune.export").joinpath(kit)
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


def _readme(out: Path, config: dict[str, Any], original: Vocabulary, learned: Vocabulary) -> str:
    """The bundle's README, from the template beside the kits."""
    template = files("prompt_tune.export").joinpath("bundle_README.md").read_text(encoding="utf-8")
    return Template(template).substitute(
        bundle=out.name,
        detector=original.detector,
        image_size=config["image_size"],
        n_original=len(original.names),
        n_learned=len(learned.names),
        learned_names=", ".join(learned.names),
    )
