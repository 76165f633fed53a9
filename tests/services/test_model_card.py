"""The model card: what the Hub reads of it, its numbers, and that no name becomes Markdown."""

from typing import Any

import extras
import pytest
from bundles import learned_for_tiny, original_vocabulary

from prompt_tune.services.model_card import About, model_card, shown_size
from prompt_tune.vocabulary.vocabulary import Vocabulary

extras.needs("huggingface_hub", "yaml")

ABOUT = About("me/gizmos", "agpl-3.0", "Counting gizmos on our yard.")
PROVENANCE: dict[str, Any] = {
    "val_ap": 0.788024,
    "val_ap50": 0.969079,
    "val_images": 20,
    "train_images": 1,
    "replay_images": 3,
    "unlearned": [
        {"template": "{}", "chosen": "", "ap": 0.1, "ap50": 0.25},
        {"template": "a photo of {}", "chosen": "the best", "ap": 0.2, "ap50": 0.5},
    ],
    "thresholds": {"rule": "best F1", "expected": {"gizmo": {"precision": 0.9, "recall": 0.8}}},
}


def learned(*names: str, **provenance: Any) -> Vocabulary:
    """A vocabulary with this provenance."""
    rows = original_vocabulary().embeddings[: len(names)]
    return learned_for_tiny(names, rows, provenance=provenance)


def card(vocabulary: Vocabulary, about: About = ABOUT) -> str:
    return model_card(about, original_vocabulary(), vocabulary, {"detector.onnx": 9_566_771}, {"curves.png": "Loss"})


def test_front_matter_is_what_the_hub_reads() -> None:
    import yaml

    _, front, _ = card(learned("gizmo", **PROVENANCE)).split("---\n", 2)
    found = yaml.safe_load(front)
    assert {name: found[name] for name in ("library_name", "license", "pipeline_tag")} == {
        "library_name": "prompt-tune",
        "license": "agpl-3.0",
        "pipeline_tag": "object-detection",
    }
    (model,) = found["model-index"]
    (result,) = model["results"]
    assert (model["name"], result["task"]["type"]) == ("gizmos", "object-detection")
    assert result["dataset"]["name"] == "Own validation images (20)"
    assert {part["type"]: part["value"] for part in result["metrics"]} == {"ap50": 0.9691, "ap": 0.788}


def test_sentences_have_the_numbers_of_the_run() -> None:
    text = card(learned("gizmo", **PROVENANCE))
    assert "reach AP50 0.969 and COCO's AP 0.788 on 20 validation images." in text
    assert "Without learning, AP50 there is 0.250 with the plain name and 0.500 with the best template." in text
    assert "It was trained on 1 labelled image, and 3 images without the new objects." in text
    (threshold,) = learned("gizmo").thresholds
    assert f"| gizmo | {threshold:.3f} | 0.900 | 0.800 |" in text
    assert "## What it was made for\n\nCounting gizmos on our yard." in text
    assert 'detector = Detector("hf://me/gizmos")' in text
    assert "| `detector.onnx` | 9.6 MB |" in text
    assert "![Loss](curves.png)" in text


@pytest.mark.parametrize(
    ("folds", "words"),
    [(5, "in a 5-fold cross-validation on its training images."), (1, "on the images that it was trained on, so")],
)
def test_card_says_where_few_images_were_measured(folds: int, words: str) -> None:
    text = card(learned("gizmo", **PROVENANCE, cross_validated=folds))
    assert words in text
    assert "took no part in learning" not in text


def test_vocabulary_without_numbers_has_a_card_without_them() -> None:
    text = card(learned("gizmo"), About("me/gizmos", "other"))
    assert "model-index" not in text
    assert "Its files record no measurement." in text
    assert "Its author has not said what it was made for." in text
    assert "Precision and recall are" not in text


@pytest.mark.parametrize("odd", [{"thresholds": 3}, {"val_ap": True}, {"val_ap50": "x"}, {"unlearned": {}}])
def test_odd_provenance_is_no_error(odd: dict[str, Any]) -> None:
    assert "# gizmos" in card(learned("gizmo", **(PROVENANCE | odd)))


def test_names_stay_text() -> None:
    name = "a|b <img src=x> [x](http://x) `c` *d*"
    text = card(learned(name), About("me/gizmos", "other", "<script>\n# Heading"))
    assert r"| a\|b \<img src=x\> \[x\]\(http://x\) \`c\` \*d\* |" in text
    assert r"\<script\> \# Heading" in text
    assert "\n# Heading" not in text


def test_sizes_are_shown_for_people() -> None:
    assert [shown_size(n) for n in (1, 15_008, 9_566_771, 2_000_000_000)] == ["1 B", "15.0 kB", "9.6 MB", "2.0 GB"]
