"""A real server answers with the rows of `Detector.detect`, bit for bit, and refuses everything else in one line."""

import io
import json
import re
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import extras
import numpy as np
import pytest

extras.needs("starlette", "uvicorn", "prometheus_client", "tritonclient", "httpx")

import httpx  # noqa: E402
import tritonclient.http as triton  # noqa: E402
from PIL import Image  # noqa: E402
from places import TESTS  # noqa: E402
from served import Served, served  # noqa: E402
from small_bundle import learned_for, photo  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from prompt_tune.runtime.detections import Detections  # noqa: E402
from prompt_tune.runtime.detector import Detector  # noqa: E402
from prompt_tune.runtime.slices import Slices, detect_sliced  # noqa: E402
from prompt_tune.services import openapi  # noqa: E402
from prompt_tune.services.serve_app import Service  # noqa: E402
from prompt_tune.services.serve_config import ServeConfig  # noqa: E402

BUNDLE = TESTS / "data" / "bundle"
PHOTO = (TESTS / "data" / "photo.png").read_bytes()
PNG = {"content-type": "image/png"}
IOU = float(np.float32(0.3))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(BUNDLE, threads=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(BUNDLE, tmp_path_factory.mktemp("server") / "log", "--threads", "1", "--allow-upload") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as found:
        yield found


def png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that states a size, and has almost no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def bits(found: Detections) -> tuple[object, ...]:
    return found.boxes_xyxy.tobytes(), found.scores.tobytes(), found.class_names, found.vocabularies


def bits_of_json(answer: dict[str, Any]) -> tuple[object, ...]:
    rows = answer["detections"]
    boxes = np.array([row["box"] for row in rows], np.float32)
    scores = np.array([row["score"] for row in rows], np.float32)
    return boxes.tobytes(), scores.tobytes(), *(tuple(row[key] for row in rows) for key in ("class", "vocabulary"))


def bits_of_tensors(answer: triton.InferResult) -> tuple[object, ...]:
    boxes, scores = answer.as_numpy("boxes"), answer.as_numpy("scores")
    assert (boxes.dtype, scores.dtype, boxes.shape) == (np.float32, np.float32, (len(scores), 4))
    texts = (tuple(text.decode() for text in answer.as_numpy(name)) for name in ("labels", "vocabulary"))
    return boxes.tobytes(), scores.tobytes(), *texts


def tensor(name: str, datatype: str, array: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def texts(*values: str | bytes) -> np.ndarray:
    array = np.empty(len(values), np.object_)
    array[:] = [value.encode() if isinstance(value, str) else value for value in values]
    return array


def wait_for(client: httpx.Client, line: str) -> None:
    """Wait until the metrics have a line."""
    end = time.monotonic() + 20
    while f"\n{line}\n" not in client.get("/metrics").text:
        assert time.monotonic() < end, line


# Answers


def test_detect_gives_the_rows_of_the_detector(client: httpx.Client, detector: Detector) -> None:
    image = photo(60, 90, seed=3)
    expected = {
        "": detector.detect(image)[0],
        "?conf=0.1&iou=0.3": detector.detect(image, conf=0.1, iou=0.3)[0],
        "?vocabularies=learned": detector.detect(image, show=["learned:*"])[0],
        "?vocabularies=learned&vocabularies=original&conf=0.5": detector.detect(image, conf=0.5)[0],
    }
    for query, found in expected.items():
        answer = client.post(f"/detect{query}", content=png(image), headers=PNG)
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert (document["width"], document["height"], document["batch"]) == (90, 60, 1)
        assert bits_of_json(document) == bits(found), query
    assert len({bits(found) for found in expected.values()}) == 4
    as_form = client.post("/detect", files={"image": ("photo.png", png(image))}, data={"note": "x"})
    assert bits_of_json(as_form.json()) == bits(expected[""])


@pytest.mark.parametrize("size", [1, 4])
def test_slices_and_overlap_give_the_rows_of_detect(detector: Detector, tmp_path: Path, size: int) -> None:
    image, other = photo(90, 130, seed=3), photo(40, 40, seed=4)
    slices = Slices(48, 0.3)
    sizes = ("--batch-sizes", str(size), "--threads", "1")
    with served(BUNDLE, tmp_path / "log", *sizes) as server, httpx.Client(base_url=server.url) as client:
        for overlap in ("keep", "learned", "score"):
            for query, cut in (("", None), ("&slice=48&slice_overlap=0.3", slices), ("&slice=48", Slices(48))):
                options: dict[str, Any] = {"conf": float(np.float32(0.1)), "overlap": overlap, "batch": size}
                answer = client.post(f"/detect?conf=0.1&overlap={overlap}{query}", content=png(image), headers=PNG)
                document = answer.json()
                found = detect_sliced(detector, image, cut, **options) if cut else detector.detect(image, **options)[0]
                assert (document["batch"], document["width"], document["height"]) == (size, 130, 90), answer.text
                assert bits_of_json(document) == bits(found)
                hidden = [row.get("hidden") for row in document["detections"]]
                assert hidden == ([None] * len(found) if found.hidden is None else found.hidden.tolist())
        small = client.post("/detect?slice=48", content=png(other), headers=PNG).json()
        assert bits_of_json(small) == bits(detector.detect(other, batch=size)[0])
        n_windows = 1, 1 + slices.count((130, 90)), 1 + Slices(48).count((130, 90))
        batches = 1 + 3 * sum(-(-one // size) for one in n_windows)
        wait_for(client, f'prompt_tune_batches_total{{size="{size}"}} {batches}.0')


def test_slices_are_limited(client: httpx.Client, tmp_path: Path) -> None:
    image = photo(100, 330)
    few = client.post("/detect?slice=32&slice_overlap=0", content=png(image), headers=PNG)
    assert few.status_code == 200, few.text
    many = client.post("/detect?slice=32&slice_overlap=0.5", content=png(image), headers=PNG)
    assert (many.status_code, many.json()["error"]) == (
        400,
        "An image of 330 x 100 pixels has 120 slices of 32 pixels. At most 64 are looked at here. Ask for larger ones, "
        "or start the server with a larger --max-slices.",
    )
    with served(BUNDLE, tmp_path / "log", "--threads", "1", "--max-slices", "0") as server:
        none = httpx.post(f"{server.url}/detect?slice=48", content=png(image), headers=PNG)
        assert none.status_code == 400 and "At most 0 are looked at here" in none.json()["error"]
        assert httpx.post(f"{server.url}/detect?slice=400", content=png(image), headers=PNG).status_code == 200


def test_file_is_turned_upright_as_the_detector_does(client: httpx.Client, detector: Detector, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(60, 90)).save(tmp_path / "turned.jpg", exif=exif)
    content = (tmp_path / "turned.jpg").read_bytes()
    answer = client.post("/detect", content=content, headers={"content-type": "image/jpeg"}).json()
    (found,) = detector.detect(tmp_path / "turned.jpg")
    assert (answer["width"], answer["height"]) == (60, 90) == found.size_wh
    assert bits_of_json(answer) == bits(found)


@pytest.mark.parametrize("size", [1, 4])
def test_answers_under_load_have_the_bits_of_their_batch_size(detector: Detector, tmp_path: Path, size: int) -> None:
    images = [photo(50 + 5 * number, 80, seed=number) for number in range(6)]
    queries = ("", "?conf=0.125", "?iou=0.25", "?vocabularies=learned")
    options: list[dict[str, Any]] = [{}, {"conf": 0.125}, {"iou": 0.25}, {"show": ["learned:*"]}]
    expected = {
        (number, query): bits(detector.detect(image, batch=size, **more)[0])
        for number, image in enumerate(images)
        for query, more in zip(queries, options, strict=True)
    }
    contents = [png(image) for image in images]
    sizes = ("--batch-sizes", str(size), "--threads", "1")
    with served(BUNDLE, tmp_path / "log", *sizes) as server, httpx.Client(base_url=server.url) as client:

        def ask(key: tuple[int, str]) -> bool:
            answer = client.post(f"/detect{key[1]}", content=contents[key[0]], headers=PNG).json()
            return answer["batch"] == size and bits_of_json(answer) == expected[key]

        with ThreadPoolExecutor(12) as clients:
            assert all(clients.map(ask, list(expected) * 4))


def test_triton_client_asks_with_files_and_pixels(server: Served, detector: Detector) -> None:
    image = photo(60, 90, seed=5)
    numbers = [tensor("iou", "FP32", np.array([0.3], np.float32)), tensor("conf", "FP32", np.array([0.1], np.float32))]
    only = tensor("vocabularies", "BYTES", texts("learned"))
    file, raw = tensor("image", "BYTES", texts(png(image))), tensor("raw", "UINT8", image)
    with triton.InferenceServerClient("{}:{}".format(*server.address)) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("prompt_tune")
        assert client.is_model_ready("prompt_tune", "1") and not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "prompt-tune"
        assert client.get_model_metadata("prompt_tune", "1")["inputs"][0]["name"] == "image"
        assert client.get_model_config("prompt_tune")["max_batch_size"] == 0
        cases: list[tuple[list[Any], dict[str, Any]]] = [
            ([file], {}),
            ([raw], {}),
            ([raw, *numbers], {"iou": 0.3, "conf": 0.1}),
            ([only, raw], {"show": ["learned:*"]}),
            ([file, tensor("vocabularies", "BYTES", texts())], {"show": []}),
        ]
        for inputs, options in cases:
            answer = client.infer("prompt_tune", inputs, request_id="7", model_version="1")
            assert bits_of_tensors(answer) == bits(detector.detect(image, **options)[0]), options
            assert answer.get_response()["id"] == "7" and answer.get_response()["parameters"] == {"batch": 1}
        parameters = {"slice": 48, "slice_overlap": 0.3, "overlap": "score"}
        answer = client.infer("prompt_tune", [file, *numbers], parameters=parameters)
        size = answer.get_response()["parameters"]["batch"]
        wanted = detect_sliced(
            detector, image, Slices(48, 0.3), overlap="score", batch=size, conf=float(np.float32(0.1)), iou=IOU
        )
        assert bits_of_tensors(answer) == bits(wanted.shown) and len(wanted.shown) < len(wanted)
        for wrong, line in (
            ({"slice": 31}, "A slice must have at least 32 pixels. Received: 31."),
            ({"slice": "48"}, "The parameter `slice` must be a whole number of pixels. Received: '48'"),
            ({"slice_overlap": 0.5}, "Give their size, `slice`, too."),
            ({"overlap": "all"}, "`overlap` must be one of keep, learned, score. Received: 'all'."),
        ):
            with pytest.raises(InferenceServerException, match=re.escape(line)):
                client.infer("prompt_tune", [file], parameters=wrong)
        as_json = [triton.InferRequestedOutput(name, binary_data=False) for name in ("scores", "labels")]
        answer = client.infer("prompt_tune", [tensor("raw", "UINT8", image, binary=False)], outputs=as_json)
        assert answer.as_numpy("scores").tobytes() == detector.detect(image)[0].scores.tobytes()
        assert answer.as_numpy("boxes") is None
        with pytest.raises(InferenceServerException, match=r"No vocabulary `night` is loaded. Loaded: original"):
            client.infer("prompt_tune", [raw, tensor("vocabularies", "BYTES", texts("night"))])
        with pytest.raises(InferenceServerException, match="must be from 0 to 1"):
            client.infer("prompt_tune", [raw, tensor("iou", "FP32", np.array([2], np.float32))])


# Refusals

BAD: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "not an image": ("POST", "/detect", {"content": b"hello", "headers": PNG}, 400, "not an image of a known format"),
    "nothing": ("POST", "/detect", {"headers": PNG}, 400, "not an image of a known format"),
    "half an image": ("POST", "/detect", {"content": PHOTO[: len(PHOTO) // 2], "headers": PNG}, 400, "cannot be read"),
    "200 megapixels": (
        "POST",
        "/detect",
        {"content": png_of_size(20_000, 10_000), "headers": PNG},
        400,
        "has 20000 x 10000 pixels, 200 megapixels. At most 100 are read here",
    ),
    "no content type": ("POST", "/detect", {"content": PHOTO}, 415, "`Content-Type` must be image/jpeg"),
    "wrong content type": (
        "POST",
        "/detect",
        {"content": PHOTO, "headers": {"content-type": "text/html"}},
        415,
        "Received: text/html",
    ),
    "compressed": (
        "POST",
        "/detect",
        {"content": PHOTO, "headers": {**PNG, "content-encoding": "gzip"}},
        415,
        "`Content-Encoding` must be identity",
    ),
    "half a form": (
        "POST",
        "/detect",
        {"content": b"--x\r\n\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        400,
        "does not end with its boundary",
    ),
    "too long": ("POST", "/detect", {"content": bytes(32_000_001), "headers": PNG}, 413, "may have 32000000 bytes"),
    "too long in parts": (
        "POST",
        "/detect",
        {"content": (bytes(1_000_000) for _ in range(33)), "headers": PNG},
        413,
        "may have 32000000 bytes",
    ),
    "unknown vocabulary": (
        "POST",
        "/detect?vocabularies=night",
        {"content": PHOTO, "headers": PNG},
        400,
        "No vocabulary `night` is loaded. Loaded: original, learned",
    ),
    "unknown parameter": ("POST", "/detect?konf=1", {"content": PHOTO, "headers": PNG}, 400, "Received: `konf`"),
    "twice": ("POST", "/detect?iou=1&iou=1", {"content": PHOTO, "headers": PNG}, 400, "Received: `iou`"),
    "not a number": ("POST", "/detect?conf=low", {"content": PHOTO, "headers": PNG}, 400, "Received: `low`"),
    "small slice": ("POST", "/detect?slice=31", {"content": PHOTO, "headers": PNG}, 400, "at least 32 pixels"),
    "half a pixel": ("POST", "/detect?slice=64.5", {"content": PHOTO, "headers": PNG}, 400, "must be a whole number"),
    "overlap of slices": (
        "POST",
        "/detect?slice=64&slice_overlap=nan",
        {"content": PHOTO, "headers": PNG},
        400,
        "Slices must overlap by 0 to 0.9. Received: nan.",
    ),
    "no slices": (
        "POST",
        "/detect?slice_overlap=0.5",
        {"content": PHOTO, "headers": PNG},
        400,
        "`slice_overlap` says how far slices overlap. Give their size, `slice`, too.",
    ),
    "overlap": ("POST", "/detect?overlap=all", {"content": PHOTO, "headers": PNG}, 400, "must be one of keep, learned"),
    "NaN": ("POST", "/detect?conf=nan", {"content": PHOTO, "headers": PNG}, 400, "must be from 0 to 1"),
    "method": ("GET", "/detect", {}, 405, "does not take GET"),
    "address": ("GET", "/nothing", {}, 404, "no such address"),
    "other model": ("POST", "/v2/models/other/infer", {"content": b"{}"}, 404, "no such address"),
    "not JSON": ("POST", "/v2/models/prompt_tune/infer", {"content": b"{"}, 400, "The request is not JSON"),
    "long JSON": (
        "POST",
        "/v2/models/prompt_tune/infer",
        {"content": b"[" * 2_000_000},
        400,
        "at most 1048576 are read",
    ),
    "deep JSON": ("POST", "/v2/models/prompt_tune/infer", {"content": b"[" * 900_000}, 400, "nested more than"),
    "infer with a form": (
        "POST",
        "/v2/models/prompt_tune/infer",
        {"files": {"image": PHOTO}},
        415,
        "must be application/json or application/octet-stream",
    ),
    "upload of nothing": ("PUT", "/vocabularies/x", {}, 400, "not safetensors, or damaged or cut short"),
    "upload of the original": ("PUT", "/vocabularies/original", {"content": b"x"}, 400, "and not `original`"),
    "upload of a path": ("PUT", "/vocabularies/..%5Cx", {"content": b"x"}, 400, "must be 1 to 100 letters"),
    "removal of nothing": ("DELETE", "/vocabularies/x", {}, 404, "No learned vocabulary `x` is loaded"),
    "removal of the original": ("DELETE", "/vocabularies/original", {}, 404, "No learned vocabulary `original`"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(client: httpx.Client, name: str) -> None:
    method, path, options, status, text = BAD[name]
    answer = client.request(method, path, **options)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"] and text in answer.json()["error"], answer.text
    assert answer.headers["content-type"] == "application/json"
    assert "/tmp" not in answer.text


def test_server_still_works_after_all_that(client: httpx.Client, server: Served, detector: Detector) -> None:
    answer = client.post("/detect", content=PHOTO, headers=PNG)
    assert bits_of_json(answer.json()) == bits(detector.detect(Image.open(io.BytesIO(PHOTO)))[0])
    assert "Traceback" not in server.log.read_text()


# Vocabularies


def test_vocabularies_come_and_go_while_others_ask(client: httpx.Client, tmp_path: Path) -> None:
    learned_for(BUNDLE, "crane", "lorry").save(tmp_path / "one.vocab.safetensors")
    learned_for(BUNDLE, "crane", "lorry", seed=9).save(tmp_path / "two.vocab.safetensors")
    files = [(tmp_path / f"{name}.vocab.safetensors").read_bytes() for name in ("one", "two")]
    assert client.put("/vocabularies/shift", content=files[0]).status_code == 201
    names = [part["name"] for part in client.get("/vocabularies").json()]
    assert names == ["original", "learned", "shift"]
    expected = set()
    for file in files:
        detector = Detector(BUNDLE, threads=1, use_bundled=False)
        name = "one" if file is files[0] else "two"
        detector.load(tmp_path / f"{name}.vocab.safetensors", "shift")
        expected.add(bits(detector.detect(Image.open(io.BytesIO(PHOTO)), show=["shift:*"], conf=0.01)[0]))
    assert len(expected) == 2
    ends = threading.Event()

    def ask(_: int) -> set[tuple[object, ...]]:
        found = set()
        while not ends.is_set():
            answer = client.post("/detect?vocabularies=shift&conf=0.01", content=PHOTO, headers=PNG)
            found.add(bits_of_json(answer.json()))
        return found

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask, number) for number in range(4)]
        for turn in range(20):
            answer = client.put("/vocabularies/shift", content=files[turn % 2])
            assert (answer.status_code, answer.json()["classes"]) == (200, ["crane", "lorry"])
        ends.set()
        assert set().union(*(one.result() for one in asking)) == expected  # each time the one or the other, whole
    assert client.delete("/vocabularies/shift").status_code == 204
    assert client.post("/detect?vocabularies=shift", content=PHOTO, headers=PNG).status_code == 400


def test_vocabulary_of_another_detector_is_refused(client: httpx.Client, tmp_path: Path) -> None:
    learned_for(BUNDLE, "crane", detector="0" * 64).save(tmp_path / "a.vocab.safetensors")
    answer = client.put("/vocabularies/a", content=(tmp_path / "a.vocab.safetensors").read_bytes())
    assert answer.status_code == 400 and "detector" in answer.json()["error"]
    original = (BUNDLE / "original.vocab.safetensors").read_bytes()
    answer = client.put("/vocabularies/a", content=original)
    assert answer.status_code == 400 and "kind `original`" in answer.json()["error"]


# Limits, and what there is beside answers


def test_metrics_count_requests_and_stages(client: httpx.Client) -> None:
    def total(name: str) -> float:
        return float(re.findall(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)[0])

    name = 'prompt_tune_requests_total{route="detect",status="200"}'
    client.post("/detect", content=PHOTO, headers=PNG)
    before = total(name)
    client.post("/detect", content=PHOTO, headers=PNG)
    assert total(name) == before + 1
    for stage in ("read", "decode", "queue", "graph", "encode"):
        assert total(f'prompt_tune_stage_seconds_count{{stage="{stage}"}}') >= before + 1
    assert total('prompt_tune_vocabulary_classes{vocabulary="learned"}') == 2


def test_description_has_every_route(client: httpx.Client, detector: Detector) -> None:
    routes = {
        (route.path, method.lower())
        for route in Service(detector, ServeConfig()).app.routes
        for method in route.methods
        if method != "HEAD"
    }
    described = {(path, method) for path, found in openapi.document()["paths"].items() for method in found}
    assert routes == described
    assert client.get("/openapi.json").json() == json.loads(json.dumps(openapi.document()))
    page = client.get("/docs")
    assert page.text == openapi.page() and page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def test_limits_hold_and_upload_is_off_by_itself(tmp_path: Path) -> None:
    bundle = shutil.copytree(BUNDLE, tmp_path / "bundle")
    options = ("--max-requests", "2", "--timeout", "3", "--threads", "1")
    with served(bundle, tmp_path / "log", *options) as server, httpx.Client(base_url=server.url) as client:

        def slowly() -> Iterator[bytes]:
            yield PHOTO[:10]
            ends.wait(20)
            yield PHOTO[10:]

        ends = threading.Event()
        with ThreadPoolExecutor(2) as clients:
            slow = [clients.submit(client.post, "/detect", content=slowly(), headers=PNG) for _ in range(2)]
            wait_for(client, "prompt_tune_requests_in_work 2.0")
            refused = client.post("/detect", content=PHOTO, headers=PNG)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"] == "The server has 2 requests in work, its limit. Ask again soon."
            wait_for(client, "prompt_tune_requests_in_work 0.0")
            ends.set()
            assert {one.result().status_code for one in slow} == {408}
        assert "did not come within 3 s" in slow[0].result().json()["error"]
        assert client.post("/detect", content=PHOTO, headers=PNG).status_code == 200
        assert client.put("/vocabularies/a", content=b"").status_code == 403
        assert client.delete("/vocabularies/learned").status_code == 403


def test_request_that_waits_too_long_is_told_so(tmp_path: Path) -> None:
    options = ("--timeout", "0.1", "--threads", "1", "--batch-sizes", "512")  # a pass takes longer
    with served(BUNDLE, tmp_path / "log", *options) as server:
        answers = [httpx.post(f"{server.url}/detect", content=PHOTO, headers=PNG) for _ in range(2)]
    assert {answer.status_code for answer in answers} == {504}
    assert answers[0].json()["error"].startswith("No answer within 0.1 s")
