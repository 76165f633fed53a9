from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from towers import CLASSES, learned_context

from prompt_tune.config import TokenPosition
from prompt_tune.errors import VocabularyError
from prompt_tune.models.context import PromptContext
from prompt_tune.models.text_tower import TextTower


@pytest.fixture(scope="module")
def tower(text_tower: Path) -> TextTower:
    return TextTower.load(f"local-dir:{text_tower}")


@pytest.mark.parametrize("class_specific", [False, True])
def test_context_of_words_gives_the_embeddings_of_the_whole_sentence(tower: TextTower, class_specific: bool) -> None:
    context = PromptContext(tower, CLASSES, n_ctx=4, initial_words="a photo of a", class_specific=class_specific)
    wanted = tower.embed(["a photo of a lorry", "a photo of a truck", "a photo of a traffic light"])
    np.testing.assert_allclose(context.embeddings(), wanted[[[0, 1], [2, 2]]], atol=1e-5)


@pytest.mark.parametrize(("class_specific", "shape"), [(False, (3, 64)), (True, (2, 2, 3, 64))])
def test_context_shape_is_shared_or_one_a_prompt(
    tower: TextTower, class_specific: bool, shape: tuple[int, ...]
) -> None:
    context = PromptContext(tower, CLASSES, n_ctx=3, class_specific=class_specific)
    assert tuple(context.ctx.shape) == shape
    assert [name for name, _ in context.named_parameters()] == ["ctx"] and list(context.state_dict()) == ["ctx"]
    rows = context.embeddings()
    assert rows.shape == (2, 2, 512) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(rows[1, 0], rows[1, 1])  # one prompt, repeated


def test_context_gradient_of_a_class_reaches_its_own_vectors_alone(tower: TextTower) -> None:
    context = PromptContext(tower, CLASSES)
    context()[0, 1].sum().backward()
    gradient = context.ctx.grad
    assert gradient is not None
    assert (gradient.flatten(2).abs().sum(2) > 0).tolist() == [[False, True], [False, False]]
    assert not any(p.requires_grad or p.grad is not None for p in tower.parameters().values())


def test_context_gradient_is_that_of_finite_differences(tower: TextTower) -> None:
    context = PromptContext(tower, [("dog",)], n_ctx=2)
    direction = torch.randn(512, generator=torch.Generator().manual_seed(1))
    (context()[0, 0] @ direction).backward()
    step = torch.randn(context.ctx.shape, generator=torch.Generator().manual_seed(2)) * 1e-3
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            context.ctx.add_(sign * step)
            values.append(float(context()[0, 0] @ direction))
            context.ctx.sub_(sign * step)
    assert context.ctx.grad is not None
    assert (values[0] - values[1]) / 2 == pytest.approx(float((context.ctx.grad * step).sum()), rel=0.02)


