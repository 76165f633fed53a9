"""`hf://`: what it stands for, which files come, what an error says; against a local stand-in of the Hub."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import extras
import pytest
from hub import TOKEN, Hub, Machine, running, talk_to
from places import ROOT, TESTS

from prompt_tune import Detector, PromptTuneError, Vocabulary
from prompt_tune.hub import (
    Reference,
    checked_repo,
    commit_of,
    is_on_hub,
    library,
    local_file,
    local_folder,
    named,
    parse,
)

extras.needs("huggingface_hub")

BUNDLE = TESTS / "data" / "bundle"
PARTS = {name: (BUNDLE / name).read_bytes() for name in sorted(path.name for path in BUNDLE.iterdir())}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in with the bundle as me/gizmos, which this process talks to, with an empty cache."""
    with running(tmp_path / "hub") as started:
        started.put("me/gizmos", {**PARTS, "extra.pt": b"code", "web/app.js": b"page"})
        talk_to(started, tmp_path / "home", monkeypatch)
        yield started


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("hf://me/gizmos", Reference("me/gizmos")),
        (Path("hf://me/gizmos"), Reference("me/gizmos")),  # a path has lost one of the slashes
        ("hf://me/gizmos/", Reference("me/gizmos")),
        ("hf://me/gizmos@v1.0/a/b.pt", Reference("me/gizmos", "v1.0", "a/b.pt")),
        ("hf://me/gizmos@refs%2Fpr%2F1", Reference("me/gizmos", "refs/pr/1")),
    ],
)
def test_place_on_the_hub_is_read(place: str | Path, found: Reference) -> None:
    assert is_on_hub(place)
    assert parse(place) == found


@pytest.mark.parametrize(
    "place",
    ["hf://", "hf://me", "hf://me/", "hf:///gizmos", "hf://me/giz mos", "hf://me/a--b", "hf://me/gizmos/../../etc"],
)
def test_place_of_another_form_is_refused_in_one_line(place: str) -> None:
    with pytest.raises(PromptTuneError) as caught:
        parse(place)
    assert "\n" not in str(caught.value)


def test_place_is_named_as_it_was_typed() -> None:
    assert named(Path("hf://me/gizmos@v1")) == "hf://me/gizmos@v1"
    assert named(Path("runs/hf")) == "runs/hf"
    assert not is_on_hub("runs/hf")
    assert checked_repo("me/a.b-c_d") == "me/a.b-c_d"


