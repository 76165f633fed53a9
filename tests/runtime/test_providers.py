"""Choosing a provider: what is asked for runs, or an error names what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from prompt_tune.errors import GraphError, ProviderError
from prompt_tune.runtime import providers
from prompt_tune.runtime.providers import (
    cuda_libraries,
    device_of,
    missing_libraries,
    missing_message,
    open_session,
)


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    """An ONNX file of one operator."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    body = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "relu.onnx")
    return tmp_path / "relu.onnx"


def cuda_works(path: Path) -> bool:
    try:
        open_session(path, device="cuda")
    except ProviderError:
        return False
    return True


def test_cpu_session_has_the_cpu_provider_alone_and_never_falls_back(relu: Path) -> None:
    session = open_session(relu, threads=1)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert device_of(session) == "cpu"
    assert session.get_session_options().intra_op_num_threads == 1
    assert not session._enable_fallback  # ONNX Runtime would change the provider in the middle of a run
    np.testing.assert_array_equal(session.run(None, {"x": np.array([-1, 2], np.float32)})[0], [0, 2])


def test_cuda_session_when_it_works_really_has_cuda(relu: Path) -> None:
    if not cuda_works(relu):
        pytest.skip("no NVIDIA GPU with CUDA libraries here")
    session = open_session(relu, device="cuda")
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    assert device_of(session) == "cuda"
    assert not session._enable_fallback
    options = session.get_provider_options()["CUDAExecutionProvider"]
    assert (options["use_tf32"], options["cudnn_conv_algo_search"]) == ("0", "HEURISTIC")


def test_cuda_that_is_not_there_is_an_error_that_names_the_cure(relu: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if cuda_works(relu):
        pytest.skip("CUDA works here")
    capfd.readouterr()
    with pytest.raises(ProviderError) as refusal:
        open_session(relu, device="cuda")
    text = str(refusal.value)
    assert text.startswith("`device='cuda'`") and "\n" not in text
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert "needs onnxruntime-gpu" in text and "pip install '.[cuda]' (in a checkout)" in text
    else:
        missing = missing_libraries(cuda_libraries(onnxruntime.cuda_version))
        assert all(name in text for name in missing)
        assert missing or "nvidia-smi" in text
        if missing:
            assert capfd.readouterr() == ("", "")  # ONNX Runtime's own notes are no use beside this


def test_auto_takes_cuda_where_it_works_else_the_cpu_and_says_why(relu: Path, caplog: pytest.LogCaptureFixture) -> None:
    works = cuda_works(relu)
    with caplog.at_level("INFO", logger="prompt_tune.runtime.providers"):
        session = open_session(relu, device="auto")
    assert device_of(session) == ("cuda" if works else "cpu")
    if works:
        assert not caplog.records
        return
    (record,) = caplog.records
    text = record.getMessage()
    assert record.levelname == "WARNING" and "\n" not in text
    with pytest.raises(ProviderError) as reason:
        open_session(relu, device="cuda")
    assert text == f"`device='auto'`: CUDA does not work here, so the graph runs on the CPU. {reason.value}"


def test_auto_does_not_hide_a_damaged_graph(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"this is no graph")
    with pytest.raises(GraphError, match="cannot be loaded by ONNX Runtime"):
        open_session(tmp_path / "x.onnx", device="auto")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "0"])
def test_session_that_lost_its_provider_is_an_error(device: str, relu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if cuda_works(relu):
        pytest.skip("CUDA works here")
    # the libraries' check says yes: what ONNX Runtime then does, without a GPU, is its true fall back
    monkeypatch.setattr(providers, "missing_libraries", lambda names: [])
    with pytest.raises(ProviderError, match=f"^`device='{device}'`.*nvidia-smi"):
        open_session(relu, device=device)


@pytest.mark.parametrize("device", ["gpu", "CPU", "", "cuda:", "cuda:-1", "1.0", "tensorrt"])
def test_unknown_device_is_refused(device: str, relu: Path) -> None:
    with pytest.raises(
        ProviderError, match=rf"must be cpu, cuda, cuda:N or N .*, auto, or openvino\. Received: '{device}'\."
    ):
        open_session(relu, device=device)


def test_openvino_is_not_taken_for_a_gpu(relu: Path) -> None:
    with pytest.raises(ProviderError, match=r"^`device='openvino'` is none of ONNX Runtime's\. Make a `Detector`"):
        open_session(relu, device="openvino")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, "cuda:1"])
