"""Model repositories of Triton: what is written, and that their Python model answers as the runtime does."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_python_backend_utils as pb_utils
from commands import run_command
from PIL import Image
from places import TESTS
from runs import write_run
from small_bundle import IMAGE_SIZE, learned_for, photo
from triton_server import GRAPH, MODEL, call, config_of, imported, loaded, request, rows_of
from vocabularies import TOWER

from prompt_tune.deployment.triton import REPOSITORY_FILES, export_triton
from prompt_tune.errors import GraphError
from prompt_tune.models.world import World
from prompt_tune.runtime.detector import Detector
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

VOCABULARIES = f"{MODEL}/1/vocabularies"
PHOTOS = [photo(90, 161, seed=0), photo(301, 77, seed=1), photo(64, 96, seed=2)]
GREY = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 114, np.uint8)
LOW = 0.05  # a threshold that lets boxes of random classes through


@pytest.fixture(scope="module")
def run(checkpoint: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the random detector, with `gizmo` and `forklift` learned."""
    assert world.names is not None and world.class_embeddings is not None
    folder = tmp_path_factory.mktemp("triton") / "run"
    embeddings = world.class_embeddings.numpy()[:, None]  # (80, 1, 512)
    original = Vocabulary(
        world.names,
        embeddings,
        thresholds=np.full(len(world.names), 0.3, np.float32),
        kind="original",
        detector=world.digest,
        text_tower=TOWER,
        guide=guide_digest(embeddings),
    )
    original.save(folder / "original.vocab.safetensors")
    learned = learned_for(folder, "gizmo", "forklift", n_prompts=3)
    return write_run(folder, checkpoint, original, learned, image_size=IMAGE_SIZE)


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """Its repository, as it is written."""
    export_triton(run, run.parent / "exported")
    return run.parent / "exported"


@pytest.fixture(scope="module")
def repository(run: Path, exported: Path) -> Path:
    """The same with three more vocabularies: plain, with every optional field, and one that guides the network."""
    folder = run.parent / "repository"
    shutil.copytree(exported, folder)
    more = {
        "more": learned_for(run, "a", "b", n_prompts=2, seed=1),
        "full": learned_for(
            run,
            "a",
            "c",
            seed=2,
            calibration=np.array([[1, 0], [0.6, 0.4]], np.float32),
            nms_iou=np.array([0.3, 1], np.float32),
            box_offsets=np.array([[0, 0, 0, 0], [-0.1, 0.07, 0.31, 0]], np.float32),
        ),
        "own": learned_for(run, "e", "f", seed=3, guide_mode="own"),
    }
    for name, vocabulary in more.items():
        vocabulary.save(folder / VOCABULARIES / f"{name}.vocab.safetensors")
    return folder


def batched(repository: Path, folder: Path, batch: int) -> Path:
    """The same repository for requests that are joined."""
    shutil.copytree(repository, folder)
    config = folder / MODEL / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 0", f"max_batch_size: {batch}"))
    return folder


@pytest.fixture(scope="module")
def detector(repository: Path) -> Detector:
    """The runtime, on the files of the repository."""
    bundle = repository.parent / "bundle"
    bundle.mkdir()
    shutil.copyfile(repository / GRAPH / "1" / "model.onnx", bundle / "detector.onnx")
    shutil.copyfile(repository / MODEL / "1" / "original.vocab.safetensors", bundle / "original.vocab.safetensors")
    return Detector(bundle, use_bundled=False, learned=sorted((repository / VOCABULARIES).iterdir()), threads=1)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


# what is written


