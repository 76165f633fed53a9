import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from forged import GOOD, forged_metadata
from onnx import TensorProto, helper
from places import TESTS

from prompt_tune.contract import GRAPH_VERSION, INPUTS, METADATA_KEY, OUTPUTS, read_metadata
from prompt_tune.errors import GraphError

FREE = {"slots": None, "suppression": True}  # what graphs of free shapes do not state
PLACE = Path("bundle") / "detector.onnx"
WHOLE = {"version": GRAPH_VERSION, "detector": "d" * 64, "image_size": 96, "strides": [8, 16, 32]}


def session(
    metadata: str | None, inputs: tuple[str, ...] = INPUTS, outputs: tuple[str, ...] = OUTPUTS
) -> onnxruntime.InferenceSession:
    """A graph that hands its first inputs on, with this metadata."""
    floats = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in (*inputs, *outputs)}
    nodes = [helper.make_node("Identity", [source], [target]) for source, target in zip(inputs, outputs, strict=False)]
    graph = helper.make_graph(nodes, "g", [floats[name] for name in inputs], [floats[name] for name in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata is not None:
        helper.set_model_props(model, {METADATA_KEY: metadata})
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_metadata_of_a_real_graph_are_read() -> None:
    path = TESTS / "data" / "bundle" / "detector.onnx"
    found = read_metadata(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), path)
    assert (found["version"], found["image_size"], found["precision"]) == (GRAPH_VERSION, 64, "float32")
    assert len(found["detector"]) == 64 and found["strides"] == [8, 16, 32]


def test_older_graph_without_precision_is_float32() -> None:
    assert read_metadata(session(json.dumps(WHOLE)), PLACE) == WHOLE | {"precision": "float32"} | FREE
    half = WHOLE | {"precision": "float16"}
    assert read_metadata(session(json.dumps(half)), PLACE) == half | FREE


@pytest.mark.parametrize("name", forged_metadata())
def test_forged_metadata_are_refused_in_one_line(name: str) -> None:
    metadata = forged_metadata()[name]
    with pytest.raises(GraphError) as refusal:
        read_metadata(session(metadata if isinstance(metadata, str) else json.dumps(metadata)), PLACE)
    text = str(refusal.value)
    assert text.startswith(f"`{PLACE}` has ") and "\n" not in text and len(text) < 250


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 8192},
        {"image_size": 32},
        {"strides": [8, 16, 32, 64]},
        {"strides": [4]},
        {"strides": [1, 256], "image_size": 256},
        {"made_by": "someone"},
    ],
)
def test_metadata_at_the_limits_are_read(changes: dict[str, Any]) -> None:
    assert read_metadata(session(json.dumps(GOOD | changes)), PLACE) == GOOD | FREE | changes


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((None,), "is an ONNX graph, but not one of prompt-tune's"),
        ((json.dumps(WHOLE), INPUTS[:-1]), "not one of prompt-tune's"),
        ((json.dumps(WHOLE), INPUTS, OUTPUTS[::-1]), "not one of prompt-tune's"),
        ((json.dumps(WHOLE | {"version": 2}),), "has version 2; this prompt-tune reads 1"),
        ((json.dumps({"version": 2, "detector": "", "image_size": 1, "strides": []}),), "has version 2"),
        (("{",), "has damaged metadata"),
        (("[]",), "has damaged metadata"),
        ((json.dumps(WHOLE | {"image_size": "96"}),), "has damaged metadata"),
        ((json.dumps(WHOLE | {"precision": "int8"}),), "has damaged metadata"),
        ((json.dumps({key: value for key, value in WHOLE.items() if key != "detector"}),), "damaged metadata"),
        ((json.dumps({key: value for key, value in WHOLE.items() if key != "version"}),), "damaged metadata"),
    ],
)
def test_graph_with_other_metadata_is_refused(options: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(GraphError) as refusal:
        read_metadata(session(*options), PLACE)
    text = str(refusal.value)
    assert text.startswith(f"`{PLACE}` ") and reason in text and "\n" not in text
