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
