"""The Dockerfile without Docker: it is parsed, and the steps of its CPU image run in a clean virtual environment."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import extras
import pytest

extras.needs("starlette", "uvicorn", "httpx")

import httpx  # noqa: E402
from places import ROOT, TESTS  # noqa: E402

from prompt_tune.cli.serve import command  # noqa: E402

BUNDLE = TESTS / "data" / "bundle"
KEY = "0123456789abcdef0123456789abcdef"
Instruction = tuple[str, str]


def stages() -> dict[str, tuple[str, list[Instruction]]]:
    """By name of the stage: what it begins from, and its instructions."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, tuple[str, list[Instruction]]] = {}
    name = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            origin, _, name = rest.partition(" AS ")
            found[name] = (origin, [])
        elif name:
            found[name][1].append((word, rest.strip()))
        else:
            assert (word, rest) == ("ARG", "VARIANT=cpu")
    return found


def all_of(stage: str) -> list[Instruction]:
    """The instructions of a stage and of those that it begins from."""
    origin, instructions = stages()[stage]
    return (all_of(origin) if origin in stages() else []) + instructions


def the(word: str, stage: str) -> str:
    """What the last instruction of a kind says."""
    return [rest for name, rest in all_of(stage) if name == word][-1]


def requirement(line: str) -> str:
    return line.partition(";")[0].replace(" ", "")


def test_both_images_run_as_a_user_of_their_own_and_check_their_health() -> None:
    assert list(stages()) == ["wheel", "base", "cpu", "cuda", "final"]
    assert stages()["final"] == ("${VARIANT}", [("USER", "10001")])
    for variant in ("cpu", "cuda"):
        assert json.loads(the("ENTRYPOINT", variant))[:3] == ["prompt-tune", "serve", "/bundle"]
        assert "/v2/health/ready" in the("HEALTHCHECK", variant)
        words = [word for word, _ in all_of(variant)]
        assert words.index("ENTRYPOINT") < words.index("CMD")  # else it would be forgotten
    assert json.loads(the("CMD", "cpu")) == []
    assert json.loads(the("CMD", "cuda")) == ["--device", "cuda"]
    assert "[serve,cuda]" in the("RUN", "cuda")
    origins = {origin for origin, _ in stages().values()} - set(stages()) - {"${VARIANT}"}
    assert origins == {"python:3.12-slim"}


def test_cpu_image_has_the_bounds_of_setup_cfg() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [config["options"]["install_requires"], config["options.extras_require"]["serve"]]
    wanted = {requirement(line) for text in lines for line in text.splitlines() if line and not line.startswith("#")}
    (wanted_gpu,) = (line for line in wanted if line.startswith("onnxruntime-gpu"))
    assert set(re.findall(r'"([^"]+)"', the("RUN", "cpu"))) == wanted - {wanted_gpu}


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = {source for word, rest in stages()["wheel"][1] if word == "COPY" for source in rest.split()[:-1]}
    assert copied == kept and all((ROOT / name).exists() for name in copied)


@pytest.mark.timeout(600)
def test_steps_of_the_cpu_image_give_a_server_that_is_healthy(tmp_path: Path) -> None:
    source, wheels, place = tmp_path / "source", tmp_path / "wheels", tmp_path / "prompt-tune"
    source.mkdir()
    path = f"{place / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        **{"PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PROMPT_TUNE_API_KEY": KEY},
    }
    ran = []
    for stage in ("wheel", "base", "cpu"):
        for word, rest in stages()[stage][1]:
            if word == "COPY" and stage == "wheel":
                *names, target = rest.split()
                for name in names:
                    end = source / (name if target == "./" else target)
                    leave = shutil.ignore_patterns("__pycache__", "node_modules", "onnxruntime")
                    shutil.copytree(ROOT / name, end, ignore=leave) if (ROOT / name).is_dir() else shutil.copy(
                        ROOT / name, end
                    )
            if word == "RUN" and not rest.startswith("useradd"):
                code = rest.replace("/opt/prompt-tune", str(place)).replace("/wheels", str(wheels))
                code = code.replace("--no-cache-dir", "")
                done = subprocess.run(["sh", "-ec", code], cwd=source, env=variables, capture_output=True, text=True)
                if done.returncode and any(text in done.stderr for text in extras.NO_NETWORK):
                    pytest.skip("no package index can be reached")
                assert done.returncode == 0, done.stderr
                ran.append(rest)
    assert len(ran) == 3
    packages = {path.name for path in place.glob("lib/python*/site-packages/*")}
    assert {"prompt_tune", "onnxruntime", "starlette"} <= packages
    assert packages.isdisjoint({"torch", "ultralytics", "onnxruntime_gpu"})

    check = json.loads(the("HEALTHCHECK", "cpu").partition(" CMD ")[2])
    entry = [str(BUNDLE) if word == "/bundle" else word for word in json.loads(the("ENTRYPOINT", "cpu"))]
    entry[entry.index("8000")] = "0"
    process = subprocess.Popen(entry, env=variables, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    killer = threading.Timer(60, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = re.findall(r" on http://0\.0\.0\.0:(\d+)", line)[0]
        check = [word.replace(":8000", f":{port}") for word in check]
        assert subprocess.run(check, env=variables).returncode == 0
        headers = {"content-type": "image/png", "authorization": f"Bearer {KEY}"}
        photo = (TESTS / "data" / "photo.png").read_bytes()
        answer = httpx.post(f"http://127.0.0.1:{port}/detect", content=photo, headers=headers)
        assert answer.status_code == 200 and len(answer.json()["detections"]) > 100
        process.terminate()  # STOPSIGNAL
        assert process.wait(20) == 0
        assert subprocess.run(check, env=variables, capture_output=True).returncode == 1
    finally:
        killer.cancel()
        process.kill()


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_entry_point_and_arguments_are_options_of_serve(variant: str) -> None:
    words = [*json.loads(the("ENTRYPOINT", variant)), *json.loads(the("CMD", variant))]
    with command.make_context("serve", words[2:]) as context:
        assert (context.params["host"], context.params["port"]) == ("0.0.0.0", 8000)
        assert context.params["device"] == ("cuda" if variant == "cuda" else "cpu")
