"""KServe's Open Inference Protocol, version 2, over HTTP: what a request says, and the bytes of an answer. NumPy only.

Inputs and outputs are those of the Triton model of `prompt-tune export --target triton`. Triton's binary extension is
spoken too, which its clients use by default: a JSON header, and behind it the tensors as they lie in memory. Parameters
of a request, `overlap`, `slice` and `slice_overlap`, are those of `POST /detect`.

Source: https://github.com/kserve/open-inference-protocol and Triton's `extension_binary_data.md`.
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np

from prompt_tune import strict_json
from prompt_tune.errors import DataError
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.slices import Slices
from prompt_tune.version import __version__
from prompt_tune.wording import shown

MODEL = "prompt_tune"
MODEL_VERSION = "1"
HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary tensors
MAX_JSON = 2**20  # bytes: pixels belong into a binary tensor
MAX_TEXTS = 1000  # vocabularies that a request names
T = TypeVar("T", int, float, str)
_LENGTH = struct.Struct("<I")  # before each text of a BYTES tensor


@dataclass(frozen=True)
class Tensor:
    """What the model's metadata says of an input or output; -1 stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def as_json(self) -> dict[str, object]:
        """As KServe's metadata has it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def as_config(self, *, optional: bool) -> dict[str, object]:
        """As Triton's model configuration has it."""
        kinds = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32"}
        entry: dict[str, object] = {"name": self.name, "data_type": kinds[self.datatype], "dims": list(self.shape)}
        return entry | ({"optional": True} if optional else {})


INPUTS = (
    Tensor("image", "BYTES", (1,)),  # the content of an image file
    Tensor("raw", "UINT8", (-1, -1, 3)),  # or RGB pixels
    Tensor("vocabularies", "BYTES", (-1,)),
    Tensor("iou", "FP32", (1,)),
    Tensor("conf", "FP32", (1,)),
)
OUTPUTS = (
    Tensor("boxes", "FP32", (-1, 4)),  # x1, y1, x2, y2 in pixels of the original image
    Tensor("scores", "FP32", (-1,)),
    Tensor("labels", "BYTES", (-1,)),
    Tensor("vocabulary", "BYTES", (-1,)),
)


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked about one image.

    Attributes:
        image: The content of an image file, or RGB pixels, uint8 (h, w, 3).
        vocabularies: Labels of vocabularies; None means all.
        iou: In 0..1, see `Detector.detect`.
        conf: In 0..1, see `Detector.detect`.
        overlap: See `Detector.detect`; hidden rows are left out of the answer.
        slices: How the image is also looked at in slices; None means only as a whole.
        outputs: The outputs that are wanted, by name, and whether each is binary.
        id: Of the request, given back with the answer; "" if it has none.
    """

    image: bytes | np.ndarray
    vocabularies: tuple[str, ...] | None = None
    iou: float | None = None
    conf: float | None = None
    overlap: str = "keep"
    slices: Slices | None = None
    outputs: Mapping[str, bool] | None = None
    id: str = ""


def server_metadata() -> dict[str, object]:
    """The answer to `GET /v2`."""
    return {"name": "prompt-tune", "version": __version__, "extensions": ["binary_tensor_data", "model_configuration"]}


def model_metadata() -> dict[str, object]:
    """The answer to `GET /v2/models/prompt_tune`."""
    return {
        "name": MODEL,
        "versions": [MODEL_VERSION],
        "platform": "prompt_tune",
        "inputs": [tensor.as_json() for tensor in INPUTS],
        "outputs": [tensor.as_json() for tensor in OUTPUTS],
    }


def model_config() -> dict[str, object]:
    """The answer to `GET /v2/models/prompt_tune/config`, of Triton's model configuration extension."""
    return {
        "name": MODEL,
        "platform": "",
        "backend": "prompt_tune",
        "max_batch_size": 0,
        "input": [tensor.as_config(optional=True) for tensor in INPUTS],
        "output": [tensor.as_config(optional=False) for tensor in OUTPUTS],
    }


