"""The detector in float16, for GPUs: convolutions and attention. Boxes, scores and suppression stay in float32."""

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prompt_tune.deployment.graph import DetectorGraph, export_graph, raw_session
from prompt_tune.errors import GraphError
from prompt_tune.files import replacing
from prompt_tune.models.world import World

MAX_BOX_PX = 0.5  # what a box may move by, in pixels of the network's input
MAX_SCORE = 0.01  # what a score may change by
SCENES = 4  # of the sample set, on which both are measured
ANCHORS = 100  # of a scene, those with the best scores: what can become a detection
logger = logging.getLogger(__name__)


def export_half_graph(
    world: World, path: Path | str, *, image_size: int, original: np.ndarray, learned: np.ndarray
) -> None:
    """Writes the detector as a float16 ONNX file, whole or not at all, once it agrees with float32.

    It is the same detector to vocabularies (same digest) and has the same inputs and outputs, float32 too.

    Args:    world: the detector, float32, on the CPU. path, image_size: as of `export_graph`.
             original, learned: (n, n_prompts, 512) float32, the embeddings that it is checked with.
    Raises:  GraphError: as of `export_graph`, or float16 is not exact enough for these weights.
    """
    with replacing(path) as temporary:
        export_graph(half_world(world), temporary, image_size=image_size, exact=world)
        box_px, score = half_differences(world, temporary, image_size=image_size, original=original, learned=learned)
        if not (box_px <= MAX_BOX_PX and score <= MAX_SCORE):
            raise GraphError(
                f"In float16, boxes of this detector move by {box_px:.3f} px and scores by {score:.4f} on the sample "
                f"set (allowed: {MAX_BOX_PX} px, {MAX_SCORE}). Export without --half."
            )
    logger.info("float16: boxes within %.3f px, scores within %.4f of float32 on the sample set.", box_px, score)


def half_world(world: World) -> World:
    """A copy of a detector that computes in float16 from the images to the head's maps, which come out in float32.

    Args:    world: float32, on the CPU; it stays as it is.
    Returns: takes and gives what `world` does; digest and folded head are those of `world`.
    """
    half = World(copy.deepcopy(world.model), source_name=world.source_name)
    layers: Any = half.model.model
    for module in layers[:-1].half().modules():
        module.register_forward_pre_hook(_to_half)  # images, and the guide wherever it enters
    head = layers[-1]
    for i, (boxes, scores) in enumerate(zip(head.cv2, head.cv3, strict=True)):
        head.cv2[i] = nn.Sequential(*boxes.half(), _ToFloat())
        head.cv3[i] = nn.Sequential(*scores[:-1].half(), _ToFloat(), scores[-1])  # the last is in the folded head
    return half


def half_differences(
    world: World, path: Path | str, *, image_size: int, original: np.ndarray, learned: np.ndarray
) -> tuple[float, float]:
    """How far a graph is from the float32 detector before suppression, where detections can come from.

    Args:    as of `export_half_graph`.
    Returns: the largest difference of a box, in pixels of the network's input, and of a score, at the `ANCHORS` anchors
             with the best scores in each of `SCENES` scenes of the sample set. NaN where the graph computes NaN.
    """
    import onnx

    from prompt_tune.datasets.sample import custom_scene
    from prompt_tune.runtime.images import letterbox

    session, reference = raw_session(onnx.load(path)), DetectorGraph(world)
    vocabularies = {"original": original, "learned": learned}
    limits = {name: np.array([0.5], np.float32) for name in ("iou", "original_conf", "learned_conf")}
    box_px = score = np.float32(0)
    for index in range(SCENES):
        pixels, _ = letterbox(np.asarray(custom_scene(0, "test", index).image), image_size)
        images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32) / np.float32(255)  # (1, 3, h, w)
        with torch.no_grad():
            true = reference.raw(*(torch.from_numpy(np.array(a)) for a in (images, original, learned)))
        raw = session.run(None, {"images": images} | vocabularies | limits)[2:]
        boxes, scores = true[0].numpy(), np.concatenate([table.numpy() for table in true[1:]], axis=1)  # (1, n_cls, A)
        half_scores = np.concatenate(raw[1:], axis=1)  # (1, n_cls, A)
        best = np.maximum(scores, half_scores)[0].max(axis=0).argsort()[-ANCHORS:]  # (ANCHORS,); NaN counts as largest
        box_px = np.maximum(box_px, np.abs(boxes - raw[0])[:, best].max())  # NaN stays
        score = np.maximum(score, np.abs(scores - half_scores)[:, :, best].max())
    return float(box_px), float(score)


class _ToFloat(nn.Module):
    """The end of what is computed in float16."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def _to_half(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """float32 tensors in float16; lists of them come from layers that are in float16 already."""
    return tuple(
        value.half() if isinstance(value, Tensor) and value.dtype == torch.float32 else value for value in inputs
    )
