"""Graphs of fixed shapes and graphs without suppression: what they hold, and what they find."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from places import ROOT
from small_bundle import IMAGE_SIZE, content, learned_for, photo, small_bundle
from variants import KINDS, SLOTS, variant

from prompt_tune.cli.export import command
from prompt_tune.contract import RAW_OUTPUTS
from prompt_tune.deployment.graph import export_graph
from prompt_tune.deployment.variants import described, fitting_slots
from prompt_tune.errors import PromptTuneError
from prompt_tune.models.world import World
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import letterbox
from prompt_tune.runtime.slots import Slots, suppressed
from prompt_tune.vocabulary.format import INPUTS_FILE

PHOTOS = [photo(90, 161), photo(301, 77, seed=1), photo(96, 96, seed=2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(params=KINDS)
def bundle(request: pytest.FixtureRequest, world: World, folder: Path) -> Path:
    return variant(world, folder, request.param)


def more(bundle: Path) -> list[Any]:
    """Learned vocabularies of every kind that fit into `SLOTS`."""
    offsets = np.array([[-0.1, 0.07, 0.31, 0], [0.4, 0.4, -0.4, -0.4]], np.float32)
    return [
        learned_for(bundle, "a", "b", n_prompts=2, seed=1),
        learned_for(bundle, "c", "d", seed=2, box_offsets=offsets, nms_iou=np.array([0.3, 0.5], np.float32)),
        learned_for(bundle, "e", "f", n_prompts=2, seed=3, guide_mode="own"),
    ]


def refusal_of(action: Callable[[], object]) -> str:
    """The text of the error, which is one line."""
    with pytest.raises(PromptTuneError) as refusal:
        action()
    text = str(refusal.value)
    assert len(text.splitlines()) == 1
    return text


def close(found: Detections, wanted: Detections) -> bool:
    """Whether two graphs found the same, but for the last bits."""
    same = (found.class_names, found.vocabularies) == (wanted.class_names, wanted.vocabularies)
    return (
        same
        and np.allclose(found.boxes_xyxy, wanted.boxes_xyxy, atol=1e-2)
        and np.allclose(found.scores, wanted.scores, atol=1e-5)
    )


def test_detector_finds_in_every_graph_what_it_finds_in_the_plain_one(bundle: Path, world: World, folder: Path) -> None:
    plain = small_bundle(world, folder / "small-bundle")
    for loaded in ([], more(plain)[:1], more(plain)):
        found, wanted = (
            Detector(place, learned=loaded, threads=1).detect(PHOTOS, batch=2) for place in (bundle, plain)
        )
        for one, other in zip(found, wanted, strict=True):
            assert close(one, other) and len(one.of("original")) > 20 and one.size_wh == other.size_wh
        labels = {label for one in found for label in one.vocabularies}
        assert len(labels) == 2 + len(loaded)


def test_no_bit_of_an_original_detection_changes_with_what_is_loaded(bundle: Path) -> None:
    alone = Detector(bundle, use_bundled=False, threads=2).detect(PHOTOS[:2], original_conf=0.001)
    for loaded in ([], more(bundle)[:1], more(bundle)):
        found = Detector(bundle, learned=loaded, threads=2).detect(PHOTOS[:2], original_conf=0.001, learned_conf=0.01)
        for one, before in zip(found, alone, strict=True):
            assert content(one.of("original")) == content(before.of("original"))


def test_graph_with_slots_has_fixed_shapes_and_without_suppression_no_other(world: World, folder: Path) -> None:
    for kind in ("slots", "slots-raw"):
        model = onnx.load(variant(world, folder, kind) / "detector.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
        shapes = {
            entry.name: [size.dim_value for size in entry.type.tensor_type.shape.dim] for entry in model.graph.input
        }
        vocabularies = {"original": [90, 2, 512], "learned": [90, 3, 512]}
        assert {name: shapes[name] for name in ("images", *vocabularies)} == {"images": [1, 3, 96, 96]} | vocabularies
        assert not {"Shape", "NonZero", "Range", "Loop", "If"} & {node.op_type for node in model.graph.node}
    assert [entry.name for entry in model.graph.output] == list(RAW_OUTPUTS)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = {entry.name: entry.type.tensor_type.shape.dim for entry in (*inferred.value_info, *inferred.output)}
    made = {name for node in inferred.node for name in node.output if name}
    assert made <= known.keys() and all(size.HasField("dim_value") for dims in known.values() for size in dims)


@pytest.mark.parametrize("version", ["v2", ""])
def test_graph_with_slots_agrees_with_torch_for_both_versions_of_the_detector(
    version: str, make_checkpoint: Any, tmp_path: Path
) -> None:
    """`export_graph` writes nothing that differs; v1 changes its guide for each image."""
    world = World.load(make_checkpoint(tmp_path / "model.pt", version=version, seed=3))
    export_graph(world, tmp_path / "g.onnx", image_size=64, slots=Slots(5, 1, 2), suppression=False)
    assert (tmp_path / "g.onnx").exists()


def test_unused_learned_slots_score_nothing(world: World, folder: Path) -> None:
    import onnxruntime

    bundle = variant(world, folder, "slots-raw")
    session = onnxruntime.InferenceSession(bundle / "detector.onnx", providers=["CPUExecutionProvider"])
    rows = np.load(bundle / INPUTS_FILE)
    image = np.random.default_rng(0).random((1, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    boxes, original, learned = session.run(None, {"images": image, **rows})
    assert (boxes.shape, original.shape, learned.shape) == ((1, 189, 4), (1, 90, 189), (1, 90, 189))
    assert learned[0, :2].min() > 0 and not learned[0, 2:].any()
    np.testing.assert_array_equal(original[0, 80:], np.repeat(original[0, :1], 10, axis=0))
    table = suppressed(boxes, original[:, :80], iou=0.7, conf=0.3)
    assert len(table) > 10 and table[:, 6].max() < 80


def test_what_does_not_fit_is_refused_in_one_line(world: World, folder: Path) -> None:
    bundle = variant(world, folder, "slots")
    with_slots = Detector(bundle)
    many = learned_for(bundle, *(f"class {number}" for number in range(89)))
    assert refusal_of(lambda: with_slots.load(many)) == (
        "The vocabulary cannot be loaded: with it, 91 classes would go into an input of the graph, which was exported "
        "with --slots 90. Unload others, or export with more."
    )
    with_slots.unload("learned")
    assert with_slots.load(many) == "learned" and len(with_slots.detect(PHOTOS[0])[0].of("learned")) > 5
    deep, own = learned_for(bundle, "deep", n_prompts=4), learned_for(bundle, "own", n_prompts=3, guide_mode="own")
    for vocabulary, most in ((deep, 3), (own, 2)):
        text = refusal_of(partial(Detector(bundle).load, vocabulary))
        assert (
            f"it has {vocabulary.n_prompts} prompts a class, and the graph was exported with --slots for at most {most}"
            in text
        )
    assert refusal_of(lambda: Detector(bundle, image_size=64)).startswith("`image_size` must be 96: ")


def test_slots_of_a_run_hold_both_vocabularies(world: World, folder: Path) -> None:
    bundle = small_bundle(world, folder / "small-bundle")
    original = learned_for(bundle, *"abc")
    learned = learned_for(bundle, *"defgh", n_prompts=2)
    assert fitting_slots(5, original, learned) == Slots(5, 1, 2)
    own = learned_for(bundle, *"de", n_prompts=2, guide_mode="own")
    assert fitting_slots(3, original, own) == Slots(3, 2, 1)
    for count in (4, 0, 2**16 + 1):
        text = refusal_of(partial(fitting_slots, count, original, learned))
        assert text == f"--slots must be from 5, the classes of the larger vocabulary, to 65536. Received: {count}."


def test_graph_that_states_other_slots_than_it_has_is_refused(world: World, folder: Path, tmp_path: Path) -> None:
    model = onnx.load(variant(world, folder, "slots") / "detector.onnx")
    text = model.metadata_props[0].value
    assert '"slots": 90' in text
    bundle = tmp_path / "forged"
    bundle.mkdir()
    for name in ("original", "learned"):
        (bundle / f"{name}.vocab.safetensors").write_bytes(
            (variant(world, folder, "slots") / f"{name}.vocab.safetensors").read_bytes()
        )
    for other in (text.replace('"slots": 90', '"slots": 91'), text.replace('"image_size": 96', '"image_size": 64')):
        model.metadata_props[0].value = other
        onnx.save(model, bundle / "detector.onnx")
        assert refusal_of(lambda: Detector(bundle)).endswith(
            "has other inputs than its metadata states. Export the run again."
        )


def test_options_that_do_not_go_together_are_refused() -> None:
    for arguments in (
        ["--slots", "9", "--half"],
        ["--no-nms", "--half"],
        ["--no-nms", "--target", "triton"],
        ["--slots", "0"],
    ):
        done = CliRunner().invoke(command, ["run", "--out", "out", *arguments])
        assert done.exit_code == 2 and ("--slots" in done.output or "--no-nms" in done.output), done.output


@pytest.mark.parametrize("suppression", [True, False])
@pytest.mark.parametrize("slots", [None, SLOTS])
def test_readme_says_what_the_graph_takes_and_gives(slots: Slots | None, suppression: bool) -> None:
    fields = described(640, slots, suppression=suppression)
    assert fields["options"] == " ".join(["--slots 90"] * bool(slots) + ["--no-nms"] * (not suppression))
    assert ("`iou`" in str(fields["limits"])) == suppression == ("original_detections" in str(fields["outputs"]))
    assert fields["side"] == ("640, 640" if slots else "height, width")
    assert fields["shape"] == ("90, 2" if slots else "n, n_prompts")


def test_rows_of_inputs_are_those_that_the_runtime_fills_in(world: World, folder: Path) -> None:
    bundle = variant(world, folder, "slots")
    rows, detector = np.load(bundle / INPUTS_FILE), Detector(bundle)
    state = detector._state
    np.testing.assert_array_equal(rows["original"], state.original.embeddings.numpy())
    np.testing.assert_array_equal(rows["learned"], state.together.embeddings.numpy())


def test_snippet_of_the_docs_finds_what_the_detector_finds(
    world: World, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    code = page.split("What is left to do after `--no-nms`")[1].split("```python\n")[1].split("```")[0]
    bundle = variant(world, folder, "slots-raw")
    (tmp_path / "raw").symlink_to(bundle)
    pixels = letterbox(PHOTOS[0], IMAGE_SIZE)[0].transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    np.save(tmp_path / "letterboxed.npy", pixels)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/deployment.md", "exec"), {})
    printed = sorted(capsys.readouterr().out.splitlines())
    _, learned = Detector(bundle).raw(pixels, learned_conf=0.25)
    assert printed == sorted(f"{int(row[6])} {float(row[5])} {row[1:5]}" for row in learned) and len(printed) > 2
