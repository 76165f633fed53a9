"""Suppression in torch against ONNX Runtime's `NonMaxSuppression`, and worked out by hand."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from prompt_tune.contract import MAX_PER_CLASS
from prompt_tune.models.suppression import find, suppress
from prompt_tune.runtime.boxes import box_iou


def boxes_and_scores(n_anchors: int, n_cls: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Crowded boxes, some of them outside the picture, and scores of which many are equal."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n_anchors, 2, generator=generator) * 100 - 40
    boxes = torch.cat([corner, corner + 20 + torch.rand(n_anchors, 2, generator=generator) * 40], 1)
    return boxes, (torch.rand(n_anchors, n_cls, generator=generator) * 200).round() / 200


def onnx_suppress(boxes: torch.Tensor, scores: torch.Tensor, *, conf: float, iou: float) -> np.ndarray:
    """(n, 2) class and anchor of the boxes that the graph's node keeps."""
    inputs = {
        "boxes": boxes[None].numpy(),
        "scores": scores.T[None].contiguous().numpy(),
        "limit": np.array([MAX_PER_CLASS]),
        "iou": np.array([iou], np.float32),
        "conf": np.array([conf], np.float32),
    }
    node = onnx.helper.make_node("NonMaxSuppression", list(inputs), ["kept"])
    types = {name: onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in inputs.items()}
    graph = onnx.helper.make_graph(
        [node],
        "suppress",
        [onnx.helper.make_tensor_value_info(name, types[name], value.shape) for name, value in inputs.items()],
        [onnx.helper.make_tensor_value_info("kept", onnx.TensorProto.INT64, (None, 3))],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    kept: np.ndarray = session.run(None, inputs)[0][:, 1:]
    return kept


@pytest.mark.parametrize(("n_anchors", "n_cls", "iou"), [(0, 3, 0.7), (50, 1, 0.5), (400, 7, 0.7), (3000, 40, 0.9)])
def test_suppress_random_boxes_keeps_what_onnx_runtime_keeps(n_anchors: int, n_cls: int, iou: float) -> None:
    boxes, scores = boxes_and_scores(n_anchors, n_cls, seed=n_anchors)
    label, anchor = suppress(boxes, scores, conf=0.25, iou=iou)
    wanted = onnx_suppress(boxes, scores, conf=0.25, iou=iou)
    np.testing.assert_array_equal(np.stack((label, anchor), axis=1), wanted)
    assert len(wanted) > 0 or n_anchors == 0


@pytest.mark.parametrize("n_anchors", [0, 400])
def test_find_gives_boxes_scores_and_classes_of_what_suppress_keeps(n_anchors: int) -> None:
    boxes, scores = boxes_and_scores(n_anchors, 7, seed=5)
    label, anchor = suppress(boxes, scores, conf=0.25, iou=0.5)
    found = find(boxes, scores, conf=0.25, iou=0.5)
    np.testing.assert_array_equal(found.class_ids, label)
    np.testing.assert_array_equal(found.boxes_xyxy, boxes[anchor])
    np.testing.assert_array_equal(found.scores, scores[anchor, label])
    for k in range(7):
        of_class = found.boxes_xyxy[found.class_ids == k]
        assert np.triu(box_iou(of_class, of_class), 1).max(initial=0) <= 0.5


def test_suppress_many_detections_keeps_the_best_300_of_a_class() -> None:
    corner = torch.arange(400.0)[:, None].expand(-1, 2) * 20
    boxes = torch.cat([corner, corner + 10], 1)  # no two of them overlap
    scores = torch.linspace(0.1, 0.9, 400)[:, None].repeat(1, 2)
    label, anchor = suppress(boxes, scores)
    assert label.bincount().tolist() == [300, 300]
    assert anchor.min() == 100


def test_suppress_drops_scores_at_conf_and_keeps_other_classes_of_a_box() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9.5]])
    label, anchor = suppress(boxes, torch.tensor([[0.5, 0.3], [0.4, 0.9]]), conf=0.3)
    assert (label.tolist(), anchor.tolist()) == ([0, 1], [0, 1])


@pytest.mark.parametrize(("spread", "iou"), [(1.0, 0.5), (1.0, 0.9), (40.0, 0.7)])
def test_looking_at_the_best_candidates_first_changes_nothing(spread: float, iou: float) -> None:
    """Crowded boxes, of which few are kept, and boxes far apart, of which 300 are."""
    boxes, scores = boxes_and_scores(3000, 3, seed=9)  # scores of two hundredths: many are equal
    corner = boxes[:, :2] * spread
    boxes = torch.cat([corner, corner + boxes[:, 2:] - boxes[:, :2]], 1)
    scores[:, 2] *= torch.arange(3000) < 40
    wanted = suppress(boxes, scores, conf=0.1, iou=iou)
    for prefix in (1, 7, 100, 500, 5000):
        found = suppress(boxes, scores, conf=0.1, iou=iou, prefix=prefix)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    counts = wanted[0].bincount().tolist()
    assert (counts[0] == MAX_PER_CLASS) == (spread > 1 or iou > 0.8) and counts[2] <= 40
