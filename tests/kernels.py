"""The operators of a graph by type, as ONNX Runtime looks for kernels.

`python tests/kernels.py GRAPH...` prints them as JSON. `tests/data/cuda_kernels.json` lists those that CUDA has;
tests/data/README.md says where it comes from.
"""

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import onnx

DATA = Path(__file__).parent / "data" / "cuda_kernels.json"


def operators(path: Path) -> set[str]:
    """Each operator with its types: "Gather-13 float int64 -> float". The number is the opset that defined it.

    Equal types that follow one another stand once. Constants are left out: ONNX Runtime folds them away.
    """
    model: Any = onnx.shape_inference.infer_shapes(onnx.load(path))
    opset = next(part.version for part in model.opset_import if part.domain in ("", "ai.onnx"))
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types |= {node.output[0]: node.attribute[0].t.data_type for node in model.graph.node if node.op_type == "Constant"}

    def named(names: list[str]) -> str:
        found = [onnx.TensorProto.DataType.Name(types[name]).lower() for name in names if name]
        return " ".join(name for name, _ in groupby(found))

    return {
        f"{node.op_type}-{onnx.defs.get_schema(node.op_type, opset, node.domain).since_version} "
        f"{named(node.input)} -> {named(node.output)}"
        for node in model.graph.node
        if node.op_type != "Constant"
    }


def with_cuda_kernel() -> set[str]:
    """The operators that have a CUDA kernel in the oldest ONNX Runtime that we accept."""
    return set(json.loads(DATA.read_text("utf-8"))["operators"])


if __name__ == "__main__":
    print(json.dumps(sorted(set().union(*(operators(Path(name)) for name in sys.argv[1:]))), indent=1))
