"""Graphs whose metadata cannot be true, in the Python kit and the page; tests/test_contract.py has the package."""

import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import kit
import pytest
from forged import GOOD, forged_graph, forged_metadata
from PIL import Image
from places import ROOT, TESTS
from vocabularies import learned, unit_rows

from prompt_tune.vocabulary.vocabulary import guide_digest

PAGE = """
import { readFileSync } from "node:fs";
const { Detector } = await import(process.argv[1]);
const said = [];
for (const path of readFileSync(0, "utf8").split("\\n")) {
  const graph = readFileSync(path);
  try {
    await Detector.open(graph, new ArrayBuffer(0), "wasm");
  } catch (error) {
    said.push(error.message);
  }
}
console.log(JSON.stringify(said));
"""


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The Python kit's module that runs graphs."""
    return kit.module("kit_detector")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two good ones, then the forged ones."""
    folder = tmp_path_factory.mktemp("graphs")
    good = [GOOD, GOOD | {"image_size": 8192, "strides": [8, 16, 32, 64], "made_by": "someone"}]
    return [
        forged_graph(folder / f"{number}.onnx", metadata)
        for number, metadata in enumerate([*good, *forged_metadata().values()])
    ]


def test_python_kit_refuses_them_in_one_line(program: ModuleType, graphs: list[Path]) -> None:
    for path in graphs[:2]:
        assert program.open_graph(path)[1]["detector"] == GOOD["detector"]
    for path, name in zip(graphs[2:], forged_metadata(), strict=True):
        with pytest.raises(SystemExit) as refusal:
            program.open_graph(path)
            pytest.fail(name)
        text = str(refusal.value)
        assert text.startswith(f"{path}: not a graph of prompt-tune, or damaged") and "\n" not in text, text
    whole = (TESTS / "data" / "bundle" / "detector.onnx").read_bytes()
    for content in (b"", b"no graph", whole[: len(whole) // 2]):
        graphs[0].with_name("cut.onnx").write_bytes(content)
        with pytest.raises(
            SystemExit, match=r"cut\.onnx: not a graph of prompt-tune, or damaged\. Export the run again\."
        ):
            program.open_graph(graphs[0].with_name("cut.onnx"))


@pytest.mark.parametrize("row", [[0, 1, 2, 3, 4, 0.9, 2], [0, 1, 2, 3, 4, 0.9, -1], [0, 1, 2, 3, 4, 0.9]])
def test_python_kit_refuses_rows_that_cannot_be(program: ModuleType, row: list[float], tmp_path: Path) -> None:
    original = learned("a", "b", kind="original", guide=guide_digest(unit_rows(2, 1)))
    original.save(tmp_path / "original.vocab.safetensors")
    forged_graph(tmp_path / "detector.onnx", rows=[[0, 1, 2, 3, 4, 0.9, 1][: len(row)], row])
    with pytest.raises(SystemExit) as refusal:
        program.Detector(tmp_path, []).detect(Image.new("RGB", (64, 64)))
    assert str(refusal.value) == (
        "detector.onnx fails: its rows are not those of a graph of prompt-tune. Export the run again."
    )


def test_page_refuses_them(graphs: list[Path]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    module = (ROOT / "export" / "web" / "detector.js").as_uri()
    command = [node, "--input-type=module", "--eval", PAGE, module]
    done = subprocess.run(command, input="\n".join(map(str, graphs)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said[:2] == ["original is not a vocabulary file, or it is cut short."] * 2  # the graph was taken
    for name, text in zip(forged_metadata(), said[2:], strict=True):
        assert text.startswith("detector.onnx is not a prompt-tune graph of a version that this page knows."), name


def test_python_kit_refuses_vocabularies_that_do_not_fit_into_memory(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the package does; the limit is lowered to what the bundle of the tests and one class need."""
    bundle = TESTS / "data" / "bundle"
    detector = program.Detector(bundle, [bundle / "learned.vocab.safetensors"])
    n_rows = program.n_rows([detector.original]) + program.n_rows(detector.learned)
    n_anchors = sum((detector.graph["image_size"] // stride) ** 2 for stride in detector.graph["strides"])
    monkeypatch.setattr(program, "MOST_SCORES", n_rows * n_anchors)
    program.Detector(bundle, [bundle / "learned.vocab.safetensors"])
    monkeypatch.setattr(program, "MOST_SCORES", n_rows * n_anchors - 1)
    with pytest.raises(SystemExit, match="too many prompts"):
        program.Detector(bundle, [bundle / "learned.vocab.safetensors"])
