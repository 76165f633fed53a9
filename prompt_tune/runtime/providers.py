"""Choosing ONNX Runtime's execution provider. ONNX Runtime drops from GPU to CPU in silence (onnxruntime #23372).

Here the provider that was asked for is the one that runs, or an error names what is missing and what cures it; only
`auto` may fall back, and says so.
"""

import contextlib
import ctypes
import importlib.util
import io
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from prompt_tune.errors import GraphError, ProviderError

if TYPE_CHECKING:
    import onnxruntime

Device = Literal["cpu", "cuda", "auto", "tensorrt"]
DEVICES: tuple[Device, ...] = get_args(Device)
CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
# HEURISTIC: the convolution algorithm depends on shapes alone, not on timings of the moment. TF32 keeps 10 bits of a
# float32's 23. Both are needed for bit-identical original detections with and without learned vocabularies (law 2).
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
# float32 stays float32. ONNX Runtime has no switch for TensorRT's TF32 and its choice of kernels by timing: law 2 is
# not promised there, `verify` measures it
TENSORRT_OPTIONS = {"trt_fp16_enable": "0"}
CUDA_CURE = "pip install 'prompt-tune[cuda]'"
TENSORRT_CURE = "pip install 'tensorrt-cu{major}-libs<11'"  # 11 brings libnvinfer.so.11
TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")
TENSORRT_PACKAGE = "tensorrt_libs"  # the folder of the wheel's libraries, which no loader searches by itself
DRIVER_LIBRARY = "libcuda.so.1"  # comes with NVIDIA's driver; no pip package holds it
QUIET = 3  # ONNX Runtime's severity "error": its warnings about node placement mean nothing to our users
logger = logging.getLogger(__name__)


_GPU_HINT = (
    "Check with `nvidia-smi` that a GPU is visible, and that its driver is new enough for this CUDA. Or use `cpu`."
)


def open_session(path: Path, *, device: Device = "cpu", threads: int = 0) -> "onnxruntime.InferenceSession":
    """An ONNX Runtime session for the graph in `path` that really runs on `device`.

    Args:    path: an ONNX file.
             device: "cpu"; "cuda" for the first NVIDIA GPU (operators without a GPU kernel run on the CPU); "tensorrt"
                 (experimental) for TensorRT on it, and CUDA for what TensorRT does not take; "auto" for CUDA where it
                 works, else the CPU, which a warning in the log says.
             threads: CPU threads within an operator; 0 leaves the number to ONNX Runtime (all cores).
    Returns: the session; once made it never falls back to another provider. `device_of` tells where it runs.
    Raises:  ProviderError: `device` is unknown or not really there. GraphError: `path` is no ONNX graph.
    """
    if device not in DEVICES:
        raise ProviderError(f"`device` must be one of {', '.join(DEVICES)}. Received: {device!r}.")
    if device != "auto":
        return _open(path, device, threads)
    try:
        return _open(path, "cuda", threads)
    except ProviderError as error:
        logger.warning("`device='auto'`: CUDA does not work here, so the CPU computes. %s", error)
    return _open(path, "cpu", threads)


def device_of(session: "onnxruntime.InferenceSession") -> Device:
    """Where a session really runs: "cpu", "cuda" or "tensorrt", from the providers that it has."""
    providers = session.get_providers()
    if TENSORRT_PROVIDER in providers:
        return "tensorrt"
    return "cuda" if CUDA_PROVIDER in providers else "cpu"


def prepare(device: Literal["cuda", "tensorrt"]) -> None:
    """Loads the CUDA, cuDNN and TensorRT libraries of the installed wheels, so that ONNX Runtime finds them.

    Raises: ProviderError: this onnxruntime has no such provider, or a library that it needs cannot be loaded.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if _provider_names(device)[0] not in available:
        raise ProviderError(
            f"`device='{device}'` needs onnxruntime-gpu; the onnxruntime {onnxruntime.__version__} installed here has "
            f"only {', '.join(available)}. Run: pip uninstall -y onnxruntime && {CUDA_CURE}"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot find; missing_libraries() says it better
        onnxruntime.preload_dlls()
    if sys.platform != "linux":
        return
    libraries = cuda_libraries(onnxruntime.cuda_version)
    if device == "tensorrt":
        _preload_tensorrt()
        libraries = (*TENSORRT_LIBRARIES, *libraries)
    if missing := missing_libraries(libraries):
        raise ProviderError(missing_message(missing, device, onnxruntime.cuda_version))


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


def missing_message(missing: list[str], device: Device, cuda_version: str) -> str:
    """One line that says which libraries `device` lacks and what brings each of them.

    Args: missing: from `missing_libraries`. cuda_version: that onnxruntime was built with, such as "13.0".
    """
    tensorrt_cure = TENSORRT_CURE.format(major=cuda_version.split(".")[0])
    groups = ((tensorrt_cure, TENSORRT_LIBRARIES), (CUDA_CURE, cuda_libraries(cuda_version)[:-1]))
    cures = []
    for cure, libraries in groups:
        if names := [name for name in missing if name in libraries]:
            cures.append(f"{cure} brings {', '.join(names)}")
    if DRIVER_LIBRARY in missing:
        cures.append(
            f"{DRIVER_LIBRARY} belongs to NVIDIA's driver (no pip package: install the driver, see `nvidia-smi`)"
        )
    return f"`device='{device}'` is not usable: cannot load {', '.join(missing)}. {'; '.join(cures)}. Or use `cpu`."


def _open(path: Path, device: Literal["cpu", "cuda", "tensorrt"], threads: int) -> "onnxruntime.InferenceSession":
    """A session on `device`, or an error; what `open_session` promises for one that is not `auto`."""
    import onnxruntime

    if device != "cpu":
        prepare(device)
    wanted = _provider_names(device)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = threads
    settings: dict[str, dict[str, Any]] = {CUDA_PROVIDER: CUDA_OPTIONS, TENSORRT_PROVIDER: TENSORRT_OPTIONS}
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[(name, settings.get(name, {})) for name in wanted], enable_fallback=0
        )
    except Exception as error:  # the classes of ONNX Runtime's errors share no base but Exception
        if device != "cpu" and any(word in str(error) for word in ("CUDA", "CUDNN", "TensorRT", "Tensorrt")):
            raise ProviderError(
                f"`device='{device}'` failed when `{path.name}` was loaded: {_first_line(error)} {_GPU_HINT}"
            ) from error
        raise GraphError(
            f"`{path}` cannot be loaded by ONNX Runtime: {_first_line(error)} Export the run again."
        ) from error
    if absent := [name for name in wanted if name not in session.get_providers()]:
        raise ProviderError(
            f"`device='{device}'`: every library loads, but ONNX Runtime made a session without {', '.join(absent)}. "
            f"{_GPU_HINT}"
        )
    return session


def _provider_names(device: Literal["cpu", "cuda", "tensorrt"]) -> list[str]:
    """ONNX Runtime's providers for a device, the first choice of each operator first."""
    return {
        "cpu": [CPU_PROVIDER],
        "cuda": [CUDA_PROVIDER],
        "tensorrt": [TENSORRT_PROVIDER, CUDA_PROVIDER],
    }[device]


def _preload_tensorrt() -> None:
    """Loads TensorRT's libraries from its wheel, where one is installed; what fails is found missing afterwards."""
    spec = importlib.util.find_spec(TENSORRT_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        for name in TENSORRT_LIBRARIES:
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(Path(folder) / name))


def _first_line(error: Exception) -> str:
    """The first line of an error's text, ended by a full stop."""
    return str(error).strip().split("\n")[0].rstrip(".") + "."
