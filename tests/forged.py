"""Graphs that claim to be prompt-tune's: the right inputs and outputs, and rows and metadata of one's choice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from vocabularies import DETECTOR

from prompt_tune.contract import INPUTS, METADATA_KEY, OUTPUTS

GOOD = {
    "version": 1,
    "detector": DETECTOR,
    "embed_dim": 512,
    "image_size": 64,
    "strides": [8, 16, 32],
    "precision": "float32",
}


def forged_graph(path: Path, metadata: Any = None, rows: Any = ()) -> Path:
    """Writes a graph whose two outputs are `rows`, whatever goes in. Metadata: JSON, or text as it is."""
    table = np.asarray(rows, np.float32).reshape(len(rows), -1) if len(rows) else np.zeros((0, 7), np.float32)
    shapes = [("b", 3, "h", "w"), ("n", "p", 512), ("m", "q", 512), (1,), (1,), (1,)]
    graph = helper.make_graph(
        [helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(table)) for name in OUTPUTS],
        "forged",
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in zip(INPUTS, shapes, strict=True)
        ],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (None, None)) for name in OUTPUTS],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    metadata = GOOD if metadata is None else metadata
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, path)
    return path


def forged_metadata() -> dict[str, Any]:
    """By name, metadata that every reader must refuse: JSON, or text as it is."""
    changes: dict[str, list[Any]] = {
        "version": [0, 2, -1, "1", True, 1.0, None, [1], 10**400],
        "detector": ["", "d" * 63, "D" * 64, "d" * 64 + "\n", None, 7, ["d" * 64], {}],
        "image_size": [0, -64, 63, 65, 8224, 2**31, 10**30, "64", 64.0, True, None, [64], {}],
        "strides": [
            *([], [0], [-8, 16], [8, 16, 0], [8, 16, 33], [8, 16, 512], [16, 8], [8, 8, 16], [32, 16, 8], [2**40]),
            *(
                [8.0, 16],
                ["8", "16"],
                [True, 16],
                [None],
                [[8]],
                32,
                "8",
                None,
                {"8": 16},
                [1, 2, 4, 8, 16, 32, 64, 128, 256],
            ),
        ],
        "embed_dim": [0, 256, 513, "512", 512.0, True, None, [512]],
        "slots": [0, -1, 2**20, "128", True, 1.0],
        "suppression": [False, None, 0, "no"],
        "precision": ["int8", "", None, 32, ["float32"], {}],
    }
    found: dict[str, Any] = {}
    for key, values in changes.items():
        found |= {f"{key} {value!r:.40}": GOOD | {key: value} for value in values}
    for key in ("version", "detector", "image_size", "strides"):
        found[f"no {key}"] = {name: value for name, value in GOOD.items() if name != key}
    text = json.dumps(GOOD)
    return found | {
        "empty": "",
        "cut": text[:-1],
        "list": f"[{text}]",
        "text": '"64"',
        "nothing": "{}",
        "null": "null",
        "twice": text[:-1] + ', "image_size": 32}',
        "nan": text.replace("64,", "NaN,"),
        "infinity": text.replace("64,", "Infinity,"),
        "exponent": text.replace("64,", "64e0,"),
        "digits": text.replace("64,", "9" * 5000 + ","),
        "deep": text.replace("64,", "[" * 100_000 + "]" * 100_000 + ","),
        "bom": "\ufeff" + text,
    }
