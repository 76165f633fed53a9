"""The GPU check runs whole without a GPU, smaller; and a step that fails or takes too long loses nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

CHECK = ROOT / "tests" / "gpu" / "check.py"


def check(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECK), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=400)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "out"
    done = check("--out", str(folder), "--provider", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_step_runs_on_the_cpu_and_holds_what_is_promised(out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    steps = ["versions", "session", "retention", "agreement", "speed n", "loading", "caching", "training"]
    assert list(results) == steps
    assert not any("error" in result for result in results.values())
    assert results["session"]["providers"] == ["CPUExecutionProvider"] and results["session"]["copies"] == 0
    retention = results["retention"]
    assert retention["original detections"] > 100 and retention["changed bits"] == {} and retention["comparisons"] == 24
    float32 = results["agreement"]["float32"]  # the CPU against itself
    assert (float32["near"], float32["largest distance of those, px"], float32["largest difference of score"]) == (
        1,
        0,
        0,
    )
    assert 0.99 <= results["agreement"]["float16"]["near"] <= 1
    assert results["agreement"]["float16"]["largest distance of those, px"] > 0
    assert results["loading"]["problems"] == [] and results["loading"]["calls"]["load"] > 10
    assert results["caching"]["images"] == 24 and results["caching"]["share"] > 0.05
    training = results["training"]
    assert set(training) >= {"10 classes", "70 classes"}
    assert all(training[row]["loss"] > 0.1 and training[row]["update, ms"] > 1 for row in training if "classes" in row)
    table = (out / "results.md").read_text()
    assert "| retention | original detections |" in table and "ultralytics' graph" in table


def test_a_step_that_is_there_is_not_run_again_and_a_failed_one_is_named(out: Path) -> None:
    (out / "versions.json").write_text('{"here": "already"}')
    (out / "session.json").unlink()
    graph = next((out / "parts").glob("bundle-n/detector.onnx"))
    whole = graph.read_bytes()
    graph.write_bytes(b"no graph")
    done = check("--out", str(out), "--provider", "cpu")
    graph.write_bytes(whole)
    assert done.returncode == 1
    assert "| versions | here | already |" in done.stdout
    assert "| session | error | " in done.stdout and "cannot be loaded by ONNX Runtime" in done.stdout
    assert "| retention | original detections |" in done.stdout
