"""The choice of ONNX Runtime's execution provider.

ONNX Runtime falls back from GPU to CPU silently (onnxruntime #23372). Here, the requested provider runs, or an error
says what is missing and how to get it. Only `auto` may fall back, and it logs a warning.
"""

import contextlib
import ctypes
import io
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from prompt_tune.errors import GraphError, PromptTuneError, ProviderError
from prompt_tune.runtime.devices import check_visible, gpu_index
from prompt_tune.version import install

if TYPE_CHECKING:
    import onnxruntime

DEVICES = "cpu, cuda, cuda:N or N for the GPU of that number, auto, or openvino"
CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
# HEURISTIC chooses convolution algorithms by shapes alone, not by timing. TF32 would keep 10 of float32's 23 bits. Both
# are needed for original detections that are bit-identical with and without learned vocabularies (law 2).
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
MOST_THREADS = 1024  # of a session
CUDA_CURE = install("cuda")
DRIVER_LIBRARY = "libcuda.so.1"  # comes with NVIDIA's driver; no pip package has it
QUIET = 4  # ONNX Runtime's severity "fatal": what it prints of an error, ours says too; its warnings do not help users
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_GPU_HINT = (
    "Check with `nvidia-smi` that a GPU is visible, and that its driver is new enough for this CUDA. Or use `cpu`."
)
logger = logging.getLogger(__name__)


def open_session(path: Path, *, device: str | int = "cpu", threads: int = 0) -> "onnxruntime.InferenceSession":
    """An ONNX Runtime session that runs on the requested device.

    Args:
        path: An ONNX file.
        device: "cpu"; "cuda" for the first NVIDIA GPU, "cuda:1" or 1 for the second, and so on (operators without a
            GPU kernel run on the CPU); "auto" for "cuda" if it works, and otherwise the CPU with a warning in the log.
        threads: CPU threads within an operator. 0 means all cores.

    Returns:
        The session. It never falls back to another provider; `device_of` says where it runs.

    Raises:
        ProviderError: `device` is unknown or not available.
        GraphError: `path` is not an ONNX graph.
        PromptTuneError: `threads` is out of range.
    """
    check_device_name(device)
    if device == "openvino":
        raise ProviderError("`device='openvino'` is none of ONNX Runtime's. Make a `Detector` with it.")
    if not 0 <= threads <= MOST_THREADS:
        raise PromptTuneError(f"`threads` must be from 0 (all cores) to {MOST_THREADS}. Received: {threads}.")
    if device != "auto":
        return _open(path, str(device), threads)
    try:
        return _open(path, "cuda", threads)
    except ProviderError as error:
        logger.warning("`device='auto'`: CUDA does not work here, so the graph runs on the CPU. %s", error)
    return _open(path, "cpu", threads)


def check_device_name(device: str | int) -> None:
    """Refuse what is not the name of a device of ONNX Runtime.

    Raises:
        ProviderError: It is not.
    """
    if device not in ("cpu", "auto", "openvino") and gpu_index(device) is None:
        raise ProviderError(f"`device` must be {DEVICES}. Received: {device!r}.")


def quiet_onnxruntime() -> ModuleType:
    """ONNX Runtime, with its telemetry off: it would store a device ID in the home folder, and send it."""
    is_new, was_off = "onnxruntime" not in sys.modules, _NO_TELEMETRY in os.environ
    os.environ.setdefault(_NO_TELEMETRY, "1")  # read once, when onnxruntime is imported
    import onnxruntime

    if not is_new and not was_off and os.environ[_NO_TELEMETRY] == "1":
        onnxruntime.disable_telemetry_events()
        logger.warning(
            "onnxruntime was imported before prompt_tune, with its telemetry on: it may have stored a device ID in the "
            "home folder, and may send it. Set %s=1 before the import. No more is collected from here on.",
            _NO_TELEMETRY,
        )
    return onnxruntime


def device_of(session: "onnxruntime.InferenceSession") -> str:
    """Where a session runs, by its providers: "cpu", "cuda" for the first GPU, "cuda:1" for the second."""
    if CUDA_PROVIDER not in session.get_providers():
        return "cpu"
    index = int(session.get_provider_options()[CUDA_PROVIDER].get("device_id", 0))
    return f"cuda:{index}" if index else "cuda"


