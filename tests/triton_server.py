"""Model repositories as Triton uses them: its way to import a Python model, to call it, and to run a graph."""

import importlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.providers import quiet_onnxruntime

KIT = ("kit_detector", "kit_images", "kit_vocabulary")  # the modules beside the Python model
MODEL, GRAPH = "prompt_tune", "prompt_tune_graph"
OUTPUTS = {"boxes": "FP32", "scores": "FP32", "labels": "BYTES", "vocabulary": "BYTES"}
Row = tuple[bytes, bytes, bytes, bytes]  # box, score, class, vocabulary: all bits of a detection


def config_of(repository: Path) -> dict[str, Any]:
    """What the Python model reads of its configuration. test_triton_configs.py has all of it read by Triton."""
    text = (repository / MODEL / "config.pbtxt").read_text()
    parameters = re.findall(r'key: "(\w+)"\s+value: \{ string_value: "([^"]+)" \}', text)
    (size,) = re.findall(r"^max_batch_size: (\d+)$", text, re.MULTILINE)
    return {"max_batch_size": int(size), "parameters": {key: {"string_value": value} for key, value in parameters}}


@contextmanager
def loaded(repository: Path, config: dict[str, Any] | None = None) -> Iterator[Any]:
    """The Python model, initialized, in front of the graph in ONNX Runtime."""
    onnxruntime = quiet_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = repository / GRAPH / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    pb_utils.MODELS[GRAPH] = lambda feed: dict(zip(names, session.run(names, feed), strict=True))
    try:
        with imported(repository) as module:
            model = module.TritonPythonModel()
            model.initialize({"model_config": json.dumps(config or config_of(repository))})
            yield model
    finally:
        del pb_utils.MODELS[GRAPH]


@contextmanager
def imported(repository: Path) -> Iterator[Any]:
    """The module of the Python model. Triton adds to the search path, and to its own module, as is done here."""
    folder = repository / MODEL
    before, classes = list(sys.path), {name: getattr(pb_utils, name) for name in pb_utils.AFTER_IMPORT}
    for name in classes:
        delattr(pb_utils, name)
    kept = {name: sys.modules.pop(name) for name in KIT if name in sys.modules}
    sys.path += [str(folder / "1"), str(folder)]
    importlib.invalidate_caches()
    try:
        try:
            module = importlib.import_module("1.model")
        finally:
            for name, value in classes.items():
                setattr(pb_utils, name, value)
        yield module
    finally:
        sys.path[:] = before
        for name in ("1", "1.model", *KIT):
            sys.modules.pop(name, None)
        sys.modules.update(kept)


def request(batched: bool = False, /, **arrays: Any) -> pb_utils.InferenceRequest:
    """A client's request. Files are bytes, names a list of texts, numbers become float32."""
    tensors = []
    for name, value in arrays.items():
        if isinstance(value, bytes):
            array = np.array([value], np.object_)
        elif isinstance(value, list):
            array = np.array([one.encode() for one in value], np.object_)
        else:
            array = value if isinstance(value, np.ndarray) else np.array([value], np.float32)
        tensors.append(pb_utils.Tensor(name, array[None] if batched else array))
    return pb_utils.InferenceRequest(inputs=tensors, requested_output_names=list(OUTPUTS), model_name=MODEL)


def call(model: Any, requests: Sequence[pb_utils.InferenceRequest]) -> list[list[Row] | str]:
    """The answers: rows, or the code and text of an error. Refuses what Triton refuses, and tensors of a wrong form."""
    responses = model.execute(list(requests))
    assert type(responses) is list and len(responses) == len(requests)
    assert len({id(one) for one in responses}) == len(responses)  # one object for two requests can crash the server
    answers: list[list[Row] | str] = []
    for response in responses:
        assert type(response) is pb_utils.InferenceResponse
        if response.has_error():
            answers.append(f"{response.error().code()}: {response.error().message()}")
            continue
        tensors = {one.name(): one for one in response.output_tensors()}
        assert {name: one.triton_dtype() for name, one in tensors.items()} == OUTPUTS
        boxes, *rest = (one.as_numpy()[0] if model.batched else one.as_numpy() for one in tensors.values())
        assert boxes.shape == (len(boxes), 4) and all(one.shape == (len(boxes),) for one in rest)
        scores, labels, vocabularies = rest
        answers.append(
            [(boxes[i].tobytes(), scores[i].tobytes(), labels[i], vocabularies[i]) for i in range(len(boxes))]
        )
    return answers


def rows_of(found: Detections, *vocabularies: str) -> list[Row]:
    """All bits of a detector's rows."""
    rows = zip(found.boxes_xyxy, found.scores, found.class_names, found.vocabularies, strict=True)
    return [
        (box.tobytes(), score.tobytes(), name.encode(), label.encode())
        for box, score, name, label in rows
        if not vocabularies or label in vocabularies
    ]
