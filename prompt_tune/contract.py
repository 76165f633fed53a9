"""Numbers and names that several rooms share: of vocabulary files, detection, data sets and the ONNX graph."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from prompt_tune import strict_json
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
SAME_BOX_IOU = 0.7  # the overlap at which boxes of two vocabularies are taken for one object, as in suppression
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
MAX_IMAGE_SIZE = 8192  # pixels of the square's side: 0.8 GB of float32; networks are made for 640 to 1280
MOST_BATCH = 1024  # images that a call may send through the network at once
MAX_STRIDE = 256  # YOLO's largest is 64
MAX_LEVELS = 8  # maps of different strides; YOLO-World has three
OUTPUTS = ("original_detections", "learned_detections")
RAW_INPUTS, RAW_OUTPUTS = INPUTS[:3], ("boxes", "original_scores", "learned_scores")  # of a graph without suppression
MAX_SLOTS = 2**16  # classes of each vocabulary input of a graph of fixed shapes
DETECTION_COLUMNS = 7  # image index, x1, y1, x2, y2, score, class


def read_metadata(session: "onnxruntime.InferenceSession", path: Path) -> dict[str, Any]:
    """The metadata of a graph that prompt-tune exported.

    Args:
        session: The graph, opened.
        path: Its file, as the error names it.

    Returns:
        `version`, `detector` (digest), `image_size` (pixels), `strides`, `precision`, `slots` and `suppression`, among
        others, each of the right type and within its limits. A graph that does not state them is in float32, has no
        slots (None: its shapes are free), and suppresses.

    Raises:
        GraphError: The graph has no such metadata, another version, or other inputs and outputs; or what it states
            cannot be.
    """
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    names = (tuple(i.name for i in session.get_inputs()), tuple(o.name for o in session.get_outputs()))
    cure = "Make one: prompt-tune export RUN --out BUNDLE"
    if text is None or names not in ((INPUTS, OUTPUTS), (RAW_INPUTS, RAW_OUTPUTS)):
        raise GraphError(f"`{path}` is an ONNX graph, but not one of prompt-tune's. {cure}")
    try:
        metadata = {"precision": "float32", "slots": None, "suppression": True} | strict_json.parse(text)
        version = metadata["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise GraphError(f"`{path}` has damaged metadata. {cure}") from error
    if type(version) is not int or version != GRAPH_VERSION:
        raise GraphError(
            f"`{path}` has version {version!r:.50}; this prompt-tune reads {GRAPH_VERSION}. Use a newer one, or export "
            "again."
        )
    for key, value in metadata.items():
        if not may_be(key, value):
            raise GraphError(f"`{path}` has damaged metadata: `{key}` cannot be {value!r:.50}. {cure}")
    strides = metadata.get("strides", [])
    is_whole = metadata.keys() >= {"detector", "image_size", "strides"} and not metadata["image_size"] % strides[-1]
    if not is_whole or metadata["suppression"] is not (names[0] == INPUTS):
        raise GraphError(f"`{path}` has damaged metadata. {cure}")
    return metadata


def may_be(key: str, value: object) -> bool:
    """Whether a value of a graph's metadata can be true; unknown keys may have any."""
    if key == "detector":
        return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
    if key == "strides":  # powers of two, rising
        return (
            isinstance(value, list)
            and 1 <= len(value) <= MAX_LEVELS
            and all(type(one) is int and 1 <= one <= MAX_STRIDE and one & (one - 1) == 0 for one in value)
            and value == sorted(set(value))
        )
    if key == "image_size":
        return type(value) is int and 1 <= value <= MAX_IMAGE_SIZE
    if key == "slots":
        return value is None or (type(value) is int and 1 <= value <= MAX_SLOTS)
    if key == "suppression":
        return type(value) is bool
    if key == "embed_dim":
        return type(value) is int and value == EMBED_DIM
    return key != "precision" or value in get_args(Precision)
