import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from towers import make_tower
from vocabularies import refusal_of

from prompt_tune.errors import ModelError, VocabularyError
from prompt_tune.vocabulary.format import ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

torch = pytest.importorskip("torch", reason="building vocabularies needs the packages of `fit`")

if TYPE_CHECKING:
    from prompt_tune.models.text_tower import TextTower
    from prompt_tune.models.world import World

CLASSES = [("lorry", "truck"), ("car",)]


@pytest.fixture(scope="module")
def detector(world: "World", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector in the layout of `tiny`, with its tower and without an original vocabulary."""
    import yaml
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("detector")
    (folder / "detector.yaml").write_text(yaml.safe_dump(world.yaml))
    save_file(world.model.state_dict(), folder / "detector.safetensors")
    make_tower(folder / "tower", seed=0)
    return folder


@pytest.fixture(scope="module")
def tower(detector: Path) -> "TextTower":
    from prompt_tune.models.text_tower import TextTower

    return TextTower.load(f"local-dir:{detector / 'tower'}")


@pytest.fixture(scope="module")
def other_tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tower(tmp_path_factory.mktemp("towers") / "other", seed=1)


@pytest.fixture
def with_original(detector: Path, tmp_path: Path) -> Path:
    """The detector with an original vocabulary beside its weights."""
    from prompt_tune.models.embeddings import build_vocabulary

    folder = tmp_path / "deployed"
    folder.mkdir()
    for part in detector.iterdir():
        (folder / part.name).symlink_to(part)
    build_vocabulary(detector, [("person",), ("dog",)], kind="original").save(folder / ORIGINAL_FILE)
    return folder


def test_build_of_plain_names_embeds_them_for_the_default_guide(
    detector: Path, tower: "TextTower", world: "World"
) -> None:
    from prompt_tune.models.embeddings import build_vocabulary
    from prompt_tune.vocabulary.names import read_classes

    built = build_vocabulary(detector, CLASSES)
    assert (built.names, built.kind, built.guide_mode) == (("lorry", "car"), "plain", "original")
    assert built.embeddings.tobytes() == tower.embed_classes(CLASSES).tobytes()
    assert np.array_equal(built.embeddings[1, 0], built.embeddings[1, 1])  # `car` has no synonym
    assert (built.detector, built.text_tower) == (world.digest, tower.digest)
    assert built.guide == guide_digest(tower.embed_classes(read_classes("coco")))
    assert built.thresholds.tolist() == [0.25, 0.25]
    assert set(built.provenance) == {"versions"}


def test_build_twice_gives_the_same_bytes(detector: Path) -> None:
    from prompt_tune.models.embeddings import build_vocabulary

    assert build_vocabulary(detector, CLASSES).to_bytes() == build_vocabulary(str(detector), CLASSES).to_bytes()


def test_build_of_original_kind_guides_what_is_built_for_it(detector: Path, tmp_path: Path) -> None:
    from prompt_tune.models.embeddings import build_vocabulary

    original = build_vocabulary(detector, [("person",), ("dog",)], kind="original")
    assert original.kind == "original" and original.guide == original.digest
    original.save(tmp_path / "original.vocab.safetensors")
    built = build_vocabulary(detector, CLASSES, original=tmp_path / "original.vocab.safetensors")
    assert built.guide == original.digest
    assert build_vocabulary(detector, CLASSES, original="person, dog").guide == original.digest


def test_build_for_a_detector_with_its_own_original_uses_that(with_original: Path) -> None:
    from prompt_tune.models.embeddings import build_vocabulary

    shipped = Vocabulary.load(with_original / ORIGINAL_FILE)
    assert build_vocabulary(with_original, CLASSES).guide == shipped.digest


def test_build_with_another_tower_than_the_detectors_is_refused(with_original: Path, other_tower: str) -> None:
    from prompt_tune.models.embeddings import build_vocabulary

    for kind in ("plain", "original"):
        with pytest.raises(ModelError, match=r"was made for text tower .{12}, but 'local-dir:.*' has .{12}\. Leave"):
            build_vocabulary(with_original, CLASSES, kind=kind, text_tower=other_tower)


def test_build_for_an_original_that_does_not_fit_is_refused(
    with_original: Path, detector: Path, tmp_path: Path, other_tower: str
) -> None:
    from prompt_tune.models.embeddings import build_vocabulary

    shipped = Vocabulary.load(with_original / ORIGINAL_FILE)
    path = tmp_path / "other.vocab.safetensors"
    replace(shipped, detector="0" * 64).save(path)
    text = refusal_of(lambda: build_vocabulary(detector, CLASSES, original=path))
    assert f"{path} was made for detector 000000000000, but '{detector}' has {shipped.detector[:12]}. Build" in text
    shipped.save(path)
    text = refusal_of(lambda: build_vocabulary(detector, CLASSES, original=path, text_tower=other_tower))
    assert f"{path} was made for text tower {shipped.text_tower[:12]}, but 'local-dir:" in text
    build_vocabulary(detector, CLASSES).save(path)
    text = refusal_of(lambda: build_vocabulary(detector, CLASSES, original=path))
    assert f"{path} is a vocabulary of kind `plain`; a guide must be of kind `original`." in text


def test_build_beside_an_original_of_another_detector_is_refused(with_original: Path) -> None:
    from prompt_tune.models.embeddings import build_vocabulary

    shipped = Vocabulary.load(with_original / ORIGINAL_FILE)
    replace(shipped, detector="0" * 64).save(with_original / ORIGINAL_FILE)
    text = refusal_of(lambda: build_vocabulary(with_original, CLASSES))
    assert f"was made for detector 000000000000, but '{with_original}' has {shipped.detector[:12]}." in text


def test_build_with_arguments_that_contradict_is_refused(detector: Path, tmp_path: Path) -> None:
    from prompt_tune.models.embeddings import build_vocabulary

    prompts = tmp_path / "prompts.safetensors"
    assert "Kind `learned` goes with prompts" in refusal_of(lambda: build_vocabulary(detector, CLASSES, kind="learned"))
    assert "Kind `learned` goes with prompts" in refusal_of(
        lambda: build_vocabulary(detector, CLASSES, prompts=prompts)
    )
    text = refusal_of(lambda: build_vocabulary(detector, CLASSES, kind="original", original="coco"))
    assert "leave the argument `original` out" in text


def test_build_with_prompts_puts_the_context_in_front_of_the_names(
    with_original: Path, tower: "TextTower", tmp_path: Path
) -> None:
    from prompt_tune.models.context import PromptContext
    from prompt_tune.models.embeddings import build_vocabulary
    from prompt_tune.models.prompts_file import save_context

    prompts = tmp_path / "prompts.safetensors"
    context = PromptContext(tower, CLASSES, n_ctx=2, class_specific=False, seed=1)
    save_context(context, prompts)
    original = Vocabulary.load(with_original / ORIGINAL_FILE)
    original.save(tmp_path / ORIGINAL_FILE)
    built = build_vocabulary(with_original, CLASSES, kind="learned", prompts=prompts)
    assert (built.names, built.kind, built.guide) == (("lorry", "car"), "learned", original.digest)
    assert np.array_equal(built.embeddings, context.embeddings())
    assert not np.allclose(built.embeddings, build_vocabulary(with_original, CLASSES).embeddings, atol=0.01)
    assert built.provenance["prompts"] == hashlib.sha256(prompts.read_bytes()).hexdigest()
    further = build_vocabulary(with_original, [("van",)], kind="learned", prompts=prompts)  # a name it never saw
    assert further.names == ("van",)


def test_build_with_prompts_of_unclear_guide_is_refused(with_original: Path, tmp_path: Path) -> None:
    from prompt_tune.models.embeddings import build_vocabulary

    prompts = tmp_path / "run" / "prompts.safetensors"
    text = refusal_of(lambda: build_vocabulary(with_original, CLASSES, kind="learned", prompts=prompts))
    assert text == f"There is no prompt file {prompts}. Give prompts.safetensors of a run."
    prompts.parent.mkdir()
    prompts.write_bytes(b"")
    text = refusal_of(lambda: build_vocabulary(with_original, CLASSES, kind="learned", prompts=prompts))
    assert f"has no {ORIGINAL_FILE} beside it, which says what guided the neck. Name it with --original." in text
    Vocabulary.load(with_original / ORIGINAL_FILE).save(prompts.parent / ORIGINAL_FILE)
    text = refusal_of(lambda: build_vocabulary(with_original, CLASSES, kind="learned", prompts=prompts, original="dog"))
    assert text.endswith(
        f"was learned with the guide {prompts.parent / ORIGINAL_FILE}, and dog is another. Leave --original out."
    )


def test_vocab_build_writes_what_the_function_gives(detector: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from prompt_tune.cli import command
    from prompt_tune.models.embeddings import build_vocabulary

    out = tmp_path / "new" / "lorries.vocab.safetensors"
    names = ["--names", "lorry; truck, car", "--guide", "person, dog"]
    result = CliRunner().invoke(command, ["vocab", "build", "--model", str(detector), *names, "--out", str(out)])
    assert (result.exit_code, result.stdout) == (0, f"Wrote {out}: 2 classes, kind plain.\n")
    assert out.read_bytes() == build_vocabulary(detector, CLASSES, original="person, dog").to_bytes()


def test_build_of_name_longer_than_the_window_is_refused(detector: Path) -> None:
    from prompt_tune.models.embeddings import build_vocabulary

    with pytest.raises(VocabularyError, match="lorry lorry"):
        build_vocabulary(detector, [(" ".join(["lorry"] * 80),)])


def test_original_vocabulary_of_checkpoint_is_its_own_text_features(
    world: "World", tower: "TextTower", other_tower: str, tmp_path: Path
) -> None:
    import copy

    from prompt_tune.models.embeddings import original_vocabulary
    from prompt_tune.models.text_tower import TextTower
    from prompt_tune.models.world import World

    names = ["person", "dog", "fire hydrant"]
    model = copy.deepcopy(world.model)
    model.names = dict(enumerate(names))
    model.txt_feats = torch.from_numpy(tower.embed(names))[None].half().float()  # as official checkpoints keep them
    own = World(model, source_name="own.pt")
    original = original_vocabulary(own, tower)
    assert original.names == tuple(names) and own.class_embeddings is not None
    assert np.array_equal(original.embeddings[:, 0], own.class_embeddings.numpy())
    with pytest.raises(
        ModelError, match=r"does not belong to the detector 'own\.pt': their embeddings of '.*' have a cos"
    ):
        original_vocabulary(own, TextTower.load(other_tower))


def test_check_of_tower_where_detector_has_no_text_says_that_it_was_skipped(
    detector: Path, tower: "TextTower", caplog: pytest.LogCaptureFixture
) -> None:
    from prompt_tune.models.embeddings import check_tower
    from prompt_tune.models.world import World

    with caplog.at_level(logging.INFO, "prompt_tune.models.embeddings"):
        check_tower(World.load(detector), tower)
    assert "belongs to it was not checked." in caplog.text


def test_default_tower_is_the_detectors_own_where_it_has_one(detector: Path) -> None:
    from prompt_tune.models.embeddings import default_tower

    assert default_tower("tiny") == "tiny"
    assert default_tower(detector) == f"local-dir:{detector / 'tower'}"
    assert default_tower("yolov8s-worldv2.pt") == "ViT-B-32-quickgelu:openai"
