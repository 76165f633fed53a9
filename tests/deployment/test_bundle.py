"""From a run folder to a bundle: what it holds, what is refused, and that nothing half-written stays."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from places import ROOT

from prompt_tune.cli import command
from prompt_tune.deployment.bundle import BUNDLE_FILES, export_bundle
from prompt_tune.errors import GraphError, ModelError, PromptTuneError, RunError, VocabularyError
from prompt_tune.models.world import World
from prompt_tune.vocabulary.format import KITS
from prompt_tune.vocabulary.vocabulary import Vocabulary

TOWER = "c" * 64
KIT = ROOT / "export"


@pytest.fixture
def run(checkpoint: Path, world: World, tmp_path: Path) -> Path:
    """A run folder as `fit` leaves it, as far as an export reads it."""
    assert world.names is not None and world.class_embeddings is not None
    embeddings = world.class_embeddings.numpy()[:, None]  # (80, 1, 512)
    original = vocabulary(world.names, embeddings, detector=world.digest)
    folder = tmp_path / "run"
    original.save(folder / "original.vocab.safetensors")
    learned = vocabulary(("gizmo", "forklift"), embeddings[[3, 5]], detector=world.digest, guide=original.digest)
    learned.save(folder / "learned.vocab.safetensors")
    digests = {"detector": world.digest, "text_tower": TOWER, "guide": original.digest}
    write_config(folder, {"model": str(checkpoint), "image_size": 320, "digests": digests, "seed": 0})
    return folder


def vocabulary(names: tuple[str, ...], embeddings: np.ndarray, *, detector: str, guide: str = "") -> Vocabulary:
    from prompt_tune.vocabulary.vocabulary import guide_digest

    kind = "learned" if guide else "original"
    guide = guide or guide_digest(embeddings)
    return Vocabulary(names, embeddings, kind=kind, detector=detector, text_tower=TOWER, guide=guide)  # type: ignore[arg-type]


def write_config(run: Path, config: object) -> None:
    (run / "config.json").write_text(json.dumps(config))


def config_of(run: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((run / "config.json").read_text())
    return config


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def kit_files() -> set[str]:
    """What the checkout's deployment kit has for a bundle."""
    places = (path for kit in KITS for path in (KIT / kit).iterdir() if path.is_file())
    return {path.relative_to(KIT).as_posix() for path in places}


def test_bundle_holds_graph_vocabularies_and_readme(run: Path, world: World, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["export", str(run), "--out", str(tmp_path / "deep" / "bundle")])
    assert (result.exit_code, result.exception) == (0, None)
    bundle = tmp_path / "deep" / "bundle"
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle"]
    assert content(bundle).keys() == {*BUNDLE_FILES, *kit_files()} >= {"python/detect.py", "web/index.html"}
    for name in ("original.vocab.safetensors", "learned.vocab.safetensors"):
        assert (bundle / name).read_bytes() == (run / name).read_bytes()
    metadata = json.loads(onnx.load(bundle / "detector.onnx").metadata_props[0].value)
    assert (metadata["detector"], metadata["image_size"]) == (world.digest, 320)
    readme = (bundle / "README.md").read_text()
    assert "prompt-tune detect bundle --source IMAGE_OR_FOLDER --out RESULTS" in readme
    assert "80 original classes and 2 learned ones: gizmo, forklift." in readme
    assert world.digest in readme
    assert "$" not in readme


def test_bundle_graph_scores_learned_copies_like_their_originals(run: Path, tmp_path: Path) -> None:
    export_bundle(run, tmp_path / "bundle")
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / "detector.onnx", providers=["CPUExecutionProvider"])
    feed = {
        "images": np.random.default_rng(0).random((1, 3, 96, 64), dtype=np.float32),
        "original": Vocabulary.load(tmp_path / "bundle" / "original.vocab.safetensors").embeddings,
        "learned": Vocabulary.load(tmp_path / "bundle" / "learned.vocab.safetensors").embeddings,
    }
    feed |= {name: np.array([0.1], np.float32) for name in ("iou", "original_conf", "learned_conf")}
    original, learned = session.run(None, feed)
    assert len(learned) > 0
    for mine, theirs in ((0, 3), (1, 5)):  # the learned classes of `run` are copies of originals 3 and 5
        got, wanted = learned[learned[:, 6] == mine], original[original[:, 6] == theirs]
        np.testing.assert_allclose(got[:, :6], wanted[:, :6], rtol=1e-4, atol=1e-4)


def test_bundle_that_is_there_is_replaced(run: Path, tmp_path: Path) -> None:
    export_bundle(run, tmp_path / "bundle")
    before = content(tmp_path / "bundle")
    (tmp_path / "bundle" / "README.md").write_text("old")
    (tmp_path / "bundle" / "web" / "onnxruntime").mkdir()  # as the page's own set-up makes it
    export_bundle(run, tmp_path / "bundle")
    assert content(tmp_path / "bundle") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "run"]


