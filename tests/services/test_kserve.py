"""KServe's protocol: requests are read exactly or refused in one line, and answers hold the right bytes."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from places import ROOT

from prompt_tune.errors import DataError
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.slices import Slices
from prompt_tune.services import kserve
from prompt_tune.services.kserve import Question, answer, pack_texts, read_question, unpack_texts

FOUND = Detections(
    boxes_xyxy=np.array([[0.1, 2, 3, 4], [5, 6, 7, 8]], np.float32),
    scores=np.array([0.9, 0.1], np.float32),
    class_ids=np.array([0, 1]),
    class_names=("dog", "été"),
    vocabularies=("original", "learned"),
    size_wh=(10, 20),
)
RAW = {"name": "raw", "datatype": "UINT8", "shape": [1, 2, 3], "data": [1, 2, 3, 4, 5, 6]}


def request(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def binary(name: str, datatype: str, shape: list[int], content: bytes) -> tuple[dict[str, Any], bytes]:
    parameters = {"binary_data_size": len(content)}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}, content


def read_binary(*parts: tuple[dict[str, Any], bytes]) -> Question:
    header = request(*(entry for entry, _ in parts))
    return read_question(header + b"".join(content for _, content in parts), str(len(header)))


def test_texts_are_packed_behind_their_lengths() -> None:
    packed = b"\x02\0\0\0ab\0\0\0\0\x02\0\0\0\xc3\xa9"
    assert pack_texts(["ab", "", "é"]) == packed
    assert unpack_texts(packed, 3, "x") == [b"ab", b"", "é".encode()]
    for wrong in (packed[:-1], packed + b"\0", packed[:6], b"\x02\0"):
        with pytest.raises(DataError, match="must hold 3 BYTES"):
            unpack_texts(wrong, 3, "x")


def test_binary_request_is_read() -> None:
    question = read_binary(
        binary("image", "BYTES", [1], pack_texts([b"\xff\xd8 picture"])),
        binary("vocabularies", "BYTES", [2], pack_texts(["learned", "original"])),
        binary("iou", "FP32", [1], struct.pack("<f", 0.5)),
        binary("conf", "FP32", [1], struct.pack("<f", 0.25)),
    )
    assert question.image == b"\xff\xd8 picture"
    assert question.vocabularies == ("learned", "original")
    assert (question.iou, question.conf, question.id) == (0.5, 0.25, "")
    assert question.outputs == dict.fromkeys(("boxes", "scores", "labels", "vocabulary"), False)


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[[1, 2, 3], [4, 5, 6]]]])
def test_json_pixels_are_read_flat_and_nested(data: list[Any]) -> None:
    question = read_question(request(RAW | {"data": data}, id="7"), None)
    assert isinstance(question.image, np.ndarray) and question.image.dtype == np.uint8
    assert question.image.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert (question.id, question.vocabularies, question.iou, question.conf) == ("7", None, None, None)


def test_parameters_say_how_to_slice_and_what_to_hide() -> None:
    raw = {"name": "raw", "datatype": "UINT8", "shape": [1, 1, 3], "data": [1, 2, 3]}
    plain = read_question(request(raw, parameters={"binary_data_output": True, "mine": [1]}), None)
    assert (plain.slices, plain.overlap) == (None, "keep")
    asked = read_question(request(raw, parameters={"slice": 640, "slice_overlap": 0, "overlap": "learned"}), None)
    assert (asked.slices, asked.overlap) == (Slices(640, 0), "learned")
    assert read_question(request(raw, parameters={"slice": 64}), None).slices == Slices(64)
    for wrong in ({"slice": True}, {"slice": 64.5}, {"slice": 64, "slice_overlap": "0.2"}, {"overlap": 1}):
        with pytest.raises(DataError, match="The parameter `"):
            read_question(request(raw, parameters=wrong), None)


def test_outputs_are_chosen_by_name_and_form() -> None:
    asked = [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "labels"}]
    assert read_question(request(RAW, outputs=asked), None).outputs == {"scores": True, "labels": False}
    everything = read_question(request(RAW, parameters={"binary_data_output": True}), None).outputs
    assert everything == dict.fromkeys(("boxes", "scores", "labels", "vocabulary"), True)


BAD: dict[str, tuple[bytes, str | None, str]] = {
    "empty": (b"", None, "The request is not JSON"),
    "not JSON": (b"{", None, "The request is not JSON"),
    "not UTF-8": (b"\xff", None, "The request is not JSON"),
    "deep": (b"[" * 100_000, None, "nested more than 300 deep"),
    "long": (b" " * (2**20 + 1), None, "at most 1048576 are read"),
    "no object": (b"[]", None, "a JSON object with a list `inputs`"),
    "no inputs": (b"{}", None, "a JSON object with a list `inputs`"),
    "inputs twice": (b'{"inputs": [], "inputs": []}', None, "a key stands twice"),
    "NaN": (b'{"inputs": NaN}', None, "not finite"),
    "header not a number": (request(RAW), "x", "must be a number of bytes"),
    "header of many digits": (request(RAW), "1" * 5000, "must be a number of bytes"),
    "header longer than the body": (request(RAW), "99999", "Send all of it"),
    "id": (request(RAW, id=3), None, "`id` must be a text"),
    "no picture": (request(), None, "exactly one of the inputs"),
    "unknown input": (request({"name": "x"}), None, "has no input 'x'"),
    "input without name": (request({}), None, "has no input None"),
    "input twice": (request(RAW, RAW), None, "stands twice"),
    "datatype": (request(RAW | {"datatype": "FP32"}), None, "must be UINT8"),
    "shape": (request(RAW | {"shape": [2, 3]}), None, "must have the shape"),
    "shape of texts": (request(RAW | {"shape": ["1", 2, 3]}), None, "must have the shape"),
    "negative shape": (request(RAW | {"shape": [-1, -2, 3]}), None, "must have the shape"),
    "true in the shape": (request(RAW | {"shape": [True, 2, 3]}), None, "must have the shape"),
    "too few": (request(RAW | {"data": [1]}), None, "must be a list of 6 elements"),
    "too large": (request(RAW | {"data": [1, 2, 3, 4, 5, 256]}), None, "whole numbers from 0 to 255"),
    "no data": (request(RAW | {"data": None}), None, "must be a list of 6 elements"),
    "huge shape": (request(RAW | {"shape": [2**30, 2**30, 3]}), None, "must be a list of"),
    "JSON picture": (
        request({"name": "image", "datatype": "BYTES", "shape": [1], "data": ["abc"]}),
        None,
        "JSON cannot hold an image file",
    ),
    "numbers as texts": (
        request(RAW, {"name": "vocabularies", "datatype": "BYTES", "shape": [1], "data": [1]}),
        None,
        "must be texts",
    ),
    "text as number": (
        request(RAW, {"name": "iou", "datatype": "FP32", "shape": [1], "data": ["a"]}),
        None,
        "must be numbers",
    ),
    "many vocabularies": (
        request(RAW, {"name": "vocabularies", "datatype": "BYTES", "shape": [10**6], "data": []}),
        None,
        "may have 1000 elements",
    ),
    "output": (request(RAW, outputs=[{"name": "x"}]), None, "`outputs` must be names of boxes"),
    "output twice": (request(RAW, outputs=[{"name": "boxes"}] * 2), None, "each once"),
    "flag": (request(RAW, parameters={"binary_data_output": 1}), None, "must be true or false"),
    "rest": (request(RAW) + b"abc", str(len(request(RAW))), "3 bytes are left"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_refused_in_one_line(name: str) -> None:
    body, length, text = BAD[name]
    with pytest.raises(DataError) as caught:
        read_question(body, length)
    assert text in str(caught.value) and len(str(caught.value)) < 500


def test_binary_tensors_are_checked() -> None:
    entry, content = binary("raw", "UINT8", [1, 2, 3], bytes(6))
    with pytest.raises(DataError, match=r"takes 6 bytes. Received: 5"):
        read_binary(({**entry, "parameters": {"binary_data_size": 5}}, content[:5]))
    for size in (7, -1, "6", True):
        with pytest.raises(DataError, match="`binary_data_size` of the input `raw`"):
            read_binary(({**entry, "parameters": {"binary_data_size": size}}, content))
    with pytest.raises(DataError, match="must be UTF-8"):
        read_binary((entry, content), binary("vocabularies", "BYTES", [1], pack_texts([b"\xff"])))


def test_json_answer_has_exact_numbers() -> None:
    body, n_json = answer(FOUND, Question(b"", id="q"), {"batch": 4})
    assert n_json is None
    document = json.loads(body)
    assert (document["model_name"], document["model_version"], document["id"]) == ("prompt_tune", "1", "q")
    assert document["parameters"] == {"batch": 4}
    boxes, scores, labels, vocabulary = document["outputs"]
    assert (boxes["shape"], labels["data"], vocabulary["data"]) == ([2, 4], ["dog", "été"], ["original", "learned"])
    assert np.array(boxes["data"], np.float32).tobytes() == FOUND.boxes_xyxy.tobytes()
    assert np.array(scores["data"], np.float32).tobytes() == FOUND.scores.tobytes()


def test_binary_answer_has_the_tensors_in_order() -> None:
    wanted = {"scores": True, "labels": True, "vocabulary": False}
    body, n_json = answer(FOUND, Question(b"", outputs=wanted), {})
    header = json.loads(body[:n_json])
    assert [entry["name"] for entry in header["outputs"]] == ["scores", "labels", "vocabulary"]
    assert [entry.get("parameters") for entry in header["outputs"]] == [
        {"binary_data_size": 8},
        {"binary_data_size": 16},
        None,
    ]
    assert body[n_json:] == FOUND.scores.tobytes() + pack_texts(["dog", "été"])


def test_empty_answer_keeps_its_shapes() -> None:
    header = json.loads(answer(FOUND.select(np.zeros(2, bool)), Question(b""), {})[0])
    assert [entry["shape"] for entry in header["outputs"]] == [[0, 4], [0], [0], [0]]


def test_inputs_and_outputs_are_those_of_the_triton_model() -> None:
    lines = (ROOT / "export" / "triton" / "prompt_tune.pbtxt").read_text().splitlines()
    text = "".join("".join(line.partition("#")[0].split()) for line in lines)
    for tensor in kserve.model_config()["input"] + kserve.model_config()["output"]:  # type: ignore[operator]
        dims = ",".join(map(str, tensor["dims"]))
        assert f'name:"{tensor["name"]}"data_type:{tensor["data_type"]}dims:[{dims}]' in text
    assert text.count("data_type:") == len(kserve.INPUTS) + len(kserve.OUTPUTS)


def test_metadata_names_the_model() -> None:
    metadata = kserve.model_metadata()
    assert (metadata["name"], metadata["versions"]) == ("prompt_tune", ["1"])
    assert kserve.server_metadata()["name"] == "prompt-tune"
