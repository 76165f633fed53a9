"""The program for Label Studio: against a stand-in for its HTTP interface, with the SDK's own checks of predictions."""

# ruff: noqa: E402 - `needs` comes before the imports that it guards

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
import pytest
from extras import needs
from PIL import Image
from places import ROOT

needs("label_studio_sdk")

from bundles import make_bundle
from frames import CLASSES, clip_frames, image_frame
from frames import found as found_in
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface

from prompt_tune import Detector
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.sample import custom_scene
from prompt_tune.media.annotate import model_version
from prompt_tune.media.pre_annotations import LabelStudio

IMAGE = custom_scene(0, "test", 2).image


class Server(BaseHTTPRequestHandler):
    """What the program asks of Label Studio."""

    config: ClassVar[str] = ""
    tasks: ClassVar[list[dict[str, Any]]] = []
    predictions: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/api/projects/3/":
            self._answer({"id": 3, "title": "x", "label_config": self.config})
        elif path == "/api/tasks/" and "page=2" in self.path:
            self.send_error(404)  # what Label Studio says after the last page
        elif path == "/api/tasks/":
            self._answer(
                {"tasks": self.tasks, "total": len(self.tasks), "total_annotations": 0, "total_predictions": 0}
            )
        elif path.endswith("a.png") or "storage-data" in path:
            buffer = BytesIO()
            Image.fromarray(IMAGE).save(buffer, "PNG")
            self._send(buffer.getvalue(), "image/png")
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        assert urlsplit(self.path).path == "/api/predictions/"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.predictions.append(body)
        self._answer({"id": len(self.predictions), **body}, 201)

    def _answer(self, content: Any, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Server.predictions = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def program() -> Any:
    spec = importlib.util.spec_from_file_location("program", ROOT / "export/annotation/label_studio.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tasks_get_predictions_that_the_interface_takes(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    detector = Detector(bundle)
    (found,) = detector.detect(IMAGE)
    names = sorted({one.class_name for one in found})
    labels = "".join(f'<Label value="{name}"/>' for name in names)
    Server.config = (
        f'<View><Image name="photo" value="$image"/><RectangleLabels name="box" toName="photo">{labels}'
        "</RectangleLabels></View>"
    )
    done = {"id": 2, "model_version": model_version(detector), "result": []}
    Server.tasks = [
        {"id": 7, "data": {"image": "/data/upload/3/0a1b2c3d-a.png"}, "predictions": []},
        {"id": 8, "data": {"image": "/data/upload/3/0a1b2c3d-a.png"}, "predictions": [done]},
    ]
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0123456789abcdef")
    assert program().main(["--url", url, "--project", "3", "--bundle", str(bundle)]) == 0
    assert f"1 tasks have predictions of {model_version(detector)}" in capsys.readouterr().out
    (prediction,) = Server.predictions
    assert prediction["task"] == 7 and prediction["model_version"] == model_version(detector)
    assert LabelInterface(Server.config).validate_prediction(prediction, return_errors=True) == []

    # What a person accepts is exported by Label Studio's own converter, and read back.
    task = Server.tasks[0] | {"annotations": [{"id": 1, "completed_by": {"id": 1}, "result": prediction["result"]}]}
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    task["data"] = {"image": str(tmp_path / "a.png")}
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    converter = Converter(Server.config, str(tmp_path), download_resources=False)
    converter.convert_to_coco(str(tmp_path / "tasks.json"), str(tmp_path / "coco"), is_dir=False)
    converter.convert_to_yolo(str(tmp_path / "tasks.json"), str(tmp_path / "yolo"), is_dir=False)
    learned = {one.class_name for one in found if one.vocabulary != "original"}
    wanted = [one for one in found if one.vocabulary != "original" or one.class_name not in learned]
    for folder in ("coco", "yolo"):
        Image.fromarray(IMAGE).save(tmp_path / folder / "images/a.png")
        file = tmp_path / folder / "result.json"
        if file.is_file():  # the converter had the image elsewhere
            file.write_text(file.read_text().replace(str(tmp_path / "a.png"), "images/a.png"))
        data = read_dataset(tmp_path / folder, keep_few=True)
        (sample,) = data.train.samples
        read = sorted(
            (data.names[k], *box) for k, box in zip(sample.labels.classes, sample.labels.boxes_xyxy, strict=True)
        )
        expected = sorted((one.class_name, *one.box_xyxy) for one in wanted)
        assert [row[0] for row in read] == [row[0] for row in expected]
        np.testing.assert_allclose([row[1:] for row in read], [row[1:] for row in expected], atol=0.01)


def test_what_detect_saves_fits_its_own_interface(tmp_path: Path) -> None:
    with LabelStudio(tmp_path, CLASSES, version="1") as sink:
        for frame in (image_frame("a.png"), *clip_frames(1)):
            sink.write(frame, found_in(frame))
    interface = LabelInterface((tmp_path / "label-studio/config.xml").read_text(encoding="utf-8"))
    interface.validate()
    tasks = json.loads((tmp_path / "label-studio/tasks.json").read_text(encoding="utf-8"))
    errors = [interface.validate_prediction(task["predictions"][0], return_errors=True) for task in tasks]
    assert errors == [[], []]
    tasks[0]["predictions"][0]["result"][0]["value"]["rectanglelabels"] = ["none of ours"]
    assert interface.validate_prediction(tasks[0]["predictions"][0], return_errors=True)


def test_without_a_key_or_a_label_it_stops(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    with pytest.raises(SystemExit):
        program().main(["--url", url, "--project", "3"])
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0123456789abcdef")
    Server.config = (
        '<View><Image name="i" value="$image"/><RectangleLabels name="b" toName="i"><Label value="none of ours"/>'
        "</RectangleLabels></View>"
    )
    with pytest.raises(SystemExit):
        program().main(["--url", url, "--project", "3", "--bundle", str(make_bundle(tmp_path / "bundle"))])
