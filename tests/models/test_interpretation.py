"""How embeddings moved and which tokens are near, on values worked out by hand and on planted tokens."""

import numpy as np
import pytest
import torch
from towers import make_tower
from vocabularies import unit_rows

from prompt_tune.models.context import PromptContext
from prompt_tune.models.interpretation import MAX_VECTORS, Near, _written, movements, nearest_tokens
from prompt_tune.models.text_tower import TextTower


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> TextTower:
    return TextTower.load(make_tower(tmp_path_factory.mktemp("tower") / "tower", seed=3))


def test_movement_names_the_nearest_original_classes_before_and_after() -> None:
    original = np.eye(512, dtype=np.float32)[:4, None]  # (4, 1, 512)
    plain = original[[0]]
    learned = np.zeros((1, 1, 512), np.float32)
    learned[0, 0, [1, 0]] = 0.8, 0.6
    (moved,) = movements(["gizmo"], learned, plain, ["a", "b", "c", "d"], original)
    assert moved.cosine == pytest.approx(0.6)
    assert moved.before[0] == Near("a", 1.0)
    assert [near.name for near in moved.after] == ["b", "a", "c"]
    assert [near.value for near in moved.after] == pytest.approx([0.8, 0.6, 0])


def test_movement_of_a_class_with_synonyms_is_that_of_its_name() -> None:
    rows = unit_rows(3, 2, seed=1)
    (moved,) = movements(["gizmo"], rows[[0]], rows[[0]][:, ::-1], ["a", "b"], rows[1:])
    assert moved.cosine == pytest.approx(float(rows[0, 0] @ rows[0, 1]), abs=1e-6)
    assert moved.after[0].value == pytest.approx(float((rows[1:] @ rows[0].T).max()), abs=1e-6)


def test_nearest_token_of_a_spelt_context_is_the_word_itself(tower: TextTower) -> None:
    found = nearest_tokens(PromptContext(tower, [("gizmo",), ("thing", "tool")], n_ctx=2, initial_words="photo of"))
    assert found.n_vectors == len(found.vectors) == 6
    assert [(v.text, v.position) for v in found.vectors[:3]] == [("gizmo", 1), ("gizmo", 2), ("thing", 1)]
    assert [v.nearest[0].name for v in found.vectors[:2]] == ["photo", "of"]
    assert found.vectors[0].nearest[0].value == pytest.approx(0, abs=1e-3)
    distances = [near.value for near in found.vectors[0].nearest]
    assert distances == sorted(distances)
    assert 0 < found.between_tokens <= distances[1] * 1.5


def test_nearest_tokens_of_shared_context_are_listed_once(tower: TextTower) -> None:
    context = PromptContext(tower, [("gizmo",), ("thing",)], n_ctx=3, class_specific=False)
    with torch.no_grad():
        context.ctx[1] = tower.token_vectors(tower.tokenize("Photosynthesis"))[0]
    found = nearest_tokens(context)
    assert [(v.text, v.position) for v in found.vectors] == [("", 1), ("", 2), ("", 3)]
    assert found.vectors[1].nearest[0].name.startswith("pho") and found.vectors[1].nearest[0].name.endswith("-")


def test_nearest_tokens_of_many_classes_stop_at_the_limit(tower: TextTower) -> None:
    found = nearest_tokens(PromptContext(tower, [(f"thing {i}",) for i in range(51)], n_ctx=8))
    assert (found.n_vectors, len(found.vectors)) == (408, MAX_VECTORS)


def test_every_token_of_the_tower_can_be_written(tower: TextTower) -> None:
    words = [_written(tower, token) for token in range(len(tower.token_embedding.weight))]
    assert all(word and word.isprintable() for word in words)
    assert words.count("(unprintable)") < 0.02 * len(words)
    assert words[tower.end_token] == "<end_of_text>"