@pytest.mark.parametrize("failing", [1, 2])
def test_old_bundle_survives_a_rename_that_fails(
    failing: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    export_bundle(run, bundle)
    (bundle / "README.md").write_text("old")
    before, rename, renames = content(bundle), os.replace, []

    def failing_rename(source: Path, target: Path) -> None:
        if Path(source).is_dir():  # files are renamed as well, inside the new bundle
            renames.append(target)
            if len(renames) == failing:
                raise PermissionError(13, "Permission denied", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "replace", failing_rename)
    with pytest.raises(
        GraphError, match=r"Cannot write the bundle '.*bundle': Permission denied\. Choose another --out"
    ):
        export_bundle(run, bundle)
    assert content(bundle) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "run"]


def test_empty_folder_is_filled(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    export_bundle(run, tmp_path / "bundle")
    assert content(tmp_path / "bundle").keys() == {*BUNDLE_FILES, *kit_files()}


@pytest.mark.parametrize(
    "names",
    [
        ["notes.txt"],
        ["README.md"],
        ["detector.onnx", "my.vocab.safetensors"],
        ["detector.onnx", "web/mine.js"],
    ],
)
def test_folder_that_is_no_bundle_is_not_touched(names: list[str], run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in names:
        (tmp_path / "mine" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "mine" / name).write_text("mine")
    with pytest.raises(GraphError, match="is in the way: it is not a bundle"):
        export_bundle(run, tmp_path / "mine")
    assert content(tmp_path / "mine") == dict.fromkeys(names, b"mine")


def test_file_in_the_way_and_place_below_a_file_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(GraphError, match="is in the way"):
        export_bundle(run, tmp_path / "file")
    with pytest.raises(GraphError, match="Cannot write the bundle"):
        export_bundle(run, tmp_path / "file" / "bundle")
    assert (tmp_path / "file").read_text() == "mine"


def drop_config(run: Path) -> None:
    (run / "config.json").unlink()


def damage_config(run: Path) -> None:
    (run / "config.json").write_text("{")


def empty_config(run: Path) -> None:
    write_config(run, [])


def drop_key(run: Path) -> None:
    write_config(run, {key: value for key, value in config_of(run).items() if key != "image_size"})


def lose_model(run: Path) -> None:
    write_config(run, config_of(run) | {"model": "gone.pt"})


def change_detector(run: Path) -> None:
    write_config(run, config_of(run) | {"digests": {"detector": "a" * 64, "text_tower": TOWER, "guide": "b" * 64}})


def change_tower(run: Path) -> None:
    digests = config_of(run)["digests"]
    assert isinstance(digests, dict)
    write_config(run, config_of(run) | {"digests": digests | {"text_tower": "d" * 64}})


def change_guide(run: Path) -> None:
    learned = Vocabulary.load(run / "learned.vocab.safetensors")
    other = vocabulary(learned.names, learned.embeddings, detector=learned.detector, guide="e" * 64)
    other.save(run / "learned.vocab.safetensors")


def drop_learned(run: Path) -> None:
    (run / "learned.vocab.safetensors").unlink()


def damage_original(run: Path) -> None:
    path = run / "original.vocab.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("break_it", "kind", "text"),
    [
        (drop_config, RunError, "is not a run folder: no readable config.json. Make one with `prompt-tune fit`."),
        (damage_config, RunError, "is damaged: Expecting property name"),
        (empty_config, RunError, "is damaged: it holds no settings"),
        (drop_key, RunError, "is damaged: it has no `image_size`"),
        (lose_model, ModelError, "There is no detector 'gone.pt'"),
        (change_detector, RunError, "config.json' was made for detector aaaaaaaaaaaa, but '"),
        (
            change_tower,
            RunError,
            "original.vocab.safetensors' was made for text tower cccccccccccc, but 'config.json' has dddddddddddd",
        ),
        (
            change_guide,
            RunError,
            "learned.vocab.safetensors' was made for guide eeeeeeeeeeee, but 'original.vocab.safetensors' has ",
        ),
        (drop_learned, VocabularyError, "learned.vocab.safetensors"),
        (damage_original, VocabularyError, "original.vocab.safetensors"),
    ],
)
def test_run_that_is_broken_is_refused_in_one_line_and_writes_nothing(
    break_it: Callable[[Path], None], kind: type[PromptTuneError], text: str, run: Path, tmp_path: Path
) -> None:
    break_it(run)
    with pytest.raises(kind) as error:
        export_bundle(run, tmp_path / "bundle")
    assert text in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
