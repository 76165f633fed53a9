import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import TESTS
from safetensors import safe_open
from safetensors.numpy import save_file
from towers import CLASSES, learned_context

from prompt_tune.contract import METADATA_KEY, GuideMode
from prompt_tune.errors import ModelError, VocabularyError
from prompt_tune.models.prompts_file import embed_with_prompts, load_context, read_guide_mode, save_context
from prompt_tune.models.text_tower import TextTower


@pytest.fixture(scope="module")
def tower(text_tower: Path) -> TextTower:
    return TextTower.load(f"local-dir:{text_tower}")


@pytest.mark.parametrize(
    "settings",
    [
        {"class_specific": False},
        {"token_position": "middle"},
        {"prompts_per_class": 3, "initial_words": "a photo of a"},
    ],
)
def test_saved_context_comes_back_and_has_the_same_bytes(
    tower: TextTower, tmp_path: Path, settings: dict[str, Any]
) -> None:
    context = learned_context(tower, **settings)
    for name in ("one", "two"):
        save_context(context, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = load_context(tmp_path / "one", tower)
    assert torch.equal(back.ctx, context.ctx) and back.classes == CLASSES
    np.testing.assert_array_equal(back.embeddings(), context.embeddings())
    save_context(back, tmp_path / "three")
    assert (tmp_path / "three").read_bytes() == (tmp_path / "one").read_bytes()


def test_shared_context_goes_before_any_name(tower: TextTower, tmp_path: Path) -> None:
    context = learned_context(tower, class_specific=False)
    save_context(context, tmp_path / "p")
    got = embed_with_prompts(tmp_path / "p", tower, [("bus", "coach"), ("lorry",)])
    np.testing.assert_allclose(got[1, 0], context.embeddings()[0, 0], atol=1e-6)
    assert np.abs(got[0, 0] - got[0, 1]).max() > 1e-3


def test_class_specific_context_goes_before_its_own_names_alone(tower: TextTower, tmp_path: Path) -> None:
    context = learned_context(tower)
    save_context(context, tmp_path / "p")
    got = embed_with_prompts(tmp_path / "p", tower, [("traffic light",), ("truck",)])
    np.testing.assert_allclose(got, context.embeddings()[[1, 0], [0, 1]][:, None], atol=1e-6)
    with pytest.raises(VocabularyError, match=r"light', but not for 'bus'.* `fit --shared-context`, or"):
        load_context(tmp_path / "p", tower, [("lorry",), ("bus",)])


def test_class_specific_context_of_a_synonym_of_two_classes_is_that_of_its_class(
    tower: TextTower, tmp_path: Path
) -> None:
    classes = [("lorry", "vehicle"), ("car", "vehicle")]
    context = learned_context(tower, classes)
    save_context(context, tmp_path / "p")
    np.testing.assert_array_equal(load_context(tmp_path / "p", tower).ctx.detach(), context.ctx.detach())
    got = load_context(tmp_path / "p", tower, classes[::-1])
    assert torch.equal(got.ctx, context.ctx.flip(0))
    alone = load_context(tmp_path / "p", tower, [("vehicle",)])  # a class of its own: the first that has it
    assert torch.equal(alone.ctx[0, 0], context.ctx[0, 1])


def test_several_prompts_of_a_class_are_found_again(tower: TextTower, tmp_path: Path) -> None:
    context = learned_context(tower, prompts_per_class=2)
    save_context(context, tmp_path / "p")
    got = load_context(tmp_path / "p", tower, [("traffic light",), ("truck",)])
    assert got.ctx.shape[:2] == (2, 2)
    assert torch.equal(got.ctx[0], context.ctx[1, :2]) and torch.equal(got.ctx[1], context.ctx[0, 1::2])


def test_prompts_of_an_older_version_are_written_to_the_same_bytes(tmp_path: Path) -> None:
    old, tower = TESTS / "data" / "run" / "prompts.safetensors", TextTower.load("tiny")
    save_context(load_context(old, tower), tmp_path / "p", read_guide_mode(old, tower))
    assert (tmp_path / "p").read_bytes() == old.read_bytes()


@pytest.mark.parametrize("mode", ["original", "own"])
def test_guide_mode_comes_back(tower: TextTower, tmp_path: Path, mode: GuideMode) -> None:
    save_context(learned_context(tower), tmp_path / "p", mode)
    assert read_guide_mode(tmp_path / "p", tower) == mode


def test_prompts_of_another_tower_are_refused(tower: TextTower, tmp_path: Path) -> None:
    save_context(learned_context(tower), tmp_path / "p")
    with pytest.raises(ModelError, match=r"was made for text tower .*, but 'tiny' has .*\. Give the tower"):
        load_context(tmp_path / "p", TextTower.load("tiny"))


def rewrite(path: Path, ctx: np.ndarray | None = None, **changes: Any) -> None:
    """A prompts file with other contents and no checks; a value of None removes the key."""
    with safe_open(path, framework="numpy") as file:
        fields, old = json.loads(file.metadata()[METADATA_KEY]), file.get_tensor("ctx")
    fields = {key: value for key, value in (fields | changes).items() if value is not None}
    save_file({"ctx": old if ctx is None else ctx}, path, metadata={METADATA_KEY: json.dumps(fields)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_text("{}"),
        lambda path: save_file({"ctx": np.zeros((2, 2, 4, 64), np.float32)}, path),
        lambda path: rewrite(path, version=1),
        lambda path: rewrite(path, version=2.0),
        lambda path: rewrite(path, np.zeros((4, 64), np.float32), class_specific=False, prompts_per_class=10**9),
        lambda path: rewrite(path, further=1),
        lambda path: rewrite(path, token_position="left"),
        lambda path: rewrite(path, initial_words=None),
        lambda path: rewrite(path, guide_mode="joint"),
        lambda path: rewrite(path, text_tower=""),  # in a vocabulary, it would be for any tower
        lambda path: rewrite(path, classes=[]),
        lambda path: rewrite(path, classes=5),
        lambda path: rewrite(path, classes=[["lorry", 7], ["car"]]),
        lambda path: rewrite(path, class_specific="yes"),
        lambda path: rewrite(path, prompts_per_class=0),
        lambda path: rewrite(path, prompts_per_class=2),
        lambda path: rewrite(path, class_specific=False),
        lambda path: rewrite(path, ctx=np.zeros(64, np.float32)),
        lambda path: rewrite(path, ctx=np.zeros((2, 2, 4, 32), np.float32)),
        lambda path: rewrite(path, ctx=np.zeros((2, 2, 4, 64), np.float64)),
        lambda path: rewrite(path, ctx=np.full((2, 2, 4, 64), np.nan, np.float32)),
        lambda path: rewrite(path, ctx=np.zeros((3, 2, 4, 64), np.float32)),
    ],
)
def test_damaged_prompts_file_is_refused_in_one_line(
    tower: TextTower, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    path = tmp_path / "prompts.safetensors"
    save_context(learned_context(tower), path)
    load_context(path, tower)
    damage(path)
    with pytest.raises(VocabularyError) as refusal:
        load_context(path, tower)
    assert str(path) in str(refusal.value) and len(str(refusal.value).splitlines()) == 1
