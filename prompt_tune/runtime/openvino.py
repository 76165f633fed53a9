"""Graphs of fixed shapes in Intel's OpenVINO, on the CPU and in float32."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prompt_tune.errors import GraphError, ProviderError
from prompt_tune.privacy import OPENVINO_QUIET, environment
from prompt_tune.version import install

DEVICE = "openvino"
# one stream and float32 throughout: with fixed shapes, the same operations in the same order whatever is loaded
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"}


class OpenvinoGraph:
    """A compiled graph that any number of threads may run at the same time."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Compile a graph.

        Args:
            path: The ONNX file, of fixed shapes.
            threads: CPU threads. 0 means all cores.

        Raises:
            ProviderError: OpenVINO is not installed.
            GraphError: It cannot compile the graph.
        """
        try:
            with environment(OPENVINO_QUIET):
                import openvino
        except ModuleNotFoundError as error:
            raise ProviderError(
                f"`device='{DEVICE}'` needs openvino, which is not installed: {install('openvino')}"
            ) from error
        settings = SETTINGS | ({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})
        try:
            self._compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError, whose text has several lines
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise GraphError(
                f"`{path}` cannot be compiled by OpenVINO: {lines[-1] if lines else error:.200}"
            ) from error

    def run(self, feed: Mapping[str, np.ndarray], outputs: tuple[str, ...]) -> list[np.ndarray]:
        """The outputs of these names, as arrays of their own.

        Args:
            feed: An array for each input.
            outputs: Names of outputs.
        """
        request = self._compiled.create_infer_request()
        request.infer(dict(feed))
        return [np.array(request.get_tensor(name).data) for name in outputs]
