"""What `vocab diff` lists, on vocabularies whose differences are known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from vocabularies import golden, learned

from prompt_tune.cli import command
from prompt_tune.vocabulary.diff import Change, Moved, VocabularyDiff, diff
from prompt_tune.vocabulary.vocabulary import Vocabulary

NOTHING = VocabularyDiff(False, (), (), (), (), (), (), (), False, ())


def turned(vocabulary: Vocabulary, row: int, cosine: float) -> np.ndarray:
    """The embeddings with one class's prompts turned by that cosine."""
    embeddings = vocabulary.embeddings.astype(np.float64)
    for prompt in embeddings[row]:
        other = np.roll(prompt, 1)
        other -= (other @ prompt) * prompt
        prompt[:] = cosine * prompt + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)
    return embeddings.astype(np.float32)


def test_same_vocabulary_is_identical() -> None:
    found = diff(golden(), golden())
    assert found == replace(NOTHING, identical=True)
    assert found.is_empty


def test_added_and_removed_classes_are_named_in_order() -> None:
    before, after = learned("a", "b", "c"), learned("d", "b", "e")
    found = diff(before, replace(after, embeddings=before.embeddings))
    assert (found.added, found.removed, found.reordered) == (("d", "e"), ("a", "c"), False)
    assert (found.moved, found.metadata) == ((), ())


@pytest.mark.parametrize("cosine", [0.0, 0.9, 0.999])
def test_moved_class_has_its_cosine(cosine: float) -> None:
    before = learned("a", "b")
    found = diff(before, replace(before, embeddings=turned(before, 1, cosine)))
    assert found == replace(NOTHING, moved=(Moved("b", found.moved[0].cosine),))
    assert found.moved[0].cosine == pytest.approx(cosine, abs=2e-6)


def test_prompts_in_another_order_or_repeated_do_not_move_a_class() -> None:
    before = learned("a", "b", n_prompts=2)
    swapped = diff(before, replace(before, embeddings=before.embeddings[:, ::-1]))
    assert swapped == NOTHING and swapped.is_empty
    repeated = diff(before, replace(before, embeddings=before.padded(5)))
    assert repeated == replace(NOTHING, metadata=(Change("n_prompts", 2, 5),))


def test_one_prompt_of_several_that_is_lost_moves_the_class_by_it() -> None:
    before = learned("a", n_prompts=2)
    one = before.embeddings[:, [0, 0]]
    found = diff(before, replace(before, embeddings=one))
    expected = float(before.embeddings[0, 0].astype(np.float64) @ before.embeddings[0, 1])
    assert [moved.name for moved in found.moved] == ["a"]
    assert found.moved[0].cosine == pytest.approx(expected, abs=2e-6)
    assert diff(replace(before, embeddings=one), before).moved == found.moved


def test_threshold_and_calibration_are_listed_as_decimal_numbers() -> None:
    before = learned("a", "b", thresholds=[0.25, 0.3])
    after = replace(before, thresholds=np.array([0.4, 0.3], np.float32), calibration=np.array([[2, 0.1], [1, 0]]))
    found = diff(before, after)
    assert found == replace(
        NOTHING,
        rethresholded=(Change("a", 0.25, 0.4),),
        recalibrated=(Change("a", None, [2.0, 0.1]), Change("b", None, [1.0, 0.0])),
    )


