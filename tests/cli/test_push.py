"""`prompt-tune push`, and `hf://` wherever a bundle or a model is named: real processes, each with an empty home."""

from collections.abc import Iterator
from pathlib import Path

import extras
import pytest
from bundles import learned_for_tiny, original_vocabulary
from commands import run_command
from hub import Hub, Machine, running, talk_to
from places import WEIGHTS
from runs import write_run

from prompt_tune.datasets.sample import write_sample
from prompt_tune.errors import PromptTuneError
from prompt_tune.models.world import World

extras.needs("huggingface_hub", "torch")

SMALL = ("--epochs", "1", "--updates", "3", "--context-length", "2", "--views", "1")
LICENCE = ("--licence", "agpl-3.0")
FIND = """
import sys
from prompt_tune import Detector
found = Detector(sys.argv[1], threads=1).detect(sys.argv[2], conf=0.01)[0]
print(len(found), found.boxes_xyxy.tobytes().hex(), found.scores.tobytes().hex())
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running(tmp_path_factory.mktemp("hub") / "files") as started:
        yield started


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set."""
    folder = tmp_path_factory.mktemp("data")
    write_sample(folder, n_images=4)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    original = original_vocabulary()
    learned = learned_for_tiny(("disc",), original.embeddings[:1])
    folder = tmp_path_factory.mktemp("run") / "run"
    folder.mkdir()
    return write_run(folder, "tiny", original, learned, image_size=256)


def test_run_is_pushed_and_detects_from_an_empty_home_and_then_offline(
    hub: Hub, run: Path, data: Path, tmp_path: Path
) -> None:
    pushed = Machine(tmp_path / "mine", hub.url).cli("push", run, "me/discs", *LICENCE)
    assert pushed.returncode == 0, pushed.stderr
    address = f"{hub.url}/me/discs/commit/{hub.repos['me/discs'].branches['main']}"
    assert pushed.stdout.splitlines() == [
        f"Pushed: {address}",
        'Next: prompt-tune detect hf://me/discs --source IMAGES --out RESULTS, or Detector("hf://me/discs")',
    ]
    assert b'Detector("hf://me/discs")' in hub.files("me/discs")["README.md"]

    other, image = Machine(tmp_path / "other", hub.url), data / "custom/images/test/0000.jpg"
    first = other.run("-c", FIND, "hf://me/discs", image)
    assert first.returncode == 0, first.stderr
    assert int(first.stdout.split()[0]) > 0
    n_requests = len(hub.requests)
    again = other.run("-c", FIND, "hf://me/discs", image, HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert len(hub.requests) == n_requests
    for name, command in {
        "detect": ("detect", "hf://me/discs", "--source", image, "--out", tmp_path / "out"),
        "val": ("val", "hf://me/discs", "--data", data / "original" / "original.yaml"),
        "verify": ("verify", "hf://me/discs", "--images", data / "custom/images/test", "--report", tmp_path / "v.html"),
        "vocab": ("vocab", "show", "hf://me/discs/learned.vocab.safetensors"),
    }.items():
        done = other.cli(*command, HF_HUB_OFFLINE="1")
        assert done.returncode == 0, f"{name}: {done.stderr}"
    assert (tmp_path / "v.html").is_file()
    assert (tmp_path / "out").is_dir()


def test_fit_takes_a_model_of_the_hub(hub: Hub, data: Path, tmp_path: Path) -> None:
    hub.put("me/small", {name: (WEIGHTS / name).read_bytes() for name in ("detector.yaml", "detector.safetensors")})
    machine = Machine(tmp_path / "home", hub.url)
    fit = ("fit", "--model", "hf://me/small", "--text-tower", "tiny", "--image-size", "256")
    done = machine.cli(*fit, "--data", data / "custom" / "custom.yaml", "--out", tmp_path / "run", *SMALL)
    assert done.returncode == 0, done.stderr
    exported = machine.cli("export", tmp_path / "run", "--out", tmp_path / "bundle", HF_HUB_OFFLINE="1")
    assert exported.returncode == 0, exported.stderr


def test_checkpoint_of_the_hub_has_to_be_named_and_its_owner_is_told(
    hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit = hub.put("you/world", {"world.pt": checkpoint.read_bytes()})
    talk_to(hub, tmp_path, monkeypatch)
    with pytest.raises(PromptTuneError) as caught:
        World.load("hf://you/world")
    assert str(caught.value) == (
        "hf://you/world has no detector.yaml. A checkpoint is code, so it has to be named: hf://you/world/FILE.pt"
    )
    assert not [path for path in hub.paths("GET") if path.endswith(".pt")]
    assert World.load("hf://you/world/world.pt").digest == World.load(checkpoint).digest
    assert caplog.messages == [
        f"world.pt is code of whoever owns hf://you/world, and loading it runs it (commit {commit})."
    ]


def test_dry_run_and_card_need_no_network(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    talk_to(None, tmp_path, monkeypatch, token=None)
    done = run_command(capfd, "push", run, "me/discs", *LICENCE, "--dry-run", "--card-only", tmp_path / "card.md")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == f"Card: {tmp_path / 'card.md'}"
    listed = {line.split()[-1] for line in lines[1:-1]}
    assert {"detector.onnx", "learned.vocab.safetensors", "README.md", "python/detect.py"} <= listed
    assert "config.json" not in listed
    assert lines[-1].endswith("for me/discs. Nothing was sent.")
    assert (tmp_path / "card.md").read_text().startswith("---\nlibrary_name: prompt-tune\nlicense: agpl-3.0\n")


def test_licence_and_a_name_are_needed(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = run_command(capfd, "push", run, "me/discs")
    assert (done.status, "Missing option '--licence'" in done.err) == (2, True)
    done = run_command(capfd, "push", run, "discs", *LICENCE)
    assert (done.status, done.err) == (
        1,
        "Error: A repository is called USER/NAME, with letters, digits and - _ . inside each. Received: 'discs'.\n",
    )
