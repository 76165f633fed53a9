"""The teacher of learned prompts: names in hand-written sentences, averaged."""

import numpy as np
import pytest
import torch
from towers import make_tower
from vocabularies import unit_rows

from prompt_tune.config import FitConfig
from prompt_tune.errors import VocabularyError
from prompt_tune.models.context import PromptContext
from prompt_tune.models.text_tower import TextTower, template_embeddings
from prompt_tune.tuning.loss import teacher_distance
from prompt_tune.vocabulary.names import read_templates

CLASSES = [("lorry", "truck"), ("traffic light",), ("bus", "coach", "minibus")]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> TextTower:
    return TextTower.load(make_tower(tmp_path_factory.mktemp("tower") / "tower", seed=3))


def test_template_that_is_the_bare_name_gives_the_plain_embeddings(tower: TextTower) -> None:
    np.testing.assert_allclose(template_embeddings(tower, CLASSES, ["{}"]), tower.embed_classes(CLASSES), atol=1e-6)


def test_templates_are_averaged_over_unit_rows_and_normalised(tower: TextTower) -> None:
    got = template_embeddings(tower, CLASSES, ["a {}.", "photo of {} and {}"])
    rows = tower.embed(["a traffic light.", "photo of traffic light and traffic light"])
    wanted = rows.mean(0) / np.linalg.norm(rows.mean(0))
    assert got.shape == (3, 3, 512) and got.dtype == np.float32
    np.testing.assert_allclose(got[1], np.tile(wanted, (3, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=2), 1, atol=1e-6)
    np.testing.assert_array_equal(got[0, 2], got[0, 0])  # fewer names repeat, in order


def test_templates_of_the_package_are_the_default(tower: TextTower) -> None:
    got = template_embeddings(tower, CLASSES[:1])
    np.testing.assert_array_equal(got, template_embeddings(tower, CLASSES[:1], read_templates()))
    assert len(read_templates()) > 1 and not np.allclose(got, tower.embed_classes(CLASSES[:1]), atol=1e-3)


def test_teacher_has_a_row_for_every_learned_prompt(tower: TextTower) -> None:
    context = PromptContext(tower, CLASSES, n_ctx=2, prompts_per_class=2)
    teacher = template_embeddings(tower, context.texts)
    assert teacher.shape == context.embeddings().shape == (3, 6, 512)
    np.testing.assert_array_equal(teacher[0, 0], teacher[0, 2])  # lorry, truck, lorry, truck
    assert not np.allclose(teacher[0, 0], teacher[0, 1], atol=1e-3)


def test_name_that_overruns_the_window_in_a_sentence_is_refused(tower: TextTower) -> None:
    with pytest.raises(VocabularyError, match="window"):
        template_embeddings(tower, [(" ".join(["word"] * 74),)], ["a photo of a {} there."])


def test_teacher_distance_is_the_squared_distance_of_unit_rows() -> None:
    rows = torch.from_numpy(unit_rows(3, 2))
    assert float(teacher_distance(rows, rows)) == 0
    assert float(teacher_distance(rows, -rows)) == pytest.approx(4, rel=1e-5)
    other = torch.from_numpy(unit_rows(3, 2, seed=1))
    cosine = (rows * other).sum(-1).mean()
    assert float(teacher_distance(rows, other)) == pytest.approx(2 - 2 * float(cosine), rel=1e-4)


def test_teacher_distance_alone_pulls_a_context_to_the_teacher(tower: TextTower) -> None:
    context = PromptContext(tower, CLASSES[:2], n_ctx=2)
    teacher = torch.from_numpy(template_embeddings(tower, context.texts))
    optimizer = torch.optim.AdamW([context.ctx], lr=FitConfig.learning_rate, weight_decay=0.0)
    distances = []
    for _ in range(30):
        distance = teacher_distance(context(), teacher)
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        distances.append(distance.item())
    assert distances[-1] < 0.5 * distances[0]
