"""Bundles: folders for the inference box, with ONNX graph, two vocabularies, README and deployment kit."""

import logging
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from prompt_tune.deployment.graph import export_graph
from prompt_tune.deployment.half import export_half_graph
from prompt_tune.deployment.photo import write_photo
from prompt_tune.deployment.variants import described, fitting_slots, write_inputs
from prompt_tune.deployment.wheel import WHEELS, build_wheel, find_checkout
from prompt_tune.errors import GraphError
from prompt_tune.files import replacing_folder
from prompt_tune.models.embeddings import load_run
from prompt_tune.models.world import World
from prompt_tune.runtime.labels import checked_label
from prompt_tune.version import NAME, PUBLISHED, install_on_cpu
from prompt_tune.vocabulary.checks import short
from prompt_tune.vocabulary.format import GRAPH_FILE, INPUTS_FILE, KITS, LEARNED_FILE, ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary
from prompt_tune.wording import counted

README_FILE = "README.md"
BUNDLE_FILES = (GRAPH_FILE, ORIGINAL_FILE, LEARNED_FILE, README_FILE)
SAMPLE_FILE = "sample.jpg"  # the photo behind the page's Sample button, in web/
MADE_IN_KITS = {"__pycache__", "node_modules", "onnxruntime", SAMPLE_FILE}  # what an export or the kit's use adds
logger = logging.getLogger(__name__)


def export_bundle(
    run: Path | str,
    out: Path | str,
    *,
    half: bool = False,
    photo: bool = True,
    with_wheel: bool = False,
    name: str | None = None,
    slots: int | None = None,
    suppression: bool = True,
) -> None:
    """Writes the bundle of a run, which is all that `prompt-tune detect` needs.

    If anything fails, `out` stays as it was.

    Args:
        run: A run folder of `fit`.
        out: The bundle's folder. An old bundle is replaced.
        half: Whether convolutions and attention are in float16, for GPUs. Boxes, scores and suppression stay in
            float32.
        photo: Whether one of the run's validation images goes into the bundle, for the page's Sample button.
        with_wheel: Whether a wheel of this package, built from its checkout, goes into the bundle.
        name: The label of the learned vocabulary, which its provenance then has. By default, "learned", and the file is
            the run's, byte for byte.
        slots: Classes of each vocabulary input, for a graph of fixed shapes. By default, all shapes are free.
        suppression: Whether the graph suppresses. A bundle of such a graph, or of one with slots, has no programs that
            run it without prompt-tune.

    Raises:
        RunError: The run folder is incomplete, or its parts were not made for one another.
        GraphError: `out` is in the way or cannot be written, or the exported graph disagrees with torch. With `half`,
            also: float16 is not exact enough for the detector, or the graph is to have slots or no suppression. With
            `slots`: a vocabulary has more classes. With `with_wheel`: there is no checkout, or the build
            fails.
        ModelError: The run's detector is missing or cannot be used.
        VocabularyError: A vocabulary of the run is damaged, or `name` cannot be a label.
    """
    label = None if name is None else checked_label(name)
    if half and not (slots is None and suppression):
        raise GraphError("A graph with slots, or without suppression, is in float32. Leave out --half.")
    run, out = Path(run), Path(out).absolute()
    _check_place(out)
    if with_wheel:
        find_checkout()  # before minutes of work
    config, world, original, learned = load_run(run)
    fixed = None if slots is None else fitting_slots(slots, original, learned)
    is_plain = fixed is None and suppression
    try:
        with replacing_folder(out) as folder:
            if is_plain:
                write_graph(folder / GRAPH_FILE, config, world, original, learned, half=half)
            else:
                size = config["image_size"]
                export_graph(world, folder / GRAPH_FILE, image_size=size, slots=fixed, suppression=suppression)
            if fixed:
                write_inputs(folder / INPUTS_FILE, fixed, original, learned)
            shutil.copyfile(run / ORIGINAL_FILE, folder / ORIGINAL_FILE)
            if label is None:
                shutil.copyfile(run / LEARNED_FILE, folder / LEARNED_FILE)
            else:
                replace(learned, provenance={**learned.provenance, "label": label}).save(folder / LEARNED_FILE)
            wheel = build_wheel(folder) if with_wheel else None
            template, more = (
                ("bundle_README.md", {})
                if is_plain
                else ("fixed_README.md", described(config["image_size"], fixed, suppression=suppression))
            )
            readme = _readme(out, config, original, learned, wheel.name if wheel else None, template, more)
            (folder / README_FILE).write_text(readme, encoding="utf-8")
            for kit in KITS if is_plain else ():
                (folder / kit).mkdir()
                for name, data in _kit_files(kit).items():
                    (folder / kit / name).write_bytes(data)
            if photo and is_plain:
                few = "cross_validated" in learned.provenance
                write_photo(run, folder / "web" / SAMPLE_FILE, trained_on_all=few)
    except OSError as error:
        raise GraphError(f"Cannot write the bundle '{out}': {error.strerror}. Choose another --out.") from error
    logger.info(
        "%s: detector %s, %d original and %s; the graph agrees with torch%s.",
        out,
        short(world.digest),
        len(original.class_names),
        counted(len(learned.names), "learned class"),
        "" if fixed else " on shapes not traced",
    )


def write_graph(
    path: Path, config: dict[str, Any], world: World, original: Vocabulary, learned: Vocabulary, *, half: bool
) -> None:
    """Writes the graph of a run that `load_run` gave, in float32 or with float16 where that is exact enough.

    Raises:
        GraphError: It disagrees with torch, or float16 is not exact enough for the detector.
    """
    if half:
        vocabularies = {"original": original.embeddings, "learned": learned.embeddings}
        export_half_graph(world, path, image_size=config["image_size"], **vocabularies)
    else:
        export_graph(world, path, image_size=config["image_size"])


def _check_place(out: Path) -> None:
    """Refuses to replace anything but a bundle or an empty folder."""
    if not out.exists() and not out.is_symlink():
        return
    found = list(out.iterdir()) if out.is_dir() else [out]
    names = {path.name for path in found if not path.match(WHEELS)}
    known = names <= {*BUNDLE_FILES, INPUTS_FILE, *KITS} and all(
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


def _readme(
    out: Path,
    config: dict[str, Any],
    original: Vocabulary,
    learned: Vocabulary,
    wheel: str | None,
    template_file: str,
    more: dict[str, object],
) -> str:
    """The bundle's README, from a template beside the kits, with `more` to fill in."""
    package = f"{out.name}/{wheel}" if wheel else NAME
    where = "" if wheel or PUBLISHED else "   # in a checkout of prompt-tune: it is not on PyPI yet"
    template = files("prompt_tune.export").joinpath(template_file).read_text(encoding="utf-8")
    return Template(template).substitute(
        bundle=out.name,
        install=f"pip install {package}{where}",
        install_on_cpu=install_on_cpu(package),
        detector=original.detector,
        image_size=config["image_size"],
        n_original=len(original.class_names),
        n_learned=len(learned.names),
        learned_names=", ".join(learned.names),
        **more,
    )
