"""Every operator of the exported graphs has a CUDA kernel. One without it would run on the CPU, with copies around."""

from pathlib import Path

import onnx
import pytest
from conftest import MakeCheckpoint
from kernels import operators, with_cuda_kernel

from prompt_tune.deployment.graph import OPSET, DetectorGraph, _trace
from prompt_tune.deployment.half import half_world
from prompt_tune.models.world import World


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_operator_has_a_cuda_kernel_of_its_opset_and_types(
    version: str, precision: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    world = World.load(make_checkpoint(tmp_path / "model.pt", version="" if version == "v1" else version))
    _trace(DetectorGraph(half_world(world) if precision == "float16" else world), tmp_path / "graph.onnx", OPSET)
    found = operators(tmp_path / "graph.onnx")
    assert len(found) > 30 and any("float16" in name for name in found) == (precision == "float16")
    assert sorted(found - with_cuda_kernel()) == []  # tests/data/README.md says what to do with a new one


def test_an_operator_of_another_type_or_without_a_kernel_is_found(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Sigmoid", ["x"], ["a"]),
        onnx.helper.make_node("Celu", ["a"], ["b"]),
        onnx.helper.make_node("Cast", ["b"], ["y"], to=onnx.TensorProto.INT8),
    ]
    ends = [
        onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2]),
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT8, [2]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)]), tmp_path / "x.onnx")
    assert operators(tmp_path / "x.onnx") - with_cuda_kernel() == {"Celu-12 float -> float", "Cast-13 float -> int8"}