def test_export_writes_a_repository_and_says_where(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "repository"
    done = run_command(capfd, "export", run, "--out", out, "--target", "triton", "--batch", 8)
    assert (done.status, done.out) == (0, f"Model repository: {out}\n")
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert (
        files
        == set(REPOSITORY_FILES)
        == {
            "prompt_tune/config.pbtxt",
            "prompt_tune/1/model.py",
            "prompt_tune/1/kit_detector.py",
            "prompt_tune/1/kit_images.py",
            "prompt_tune/1/kit_vocabulary.py",
            "prompt_tune/1/original.vocab.safetensors",
            "prompt_tune/1/vocabularies/learned.vocab.safetensors",
            "prompt_tune_graph/config.pbtxt",
            "prompt_tune_graph/1/model.onnx",
        }
    )
    config = (out / "prompt_tune" / "config.pbtxt").read_text()
    assert "\nmax_batch_size: 8\ndynamic_batching { }\n" in config
    (out / "prompt_tune" / "1" / "detect.py").touch()  # of a former version
    assert run_command(capfd, "export", run, "--out", out, "--target", "triton").status == 0  # it replaces its own
    config = (out / "prompt_tune" / "config.pbtxt").read_text()
    assert "\nmax_batch_size: 0\n" in config and "\ndynamic_batching" not in config


def test_added_vocabularies_are_not_lost(run: Path, repository: Path, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"it has `prompt_tune/1/vocabularies/full.vocab.safetensors`, which no exp"):
        export_triton(run, repository)
    (tmp_path / "file").touch()
    with pytest.raises(GraphError, match="it is not a folder"):
        export_triton(run, tmp_path / "file")


@pytest.mark.parametrize("batch", [0, 257])
def test_batch_is_limited(run: Path, batch: int, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=f"from 1 to 256 images. Received: {batch}"):
        export_triton(run, tmp_path / "out", batch=batch)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--target", "triton", "--with-wheel"), "--with-wheel, --no-photo and --name are for bundles"),
        (("--target", "triton", "--no-photo"), "--with-wheel, --no-photo and --name are for bundles"),
        (("--batch", "4"), "--batch is for --target triton"),
    ],
)
def test_options_of_the_other_target_are_refused(
    options: tuple[str, ...], complaint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_command(capfd, "export", tmp_path / "run", "--out", tmp_path / "out", *options)
    assert done.status == 2 and complaint in done.err


# what its model answers


@pytest.mark.parametrize("settings", [{}, {"conf": LOW}, {"conf": LOW, "iou": 0.4}])
def test_rows_are_those_of_the_runtime_bit_for_bit(
    settings: dict[str, Any], repository: Path, detector: Detector
) -> None:
    with loaded(repository) as model:
        for image in PHOTOS:
            (found,) = detector.detect(image, **settings)
            expected = rows_of(found)
            assert expected
            assert call(model, [request(image=png(image), **settings)]) == [expected]
            assert call(model, [request(raw=image, **settings)]) == [expected]
    if settings:
        assert {label for *_, label in expected} == {b"original", b"learned", b"more", b"full", b"own"}


def test_a_photo_is_turned_upright_as_the_runtime_turns_it(
    repository: Path, detector: Detector, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PHOTOS[0]).save(tmp_path / "photo.jpg", exif=exif)
    (found,) = detector.detect(tmp_path / "photo.jpg")
    with loaded(repository) as model:
        assert call(model, [request(image=(tmp_path / "photo.jpg").read_bytes())]) == [rows_of(found)] != [[]]


@pytest.mark.parametrize("names", [["original"], ["full", "original"], ["learned"], ["own"], ["more", "own"], []])
def test_only_the_vocabularies_asked_for_answer(names: list[str], repository: Path, detector: Detector) -> None:
    (found,) = detector.detect(PHOTOS[0], conf=LOW)
    expected = rows_of(found, *names) if names else []
    assert {label.decode() for *_, label in expected} == set(names)
    with loaded(repository) as model:
        assert call(model, [request(raw=PHOTOS[0], conf=LOW, vocabularies=names)]) == [expected]


def test_joined_requests_get_the_rows_of_an_equal_batch(repository: Path, detector: Detector, tmp_path: Path) -> None:
    calls: list[tuple[int, ...]] = []
    with loaded(batched(repository, tmp_path / "batched", 4)) as model:
        graph = pb_utils.MODELS[GRAPH]
        pb_utils.MODELS[GRAPH] = lambda feed: calls.append(feed["images"].shape) or graph(feed)  # type: ignore[func-returns-value]
        a, b, c = PHOTOS
        asked = [
            request(True, raw=a, conf=LOW),
            request(True, image=png(b), conf=LOW, iou=0.4),  # another call of the graph
            request(True, image=png(c), conf=LOW, vocabularies=["original"]),
            request(True, image=b"no image", conf=LOW),
            request(True, raw=b, conf=LOW),
        ]
        answers = call(model, asked)
    assert calls == [(4, 3, IMAGE_SIZE, IMAGE_SIZE)] * 4  # two groups, each with and without the guide of its own
    first, third, fifth, _ = (rows_of(one) for one in detector.detect([a, c, b, GREY], conf=LOW, batch=4))
    second = rows_of(detector.detect([b, GREY, GREY, GREY], conf=LOW, iou=0.4, batch=4)[0])
    assert answers[:2] == [first, second] and answers[4] == fifth
    assert answers[2] == [row for row in third if row[3] == b"original"]
    assert (
        answers[3] == "INVALID_ARG: What was sent (8 bytes) cannot be read as an image: not an image of a known format"
    )


def test_more_requests_than_a_batch_take_several_calls(repository: Path, detector: Detector, tmp_path: Path) -> None:
    with loaded(batched(repository, tmp_path / "batched", 2)) as model:
        answers = call(model, [request(True, raw=image) for image in PHOTOS])
    first, second = detector.detect(PHOTOS[:2], batch=2)
    third = detector.detect([PHOTOS[2], GREY], batch=2)[0]
    assert answers == [rows_of(first), rows_of(second), rows_of(third)]


def test_original_detections_do_not_depend_on_what_is_loaded(repository: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(repository, alone)
    shutil.rmtree(alone / VOCABULARIES)
    with loaded(repository) as model:
        expected = call(model, [request(raw=PHOTOS[0], vocabularies=["original"])])
    with loaded(alone) as model:  # an empty tensor of learned classes might not pass
        assert call(model, [request(raw=PHOTOS[0])]) == expected != [[]]


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({}, "Give either `image`, the content of an image file, or `raw`"),
        ({"image": b"x", "raw": PHOTOS[0]}, "Give either `image`"),
        ({"image": b""}, "What was sent (0 bytes) cannot be read as an image"),
        ({"image": png(PHOTOS[0])[:200]}, "What was sent (200 bytes) cannot be read as an image"),
        ({"image": np.array([b"a", b"b"], np.object_)}, "`image` must hold the content of one file. Received: 2."),
        ({"raw": PHOTOS[0][:, :, :2]}, "`raw` must be (height, width, 3) pixels. Received: (90, 161, 2)."),
        ({"raw": PHOTOS[0][:0]}, "`raw` must be (height, width, 3) pixels. Received: (0, 161, 3)."),
        ({"raw": PHOTOS[0], "conf": 1.5}, "`conf` must be one number from 0 to 1. Received: [1.5]."),
        ({"raw": PHOTOS[0], "iou": float("nan")}, "`iou` must be one number from 0 to 1. Received: [nan]."),
        ({"raw": PHOTOS[0], "vocabularies": ["gone"]}, "No vocabulary `gone` is loaded. Loaded: original, full, learn"),
        ({"raw": PHOTOS[0], "vocabularies": np.array([b"\xff"], np.object_)}, "No vocabulary `\ufffd` is loaded."),
    ],
)
def test_wrong_request_gets_an_error_of_its_own(arrays: dict[str, Any], complaint: str, repository: Path) -> None:
    with loaded(repository) as model:
        wrong, right = call(model, [request(**arrays), request(raw=PHOTOS[0])])
    assert wrong[: len(complaint) + 13] == f"INVALID_ARG: {complaint}"
    assert isinstance(right, list) and right


