"""Our graph in ONNX Runtime, its inputs bound to the device: what several calls use is uploaded once."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prompt_tune.contract import INPUTS, OUTPUTS, read_metadata
from prompt_tune.errors import GraphError
from prompt_tune.runtime.providers import Device, device_of, open_session

if TYPE_CHECKING:
    from onnxruntime import OrtValue


class GraphSession:
    """A session that any number of threads may run at the same time: a call's bindings are its own.

    Attributes:
        device: where it really runs: "cpu", "cuda" or "tensorrt".
        metadata: the graph's own, see `contract.read_metadata`.
    """

    def __init__(self, path: Path, *, device: Device = "cpu", threads: int = 0) -> None:
        """Open the graph in `path`; arguments and errors as of `open_session` and `read_metadata`."""
        self._session = open_session(path, device=device, threads=threads)
        self.device = device_of(self._session)
        self.metadata = read_metadata(self._session, path)

    def upload(self, array: np.ndarray) -> "OrtValue":
        """An array where the graph computes: a copy in the GPU's memory, on the CPU the array itself.

        Args: array: float32, C order. On the CPU it must not be changed while the result is in use.
        """
        from onnxruntime import OrtValue

        place = "cpu" if self.device == "cpu" or not array.size else "cuda"  # no GPU memory holds no bytes
        return OrtValue.ortvalue_from_numpy(array, place)

    def run(
        self,
        images: "OrtValue",
        original: "OrtValue",
        learned: "OrtValue",
        *,
        iou: float,
        original_conf: float,
        learned_conf: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One call of the graph.

        Args:    images: (b, 3, h, w); original: (n_original, n_prompts, 512); learned: (n_learned, n_prompts', 512);
                     float32, from `upload`.
                 iou, original_conf, learned_conf: in 0..1.
        Returns: the graph's outputs, two float32 (n, 7), bit for bit those of a plain `session.run`.
        Raises:  GraphError: ONNX Runtime fails.
        """
        binding = self._session.io_binding()
        try:
            for name, value in zip(INPUTS[:3], (images, original, learned), strict=True):
                binding.bind_ortvalue_input(name, value)
            for name, number in zip(INPUTS[3:], (iou, original_conf, learned_conf), strict=True):
                # suppression reads its limits on the CPU, whatever the provider
                binding.bind_cpu_input(name, np.array([number], np.float32))
            for name in OUTPUTS:
                # NumPy goes on from here, and the tables are small: their sizes are known only afterwards, so ONNX
                # Runtime makes them on the CPU, which copies once and leaves nothing to fetch
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            original_rows, learned_rows = binding.copy_outputs_to_cpu()
        except Exception as error:  # the classes of ONNX Runtime's errors share no base but Exception
            reason = str(error).strip().split("\n")[0]
            raise GraphError(
                f"ONNX Runtime failed on images {tuple(images.shape())} ({reason:.200}). Try a smaller batch or image "
                "size."
            ) from error
        return original_rows, learned_rows