def read_question(body: bytes, header_length: str | None) -> Question:
    """The question of an infer request.

    Args:
        body: Of the request.
        header_length: The value of the header `HEADER_LENGTH`; None if there is none, so that all of the body is JSON.

    Raises:
        DataError: The request breaks the protocol, or asks for what the model does not have.
        PromptTuneError: It asks for slices that cannot be.
    """
    n_json = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 12):
            raise DataError(f"`{HEADER_LENGTH}` must be a number of bytes. Received: {shown(header_length)}.")
        n_json = int(header_length)
        if n_json > len(body):
            raise DataError(f"`{HEADER_LENGTH}` is {n_json}, but the body has {len(body)} bytes. Send all of it.")
    if n_json > MAX_JSON:
        raise DataError(f"The JSON has {n_json} bytes; at most {MAX_JSON} are read. Send pixels as a binary tensor.")
    try:
        document = strict_json.parse(body[:n_json].decode())
    except ValueError as error:  # a UnicodeDecodeError is one
        raise DataError(f"The request is not JSON: {error}. Check its header and its first {n_json} bytes.") from error
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise DataError("The request must be a JSON object with a list `inputs`. See the KServe protocol, version 2.")
    tensors = _read_tensors(document["inputs"], memoryview(body)[n_json:])
    id_ = document.get("id", "")
    if not isinstance(id_, str):
        raise DataError(f"`id` must be a text. Received: {shown(id_)}.")
    pictures = [tensors[name] for name in ("image", "raw") if name in tensors]
    if len(pictures) != 1:
        raise DataError("Give exactly one of the inputs `image` (an image file) and `raw` (RGB pixels).")
    image = pictures[0] if "raw" in tensors else _only(tensors["image"], "image")
    names = tensors.get("vocabularies")
    parameters = document.get("parameters")
    return Question(
        image=image,
        vocabularies=None if names is None else tuple(_texts(names)),
        iou=float(_only(tensors["iou"], "iou")) if "iou" in tensors else None,
        conf=float(_only(tensors["conf"], "conf")) if "conf" in tensors else None,
        overlap=_parameter(parameters, "overlap", str, "a text") or "keep",
        slices=Slices.of(
            _parameter(parameters, "slice", int, "a whole number of pixels"),
            _parameter(parameters, "slice_overlap", float, "a number from 0 to 0.9"),
        ),
        outputs=_read_outputs(document),
        id=id_,
    )


def answer(found: Detections, question: Question, parameters: Mapping[str, object]) -> tuple[bytes, int | None]:
    """The answer to an infer request.

    Args:
        found: The detections, in original pixels.
        question: What was asked.
        parameters: Of the answer, plain JSON.

    Returns:
        The body, and how many bytes of it are JSON; None if all are.
    """
    contents: dict[str, np.ndarray | tuple[str, ...]] = {
        "boxes": np.ascontiguousarray(found.boxes_xyxy, "<f4"),
        "scores": np.ascontiguousarray(found.scores, "<f4"),
        "labels": found.class_names,
        "vocabulary": found.vocabularies,
    }
    wanted = question.outputs or dict.fromkeys((tensor.name for tensor in OUTPUTS), False)
    datatypes = {tensor.name: tensor.datatype for tensor in OUTPUTS}
    entries, parts = [], []
    for name, is_binary in wanted.items():
        value = contents[name]
        shape = list(value.shape) if isinstance(value, np.ndarray) else [len(value)]
        entry: dict[str, object] = {"name": name, "datatype": datatypes[name], "shape": shape}
        if is_binary:
            parts.append(value.tobytes() if isinstance(value, np.ndarray) else pack_texts(value))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = value.ravel().tolist() if isinstance(value, np.ndarray) else list(value)
        entries.append(entry)
    document: dict[str, object] = {"model_name": MODEL, "model_version": MODEL_VERSION}
    document |= ({"id": question.id} if question.id else {}) | {"parameters": dict(parameters), "outputs": entries}
    header = json.dumps(document).encode()
    return b"".join((header, *parts)), len(header) if any(wanted.values()) else None


def pack_texts(texts: Iterable[str | bytes]) -> bytes:
    """A BYTES tensor: the length of each text in four bytes, little-endian, and the text in UTF-8."""
    parts = []
    for text in texts:
        content = text.encode() if isinstance(text, str) else text
        parts += [_LENGTH.pack(len(content)), content]
    return b"".join(parts)


def unpack_texts(content: bytes | memoryview, count: int, name: str) -> list[bytes]:
    """The texts of a BYTES tensor.

    Args:
        content: What `pack_texts` gives.
        count: How many there have to be.
        name: Of the tensor, as the error names it.

    Raises:
        DataError: There are more or fewer, or one is cut.
    """
    texts: list[bytes] = []
    at = 0
    while at < len(content) and len(texts) < count:
        if at + _LENGTH.size > len(content):
            break
        (length,) = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size
        if at + length > len(content):
            break
        texts.append(bytes(content[at : at + length]))
        at += length
    if at != len(content) or len(texts) != count:
        raise DataError(f"The input `{name}` must hold {count} BYTES, each behind its length. Send all of it.")
    return texts


def _read_tensors(entries: list[Any], binary: memoryview) -> dict[str, Any]:
    """Arrays, and lists of bytes for BYTES, by the name of the input."""
    known = {tensor.name: tensor for tensor in INPUTS}
    tensors: dict[str, Any] = {}
    at = 0
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in known:
            raise DataError(f"The model has no input {shown(name)}. It has: {', '.join(known)}.")
        if name in tensors:
            raise DataError(f"The input `{name}` stands twice. Give it once.")
        shape = _shape(entry, known[name])
        parameters = entry.get("parameters") or {}
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            tensors[name] = _from_json(entry.get("data"), known[name], shape)
            continue
        if type(size) is not int or not 0 <= size <= len(binary) - at:
            raise DataError(
                f"`binary_data_size` of the input `{name}` is {shown(size)}, but {len(binary) - at} bytes are left. "
                "Send all of it."
            )
        tensors[name] = _from_binary(binary[at : at + size], known[name], shape)
        at += size
    if at != len(binary):
        raise DataError(f"Behind the inputs, {len(binary) - at} bytes are left. State each `binary_data_size`.")
    return tensors