def test_several_images_in_one_request_are_refused(repository: Path, tmp_path: Path) -> None:
    two = pb_utils.Tensor("raw", np.stack([PHOTOS[0]] * 2))
    asked = pb_utils.InferenceRequest(inputs=[two], requested_output_names=[], model_name=MODEL)
    with loaded(batched(repository, tmp_path / "batched", 2)) as model:
        (answer,) = call(model, [asked])
    assert answer == "INVALID_ARG: A request has one image: send several requests, which the server runs together."


def test_graph_that_fails_fails_its_requests_only(repository: Path, tmp_path: Path) -> None:
    with loaded(batched(repository, tmp_path / "batched", 2)) as model:
        graph = pb_utils.MODELS[GRAPH]

        def once(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            pb_utils.MODELS[GRAPH] = graph
            raise RuntimeError("out of memory")

        pb_utils.MODELS[GRAPH] = once
        wrong, right = call(model, [request(True, raw=PHOTOS[0]), request(True, raw=PHOTOS[0], conf=LOW)])
    assert wrong == "INTERNAL: prompt_tune_graph fails: out of memory"
    assert isinstance(right, list) and right


# what its model loads


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda files: (files / "learned.vocab.safetensors").write_bytes(b"x" * 99),
            "learned.vocab.safetensors: not a vocabulary file, or cut short. Copy or build",
        ),
        (
            lambda files: shutil.copyfile(
                files.parent / "original.vocab.safetensors", files / "more.vocab.safetensors"
            ),
            "more: of kind original; it must be learned or plain.",
        ),
        (
            lambda files: learned_for(files.parent, "x", detector="d" * 64).save(files / "other.vocab.safetensors"),
            "other: made for another detector (dddddddddddd).",
        ),
    ],
)
def test_wrong_vocabulary_keeps_the_model_from_loading(
    change: Any, complaint: str, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    change(tmp_path / "copy" / VOCABULARIES)
    with pytest.raises(pb_utils.TritonModelException) as caught, loaded(tmp_path / "copy"):
        pass
    assert complaint in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_batches_shrink_to_what_fits_into_memory(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = batched(repository, tmp_path / "batched", 4)
    n_scores = (80 + 6 * 3) * (12**2 + 6**2 + 3**2)  # of 80 original and six learned classes, of three prompts each
    with imported(folder) as module:
        for most, batch in ((8, 4), (5, 2), (1, 1)):
            monkeypatch.setattr(module.kit_detector, "MOST_SCORES", most * n_scores)
            model = module.TritonPythonModel()
            model.initialize({"model_config": json.dumps(config_of(folder))})
            assert model.batch == batch
        monkeypatch.setattr(module.kit_detector, "MOST_SCORES", n_scores - 1)
        with pytest.raises(pb_utils.TritonModelException, match="too many prompts for the memory"):
            module.TritonPythonModel().initialize({"model_config": json.dumps(config_of(folder))})


def test_model_needs_numpy_and_pillow_only(exported: Path) -> None:
    blocked = ("prompt_tune", "torch", "onnxruntime", "safetensors", "ultralytics")
    code = (
        f"import sys; sys.modules |= dict.fromkeys({blocked}); sys.path += sys.argv[1:];"
        'import importlib, json, re; module = importlib.import_module("1.model");'
        "import triton_python_backend_utils as pb_utils;"
        "values = {name: {'string_value': value} for name, value in json.loads(sys.stdin.read()).items()};"
        "model = module.TritonPythonModel();"
        "model.initialize({'model_config': json.dumps({'max_batch_size': 0, 'parameters': values})});"
        "asked = pb_utils.InferenceRequest(inputs=[], requested_output_names=[], model_name='prompt_tune');"
        "print(model.execute([asked])[0].error().message())"
    )
    with imported(exported) as module:
        digest = module.read_vocabulary(exported / MODEL / "1" / "original.vocab.safetensors").about["detector"]
    folders = [str(exported / MODEL / "1"), str(exported / MODEL), str(TESTS)]
    values = f'{{"image_size": "{IMAGE_SIZE}", "strides": "8 16 32", "detector": "{digest}"}}'
    done = subprocess.run([sys.executable, "-c", code, *folders], input=values, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Give either `image`, the content of an image file, or `raw`, RGB pixels.\n"