def prepare(device: str) -> None:
    """Load the CUDA and cuDNN libraries of the installed wheels, so that ONNX Runtime finds them.

    Args:
        device: The GPU, as the user named it.

    Raises:
        ProviderError: The environment hides that GPU, this onnxruntime does not have the provider, or a library for it
            cannot be loaded.
    """
    check_visible(device)
    onnxruntime = quiet_onnxruntime()
    available = onnxruntime.get_available_providers()
    if CUDA_PROVIDER not in available:
        raise ProviderError(
            f"`device='{device}'` needs onnxruntime-gpu; the onnxruntime {onnxruntime.__version__} installed here has "
            f"only {', '.join(available)}. Run: pip uninstall -y onnxruntime && {CUDA_CURE}"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot find; ours says more
        onnxruntime.preload_dlls()
    if sys.platform != "linux":
        return
    if missing := missing_libraries(cuda_libraries(onnxruntime.cuda_version)):
        raise ProviderError(missing_message(missing, device, onnxruntime.cuda_version))


def cuda_libraries(cuda_version: str) -> tuple[str, ...]:
    """The shared libraries (Linux) that ONNX Runtime's CUDA provider needs to run a convolutional graph.

    Args:
        cuda_version: The CUDA version that onnxruntime was built with, such as "13.0".

    Source: the NEEDED entries of libonnxruntime_providers_cuda.so, and cuDNN 9, which convolutions load.
    """
    major = cuda_version.split(".")[0]
    built = (f"libcudart.so.{major}", f"libcublasLt.so.{major}", f"libcublas.so.{major}")
    return (*built, "libcurand.so.10", "libcudnn.so.9", DRIVER_LIBRARY)


def missing_libraries(names: Iterable[str]) -> list[str]:
    """The shared libraries among `names` that this process cannot load, in the same order."""
    missing = []
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing


def missing_message(missing: list[str], device: str, cuda_version: str) -> str:
    """One line that says which libraries are missing for a device, and how to install each of them.

    Args:
        missing: From `missing_libraries`.
        device: The requested device.
        cuda_version: The CUDA version that onnxruntime was built with, such as "13.0".
    """
    cures = []
    if names := [name for name in missing if name in cuda_libraries(cuda_version)[:-1]]:
        cures.append(f"{CUDA_CURE} brings {', '.join(names)}")
    if DRIVER_LIBRARY in missing:
        cures.append(
            f"{DRIVER_LIBRARY} belongs to NVIDIA's driver (no pip package: install the driver, see `nvidia-smi`)"
        )
    return f"`device='{device}'` is not usable: cannot load {', '.join(missing)}. {'; '.join(cures)}. Or use `cpu`."


def _open(path: Path, device: str, threads: int) -> "onnxruntime.InferenceSession":
    """See `open_session`, without `auto`."""
    onnxruntime = quiet_onnxruntime()
    if device != "cpu":
        prepare(device)
    wanted, settings = (CPU_PROVIDER, {}) if device == "cpu" else (CUDA_PROVIDER, _cuda_options(device))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[(wanted, settings)], enable_fallback=0)
    except Exception as error:  # the errors of ONNX Runtime have no common base but Exception
        if device != "cpu" and any(word in str(error) for word in ("CUDA", "CUDNN")):
            raise ProviderError(
                f"`device='{device}'` failed when `{path.name}` was loaded: {_first_line(error)} {_GPU_HINT}"
            ) from error
        raise GraphError(
            f"`{path}` cannot be loaded by ONNX Runtime: {_first_line(error)} Export the run again."
        ) from error
    if wanted not in session.get_providers():
        raise ProviderError(
            f"`device='{device}'`: every library loads, but ONNX Runtime made a session without {wanted}. {_GPU_HINT}"
        )
    return session


def _cuda_options(device: str) -> dict[str, str]:
    """The options of the CUDA provider on a GPU."""
    return CUDA_OPTIONS | {"device_id": str(gpu_index(device))}


def _first_line(error: Exception) -> str:
    """The first line of an error's text, with a full stop at the end."""
    return str(error).strip().split("\n")[0].rstrip(".") + "."