def test_limits_of_overlap_are_listed() -> None:
    before = learned("a", "b", nms_iou=[0.5, 0.6])
    after = replace(before, nms_iou=np.array([0.5, 0.7], np.float32))
    assert diff(before, after) == replace(NOTHING, resuppressed=(Change("b", 0.6, 0.7),))
    assert not diff(before, after).is_empty
    offsets = np.array([[0.125, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    moved = replace(before, box_offsets=offsets)
    found = diff(moved, replace(moved, box_offsets=offsets * 2))
    assert found.reboxed == (Change("a", [0.125, 0, 0, 0], [0.25, 0, 0, 0]),) and not found.is_empty
    assert diff(before, moved).reboxed[0] == Change("a", None, [0.125, 0, 0, 0])
    assert diff(before, replace(before, nms_iou=None)).resuppressed == (Change("a", 0.5, None), Change("b", 0.6, None))


def test_other_order_of_classes_is_said() -> None:
    before = learned("a", "b", "c")
    assert diff(before, before.select(["b", "a", "c"])) == replace(NOTHING, reordered=True)
    assert diff(before, before.select(["b", "c"])) == replace(NOTHING, removed=("a",))


def test_changed_origin_and_provenance_are_listed() -> None:
    before = learned("a", provenance={"settings": {"seed": 0, "epochs": 20}, "ap": 0.5})
    provenance: Any = {"settings": {"seed": 1, "epochs": 20}, "by": "me"}
    after = replace(before, kind="plain", detector="a" * 64, guide="b" * 64, provenance=provenance)
    assert diff(before, after).metadata == (
        Change("kind", "learned", "plain"),
        Change("detector", "d" * 64, "a" * 64),
        Change("guide", "9" * 64, "b" * 64),
        Change("provenance.ap", 0.5, None),
        Change("provenance.by", None, "me"),
        Change("provenance.settings.seed", 0, 1),
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Two files that differ in everything."""
    before = learned("lorry", "[red]car[/red]", "van", provenance={"seed": 0})
    after = replace(
        before,
        names=("[red]car[/red]", "lorry", "bus"),
        embeddings=turned(before, 0, 0.5)[[1, 0, 2]],
        thresholds=np.array([0.5, 0.25, 0.25], np.float32),
        calibration=np.array([[1, 0], [2, 0.5], [1, 0]], np.float32),
        detector="a" * 64,
        provenance={"seed": 1},
    )
    paths = tmp_path / "a.vocab.safetensors", tmp_path / "b.vocab.safetensors"
    for vocabulary, path in zip((before, after), paths, strict=True):
        vocabulary.save(path)
    return str(paths[0]), str(paths[1])


def test_vocab_diff_prints_a_row_for_each_change(files: tuple[str, str]) -> None:
    done = CliRunner().invoke(command, ["vocab", "diff", "--all", *files])
    assert done.exit_code == 0
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.stdout.splitlines() if "│" in line]
    assert rows == [
        ["added", "bus", "", ""],
        ["removed", "van", "", ""],
        ["moved", "lorry", "", "cosine 0.500000"],
        ["threshold", "[red]car[/red]", "0.25", "0.5"],
        ["scale, shift", "lorry", "none", "2.0, 0.5"],
        ["scale, shift", "[red]car[/red]", "none", "1.0, 0.0"],
        ["order", "", "", "other class ids"],
        ["detector", "", "d" * 12, "a" * 12],
        ["provenance.seed", "", "0", "1"],
    ]


def test_vocab_diff_json_is_the_same_in_full(files: tuple[str, str]) -> None:
    done = CliRunner().invoke(command, ["vocab", "diff", *files, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads(json.dumps(diff(*map(Vocabulary.load, files)).to_json()))
    found = json.loads(done.stdout)
    assert found["metadata"][0] == {"name": "detector", "before": "d" * 64, "after": "a" * 64}
    assert (found["added"], found["removed"], found["identical"], found["reordered"]) == (["bus"], ["van"], False, True)


def test_vocab_diff_of_identical_files_says_so(files: tuple[str, str]) -> None:
    done = CliRunner().invoke(command, ["vocab", "diff", files[0], files[0]])
    assert (done.exit_code, done.stdout) == (0, "identical\n")


def test_vocab_diff_of_swapped_prompts_says_that_nothing_counts(tmp_path: Path) -> None:
    before = learned("a", n_prompts=2)
    before.save(tmp_path / "a.vocab.safetensors")
    replace(before, embeddings=before.embeddings[:, ::-1]).save(tmp_path / "b.vocab.safetensors")
    paths = [str(tmp_path / f"{name}.vocab.safetensors") for name in "ab"]
    done = CliRunner().invoke(command, ["vocab", "diff", *paths])
    assert done.exit_code == 0
    assert done.stdout.startswith("No class or field differs.")