def test_gpu_that_the_environment_hides_is_refused_by_name(
    device: str | int, relu: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    reason = f"`device='{device}'`: the environment variable CUDA_VISIBLE_DEVICES is '', which shows no GPU"
    with pytest.raises(ProviderError) as refusal:
        open_session(relu, device=device)
    assert str(refusal.value).startswith(reason)
    assert device_of(open_session(relu, device="auto")) == "cpu"
    assert "CUDA_VISIBLE_DEVICES is '', which shows no GPU" in caplog.messages[0]


def test_options_name_the_gpu_and_keep_what_retention_needs() -> None:
    always = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    for device, index in (("cuda", "0"), ("cuda:0", "0"), ("0", "0"), ("cuda:3", "3"), ("3", "3")):
        assert providers._cuda_options(device) == always | {"device_id": index}


@pytest.mark.parametrize("content", [b"", b"this is no graph"])
def test_file_that_is_no_graph_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(GraphError, match=r"x\.onnx` cannot be loaded by ONNX Runtime") as refusal:
        open_session(tmp_path / "x.onnx")
    assert "\n" not in str(refusal.value)


def test_libraries_are_those_of_the_cuda_version_that_onnxruntime_was_built_for() -> None:
    assert cuda_libraries("13.0") == (
        "libcudart.so.13",
        "libcublasLt.so.13",
        "libcublas.so.13",
        "libcurand.so.10",
        "libcudnn.so.9",
        "libcuda.so.1",
    )
    assert cuda_libraries("12.8")[0] == "libcudart.so.12"


def test_missing_libraries_are_those_that_do_not_load() -> None:
    assert missing_libraries([]) == []
    assert missing_libraries(["libnothing.so.99", "libc.so.6", "libno.so.1"]) == ["libnothing.so.99", "libno.so.1"]


def test_missing_message_tells_wheels_from_the_driver() -> None:
    wheel = missing_message(["libcudnn.so.9", "libcurand.so.10"], "cuda", "13.0")
    assert wheel == (
        "`device='cuda'` is not usable: cannot load libcudnn.so.9, libcurand.so.10. "
        "pip install '.[cuda]' (in a checkout) brings libcudnn.so.9, libcurand.so.10. Or use `cpu`."
    )
    driver = missing_message(["libcuda.so.1"], "cuda", "13.0")
    assert "pip install" not in driver and "install the driver" in driver
    both = missing_message(["libcudart.so.13", "libcuda.so.1"], "auto", "13.0")
    assert "brings libcudart.so.13; libcuda.so.1 belongs to NVIDIA's driver" in both


@pytest.mark.parametrize("before", ["", "import onnxruntime"], ids=["imported by us", "imported before"])
def test_telemetry_is_off_and_importing_the_package_changes_nothing(before: str, relu: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    names = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "XDG_CACHE_HOME", "CI")
    environment = {name: value for name, value in os.environ.items() if name not in names} | {"HOME": str(home)}
    program = f"""
import os, pathlib, sys
{before}
import prompt_tune
from prompt_tune.runtime.providers import open_session
assert "ORT_DISABLE_TELEMETRY" not in os.environ
open_session(pathlib.Path(sys.argv[1]))
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
"""
    subprocess.run([sys.executable, "-c", program, str(relu)], check=True, env=environment)
    left = [path for path in home.rglob("*") if "onnxruntime" in str(path) and path.is_file()]
    assert before or not left  # ONNX Runtime itself writes when it is imported without us