def test_context_of_the_same_seed_is_the_same(tower: TextTower) -> None:
    one, same, other = (PromptContext(tower, CLASSES, seed=seed).ctx for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_context_that_fills_the_window_is_embedded_and_one_more_is_refused(tower: TextTower) -> None:
    assert PromptContext(tower, CLASSES, n_ctx=73).embeddings().shape == (2, 2, 512)
    with pytest.raises(VocabularyError) as refusal:
        PromptContext(tower, CLASSES, n_ctx=80)
    assert str(refusal.value).startswith("The context length must be at most 74 for 'lorry' (77-token window).")
    with pytest.raises(VocabularyError, match="at most 73 for 'traffic light'"):
        PromptContext(tower, CLASSES, n_ctx=74)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"n_ctx": 0}, "must be at least 1. Received: 0."),
        ({"initial_words": "a photo"}, "have 2 tokens; the context length is 4. Give --context-length 2"),
        ({"initial_words": " "}, "has no token"),
    ],
)
def test_context_that_cannot_be_is_refused(tower: TextTower, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(VocabularyError, match=reason):
        PromptContext(tower, CLASSES, **settings)


@pytest.mark.parametrize(
    ("position", "sentence"),
    [("end", "one two three {}"), ("middle", "one {} two three"), ("front", "{} one two three")],
)
def test_context_stands_where_the_position_says(tower: TextTower, position: TokenPosition, sentence: str) -> None:
    words = {"n_ctx": 3, "initial_words": "one two three"}
    context = PromptContext(tower, CLASSES, token_position=position, class_specific=False, **words)  # type: ignore[arg-type]
    wanted = tower.embed([sentence.format(name) for name in ("lorry", "truck", "traffic light")])
    np.testing.assert_allclose(context.embeddings(), wanted[[[0, 1], [2, 2]]], atol=1e-5)


def test_several_prompts_per_class_start_apart_and_a_class_repeats_its_own(tower: TextTower) -> None:
    context = PromptContext(tower, CLASSES, prompts_per_class=2, n_ctx=2)
    assert context.ctx.shape == (2, 4, 2, 64) and context.texts[0] == ("lorry", "truck", "lorry", "truck")
    rows = context.embeddings()
    assert len(np.unique(rows[0].round(4), axis=0)) == 4 and len(np.unique(rows[1].round(4), axis=0)) == 2
    np.testing.assert_array_equal(rows[1, :2], rows[1, 2:])
    alone = PromptContext(tower, CLASSES, n_ctx=2)
    assert torch.equal(context.ctx[:, 0], alone.ctx[:, 0])  # the first prompt is what one alone would be
    spelt = PromptContext(tower, CLASSES, prompts_per_class=2, n_ctx=4, initial_words="a photo of a")
    assert torch.equal(spelt.ctx[0, 0, 0], tower.token_vectors(tower.tokenize("a"))[0])
    assert not torch.equal(spelt.ctx[0, 2], spelt.ctx[0, 0])


def test_adopt_copies_what_both_have_and_leaves_the_rest_at_its_start(tower: TextTower) -> None:
    old = learned_context(tower, seed=3)
    new = PromptContext(tower, [("bus",), ("traffic light",), ("lorry", "rig", "truck")])
    start = new.ctx.detach().clone()
    assert new.adopt(old) == [False, True, True]
    assert torch.equal(new.ctx[0], start[0]) and torch.equal(new.ctx[2, 1], start[2, 1])
    assert torch.equal(new.ctx[1, 0], old.ctx[1, 0])
    assert torch.equal(new.ctx[2, 0], old.ctx[0, 0]) and torch.equal(new.ctx[2, 2], old.ctx[0, 1])


def test_adopt_of_shared_context_is_the_shared_context(tower: TextTower) -> None:
    old = learned_context(tower, class_specific=False)
    new = PromptContext(tower, [("lorry", "truck"), ("bus",)], class_specific=False)
    assert new.adopt(old) == [True, False] and torch.equal(new.ctx, old.ctx)


def test_adopt_of_another_kind_of_context_is_refused(tower: TextTower) -> None:
    with pytest.raises(VocabularyError, match="has `n_ctx` 3, and this one has 4"):
        PromptContext(tower, CLASSES).adopt(PromptContext(tower, CLASSES, n_ctx=3))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"token_position": "left"}, "one of end, middle, front. Received: 'left'"),
        ({"prompts_per_class": 0}, "at least 1"),
        ({"prompts_per_class": 2, "class_specific": False}, "exactly 1 with shared context. Received: 2"),
    ],
)
def test_context_of_settings_that_are_none_is_refused(tower: TextTower, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(VocabularyError, match=reason):
        PromptContext(tower, CLASSES, **settings)


@pytest.mark.parametrize("classes", [[("car",), ("car",)], [("",)]])
def test_context_of_bad_names_is_refused(tower: TextTower, classes: list[tuple[str, ...]]) -> None:
    with pytest.raises(VocabularyError):
        PromptContext(tower, classes)


@pytest.mark.parametrize("class_specific", [True, False])
def test_some_classes_have_the_embeddings_and_gradients_that_they_have_among_all(
    tower: TextTower, class_specific: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the prompts go through the tower in parts, of which only the gradient is kept."""
    classes = [("lorry", "truck", "heavy lorry"), ("a red bicycle",), ("boat",), ("car", "van"), ("tree",)]
    context = PromptContext(tower, classes, n_ctx=3, class_specific=class_specific, token_position="middle")
    chosen = torch.tensor([1, 3, 4])

    def gradient(rows: torch.Tensor) -> torch.Tensor:
        direction = torch.randn(3, 3, 512, generator=torch.Generator().manual_seed(1))
        return torch.autograd.grad((rows * direction).sum(), context.ctx)[0]

    whole = context()[chosen]
    wanted = gradient(whole)
    for part in (128, 2):
        monkeypatch.setattr("prompt_tune.models.context.PART", part)
        for rows in (context(chosen), context()[chosen]):
            torch.testing.assert_close(rows, whole, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(gradient(rows), wanted, rtol=1e-3, atol=1e-5)
