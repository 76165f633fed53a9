"""The detector with convolutions and attention in float16, for GPUs. Boxes, scores and suppression stay in float32."""

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prompt_tune.datasets.sample import custom_scene
from prompt_tune.deployment.graph import DetectorGraph, export_graph, raw_session
from prompt_tune.errors import GraphError
from prompt_tune.files import replacing
from prompt_tune.models.world import World
from prompt_tune.runtime.images import letterbox

MAX_BOX_PX = 0.5  # how far a box may move, in pixels of the network's input
MAX_SCORE = 0.01  # how much a score may change
SCENES = 4  # scenes of the sample set, on which both are measured
ANCHORS = 100  # per scene: those with the highest scores, which can become detections
logger = logging.getLogger(__name__)


def export_half_graph(
    world: World, path: Path | str, *, image_size: int, original: np.ndarray, learned: np.ndarray
) -> None:
    """Exports the detector as a float16 ONNX file. The file is written only if it agrees with float32.

    The graph takes the same vocabularies (it has the same digest), and its inputs and outputs stay in float32.

    Args:
        world: The detector, float32, on the CPU.
        path: The file to write.
        image_size: See `export_graph`.
        original: (n_original, n_prompts, 512) float32, with which it is checked.
        learned: (n_learned, n_prompts', 512) float32, likewise.

    Raises:
        GraphError: See `export_graph`; or float16 is not exact enough for these weights.
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
    """Copies a detector and makes the copy compute in float16, from the images to the head's maps.

    Args:
        world: The detector, float32, on the CPU. It is not changed.

    Returns:
        The copy. Its inputs and outputs stay in float32; its digest and folded head are those of `world`.
    """
    half = World(copy.deepcopy(world.model), source_name=world.source_name)
    layers: Any = half.model.model
    for module in layers[:-1].half().modules():
        module.register_forward_pre_hook(_to_half)  # images, and the guide wherever it enters
    head = layers[-1]
    for i, (boxes, scores) in enumerate(zip(head.cv2, head.cv3, strict=True)):
        head.cv2[i] = nn.Sequential(*boxes.half(), _ToFloat())
        head.cv3[i] = nn.Sequential(*scores[:-1].half(), _ToFloat(), scores[-1])  # the last one is folded
    return half


def half_differences(
    world: World, path: Path | str, *, image_size: int, original: np.ndarray, learned: np.ndarray
) -> tuple[float, float]:
    """Measures how far a graph is from the float32 detector before suppression.

    Only the `ANCHORS` anchors with the highest scores are compared, in each of `SCENES` scenes of the sample set.

    Args:
        world: The detector, float32, on the CPU.
        path: The ONNX file.
        image_size: Side in pixels of the square to which the scenes are letterboxed.
        original: See `export_half_graph`.
        learned: See `export_half_graph`.

    Returns:
        The largest difference of a box, in pixels of the network's input, and of a score. If the graph computes NaN,
        they are NaN.
    """
    import onnx

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
        best = np.maximum(scores, half_scores)[0].max(axis=0).argsort()[-ANCHORS:]  # (ANCHORS,); NaN sorts last
        box_px = np.maximum(box_px, np.abs(boxes - raw[0])[:, best].max())  # NaN propagates
        score = np.maximum(score, np.abs(scores - half_scores)[:, :, best].max())
    return float(box_px), float(score)


class _ToFloat(nn.Module):
    """Converts to float32, where the float16 part ends."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def _to_half(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Converts float32 inputs to float16. Lists of tensors come from layers that are in float16 already."""
    return tuple(
        value.half() if isinstance(value, Tensor) and value.dtype == torch.float32 else value for value in inputs
    )
