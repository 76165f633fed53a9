"""Vocabularies filled up to fixed shapes, and suppression as ONNX Runtime does it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from vocabularies import unit_rows

from prompt_tune.contract import MAX_PER_CLASS
from prompt_tune.runtime.slots import Slots, suppressed


def test_unused_classes_repeat_the_first_where_they_guide_and_are_zero_beside() -> None:
    slots, rows = Slots(5, 3, 2), unit_rows(3, 2)
    guiding = slots.filled(rows, guides=True)
    assert guiding.shape == (5, 3, 512) and guiding.dtype == np.float32
    np.testing.assert_array_equal(guiding[:3], rows[:, [0, 1, 0]])
    np.testing.assert_array_equal(guiding[3:], rows[[0, 0]][:, [0, 1, 0]])
    beside = slots.filled(rows, guides=False)
    np.testing.assert_array_equal(beside[:3], rows)
    assert beside.shape == (5, 2, 512) and not beside[3:].any()
    assert not slots.filled(rows[:0], guides=False).any()


def onnx_suppression(boxes: np.ndarray, scores: np.ndarray, iou: float, conf: float) -> np.ndarray:
    """What ONNX Runtime's operator selects: (n, 3), image, class and anchor."""
    inputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, boxes.shape),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, scores.shape),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array([MAX_PER_CLASS]), "most"),
        onnx.numpy_helper.from_array(np.array([iou], np.float32), "iou"),
        onnx.numpy_helper.from_array(np.array([conf], np.float32), "conf"),
    ]
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "conf"], ["kept"])
    kept = [helper.make_tensor_value_info("kept", TensorProto.INT64, (None, 3))]
    graph = helper.make_graph([node], "g", inputs, kept, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"boxes": boxes, "scores": scores})[0]


@pytest.mark.parametrize(("iou", "conf"), [(0.7, 0.05), (0.3, 0.5), (1.0, 0.0), (0.0, 0.2), (0.5, 1.0)])
@pytest.mark.parametrize("spread", [40, 600])
def test_suppression_is_that_of_onnx_runtime_row_by_row(iou: float, conf: float, spread: int) -> None:
    generator = np.random.default_rng(spread)
    corners = generator.random((2, 900, 2), np.float32) * spread
    sides = generator.random((2, 900, 2), np.float32) * 60
    sides[:, :20] = 0  # boxes without an area
    boxes = np.concatenate([corners, corners + sides], axis=2)  # (2, 900, 4)
    scores = np.round(generator.random((2, 3, 900), np.float32), 2)  # many are equal
    boxes[:, 500:520] = boxes[:, 100:120]
    table = suppressed(boxes, scores, iou=iou, conf=conf)
    image, class_id, anchor = onnx_suppression(boxes, scores, iou, conf).T
    assert table.dtype == np.float32 and table.shape == (len(image), 7)
    np.testing.assert_array_equal(table[:, 0], image)
    np.testing.assert_array_equal(table[:, 1:5], boxes[image, anchor])
    np.testing.assert_array_equal(table[:, 5], scores[image, class_id, anchor])
    np.testing.assert_array_equal(table[:, 6], class_id)
    assert conf == 1 or len(table) > 100