def test_folder_of_this_machine_needs_no_huggingface_hub() -> None:
    code = (
        "import sys; from prompt_tune import Detector; Detector(sys.argv[1]); print('huggingface_hub' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, BUNDLE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_only_the_files_that_are_needed_come(hub: Hub) -> None:
    detector = Detector("hf://me/gizmos", threads=1)
    assert sorted(path.name for path in detector.bundle.rglob("*")) == sorted(PARTS)
    assert {path.name: path.read_bytes() for path in detector.bundle.iterdir()} == PARTS
    assert commit_of(detector.bundle) == hub.repos["me/gizmos"].branches["main"]
    assert not [path for path in hub.paths("GET") + hub.paths("HEAD") if path.endswith((".pt", ".js"))]


def test_learned_vocabulary_comes_alone_and_works_offline(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "hf://me/gizmos/learned.vocab.safetensors"
    assert Vocabulary.load(place).to_bytes() == Vocabulary.load(BUNDLE / "learned.vocab.safetensors").to_bytes()
    assert not [path for path in hub.paths("GET") if path.endswith(".onnx")]
    talk_to(None, tmp_path / "home", monkeypatch, offline=True)
    assert Vocabulary.load(Path(place)).names == Vocabulary.load(BUNDLE / "learned.vocab.safetensors").names
    with pytest.raises(PromptTuneError, match=r"hf://me/gizmos: it is not in the cache, and HF_HUB_OFFLINE forbids"):
        Detector("hf://me/gizmos")


def test_cache_is_used_where_the_hub_cannot_be_reached(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Detector("hf://me/gizmos", threads=1).bundle
    talk_to(None, tmp_path / "home", monkeypatch)
    assert Detector("hf://me/gizmos", threads=1).bundle == bundle
    talk_to(None, tmp_path / "other", monkeypatch)
    with pytest.raises(PromptTuneError, match=r"it is not in the cache, and http://127\.0\.0\.1:9 cannot be reached"):
        Detector("hf://me/gizmos")


def test_revision_names_a_branch_or_a_commit(hub: Hub) -> None:
    first = hub.put("me/notes", {"a [1]/x.json": b"1"})
    second = hub.put("me/notes", {"a [1]/x.json": b"2"})
    hub.repos["me/notes"].branches["v1"] = first
    for revision, content in (("@v1", b"1"), (f"@{first}", b"1"), (f"@{second}", b"2"), ("", b"2")):
        assert local_file(f"hf://me/notes{revision}/a [1]/x.json").read_bytes() == content
        assert (local_folder(f"hf://me/notes{revision}/a [1]", ("x.json",)) / "x.json").read_bytes() == content


def test_download_that_breaks_off_goes_on_where_it_was(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)
    hub.cut.add("detector.onnx")
    assert (Detector("hf://me/gizmos", threads=1).bundle / "detector.onnx").read_bytes() == PARTS["detector.onnx"]
    ranges = [headers["range"] for _, path, headers in hub.requests if path.endswith(".onnx") and "range" in headers]
    half = len(PARTS["detector.onnx"]) // 2
    assert ranges == [f"bytes={half // 2**16 * 2**16}-"]  # whole chunks were kept


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("hf://me/nothing", "{url} has no such repository, or it is private and this account may not see it. Log in"),
        ("hf://me/gizmos@v9", "the repository has no such revision. Name a branch, tag or commit of it."),
        ("hf://me/empty", "hf://me/empty has no detector.onnx. It is not a bundle of `prompt-tune push`. Give one."),
    ],
)
def test_what_is_missing_is_said_in_one_line(hub: Hub, place: str, line: str) -> None:
    hub.put("me/empty", {"README.md": b"#"})
    with pytest.raises(PromptTuneError) as caught:
        Detector(place)
    assert line.format(url=hub.url) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message", "code", "line"),
    [
        (401, "Invalid credentials in Authorization header", "", "the token is missing or no longer valid (401)."),
        (403, "Forbidden", "", "this account may not do that (403). It says: "),
        (403, "Restricted", "GatedRepo", "its owner lets only some people in. Ask for access on its page."),
        (413, "Too large", "", "it is too large, or the account's room is used up (413)."),
        (503, "Maintenance", "", "the Hub has a problem (503)."),
    ],
)
def test_refusal_of_the_hub_is_one_line(hub: Hub, status: int, message: str, code: str, line: str) -> None:
    hub.refuse["GET", "/api/models/"] = (status, message, code)
    with pytest.raises(PromptTuneError) as caught:
        local_folder("hf://me/gizmos", ("detector.onnx",))
    assert str(caught.value).startswith(f"Cannot download hf://me/gizmos: {line}")
    assert "\n" not in str(caught.value)


def test_private_repository_needs_the_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("me/secret", PARTS, private=True)
    talk_to(hub, tmp_path / "none", monkeypatch, token=None)
    with pytest.raises(PromptTuneError, match="or it is private and this account may not see it"):
        Detector("hf://me/secret")
    talk_to(hub, tmp_path / "mine", monkeypatch)
    assert Detector("hf://me/secret", threads=1).bundled == "learned"
    kept = [path for path in (tmp_path / "mine").rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []


def test_folder_of_a_local_dir_download_is_a_bundle(hub: Hub, tmp_path: Path) -> None:
    """As `hf download me/gizmos --local-dir FOLDER` leaves it, with its records in .cache."""
    folder = Path(library().snapshot_download("me/gizmos", local_dir=tmp_path / "here"))
    assert (folder / ".cache" / "huggingface").is_dir()
    assert Detector(folder, threads=1).classes == Detector(BUNDLE, threads=1).classes


def test_reports_of_usage_are_off(tmp_path: Path) -> None:
    """huggingface_hub would name the version of torch, and the program that started this one."""
    code = "import sys, torch; from prompt_tune import Detector; Detector('hf://me/gizmos', threads=1)"
    with running(tmp_path / "hub") as hub:
        hub.put("me/gizmos", PARTS)
        machine = Machine(tmp_path / "home", hub.url)
        ran = machine.run("-c", code, HF_HUB_DISABLE_TELEMETRY="0", AI_AGENT="watched")
        assert ran.returncode == 0, ran.stderr
        assert any("torch/" in headers["user-agent"] for _, _, headers in hub.requests)  # the user's own wish
        hub.requests.clear()
        ran = machine.run("-c", code, AI_AGENT="watched")
        assert ran.returncode == 0, ran.stderr
        sent = [headers["user-agent"] for _, _, headers in hub.requests]
        assert sent and not [agent for agent in sent if "torch" in agent or "watched" in agent or "agent/" in agent]


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        PromptTuneError, match=r"huggingface_hub is not installed, and hf:// needs it: pip install '.\[hub\]'"
    ):
        Detector("hf://me/gizmos")
