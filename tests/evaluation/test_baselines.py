"""What names are worth without learning: its record, its words, and sentences that are too long."""

from dataclasses import fields

import numpy as np
import pytest

from prompt_tune.evaluation.baselines import (
    PLAIN,
    Baseline,
    before_and_after,
    best,
    name_embeddings,
    recorded_baselines,
)
from prompt_tune.evaluation.metrics import Metrics
from prompt_tune.models.text_tower import TextTower, template_embeddings


def baseline(template: str, ap50: float, chosen: str = "") -> Baseline:
    return Baseline(template, chosen, Metrics(*[ap50] * len(fields(Metrics))), {"a": ap50})


def test_record_of_a_baseline_comes_back_from_a_provenance() -> None:
    parts = [baseline(PLAIN, 0.25), baseline("a {}.", 0.5, "the best of 7 templates on these images")]
    found = recorded_baselines({"unlearned": [part.to_record() for part in parts]})
    assert [(part.template, part.chosen, part.metrics.ap, part.metrics.ap50) for part in found] == [
        (part.template, part.chosen, part.metrics.ap, part.metrics.ap50) for part in parts
    ]
    assert np.isnan(found[0].metrics.ap75) and not found[0].class_ap50


@pytest.mark.parametrize(
    "provenance",
    [{}, {"unlearned": "x"}, {"unlearned": ["x"]}, {"unlearned": [{"template": "{}", "ap": None, "ap50": 0.5}]}],
)
def test_provenance_without_a_whole_record_has_no_baselines(provenance: dict[str, object]) -> None:
    assert recorded_baselines(provenance) == ()


def test_before_and_after_in_words() -> None:
    assert before_and_after([], 0.9) == "learned 0.900"
    parts = [baseline(PLAIN, 0.0126), baseline("a {}.", 0.05, "the best of 7 templates on these images")]
    assert before_and_after(parts, 0.969) == (
        "plain name 0.013, best template 0.050 ('a {}.', the best of 7 templates on these images), learned 0.969"
    )


def test_best_is_the_first_of_those_with_the_highest_ap50() -> None:
    assert best([]) is None
    parts = [baseline("a {}", np.nan), baseline("b {}", 0.2), baseline("c {}", 0.2)]
    assert best(parts) is parts[1]


def test_names_are_embedded_alone_or_in_a_sentence_if_it_fits_the_tower() -> None:
    tower = TextTower.load("tiny")
    texts = [("gizmo", "star thing"), ("widget",)]
    for template, wanted in (
        (PLAIN, tower.embed_classes(texts)),
        ("art of the {}.", template_embeddings(tower, texts, ["art of the {}."])),
    ):
        found = name_embeddings(tower, texts, template)
        assert found is not None
        np.testing.assert_array_equal(found, wanted)
    assert name_embeddings(tower, texts, "very " * 200 + "{}") is None