def _shape(entry: dict[str, Any], known: Tensor) -> tuple[int, ...]:
    """The shape that an input states, which fits the model's."""
    if entry.get("datatype") != known.datatype:
        raise DataError(f"The input `{known.name}` must be {known.datatype}. Received: {shown(entry.get('datatype'))}.")
    shape = entry.get("shape")
    fits = (
        isinstance(shape, list)
        and len(shape) == len(known.shape)
        and all(
            type(size) is int and 0 <= size < 2**31 and rule in (-1, size)
            for size, rule in zip(shape, known.shape, strict=True)
        )
    )
    if not isinstance(shape, list) or not fits:
        raise DataError(f"The input `{known.name}` must have the shape {list(known.shape)}. Received: {shown(shape)}.")
    if known.datatype == "BYTES" and prod(shape) > MAX_TEXTS:
        raise DataError(f"The input `{known.name}` may have {MAX_TEXTS} elements. Received: {prod(shape)}.")
    return tuple(shape)


def _from_binary(content: memoryview, known: Tensor, shape: tuple[int, ...]) -> Any:
    if known.datatype == "BYTES":
        return unpack_texts(content, prod(shape), known.name)
    dtype = np.dtype("<f4" if known.datatype == "FP32" else "u1")
    if len(content) != prod(shape) * dtype.itemsize:
        raise DataError(
            f"The input `{known.name}` of shape {list(shape)} takes {prod(shape) * dtype.itemsize} bytes. Received: "
            f"{len(content)}."
        )
    return np.frombuffer(content, dtype).reshape(shape)


def _from_json(data: object, known: Tensor, shape: tuple[int, ...]) -> Any:
    """A tensor from JSON: its elements in C order, in one list or in lists inside one another."""
    count = prod(shape)
    flat: list[Any] = data if isinstance(data, list) else []
    for _ in shape[1:]:
        if flat and all(isinstance(part, list) for part in flat):
            flat = [element for part in flat for element in part]
    if not isinstance(data, list) or len(flat) != count:
        raise DataError(f"`data` of the input `{known.name}` must be a list of {count} elements.")
    if known.datatype == "BYTES":
        if not all(isinstance(text, str) for text in flat):
            raise DataError(f"`data` of the input `{known.name}` must be texts.")
        if known.name == "image":
            raise DataError("JSON cannot hold an image file. Send `image` as a binary tensor, or use POST /detect.")
        return [text.encode() for text in flat]
    if known.datatype == "UINT8":
        if not all(type(number) is int and 0 <= number <= 255 for number in flat):
            raise DataError(f"`data` of the input `{known.name}` must be whole numbers from 0 to 255.")
        return np.array(flat, np.uint8).reshape(shape)
    if not all(type(number) in (int, float) for number in flat):
        raise DataError(f"`data` of the input `{known.name}` must be numbers.")
    return np.array(flat, np.float32).reshape(shape)


def _read_outputs(document: Mapping[str, Any]) -> dict[str, bool]:
    """Names of the outputs that are wanted, and whether each is binary."""
    by_default = _flag(document.get("parameters"), "binary_data_output", False)
    asked = document.get("outputs")
    known = [tensor.name for tensor in OUTPUTS]
    if not asked:
        return dict.fromkeys(known, by_default)
    wanted: dict[str, bool] = {}
    for entry in asked if isinstance(asked, list) else [asked]:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in known or name in wanted:
            raise DataError(f"`outputs` must be names of {', '.join(known)}, each once. Received: {shown(name)}.")
        wanted[name] = _flag(entry.get("parameters"), "binary_data", by_default)
    return wanted


def _parameter(parameters: object, name: str, kind: type[T], rule: str) -> T | None:
    """A parameter of the request; None if there is none."""
    value = parameters.get(name) if isinstance(parameters, dict) else None
    if kind is float and type(value) is int:
        return kind(value)
    if value is not None and type(value) is not kind:
        raise DataError(f"The parameter `{name}` must be {rule}. Received: {shown(value)}.")
    return value


def _flag(parameters: object, name: str, default: bool) -> bool:
    value = parameters.get(name, default) if isinstance(parameters, dict) else default
    if not isinstance(value, bool):
        raise DataError(f"The parameter `{name}` must be true or false. Received: {shown(value)}.")
    return value


def _texts(contents: Sequence[bytes]) -> list[str]:
    try:
        return [content.decode() for content in contents]
    except UnicodeDecodeError as error:
        raise DataError("`vocabularies` must be UTF-8.") from error


def _only(values: Any, name: str) -> Any:
    """The element of a tensor that has one."""
    if len(values) != 1:
        raise DataError(f"The input `{name}` must have one element. Received: {len(values)}.")
    return values[0]
