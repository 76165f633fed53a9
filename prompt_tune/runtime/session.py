"""Our graph in ONNX Runtime. Its inputs are bound to the device, so that what several calls share is uploaded once."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_tune.contract import (
    DETECTION_COLUMNS,
    EMBED_DIM,
    INPUTS,
    MAX_PER_CLASS,
    OUTPUTS,
    RAW_INPUTS,
    RAW_OUTPUTS,
    read_metadata,
)
from prompt_tune.errors import GraphError, PromptTuneError, ProviderError
from prompt_tune.runtime.devices import gpu_index
from prompt_tune.runtime.openvino import DEVICE, OpenvinoGraph
from prompt_tune.runtime.processes import PerProcess
from prompt_tune.runtime.providers import device_of, open_session
from prompt_tune.runtime.slots import Slots, suppressed

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue


class GraphSession:
    """A session that any number of threads may run at the same time: each call has its own bindings.

    A forked child opens the graph again at its first call, because ONNX Runtime's threads do not survive a fork.

    Attributes:
        device: Where the graph runs: "cpu", "cuda" for the first GPU, "cuda:1" for the second, and so on; or
            "openvino", its CPU plugin.
        metadata: Of the graph, see `contract.read_metadata`.
        slots: The shapes of a graph that has no free ones; else None.
    """

    def __init__(self, path: Path, *, device: str | int = "cpu", threads: int = 0) -> None:
        """Open a graph.

        Args:
            path: The ONNX file.
            device: See `open_session`; or "openvino", for a graph of fixed shapes.
            threads: See `open_session`.

        Raises:
            ProviderError: The device is unknown or not available.
            GraphError: The file is not a graph from prompt-tune.
            PromptTuneError: `threads` is below 0.
        """
        self._path, self._threads = path, threads
        is_openvino = device == DEVICE
        session = open_session(path, device="cpu" if is_openvino else device, threads=threads)
        self.device = DEVICE if is_openvino else device_of(session)
        self.metadata = read_metadata(session, path)
        self.slots = _slots(session, self.metadata, path)
        self._sessions = PerProcess(self._reopen, first=None if is_openvino else session)
        self._compiled = None
        if is_openvino:
            if self.slots is None:
                raise ProviderError(
                    f"`device='{DEVICE}'` needs a graph of fixed shapes, and `{path}` has free ones. Export the run "
                    "with --slots 128, or as many classes as you need."
                )
            self._compiled = PerProcess(partial(OpenvinoGraph, path, threads=threads))
            self._compiled.get()  # here, so that errors come where the detector is made

    def upload(self, array: np.ndarray) -> "OrtValue":
        """An array where the graph runs: on the CPU the array itself, on a GPU a copy in its memory.

        Args:
            array: Float32, C order. On the CPU, do not change it while the result is in use.

        Raises:
            ProviderError: This is a forked child, and the parent's session is on a GPU.
        """
        from onnxruntime import OrtValue

        if self._compiled is None:
            self._sessions.get()  # in a forked child, refuses a GPU before CUDA does
        index = gpu_index(self.device) if array.size else None  # GPU memory cannot hold an empty array
        if index is None:
            return OrtValue.ortvalue_from_numpy(array, "cpu")
        return OrtValue.ortvalue_from_numpy(array, "cuda", index)

    def upload_rows(self, embeddings: np.ndarray, *, guides: bool) -> "OrtValue":
        """A vocabulary where the graph runs, in a graph with slots filled up to its shapes.

        Args:
            embeddings: (n_cls, n_prompts, 512) float32, C order; with slots, no more than there are.
            guides: Whether it is for the input `original`, and not for `learned`.

        Raises:
            ProviderError: See `upload`.
        """
        return self.upload(self.slots.filled(embeddings, guides=guides) if self.slots else embeddings)

    def run(
        self,
        images: "OrtValue",
        original: "OrtValue",
        learned: "OrtValue",
        *,
        iou: float,
        original_conf: float,
        learned_conf: float,
        n_original: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run the graph once.

        Args:
            images: (b, 3, h, w) float32, from `upload`.
            original: (n_original, n_prompts, 512) float32, from `upload_rows`.
            learned: (n_learned, n_prompts', 512) float32, from `upload_rows`.
            iou: In 0..1.
            original_conf: In 0..1.
            learned_conf: In 0..1.
            n_original: Classes of `original`, without those that fill up slots. By default, all.

        Returns:
            The graph's outputs, two float32 (n, 7), with the same bits as those of a plain `session.run`; of a graph
            without suppression, what `suppressed` makes of them.

        Raises:
            GraphError: ONNX Runtime fails, or the graph is not of prompt-tune: its rows break their limits.
            ProviderError: This is a forked child, and the parent's session is on a GPU.
        """
        given = dict(zip(RAW_INPUTS, (images, original, learned), strict=True))
        limits = dict(zip(INPUTS[3:], (iou, original_conf, learned_conf), strict=True))
        try:
            *boxes, original_rows, learned_rows = self._outputs(given, limits if self.metadata["suppression"] else {})
        except Exception as error:  # the errors of ONNX Runtime have no common base but Exception
            if isinstance(error, PromptTuneError):
                raise
            reason = str(error).strip().split("\n")[0]
            runtime = "OpenVINO" if self.device == DEVICE else "ONNX Runtime"
            raise GraphError(
                f"{runtime} failed on images {tuple(images.shape())} ({reason:.200}). Try a smaller batch or image "
                "size."
            ) from error
        if boxes:
            original_rows = suppressed(boxes[0], original_rows, iou=iou, conf=original_conf)
            learned_rows = suppressed(boxes[0], learned_rows, iou=iou, conf=learned_conf)
        sizes = [vocabulary.shape()[0] for vocabulary in (original, learned)]
        for rows, n_cls in zip((original_rows, learned_rows), sizes, strict=True):
            self._check_rows(rows, images.shape()[0], n_cls)
        if n_original is not None:
            original_rows = original_rows[original_rows[:, 6] < n_original]
        return original_rows, learned_rows

    def _outputs(self, given: "Mapping[str, OrtValue]", limits: Mapping[str, float]) -> list[np.ndarray]:
        """What the graph gives for its inputs, and for the limits of its suppression if it has one."""
        outputs = OUTPUTS if self.metadata["suppression"] else RAW_OUTPUTS
        numbers = {name: np.array([number], np.float32) for name, number in limits.items()}
        if self._compiled is not None:
            return self._compiled.get().run({name: value.numpy() for name, value in given.items()} | numbers, outputs)
        session = self._session
        binding = session.io_binding()
        for name, value in given.items():
            binding.bind_ortvalue_input(name, value)
        for name, number in numbers.items():
            binding.bind_cpu_input(name, number)  # suppression reads its limits on the CPU with every provider
        for name in outputs:
            # NumPy needs the tables, which are small. Their sizes are known only after the call, so ONNX Runtime
            # makes them on the CPU
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

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


def _slots(session: "InferenceSession", metadata: dict[str, Any], path: Path) -> Slots | None:
    """The shapes of a graph with slots. Raises: GraphError: They are not those of its metadata."""
    if metadata["slots"] is None:
        return None
    images, original, learned, *_ = (entry.shape for entry in session.get_inputs())
    try:
        slots = Slots(metadata["slots"], original[1], learned[1])
        side = metadata["image_size"]
        vocabularies = [[slots.count, n_prompts, EMBED_DIM] for n_prompts in (slots.n_prompts, slots.n_learned_prompts)]
        whole = [images, original, learned] == [[1, 3, side, side], *vocabularies]
    except (IndexError, TypeError):
        whole = False
    if not whole or not all(type(size) is int and size > 0 for size in (slots.n_prompts, slots.n_learned_prompts)):
        raise GraphError(f"`{path}` has other inputs than its metadata states. Export the run again.")
    return slots
