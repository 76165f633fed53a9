"""The process: who may reach it, what it loses when it stops, and what it leaves behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import extras
import pytest

extras.needs("starlette", "uvicorn", "prometheus_client", "httpx")

import httpx  # noqa: E402
from places import ROOT, TESTS  # noqa: E402
from sandbox import HOOK  # noqa: E402
from served import served  # noqa: E402

from prompt_tune.errors import PromptTuneError  # noqa: E402
from prompt_tune.services import serve  # noqa: E402
from prompt_tune.services.serve_config import ServeConfig  # noqa: E402

BUNDLE = TESTS / "data" / "bundle"
PHOTO = (TESTS / "data" / "photo.png").read_bytes()
PNG = {"content-type": "image/png"}
KEY = "0123456789abcdef0123456789abcdef"
CLIENTS = 8
GROWTH = 4_000_000  # bytes that 300 requests may add; each carries 20 kB and makes 46 kB


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_that_was_accepted_is_lost_when_it_stops_under_load(tmp_path: Path, number: int) -> None:
    answered, refused, other = [0] * CLIENTS, [0] * CLIENTS, []
    with served(BUNDLE, tmp_path / "log", "--threads", "1", "--drain", "0.3") as server:

        def ask(place: int) -> None:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                while True:
                    try:
                        answer = client.post("/detect", content=PHOTO, headers=PNG)
                    except httpx.TransportError:  # nobody listens any more: the request was not accepted
                        refused[place] += 1
                        return
                    if answer.status_code == 200 and len(answer.json()["detections"]) > 100:
                        answered[place] += 1
                    else:
                        other.append(answer)

        threads = [threading.Thread(target=ask, args=(place,)) for place in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        status, printed = server.stop(number)
        for thread in threads:
            thread.join(60)
    assert status == 0 and other == []
    assert refused == [1] * CLIENTS and min(answered) > 0
    accepted, done = map(int, re.findall(r"Stopped: (\d+) requests? accepted, (\d+) answered", printed)[0])
    assert accepted == done == sum(answered)


def test_health_says_when_it_stops(tmp_path: Path) -> None:
    with served(BUNDLE, tmp_path / "log", "--threads", "1", "--drain", "2") as server:
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        ready = httpx.get(f"{server.url}/v2/health/ready")
        assert (ready.status_code, ready.json()["error"]) == (503, "The server stops. Ask another one.")
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        assert httpx.post(f"{server.url}/detect", content=PHOTO, headers=PNG).status_code == 200
        server.process.send_signal(signal.SIGTERM)  # the second one ends it at once
        began = time.monotonic()
        assert server.process.wait(10) == 0 and time.monotonic() - began < 1.5


def test_memory_stays_flat(tmp_path: Path) -> None:
    with served(BUNDLE, tmp_path / "log", "--threads", "1") as server, httpx.Client(base_url=server.url) as client:

        def ask(count: int) -> int:
            for _ in range(count):
                assert client.post("/detect", content=PHOTO, headers=PNG).status_code == 200
            return server.memory()

        ask(50)  # buffers that are kept
        before = min(ask(30), ask(30))
        assert ask(300) - before < GROWTH


def test_server_for_others_needs_a_key(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    with served(BUNDLE, tmp_path / "log", "--host", "0.0.0.0", "--api-key-file", str(key), "--threads", "1") as server:
        url = f"http://127.0.0.1:{server.address[1]}"
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200
        assert httpx.post(f"{url}/detect", content=PHOTO, headers=PNG).status_code == 401
        bearer = {"authorization": f"Bearer {KEY}"}
        assert httpx.post(f"{url}/detect", content=PHOTO, headers=PNG | bearer).status_code == 200
    with pytest.raises(PromptTuneError, match=r"A server on `0.0.0.0` can be reached from elsewhere"):
        serve.serve(lambda: pytest.fail("not reached"), ServeConfig(host="0.0.0.0"))


def test_address_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PromptTuneError, match=rf"Cannot listen on 127.0.0.1, port {port}: Address already in use"):
            serve.bind("127.0.0.1", port)
    with pytest.raises(PromptTuneError, match=r"Cannot listen on no.such.host.invalid"):
        serve.bind("no.such.host.invalid", 0)


def test_missing_extra_is_one_line() -> None:
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "uvicorn" else find(name, *more)
sys.argv = ["prompt-tune", "serve", "nowhere"]
from prompt_tune.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: uvicorn is not installed, and this needs it: pip install '.[serve]' (in a checkout)\n"


def test_it_connects_to_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    home, site, temporary = (tmp_path / name for name in ("home", "site", "tmp"))
    for folder in (home, site, temporary):
        folder.mkdir()
    (site / "sitecustomize.py").write_text(HOOK)
    variables = {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "SANDBOX_LOG": str(tmp_path / "connections"),
        "PYTHONPATH": os.pathsep.join((str(site), str(ROOT))),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with served(BUNDLE, tmp_path / "log", "--threads", "1", "--allow-upload", **variables) as server:
        assert httpx.post(f"{server.url}/detect", content=PHOTO, headers=PNG).status_code == 200
        vocabulary = (BUNDLE / "learned.vocab.safetensors").read_bytes()
        assert httpx.put(f"{server.url}/vocabularies/new", content=vocabulary).status_code == 201
        assert httpx.get(f"{server.url}/metrics").status_code == 200
        assert server.stop()[0] == 0
    connections = tmp_path / "connections"
    asked = connections.read_text().splitlines() if connections.exists() else []
    assert [line for line in asked if "127.0.0.1" not in line] == []  # its own address is looked up to listen on it
    assert list(home.iterdir()) == list(temporary.iterdir()) == []
