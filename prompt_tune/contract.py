"""The runtime's side of the contract with the ONNX graph (DESIGN, section 7): names, and the graph's own metadata."""

import json
from pathlib import Path
from typing import Any

import onnxruntime

from prompt_tune.errors import GraphError

METADATA_KEY = "prompt-tune"
GRAPH_VERSION = 1
INPUTS = ("images", "original", "learned", "iou", "original_conf", "learned_conf")
OUTPUTS = ("original_detections", "learned_detections")


def read_metadata(session: onnxruntime.InferenceSession, path: Path) -> dict[str, Any]:
    """The graph's own metadata, once it is known to be ours.

    Raises: GraphError: no such metadata, another version, or other inputs and outputs.
    """
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    names = (tuple(i.name for i in session.get_inputs()), tuple(o.name for o in session.get_outputs()))
    cure = "Make one: prompt-tune export RUN --out BUNDLE"
    if text is None or names != (INPUTS, OUTPUTS):
        raise GraphError(f"`{path}` is an ONNX graph, but not one of prompt-tune's. {cure}")
    try:
        metadata = json.loads(text)
        known = {"detector": str, "image_size": int, "strides": list}
        whole = all(isinstance(metadata[key], kind) for key, kind in known.items())
        version = metadata["version"]
    except (ValueError, KeyError, TypeError):
        whole, version = False, GRAPH_VERSION
    if version != GRAPH_VERSION:
        raise GraphError(
            f"`{path}` has version {version}; this prompt-tune reads {GRAPH_VERSION}. Use a newer one, or export again."
        )
    if not whole:
        raise GraphError(f"`{path}` has damaged metadata. {cure}")
    return metadata
