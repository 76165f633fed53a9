"""Checkpoints with YOLO-World's background row, and those whose names and text features differ in number."""

import copy
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest

from prompt_tune.errors import ModelError, VocabularyError

torch = pytest.importorskip("torch", reason="building vocabularies needs the packages of `fit`")

if TYPE_CHECKING:
    from prompt_tune.models.text_tower import TextTower
    from prompt_tune.models.world import World


@pytest.fixture(scope="module")
def tower() -> "TextTower":
    from prompt_tune.models.text_tower import TextTower

    return TextTower.load("tiny")


def checkpoint(world: "World", tower: "TextTower", names: Sequence[str], texts: Sequence[str]) -> "World":
    """The detector with these class names, and the text features of `texts`, in half precision."""
    from prompt_tune.models.world import World

    model = copy.deepcopy(world.model)
    model.names = dict(enumerate(names))
    model.txt_feats = torch.from_numpy(tower.embed(texts, blank=True))[None].half()
    return World(model, source_name="own.pt")


@pytest.mark.parametrize("text", ["", " "])
def test_class_with_a_blank_name_is_a_background_row(world: "World", tower: "TextTower", text: str) -> None:
    from prompt_tune.models.embeddings import original_vocabulary

    texts = ["red circle", text, "blue square"]
    own = checkpoint(world, tower, texts, texts)
    made = original_vocabulary(own, tower)
    assert made.names == ("red circle", "<background>", "blue square")
    assert made.background == (("<background>", text),) and made.class_names == ("red circle", "blue square")
    assert own.class_embeddings is not None
    assert np.array_equal(made.embeddings[:, 0], own.class_embeddings.numpy())
    assert made.guide == made.digest
    assert original_vocabulary(own, tower, "green star").names == ("green star",)  # --original works too


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_feature_more_than_names_is_the_background_that_set_classes_dropped(
    world: "World", tower: "TextTower", place: int
) -> None:
    from prompt_tune.models.embeddings import original_vocabulary

    names = ["red circle", "blue square"]
    texts = [*names[:place], " ", *names[place:]]
    made = original_vocabulary(checkpoint(world, tower, names, texts), tower)
    assert made.class_names == tuple(names) and made.background == (("<background>", " "),)
    assert made.is_background.tolist() == [row == place for row in range(3)]


@pytest.mark.parametrize(
    "texts", [["red circle"], ["red circle", "blue square", "green star"], ["red circle", " ", " "], ["red circle"] * 4]
)
def test_other_numbers_are_an_error_that_original_cures(
    world: "World", tower: "TextTower", texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    from prompt_tune.models.embeddings import original_vocabulary

    own = checkpoint(world, tower, ["red circle", "blue square"], texts)
    with pytest.raises(ModelError) as error:
        original_vocabulary(own, tower)
    features = f"{len(texts)} text feature{'s' * (len(texts) != 1)}"
    assert f"'own.pt' has 2 class names and {features}; they must be equal in number" in str(error.value)
    assert "--original" in str(error.value) and len(str(error.value).splitlines()) == 1
    with caplog.at_level(logging.INFO):
        assert original_vocabulary(own, tower, "green star, red ring").names == ("green star", "red ring")
    assert "not one text feature per class name: whether the text tower 'tiny' belongs" in caplog.text


def test_another_tower_is_refused_for_a_checkpoint_with_a_background_row(
    world: "World", tower: "TextTower", text_tower: str
) -> None:
    from prompt_tune.models.embeddings import original_vocabulary
    from prompt_tune.models.text_tower import TextTower

    texts = ["red circle", ""]
    with pytest.raises(ModelError, match="does not belong to the detector"):
        original_vocabulary(checkpoint(world, tower, texts, texts), TextTower.load(f"local-dir:{text_tower}"))


def test_one_line_says_that_coco_guides_where_a_checkpoint_has_no_text_features(
    world: "World", tower: "TextTower", caplog: pytest.LogCaptureFixture
) -> None:
    from prompt_tune.models.embeddings import original_vocabulary

    own = checkpoint(world, tower, ["a", "b"], ["red circle", "blue square"])
    own.class_embeddings = None  # noise, see test_world
    line = "'own.pt' has no text features of its own: COCO's 80 names guide it. --original names other classes."
    with caplog.at_level(logging.INFO):
        assert len(original_vocabulary(own, tower).names) == 80
    assert caplog.messages.count(line) == 1
    caplog.clear()
    with caplog.at_level(logging.INFO):
        original_vocabulary(own, tower, "green star")
    assert line not in caplog.messages


def test_build_adds_background_rows_after_the_classes(tower: "TextTower") -> None:
    from prompt_tune.models.embeddings import build_vocabulary

    classes = [("red circle", "crimson disc"), ("blue square",)]
    made = build_vocabulary("tiny", classes, kind="original", background=[" ", ""])
    assert made.names == ("red circle", "blue square", "<background>", "<background 2>")
    assert made.background == (("<background>", " "), ("<background 2>", "")) and made.guide == made.digest
    plain = build_vocabulary("tiny", classes, kind="original")
    assert made.embeddings[:2].tobytes() == plain.embeddings.tobytes()
    blank = tower.encode(tower.token_vectors([tower.start_token, tower.end_token])[None], torch.tensor([1]))
    for row in made.embeddings[2:].reshape(4, 512):
        np.testing.assert_allclose(row, blank[0].detach().numpy(), atol=1e-6)
    with pytest.raises(VocabularyError, match="Only a vocabulary of kind `original` has background rows"):
        build_vocabulary("tiny", classes, background=[" "])


def test_blank_text_is_still_no_class_name(tower: "TextTower") -> None:
    with pytest.raises(VocabularyError, match="has no token"):
        tower.embed([" "])
