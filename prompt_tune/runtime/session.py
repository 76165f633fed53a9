"""Our graph in ONNX Runtime. Its inputs are bound to the device, so that what several calls share is uploaded once."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prompt_tune.contract import DETECTION_COLUMNS, INPUTS, MAX_PER_CLASS, OUTPUTS, read_metadata
from prompt_tune.errors import GraphError, ProviderError
from prompt_tune.runtime.devices import gpu_index
from prompt_tune.runtime.processes import PerProcess
from prompt_tune.runtime.providers import device_of, open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue


class GraphSession:
    """A session that any number of threads may run at the same time: each call has its own bindings.

    A forked child opens the graph again at its first call, because ONNX Runtime's threads do not survive a fork.

    Attributes:
        device: Where the graph runs: "cpu", "cuda" for the first GPU, "cuda:1" for the second, and so on.
        metadata: Of the graph, see `contract.read_metadata`.
    """

    def __init__(self, path: Path, *, device: str | int = "cpu", threads: int = 0) -> None:
        """Open a graph.

        Args:
            path: The ONNX file.
            device: See `open_session`.
            threads: See `open_session`.

        Raises:
            ProviderError: The device is unknown or not available.
            GraphError: The file is not a graph from prompt-tune.
            PromptTuneError: `threads` is below 0.
        """
        self._path, self._threads = path, threads
        session = open_session(path, device=device, threads=threads)
        self.device = device_of(session)
        self.metadata = read_metadata(session, path)
        self._sessions = PerProcess(self._reopen, first=session)

    def upload(self, array: np.ndarray) -> "OrtValue":
        """An array where the graph runs: on the CPU the array itself, on a GPU a copy in its memory.

        Args:
            array: Float32, C order. On the CPU, do not change it while the result is in use.

        Raises:
            ProviderError: This is a forked child, and the parent's session is on a GPU.
        """
        from onnxruntime import OrtValue

        self._sessions.get()  # in a forked child, refuses a GPU before CUDA does
        index = gpu_index(self.device) if array.size else None  # GPU memory cannot hold an empty array
        if index is None:
            return OrtValue.ortvalue_from_numpy(array, "cpu")
        return OrtValue.ortvalue_from_numpy(array, "cuda", index)

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
        """Run the graph once.

        Args:
            images: (b, 3, h, w) float32, from `upload`.
            original: (n_original, n_prompts, 512) float32, from `upload`.
            learned: (n_learned, n_prompts', 512) float32, from `upload`.
            iou: In 0..1.
            original_conf: In 0..1.
            learned_conf: In 0..1.

        Returns:
            The graph's outputs, two float32 (n, 7), with the same bits as those of a plain `session.run`.

        Raises:
            GraphError: ONNX Runtime fails, or the graph is not of prompt-tune: its rows break their limits.
            ProviderError: This is a forked child, and the parent's session is on a GPU.
        """
        session = self._session
        binding = session.io_binding()
        try:
            for name, value in zip(INPUTS[:3], (images, original, learned), strict=True):
                binding.bind_ortvalue_input(name, value)
            for name, number in zip(INPUTS[3:], (iou, original_conf, learned_conf), strict=True):
                # suppression reads its limits on the CPU with every provider
                binding.bind_cpu_input(name, np.array([number], np.float32))
            for name in OUTPUTS:
                # NumPy needs the tables, which are small. Their sizes are known only after the call, so ONNX Runtime
                # makes them on the CPU
                binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
            original_rows, learned_rows = binding.copy_outputs_to_cpu()
        except Exception as error:  # the errors of ONNX Runtime have no common base but Exception
            reason = str(error).strip().split("\n")[0]
            raise GraphError(
                f"ONNX Runtime failed on images {tuple(images.shape())} ({reason:.200}). Try a smaller batch or image "
                "size."
            ) from error
        sizes = [vocabulary.shape()[0] for vocabulary in (original, learned)]
        for rows, n_cls in zip((original_rows, learned_rows), sizes, strict=True):
            self._check_rows(rows, images.shape()[0], n_cls)
        return original_rows, learned_rows

    def _check_rows(self, rows: np.ndarray, n_images: int, n_cls: int) -> None:
        """Refuse rows that no graph of `export` gives: the rest of the runtime relies on their limits."""
        whole = rows.dtype == np.float32 and rows.ndim == 2 and rows.shape[1] == DETECTION_COLUMNS
        if whole and len(rows):
            image, index = rows[:, 0], rows[:, 6]
            whole = image.min() >= 0 and image.max() < n_images and index.min() >= 0 and index.max() < n_cls
            if whole:  # false for NaN too
                place = image.astype(np.int64) * n_cls + index.astype(np.int64)
                whole = np.bincount(place).max() <= MAX_PER_CLASS
        if not whole:
            raise GraphError(
                f"`{self._path}` gives what no graph of prompt-tune gives: at most {MAX_PER_CLASS} rows of "
                f"{DETECTION_COLUMNS} numbers per class and image. Export the run again."
            )

    @property
    def _session(self) -> "InferenceSession":
        """The session of this process."""
        return self._sessions.get()

    def _reopen(self) -> "InferenceSession":
        """The same graph, opened again in a forked child."""
        if self.device != "cpu":
            raise ProviderError(
                f"A detector on `{self.device}` does not work in a forked process: CUDA cannot be forked. Make the "
                "detector in the child, or start processes with `spawn`."
            )
        session = open_session(self._path, threads=self._threads)
        if read_metadata(session, self._path) != self.metadata:
            raise GraphError(f"`{self._path}` was replaced by another graph. Start the process again.")
        return session
