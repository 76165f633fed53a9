"""Upload to the Hub: which files go there, and that nothing else does; against a local stand-in of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import extras
import pytest
from hub import TOKEN, Hub, running, talk_to
from places import TESTS

from prompt_tune import PromptTuneError
from prompt_tune.services.model_card import About
from prompt_tune.services.push import collect, is_run, upload

extras.needs("huggingface_hub")

ABOUT = About("me/gizmos", "agpl-3.0", "Counting gizmos.")
PARTS = ["README.md", "detector.onnx", "learned.vocab.safetensors", "original.vocab.safetensors"]
JPEG = "data:image/jpeg;base64,/9j/2Q=="


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty stand-in, which this process talks to."""
    with running(tmp_path / "hub") as started:
        talk_to(started, tmp_path / "home", monkeypatch)
        yield started


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a kit, a photograph, and files of its user."""
    folder = tmp_path / "bundle"
    shutil.copytree(TESTS / "data" / "bundle", folder)
    for name in ("python/detect.py", "web/app.js", "web/sample.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("here")
    for name in ("web/my-photo.jpg", "notes.txt", ".env", "prompt_tune-0.1.0-py3-none-any.whl", ".cache/huggingface/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(TOKEN)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run has beside its vocabularies."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "curves.png", "state.safetensors", "metrics.jsonl"):
        (folder / name).write_text("{}")
    (folder / "report.html").write_text(f'<img src="{JPEG}" alt="a missed gizmo">')
    return folder


def test_bundle_with_slots_goes_with_the_inputs_of_its_graph(bundle: Path) -> None:
    (bundle / "inputs.npz").write_text("here")
    assert collect(bundle, ABOUT).files["inputs.npz"] == bundle / "inputs.npz"


def test_bundle_goes_without_photographs_and_without_the_users_own_files(bundle: Path) -> None:
    what = collect(bundle, ABOUT)
    assert sorted(what.files) == sorted([*PARTS, "python/detect.py", "web/app.js"])
    assert what.left_out == (
        "prompt_tune-0.1.0-py3-none-any.whl",
        "web/sample.jpg (--photos uploads photographs)",
    )
    assert what.sizes["web/app.js"] == 4
    assert TOKEN not in what.card


def test_run_adds_its_diagrams_and_on_request_its_photographs(bundle: Path, run: Path) -> None:
    what = collect(bundle, ABOUT, run=run)
    assert sorted(what.files) == sorted([*PARTS, "curves.png", "python/detect.py", "web/app.js"])
    assert "1 photograph of the report (--photos uploads photographs)" in what.left_out
    assert "(photos/" not in what.card
    shown = collect(bundle, ABOUT, run=run, photos=True)
    assert sorted(shown.files.keys() - what.files.keys()) == ["photos/01.jpg", "web/sample.jpg"]
    assert shown.files["photos/01.jpg"] == b"\xff\xd8\xff\xd9"
    assert "![a missed gizmo](photos/01.jpg)" in shown.card
    assert shown.left_out == ("prompt_tune-0.1.0-py3-none-any.whl",)


def test_run_is_told_from_a_bundle(bundle: Path, run: Path, tmp_path: Path) -> None:
    assert (is_run(run), is_run(bundle)) == (True, False)
    with pytest.raises(PromptTuneError, match="is neither a run of `fit`"):
        is_run(tmp_path)
    (bundle / "detector.onnx").unlink()
    with pytest.raises(PromptTuneError, match=r"is not a complete bundle: it has no detector\.onnx"):
        collect(bundle, ABOUT)


def test_upload_makes_a_private_repository_of_these_files(hub: Hub, bundle: Path) -> None:
    what = collect(bundle, ABOUT)
    address = upload(what, ABOUT)
    commit = hub.repos["me/gizmos"].branches["main"]
    assert address == f"{hub.url}/me/gizmos/commit/{commit}"
    assert hub.repos["me/gizmos"].private
    files = hub.files("me/gizmos")
    assert files.pop(".gitattributes")  # the Hub's own
    assert files == {path: part if isinstance(part, bytes) else part.read_bytes() for path, part in what.files.items()}


def test_second_upload_sends_only_what_has_changed(hub: Hub, bundle: Path) -> None:
    upload(collect(bundle, ABOUT), ABOUT)
    hub.requests.clear()
    (bundle / "web" / "app.js").write_text("there")
    upload(collect(bundle, ABOUT), ABOUT)
    assert hub.files("me/gizmos")["web/app.js"] == b"there"
    assert hub.paths("PUT") == []


def test_upload_that_was_interrupted_sends_the_rest(hub: Hub, bundle: Path) -> None:
    hub.refuse["POST", "/commit/"] = (503, "Maintenance", "")
    with pytest.raises(PromptTuneError) as caught:
        upload(collect(bundle, ABOUT), ABOUT)
    assert str(caught.value).startswith("Cannot push to me/gizmos: the Hub has a problem (503).")
    assert str(caught.value).endswith("Try again later: what has arrived is not sent again.")
    assert len(hub.paths("PUT")) == 3  # graph and vocabularies
    hub.refuse.clear()
    hub.requests.clear()
    upload(collect(bundle, ABOUT), ABOUT)
    assert hub.paths("PUT") == []
    assert hub.files("me/gizmos")["detector.onnx"] == (bundle / "detector.onnx").read_bytes()


def test_public_repository_needs_a_word(hub: Hub, bundle: Path) -> None:
    hub.put("me/gizmos", {"README.md": b"#"})
    what = collect(bundle, ABOUT)
    with pytest.raises(PromptTuneError, match=r"me/gizmos is public, so everybody could see the files\. Say --public"):
        upload(what, ABOUT)
    assert sorted(hub.files("me/gizmos")) == ["README.md"]
    upload(what, ABOUT, private=False)
    assert "detector.onnx" in hub.files("me/gizmos")


def test_public_repository_is_made_on_request(hub: Hub, bundle: Path) -> None:
    upload(collect(bundle, ABOUT), ABOUT, private=False)
    assert not hub.repos["me/gizmos"].private


def test_branch_is_made(hub: Hub, bundle: Path) -> None:
    about = About("me/gizmos", "agpl-3.0", revision="v2")
    what = collect(bundle, about)
    assert 'Detector("hf://me/gizmos@v2")' in what.card
    upload(what, about)
    assert "detector.onnx" in hub.files("me/gizmos", "v2")
    assert sorted(hub.files("me/gizmos")) == [".gitattributes"]


@pytest.mark.parametrize(
    ("place", "refusal", "line"),
    [
        ("/api/repos/create", (403, "You don't have the rights", ""), "this account may not do that (403)."),
        ("/api/repos/create", (402, "Pay", ""), "it is too large, or the account's room is used up (402)."),
        ("/commit/", (413, "Too large", ""), "it is too large, or the account's room is used up (413)."),
        ("/preupload/", (403, "Forbidden", ""), "this account may not do that (403)."),
    ],
)
def test_refusal_is_one_line(hub: Hub, bundle: Path, place: str, refusal: tuple[int, str, str], line: str) -> None:
    hub.refuse["POST", place] = refusal
    with pytest.raises(PromptTuneError) as caught:
        upload(collect(bundle, ABOUT), ABOUT)
    assert str(caught.value).startswith(f"Cannot push to me/gizmos: {line}")
    assert "\n" not in str(caught.value)


def test_missing_token_is_one_line(hub: Hub, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk_to(hub, tmp_path / "home", monkeypatch, token=None)
    with pytest.raises(PromptTuneError, match=r"no longer valid \(401\)\. Log in with `hf auth login`"):
        upload(collect(bundle, ABOUT), ABOUT)
