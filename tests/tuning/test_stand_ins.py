"""Negatives that need no image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from subsets import write_subset

from prompt_tune.config import FitConfig
from prompt_tune.datasets.sample import CLASSES, write_sample
from prompt_tune.errors import VocabularyError
from prompt_tune.models.embeddings import build_vocabulary, original_vocabulary
from prompt_tune.models.text_tower import TextTower
from prompt_tune.models.world import World
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import AGAINST_WEIGHT, FitInputs, prepare
from prompt_tune.tuning.stand_ins import SELF_LOGIT, StandIns
from prompt_tune.vocabulary.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def world() -> World:
    return World.load("tiny")


@pytest.fixture(scope="module")
def original(world: World) -> Vocabulary:
    return original_vocabulary(world, TextTower.load("tiny"))


def test_a_class_scores_073_on_its_own_stand_in(world: World, original: Vocabulary) -> None:
    """Two vocabularies of one class each: the loss is the softplus of its logit, which the head gives too."""
    one = original.select([original.names[3]])
    own = torch.tensor(one.embeddings)
    stand_ins = StandIns(world, [one], [("forklift",)])
    assert stand_ins.loss(own).item() == pytest.approx(np.log1p(np.exp(SELF_LOGIT)), rel=1e-5)
    # a region that the folded head gives logit 1 for class 3 gives other classes what the stand-in gives
    other = torch.tensor(original.select([original.names[5]]).embeddings)
    cosine = float((own[0, 0] * other[0, 0]).sum())
    shift = world.head.shift[:, 0].numpy()
    logits = (SELF_LOGIT - shift) * cosine + shift
    assert stand_ins.loss(other).item() == pytest.approx(np.log1p(np.exp(logits)).mean(), rel=1e-4)


def test_a_class_that_a_learned_class_is_named_after_is_no_negative(world: World, original: Vocabulary) -> None:
    name = original.names[3]
    rows = torch.tensor(original.embeddings[[3]])
    assert StandIns(world, [original.select([name])], [(name,)]).loss(rows).item() == 0
    assert StandIns(world, [original.select([name])], [("thing", name + "s")]).loss(rows).item() == 0
    assert StandIns(world, [original.select([name])], [("thing",)]).loss(rows).item() > 1


def test_against_another_vocabulary_learned_classes_stay_away_from_its_classes(world: World, tmp_path: Path) -> None:
    """Each half of the classes is learned alone; the second half once against the first."""
    data = write_sample(tmp_path / "set", n_images=20)[0]
    halves = [list(CLASSES)[:3], list(CLASSES)[3:]]
    first, second = (write_subset(data, tmp_path / names[0], names) for names in halves)
    settings = FitConfig(epochs=6, updates=10, views=1)
    files = [tmp_path / name / "learned.vocab.safetensors" for name in ("first", "alone", "against")]
    fit(FitInputs("tiny", first), files[0].parent, config=settings)
    fit(FitInputs("tiny", second), files[1].parent, config=settings)
    strong = replace(settings, stand_ins=1000.0)
    fit(FitInputs("tiny", second, against=[files[0]]), files[2].parent, config=strong)
    other, alone, against = map(Vocabulary.load, files)
    stand_ins = StandIns(world, [other], [(name,) for name in halves[1]])
    near, far = (stand_ins.loss(torch.tensor(part.embeddings)).item() for part in (alone, against))
    assert far < 0.7 * near
    inputs = FitInputs("tiny", second, against=[files[0]])
    assert prepare(inputs, settings, "cpu").config.stand_ins == AGAINST_WEIGHT


def test_against_a_vocabulary_of_another_tower_is_refused(tmp_path: Path) -> None:
    data = write_sample(tmp_path / "set", n_images=2)[0]
    other = replace(build_vocabulary("tiny", [("lorry",)]), text_tower="0" * 64)
    other.save(tmp_path / "other.vocab.safetensors")
    with pytest.raises(VocabularyError, match=r"other\.vocab\.safetensors` was made for text tower 000000"):
        prepare(FitInputs("tiny", data, against=[tmp_path / "other.vocab.safetensors"]), FitConfig(), "cpu")


def test_a_background_row_is_no_negative(world: World, original: Vocabulary) -> None:
    two = original.select([original.names[3], original.names[5]])
    marked = replace(two, background=((two.names[1], " "),))
    one = original.select([original.names[3]])
    rows = torch.tensor(two.embeddings[1:])
    loss = StandIns(world, [marked], [("forklift",)]).loss(rows).item()
    assert loss == StandIns(world, [one], [("forklift",)]).loss(rows).item()
    assert loss != StandIns(world, [two], [("forklift",)]).loss(rows).item()
