"""The configurations of a model repository, read by Triton's own parser: graph and Python model keep to them."""

from pathlib import Path
from typing import Any

import extras
import numpy as np
import pytest
from bundles import learned_for_tiny, original_vocabulary
from places import ROOT
from runs import write_run
from triton_server import GRAPH, MODEL, OUTPUTS, call, loaded, request, rows_of

from prompt_tune.contract import INPUTS
from prompt_tune.contract import OUTPUTS as TABLES
from prompt_tune.datasets.sample import custom_scene
from prompt_tune.deployment.triton import export_triton
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.providers import quiet_onnxruntime

extras.needs("tritonclient.grpc")

KINDS = {"tensor(float)": "TYPE_FP32"}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Of one run on `tiny`: without batches, and for eight requests at once."""
    folder = tmp_path_factory.mktemp("triton")
    original = original_vocabulary()
    learned = learned_for_tiny(original.names[:2], original.embeddings[:2], thresholds=original.thresholds[:2])
    run = write_run(folder / "run", "tiny", original, learned, image_size=128)
    for batch in (1, 8):
        export_triton(run, folder / str(batch), batch=batch)
    return {batch: folder / str(batch) for batch in (1, 8)}


def parsed(repository: Path, model: str) -> Any:
    """A configuration as Triton reads it: what its parser does not know is an error."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig())


def as_triton_gives_it(config: Any) -> dict[str, Any]:
    """What the Python model gets as `model_config`."""
    from google.protobuf.json_format import MessageToDict

    given: dict[str, Any] = MessageToDict(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return given


def tensors(entries: Any) -> dict[str, tuple[str, list[int]]]:
    from tritonclient.grpc.model_config_pb2 import DataType

    return {one.name: (DataType.Name(one.data_type), list(one.dims)) for one in entries}


@pytest.mark.parametrize("batch", [1, 8])
def test_graph_is_configured_as_it_is(batch: int, repositories: dict[int, Path]) -> None:
    config = parsed(repositories[batch], GRAPH)
    session = quiet_onnxruntime().InferenceSession(str(repositories[batch] / GRAPH / "1" / "model.onnx"))

    def real(entries: Any) -> dict[str, tuple[str, list[int]]]:
        return {one.name: (KINDS[one.type], [n if isinstance(n, int) else -1 for n in one.shape]) for one in entries}

    assert (config.name, config.backend, config.max_batch_size) == (GRAPH, "onnxruntime", 0)
    assert tensors(config.input) == real(session.get_inputs()) and tuple(tensors(config.input)) == INPUTS
    assert tensors(config.output) == real(session.get_outputs()) and tuple(tensors(config.output)) == TABLES
    assert not config.HasField("dynamic_batching")


def test_convolutions_keep_their_bits_on_a_gpu(repositories: dict[int, Path]) -> None:
    config = parsed(repositories[1], GRAPH)
    # onnxruntime.cc: without this entry EXHAUSTIVE, whatever the accelerator's own parameters say
    assert config.parameters["cudnn_conv_algo_search"].string_value == "1"  # HEURISTIC
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})


@pytest.mark.parametrize("batch", [1, 8])
def test_python_model_takes_what_the_server_takes(batch: int, repositories: dict[int, Path]) -> None:
    from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

    config = parsed(repositories[batch], MODEL)
    assert (config.name, config.backend, config.max_batch_size) == (MODEL, "python", 0 if batch == 1 else 8)
    assert config.HasField("dynamic_batching") == (batch == 8)
    assert tensors(config.input) == {
        "image": ("TYPE_STRING", [1]),
        "raw": ("TYPE_UINT8", [-1, -1, 3]),
        "vocabularies": ("TYPE_STRING", [-1]),
        "iou": ("TYPE_FP32", [1]),
        "conf": ("TYPE_FP32", [1]),
    }
    assert tensors(config.output) == {
        "boxes": ("TYPE_FP32", [-1, 4]),
        "scores": ("TYPE_FP32", [-1]),
        "labels": ("TYPE_STRING", [-1]),
        "vocabulary": ("TYPE_STRING", [-1]),
    }
    assert all(one.optional for one in config.input)
    # images of several sizes can be joined only so
    assert {one.name for one in config.input if one.allow_ragged_batch} == {"raw", "vocabularies"}
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, ModelInstanceGroup.KIND_CPU)


@pytest.mark.parametrize("batch", [1, 8])
def test_python_model_runs_on_the_parsed_configuration(
    batch: int, repositories: dict[int, Path], tmp_path: Path
) -> None:
    repository, image = repositories[batch], custom_scene(0, "test", 0).image
    config = parsed(repository, MODEL)
    with loaded(repository, as_triton_gives_it(config)) as model:
        (rows,) = call(model, [request(batch > 1, raw=image)])
        assert model.batch == batch
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "detector.onnx").symlink_to(repository / GRAPH / "1" / "model.onnx")
    (bundle / "original.vocab.safetensors").symlink_to(repository / MODEL / "1" / "original.vocab.safetensors")
    (bundle / "learned.vocab.safetensors").symlink_to(
        repository / MODEL / "1" / "vocabularies" / "learned.vocab.safetensors"
    )
    grey = np.full((128, 128, 3), 114, np.uint8)
    found = Detector(bundle, threads=1).detect([image] + [grey] * (batch - 1), batch=batch)[0]
    assert rows == rows_of(found) != []


def test_client_of_the_docs_sends_what_the_model_takes(repositories: dict[int, Path], tmp_path: Path) -> None:
    """The client's code, up to the call, with its tensors as they go over the wire."""
    from PIL import Image
    from tritonclient.utils import deserialize_bytes_tensor

    (code,) = [part for part in _python_blocks() if "tritonclient.grpc" in part]
    head, _, rest = code.partition("answer = ")
    assert "client.infer(" in rest
    image = custom_scene(0, "test", 0).image
    Image.fromarray(image).save(tmp_path / "photo.png")
    names: dict[str, Any] = {}
    exec(head.replace("photo.jpg", str(tmp_path / "photo.png")), names)
    contents = {one.name(): (one._get_tensor(), one._get_content()) for one in names["inputs"]}
    config = parsed(repositories[1], MODEL)
    known = {name: kind for name, (kind, _) in tensors(config.input).items()}
    arrays = {}
    for name, (tensor, content) in contents.items():
        assert known[name] == {"BYTES": "TYPE_STRING"}[tensor.datatype]
        arrays[name] = deserialize_bytes_tensor(content).reshape(list(tensor.shape))
    assert {*names["outputs"]} == set(OUTPUTS)
    with loaded(repositories[1], as_triton_gives_it(config)) as model:
        (rows,) = call(model, [request(**arrays)])
        (expected,) = call(model, [request(raw=image)])
    assert rows == expected != []


def _python_blocks() -> list[str]:
    """The Python code of docs/deployment.md."""
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    return [part.partition("\n```")[0] for part in text.split("```python\n")[1:]]
