"""Small bundles whose graph has fixed shapes, or no suppression."""

import shutil
from functools import cache
from pathlib import Path

from small_bundle import IMAGE_SIZE, small_bundle

from prompt_tune.deployment.graph import export_graph
from prompt_tune.deployment.variants import write_inputs
from prompt_tune.models.world import World
from prompt_tune.runtime.slots import Slots
from prompt_tune.vocabulary.format import INPUTS_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary

SLOTS = Slots(90, 2, 3)
KINDS = ("slots", "slots-raw", "raw")


@cache
def variant(world: World, folder: Path, kind: str) -> Path:
    """A copy of the small bundle with another graph, on a detector of which `small_bundle` was made."""
    plain = small_bundle(world, folder / "small-bundle")
    bundle = folder / kind
    shutil.copytree(plain, bundle, dirs_exist_ok=True)
    slots = SLOTS if "slots" in kind else None
    export_graph(world, bundle / "detector.onnx", image_size=IMAGE_SIZE, slots=slots, suppression="raw" not in kind)
    if slots:
        parts = [Vocabulary.load(bundle / f"{name}.vocab.safetensors") for name in ("original", "learned")]
        write_inputs(bundle / INPUTS_FILE, slots, *parts)
    return bundle
