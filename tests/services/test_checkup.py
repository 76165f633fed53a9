"""The chain of `doctor` on checkpoints: one whose tower belongs to it, one whose tower does not, and none at all.

`tests/cli/test_doctor.py` runs it on `tiny`.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from prompt_tune.models.text_tower import LOCAL_PREFIX, TextTower
from prompt_tune.services.checkup import Checkup, check_model

SIZE = 96  # pixels


def results(found: Checkup) -> list[str]:
    return [step.result for step in found.steps]


def test_whole_chain_runs_on_a_checkpoint_with_its_tower(checkpoint: Path, text_tower: Path, tmp_path: Path) -> None:
    import torch

    spec = f"{LOCAL_PREFIX}{text_tower}"
    content = torch.load(checkpoint, weights_only=False)
    names = [content["model"].names[i] for i in range(80)]
    content["model"].txt_feats = torch.from_numpy(TextTower.load(spec).embed(names))[None].half()
    model = tmp_path / "kundenprojekt.pt"
    torch.save(content, model)
    stages: list[tuple[int, str]] = []
    found = check_model(
        model, text_tower=spec, image_size=SIZE, progress=lambda _, done, total, note: stages.append((done, note))
    )
    load, tower, export, plain, bits, fit, speed = found.steps
    assert [step.result for step in (load, tower, export, bits, speed)] == ["ok"] * 5, found
    assert (
        load.found.startswith("YOLO-World v2, scale n, ") and "80 class names with usable text features" in load.found
    )
    cosine = re.search(r"(\d\.\d+) at least, over 80 names", tower.found)
    assert cosine and 0.9999 < float(cosine[1]) <= 1.00001
    assert re.search(r"boxes differ by \S+ px at most and scores by \S+\.$", export.found)
    assert "0 bits with 1 learned row, 0 bits with 100 learned rows, of " in bits.found
    compared, beside = map(int, re.findall(r"of (\d+) original detections beside (\d+) learned", bits.found)[0])
    assert compared > 100 and beside > 100
    assert plain.result == "failed" and plain.found.startswith("On the photo: person 0.")  # random weights know no bus
    assert fit.found.startswith("AP50 ") and "with plain names or the best template" in fit.found
    assert f"One picture at {SIZE} px" in speed.found and "with 100 learned rows" in speed.found
    assert [done for done, _ in stages] == list(range(8)) and stages[2][1] == export.name
    assert found.model == "a checkpoint" and "kundenprojekt" not in str(found.to_json())


def test_tower_that_does_not_belong_fails_and_what_needs_none_runs(checkpoint: Path, text_tower: Path) -> None:
    found = check_model(checkpoint, text_tower=f"{LOCAL_PREFIX}{text_tower}", image_size=SIZE)
    assert results(found) == ["ok", "failed", "ok", "skipped", "ok", "skipped", "ok"]
    why = found.steps[1].found
    assert "does not belong to the detector" in why and "the rule is above 0.999" in why
    for private in (str(checkpoint), checkpoint.name, str(text_tower), "thing "):
        assert private not in str(found.to_json()), private
    assert found.steps[3].found == found.steps[5].found == "It needs the text tower, and that step failed."
    assert found.failed


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda folder: folder / "geheim.pt", "There is no detector"),
        (
            lambda folder: (folder / "geheim.pt").write_bytes(b"no checkpoint") and folder / "geheim.pt",
            "not a checkpoint",
        ),
    ],
)
def test_checkpoint_that_cannot_be_loaded_fails_once(make: Callable[[Path], Path], hint: str, tmp_path: Path) -> None:
    found = check_model(make(tmp_path), image_size=SIZE)
    assert results(found) == ["failed", *["skipped"] * 6] and hint in found.steps[0].found
    assert "geheim" not in str(found.to_json()) and str(tmp_path) not in str(found.to_json())
