"""A stand-in for the module that Triton gives its Python models, after its sources (python_backend, pb_stub.cc).

It refuses what Triton refuses or does not promise. `MODELS` holds what requests from within a model are sent to.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

TRITONSERVER_MEMORY_GPU, TRITONSERVER_MEMORY_CPU = 0, 1
TYPES = {np.dtype(np.uint8): "UINT8", np.dtype(np.float32): "FP32", np.dtype(np.object_): "BYTES"}
MODELS: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {}


class TritonModelException(Exception):  # noqa: N818 - its name in Triton
    """An error of a model as a whole."""


class TritonError:
    """An error of one response."""

    INTERNAL, NOT_FOUND, INVALID_ARG = "INTERNAL", "NOT_FOUND", "INVALID_ARG"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        assert type(message) is str
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


class PreferredMemory:
    """Where the outputs of a request from within a model are to be."""

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        self.kind = preferred_memory_type


class Tensor:
    """A named array. Texts are bytes, as they come from clients."""

    def __init__(self, name: str, array: np.ndarray, /) -> None:
        assert name and array.dtype in TYPES and array.ndim, (name, array)
        if array.dtype == np.object_:
            assert all(type(one) is bytes for one in array.flat), name
        self._name, self._array, self._on_gpu = name, np.ascontiguousarray(array), False

    def name(self) -> str:
        return self._name

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def triton_dtype(self) -> str:
        return TYPES[self._array.dtype]

    def as_numpy(self) -> np.ndarray:
        if self._on_gpu:
            raise TritonModelException("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self._array


class InferenceResponse:
    """Tensors, or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        assert all(type(one) is Tensor for one in output_tensors) and type(error) in (TritonError, type(None))
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> Any:
        return self._error


class InferenceRequest:
    """What a client sends to a model, or a model to another."""

    def __init__(
        self,
        *,
        inputs: Sequence[Tensor],
        requested_output_names: Sequence[str],
        model_name: str,
        preferred_memory: PreferredMemory | None = None,
    ) -> None:
        self._inputs, self._names, self._model = list(inputs), list(requested_output_names), model_name
        self._on_cpu = preferred_memory is not None and preferred_memory.kind == TRITONSERVER_MEMORY_CPU

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def exec(self) -> InferenceResponse:
        """The answer of another model; as from a GPU, unless asked for on the CPU."""
        if empty := [one.name() for one in self._inputs if not one.as_numpy().size]:
            return InferenceResponse(error=TritonError(f"empty: {empty}"))  # no promise that it passes
        try:
            arrays = MODELS[self._model]({one.name(): one.as_numpy() for one in self._inputs})
        except Exception as error:
            return InferenceResponse(error=TritonError(str(error)))
        tensors = [Tensor(name, arrays[name]) for name in sorted(self._names)]  # in an order of the server's
        for tensor in tensors:
            tensor._on_gpu = not self._on_cpu
        return InferenceResponse(tensors)


AFTER_IMPORT = (  # what Triton adds to the module only when a model's module has been imported
    *("InferenceRequest", "InferenceResponse", "PreferredMemory", "Tensor", "TritonError", "TritonModelException"),
    *("TRITONSERVER_MEMORY_CPU", "TRITONSERVER_MEMORY_GPU"),
)
