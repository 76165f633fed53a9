"""The pretraining of `tiny` as a whole, and the files of the model that ships."""

from pathlib import Path

import pytest
from places import WEIGHTS

from prompt_tune.datasets.scenes import TRAINED
from prompt_tune.errors import RunError
from prompt_tune.models.embeddings import default_tower
from prompt_tune.models.text_tower import TextTower
from prompt_tune.models.world import World
from prompt_tune.tiny import skill
from prompt_tune.tiny.pretrain import pretrain
from prompt_tune.vocabulary.names import read_classes
from prompt_tune.vocabulary.vocabulary import Vocabulary


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_pretrain_writes_the_layout_of_the_model_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skill, "N_SCENES", 16)
    out = tmp_path / "out"
    measured = pretrain(out, tower_steps=5, detector_steps=2)
    assert files_of(out) == files_of(WEIGHTS) | {"detector-state.pt"}
    assert {"original_ap50", "shapes_ap50", "held_out_ap50", "guide_score_change"} <= set(measured)
    world, tower = World.load(out), TextTower.load(default_tower(out))
    vocabulary = Vocabulary.load(out / "original.vocab.safetensors")
    assert vocabulary.detector == world.digest and vocabulary.text_tower == tower.digest
    assert len(vocabulary.names) == 80


def test_pretrain_into_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot be made: .*\. Give another --out\."):
        pretrain(tmp_path / "file" / "out")


def test_original_names_are_those_of_the_list_that_ships() -> None:
    assert [names for names in read_classes("tiny")] == [(f"{c} {s}",) for c, s in TRAINED]
    assert Vocabulary.load(WEIGHTS / "original.vocab.safetensors").names == tuple(f"{c} {s}" for c, s in TRAINED)


def test_shipped_files_are_small_and_no_pickle() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".yaml", ".safetensors"}
    assert sum(path.stat().st_size for path in files) <= 30e6
