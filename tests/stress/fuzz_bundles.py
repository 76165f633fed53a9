"""Damaged bundles: refused with a `PromptTuneError` of one line when they are opened or run, or they run.

A flipped bit in a weight gives other detections, and nothing can tell. So a bundle that runs has only to give finite
boxes and scores. ONNX Runtime is native code: a case in which the process dies is a fault.

python tests/stress/fuzz_bundles.py --cases 2000 --seed 1
"""

import json
import random
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnx
from places import TESTS
from stress.cases import FaultError, check_error, fuzz
from stress.mutate import EDGES, json_text, mutate_bytes, mutate_json

from prompt_tune.contract import METADATA_KEY
from prompt_tune.errors import PromptTuneError
from prompt_tune.runtime.detector import Detector

BUNDLE = TESTS / "data" / "bundle"  # random weights, half a million of them
GRAPH = "detector.onnx"
METADATA_VALUES: tuple[Any, ...] = (
    0,
    -1,
    1,
    7,
    31,
    32,
    33,
    10**6,
    2**31,
    2**63,
    1e308,
    None,
    "",
    [],
    {},
    [8],
    [8, 16, 32, 64],
    [0, 0, 0],
)
PICTURE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)


def check(rng: random.Random, folder: Path) -> str:
    """One bundle."""
    bundle = folder / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(BUNDLE, bundle)
    _damage(rng, bundle)
    try:
        detector = Detector(bundle, threads=1)
    except PromptTuneError as error:
        check_error(error)
        return "refused when opened"
    try:
        (found,) = detector.detect(PICTURE, conf=0.01)
    except PromptTuneError as error:
        check_error(error)
        return "refused when run"
    if not np.isfinite(found.boxes_xyxy).all() or not np.isfinite(found.scores).all():
        raise FaultError("boxes or scores that are not finite")
    if len(found) and (found.boxes_xyxy.min() < 0 or (found.boxes_xyxy > np.array([60, 40, 60, 40])).any()):
        raise FaultError("boxes outside the image")
    return "runs"


def _damage(rng: random.Random, bundle: Path) -> None:
    """One kind of damage."""
    kind = rng.randrange(10)
    graph = bundle / GRAPH
    if kind <= 1:
        graph.write_bytes(mutate_bytes(rng, graph.read_bytes()))
    elif kind == 2:
        path = rng.choice(sorted(bundle.iterdir()))
        data = path.read_bytes()
        how = rng.randrange(4)
        if how == 0:
            path.unlink()
        elif how == 1:
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(b"" if how == 2 else data[: rng.randrange(len(data))])
    elif kind == 3:  # another file under the name
        one, other = rng.sample(sorted(bundle.iterdir()), 2)
        one.write_bytes(other.read_bytes())
    else:
        model = onnx.ModelProto()
        model.ParseFromString(_graph())
        if kind <= 6:
            _forge(rng, model)
        else:
            _rewire(rng, model)
        graph.write_bytes(model.SerializeToString())


def _forge(rng: random.Random, model: Any) -> None:
    """Other metadata."""
    entry = next(prop for prop in model.metadata_props if prop.key == METADATA_KEY)
    fields = json.loads(entry.value)
    kind = rng.randrange(5)
    if kind <= 1:
        fields[rng.choice(list(fields))] = rng.choice(METADATA_VALUES)
        entry.value = json.dumps(fields)
    elif kind == 2:
        entry.value = json_text(mutate_json(rng, fields)).encode("utf-8", "replace").decode()
    elif kind == 3:
        text = mutate_bytes(rng, entry.value.encode()).decode("utf-8", "replace")
        entry.value = text
    else:
        entry.key = rng.choice(("", "other", METADATA_KEY.upper()))


def _rewire(rng: random.Random, model: Any) -> None:
    """Other nodes, inputs, outputs, types and shapes."""
    graph, kind = model.graph, rng.randrange(8)
    node = rng.choice(graph.node)
    if kind == 0:
        graph.node.remove(node)
    elif kind == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(
            ("", "images", "original", rng.choice(graph.node).output[0])
        )
    elif kind == 2 and node.attribute:
        attribute = rng.choice(node.attribute)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = min(rng.choice(EDGES), 2**63 - 1)
        else:
            attribute.i = min(rng.choice(EDGES), 2**63 - 1)
    elif kind == 3:
        value = rng.choice([*graph.input, *graph.output])
        value.name = rng.choice(("", "x", value.name.upper()))
    elif kind == 4:
        value = rng.choice(graph.input)
        value.type.tensor_type.elem_type = rng.choice((0, 1, 6, 7, 10, 11, 99))
    elif kind == 5:
        value = rng.choice(graph.input)
        if value.type.tensor_type.shape.dim:
            rng.choice(value.type.tensor_type.shape.dim).dim_value = rng.choice((0, 1, 3, 64, 513, 2**31))
    elif kind == 6:
        tensor = rng.choice(graph.initializer)
        if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((0, 1, 2, 2**31, 2**62))
    else:
        model.opset_import[0].version = rng.choice((0, 1, 9, 10**6))


@cache
def _graph() -> bytes:
    return (BUNDLE / GRAPH).read_bytes()


if __name__ == "__main__":
    sys.exit(fuzz(__doc__, check, cases=200))
