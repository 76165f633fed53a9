"""Numbers and names that several rooms share: of vocabulary files, detection, data sets and the ONNX graph."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from prompt_tune.errors import GraphError

if TYPE_CHECKING:
    import onnxruntime

METADATA_KEY = "prompt-tune"  # the only metadata key of our files: safetensors writes several in random order

# vocabularies
EMBED_DIM = 512  # text embeddings of CLIP ViT-B/32, which YOLO-World's neck and head are built for
Kind = Literal["original", "learned", "plain"]
GuideMode = Literal["original", "own"]
DEFAULT_THRESHOLD = 0.25  # ultralytics' `conf` for prediction
IDENTITY = (1.0, 0.0)  # scale and shift of the logit: a calibration that changes nothing

# detection and suppression
NMS_IOU = 0.7  # ultralytics' default for suppression
UNLIMITED = 1.0  # NMS IoU of a class without its own: no overlap exceeds it
MAX_PER_CLASS = 300  # detections per class and image, ultralytics' `max_det`
METRIC_CONF = 0.001  # ultralytics' `conf` for validation: low enough to keep the tail of the precision-recall curve
LEAST_SCORE = METRIC_CONF  # thresholds of learned vocabularies let nothing below through: `fit` looks no lower either

# data sets
HOLD_OUT = "hold_out"  # key of a YAML whose `val` repeats `train`, since other tools want a `val`: images are held out

# the ONNX graph (DESIGN, section 7)
Precision = Literal["float32", "float16"]  # of convolutions and attention; boxes, scores, suppression are float32
GRAPH_VERSION = 1
INPUTS = ("images", "original", "learned", "iou", "original_conf", "learned_conf")
OUTPUTS = ("original_detections", "learned_detections")
DETECTION_COLUMNS = 7  # image index, x1, y1, x2, y2, score, class


def read_metadata(session: "onnxruntime.InferenceSession", path: Path) -> dict[str, Any]:
    """The metadata of a graph that prompt-tune exported.

    Args:
        session: The graph, opened.
        path: Its file, as the error names it.

    Returns:
        `version`, `detector` (digest), `image_size` (pixels), `strides` and `precision`, among others. An older graph
        states no precision: it is float32.

    Raises:
        GraphError: The graph has no such metadata, another version, or other inputs and outputs.
    """
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    names = (tuple(i.name for i in session.get_inputs()), tuple(o.name for o in session.get_outputs()))
    cure = "Make one: prompt-tune export RUN --out BUNDLE"
    if text is None or names != (INPUTS, OUTPUTS):
        raise GraphError(f"`{path}` is an ONNX graph, but not one of prompt-tune's. {cure}")
    try:
        metadata = {"precision": "float32"} | json.loads(text)
        known = {"detector": str, "image_size": int, "strides": list}
        whole = all(isinstance(metadata[key], kind) for key, kind in known.items())
        whole = whole and metadata["precision"] in get_args(Precision)
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
