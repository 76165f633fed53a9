"""The deployment on Ray Serve that docs/deployment.md shows, on a local cluster of two nodes."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import extras
import pytest
from bundles import make_bundle
from places import ROOT

from prompt_tune.datasets.sample import write_sample
from prompt_tune.runtime.detector import Detector

extras.needs("ray.serve")

CLUSTER = """
import sys
import ray
from ray._common.usage.usage_lib import usage_stats_enabled
from ray.cluster_utils import Cluster
assert not usage_stats_enabled()
node = {"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
cluster = Cluster(initialize_head=True, connect=True, head_node_args=node)
cluster.add_node(num_cpus=1, object_store_memory=2**27)
serve.start(http_options={"port": int(sys.argv[2])})
"""
STARTED = """
print(dict(serve.status().applications["default"].deployments["Detect"].replica_states), flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture
def port() -> int:
    """One that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def program() -> str:
    """The file that the docs show, on a cluster of two nodes with one CPU each; it ends when its input does."""
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (code,) = [part.partition("\n```")[0] for part in text.split("```python\n")[1:] if "from ray import serve" in part]
    imports, mark, rest = code.partition("@serve.deployment")
    end = 'serve.run(Detect.bind("/srv/bundle"), blocking=True)'
    assert mark and rest.rstrip().endswith(end)
    return imports + CLUSTER + mark + rest.replace(end, "serve.run(Detect.bind(sys.argv[1]))") + STARTED


def post(port: int, content: bytes) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", content, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_file_of_the_docs_answers_on_two_nodes(port: int, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    write_sample(tmp_path / "sample", n_images=6)
    photos = sorted((tmp_path / "sample" / "custom" / "images").rglob("*.jpg"))[:6]
    detector = Detector(bundle, threads=1)
    categories = {key: number for number, key in enumerate(detector.classes, start=1)}
    expected = [found.to_coco(1, categories) for found in detector.detect(photos, batch=4)]
    assert all(expected)
    (tmp_path / "app.py").write_text(program())
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: Ray's sockets lie there
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": scratch}
    environment.pop("RAY_USAGE_STATS_ENABLED", None)
    command = [sys.executable, str(tmp_path / "app.py"), str(bundle), str(port)]
    with (
        open(tmp_path / "log", "w+") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
        ) as app,
    ):
        assert app.stdin is not None and app.stdout is not None
        try:
            lines = iter(app.stdout.readline, "")
            started = next((line for line in lines if "RUNNING" in line), "")
            assert "RUNNING" in started and ": 2" in started, (tmp_path / "log").read_text()[-3000:]
            with ThreadPoolExecutor(6) as clients:
                answers = list(clients.map(lambda path: post(port, path.read_bytes()), photos))
            assert answers == [(200, rows) for rows in expected]
            status, answer = post(port, b"no image")
            assert status == 400 and "cannot identify image file" in answer["error"]
            status, answer = post(port, photos[0].read_bytes()[:3000])
            assert status == 400 and "cannot be read as an image" in answer["error"]
        finally:
            app.stdin.close()
            try:
                app.wait(60)
            finally:
                app.kill()
                shutil.rmtree(scratch, ignore_errors=True)
    assert app.returncode == 0, (tmp_path / "log").read_text()[-3000:]
