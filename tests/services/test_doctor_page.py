"""The page of `doctor`: Markdown with what was found, and nothing of the user's."""

from dataclasses import replace

from prompt_tune.services.checkup import Checkup, Step
from prompt_tune.services.doctor_page import page
from prompt_tune.services.environment import Environment, Package, Problem

FOUND = Environment(
    versions={"prompt-tune": "0.1.0", "Python": "3.12.1"},
    system="Linux 6.1, x86_64",
    cores=4,
    memory_gb=16.0,
    gpus=("NVIDIA L4, 570.1, 23034 MiB",),
    packages=(Package("numpy", "", ">=2", "2.1", True), Package("torch", "fit", ">=2.11", None, False)),
    providers=("CPUExecutionProvider",),
    onnxruntime_cuda="13.0",
    missing_libraries=("libcudnn.so.9",),
    cuda=False,
    torch_cuda="",
    problems=(
        Problem("ONNX Runtime cannot use the GPU.", "Run: pip install '.[cuda]'", broken=True),
        Problem("Not installed: torch.", "pip install '.[fit]'", broken=False),
    ),
)


def test_page_says_what_was_found() -> None:
    lines = page(FOUND).splitlines()
    assert lines[:3] == ["# prompt-tune doctor", "", lines[2]]
    assert lines[2] == "prompt-tune 0.1.0, Python 3.12.1, on Linux 6.1, x86_64; 4 cores, 16 GB of memory."
    assert "- GPUs: NVIDIA L4, 570.1, 23034 MiB" in lines
    assert "- CUDA in ONNX Runtime: built with 13.0, does not work here; cannot load libcudnn.so.9" in lines
    assert "| numpy | 2.1 | >=2 | detect, val, verify |" in lines and not any("| torch" in line for line in lines)
    broken, option = lines.index("## Does not work"), lines.index("## Not installed")
    assert lines[broken + 2] == "- ONNX Runtime cannot use the GPU. Run: pip install '.[cuda]'" and broken < option
    assert "fits together" not in page(FOUND) and "## The chain" not in page(FOUND)
    sound = page(replace(FOUND, problems=FOUND.problems[1:]))
    assert "Everything that is installed fits together." in sound and "## Does not work" not in sound


def test_steps_are_a_table_of_their_own() -> None:
    steps = (Step("speed", "ok", "7 ms | 8 ms", 1.25), Step("fit", "failed", "`/home/anna/x.pt` is gone", 0.0))
    text = page(FOUND, Checkup("yolov8s-worldv2.pt", steps))
    assert "## The chain on yolov8s-worldv2.pt" in text and "| speed | ok | 7 ms \\| 8 ms | 1.2 |" in text
    assert "anna" not in text and text.endswith("1 of 2 steps failed.\n")
    assert page(FOUND, Checkup("tiny", steps[:1])).endswith("No step failed.\n")
