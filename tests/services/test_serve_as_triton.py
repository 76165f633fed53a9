"""One scenario, through the Python model as Triton calls it and through the server as Triton's client calls it."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import extras
import numpy as np
import pytest

extras.needs("starlette", "uvicorn", "prometheus_client", "tritonclient")

import tritonclient.http as triton  # noqa: E402
from PIL import Image  # noqa: E402
from places import TESTS  # noqa: E402
from served import Served, served  # noqa: E402
from small_bundle import photo  # noqa: E402
from triton_server import GRAPH, MODEL, Row, call, loaded, request  # noqa: E402
from tritonclient.utils import InferenceServerException, np_to_triton_dtype  # noqa: E402

from prompt_tune.deployment.triton import export_triton  # noqa: E402

LOW = 0.02  # a threshold that lets many boxes through


def jpeg(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(content, "JPEG", exif=exif)
    return content.getvalue()


SCENE = (TESTS / "data" / "photo.png").read_bytes()
SCENARIO: list[dict[str, Any]] = [
    {"image": SCENE},
    {"image": jpeg(photo(200, 300)), "conf": LOW},
    {"raw": photo(120, 77, seed=4), "conf": LOW, "iou": 0.3},
    {"raw": photo(120, 77, seed=4), "conf": LOW, "vocabularies": ["learned"]},
    {"raw": photo(120, 77, seed=4), "conf": LOW, "vocabularies": ["learned", "original"]},
    {"image": SCENE, "conf": LOW, "vocabularies": []},
    {"image": SCENE, "vocabularies": ["night"]},
    {"image": SCENE[:100]},
    {"image": SCENE, "iou": 1.5},
    {"conf": LOW},
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "repository"
    export_triton(TESTS / "data" / "run", folder)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Served]:
    """Our server, on the files of the repository."""
    bundle = repository.parent / "bundle"
    bundle.mkdir()
    shutil.copyfile(repository / GRAPH / "1" / "model.onnx", bundle / "detector.onnx")
    for name in ("original", "vocabularies/learned"):
        file = repository / MODEL / "1" / f"{name}.vocab.safetensors"
        shutil.copyfile(file, bundle / file.name)
    with served(bundle, repository.parent / "log", "--threads", "1") as running:
        yield running


def ask(client: triton.InferenceServerClient, arrays: dict[str, Any]) -> list[Row] | None:
    """The rows that the server gives; None for an error."""
    inputs = []
    for tensor in request(**arrays).inputs():
        array = tensor.as_numpy()
        inputs.append(triton.InferInput(tensor.name(), list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    try:
        answer = client.infer(MODEL, inputs)
    except InferenceServerException as error:
        assert error.status() == "400", error
        return None
    boxes, scores, labels, vocabularies = (
        answer.as_numpy(name) for name in ("boxes", "scores", "labels", "vocabulary")
    )
    return [(boxes[i].tobytes(), scores[i].tobytes(), labels[i], vocabularies[i]) for i in range(len(scores))]


def test_rows_are_equal_bit_for_bit_and_errors_come_at_the_same_places(repository: Path, server: Served) -> None:
    with triton.InferenceServerClient("{}:{}".format(*server.address)) as client:
        ours = [ask(client, arrays) for arrays in SCENARIO]
    with loaded(repository) as model:
        theirs = [None if isinstance(rows, str) else rows for rows in call(model, [request(**one) for one in SCENARIO])]
    assert ours == theirs
    assert [rows is None for rows in ours] == [False] * 6 + [True] * 4
    assert {label for rows in ours[:5] for *_, label in rows or ()} == {b"original", b"learned"}
    assert ours[5] == [] and len(ours[1] or ()) > 5 and ours[3] != ours[4]
