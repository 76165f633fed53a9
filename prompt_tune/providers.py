"""Choosing ONNX Runtime's execution provider. ONNX Runtime drops from GPU to CPU in silence (onnxruntime #23372).

Here the provider that was asked for is the one that runs, or an error names what is missing and what cures it.
"""

import contextlib
import ctypes
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import onnxruntime

from prompt_tune.errors import GraphError, ProviderError

Device = Literal["cpu", "cuda"]
CUDA_PROVIDER = "CUDAExecutionProvider"
# HEURISTIC: the convolution algorithm depends on shapes alone, not on timings of the moment. TF32 keeps 10 bits of a
# float32's 23. Both are needed for bit-identical original detections with and without learned vocabularies (law 2).
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
CUDA_CURE = "pip install 'prompt-tune[cuda]'"
DRIVER_LIBRARY = "libcuda.so.1"  # comes with NVIDIA's driver; no pip package holds it
QUIET = 3  # ONNX Runtime's severity "error": its warnings about node placement mean nothing to our users


def open_session(path: Path, *, device: Device = "cpu", threads: int = 0) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session for the graph in `path` that really runs on `device`.

    Args:    path: an ONNX file.
             device: "cpu", or "cuda" for the first NVIDIA GPU (operators without a GPU kernel run on the CPU).
             threads: CPU threads within an operator; 0 leaves the number to ONNX Runtime (all cores).
    Returns: the session; it never falls back to another provider, neither now nor while it runs.
    Raises:  ProviderError: `device` is unknown or not really there. GraphError: `path` is no ONNX graph.
    """
    if device not in get_args(Device):
        raise ProviderError(f"`device` must be one of {', '.join(get_args(Device))}. Received: {device!r}.")
    if device == "cuda":
        prepare_cuda()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = threads
    providers = [(CUDA_PROVIDER, CUDA_OPTIONS)] if device == "cuda" else ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # the classes of ONNX Runtime's errors share no base but Exception
        if "CUDA" in str(error):
            raise ProviderError(
                f"CUDA failed when `{path.name}` was loaded: {_first_line(error)} {_GPU_HINT}"
            ) from error
        raise GraphError(
            f"`{path}` cannot be loaded by ONNX Runtime: {_first_line(error)} Export the run again."
        ) from error
    if device == "cuda" and CUDA_PROVIDER not in session.get_providers():
        raise ProviderError(
            f"`device='cuda'`: every CUDA library loads, but ONNX Runtime made no CUDA session. {_GPU_HINT}"
        )
    return session


def prepare_cuda() -> None:
    """Loads the CUDA and cuDNN libraries of the installed wheels, so that ONNX Runtime finds them.

    Raises: ProviderError: this onnxruntime has no CUDA provider, or a library that it needs cannot be loaded.
    """
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise ProviderError(
            f"`device='cuda'` needs onnxruntime-gpu; the onnxruntime {onnxruntime.__version__} installed here has only "
            f"{', '.join(onnxruntime.get_available_providers())}. Run: pip uninstall -y onnxruntime && {CUDA_CURE}"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot find; missing_libraries() says it better
        onnxruntime.preload_dlls()
    missing = missing_libraries(cuda_libraries(onnxruntime.cuda_version)) if sys.platform == "linux" else []
    if missing:
        raise ProviderError(missing_message(missing))


def cuda_libraries(cuda_version: str) -> tuple[str, ...]:
    """The shared libraries (Linux) that ONNX Runtime's CUDA provider needs to run a convolutional graph.

    Args:   cuda_version: CUDA version that onnxruntime was built with, such as "13.0".
    Source: the NEEDED entries of libonnxruntime_providers_cuda.so, and cuDNN 9, which convolutions open.
    """
    major = cuda_version.split(".")[0]
    built = (f"libcudart.so.{major}", f"libcublasLt.so.{major}", f"libcublas.so.{major}")
    return (*built, "libcurand.so.10", "libcudnn.so.9", DRIVER_LIBRARY)


def missing_libraries(names: Iterable[str]) -> list[str]:
    """Those of the shared libraries `names` that this process cannot load, in the same order."""
    missing = []
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing


def missing_message(missing: list[str]) -> str:
    """One line that says which libraries `device='cuda'` lacks and what brings each of them."""
    cures = []
    if wheels := [name for name in missing if name != DRIVER_LIBRARY]:
        cures.append(f"{CUDA_CURE} brings {', '.join(wheels)}")
    if DRIVER_LIBRARY in missing:
        cures.append(
            f"{DRIVER_LIBRARY} belongs to NVIDIA's driver (no pip package: install the driver, see `nvidia-smi`)"
        )
    return f"`device='cuda'` is not usable: cannot load {', '.join(missing)}. {'; '.join(cures)}. Or use `cpu`."


_GPU_HINT = (
    "Check with `nvidia-smi` that a GPU is visible, and that its driver is new enough for this CUDA. Or use `cpu`."
)


def _first_line(error: Exception) -> str:
    """The first line of an error's text, ended by a full stop."""
    return str(error).strip().split("\n")[0].rstrip(".") + "."
