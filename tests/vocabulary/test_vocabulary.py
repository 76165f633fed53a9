import hashlib
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT
from vocabularies import DETECTOR, GUIDE, TOWER, golden, learned, refusal_of, unit_rows

from prompt_tune.contract import DEFAULT_THRESHOLD
from prompt_tune.vocabulary.format import decode, encode
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest, merge


def test_vocabulary_keeps_read_only_float32_copies() -> None:
    embeddings, thresholds = unit_rows(1, 2).astype(np.float64), np.array([0.3])
    provenance: dict[str, Any] = {"seeds": [1]}
    given: dict[str, Any] = {"embeddings": embeddings, "thresholds": thresholds, "provenance": provenance}
    vocabulary = replace(learned("lorry"), **given)
    before = vocabulary.to_bytes()
    embeddings[:], thresholds[:] = 0, 0
    provenance["seeds"].append(2)
    assert vocabulary.to_bytes() == before
    for array in (vocabulary.embeddings, vocabulary.thresholds):
        assert array.dtype == np.float32 and array.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize(("given", "expected"), [({}, DEFAULT_THRESHOLD), ({"thresholds": 0.5}, 0.5)])
def test_vocabulary_with_one_threshold_has_it_for_every_class(given: dict[str, Any], expected: float) -> None:
    assert learned("lorry", "car", **given).thresholds.tolist() == [expected, expected]


def test_vocabulary_of_what_is_no_number_is_refused() -> None:
    embeddings: Any = [["lorry"]]
    assert "`embeddings` must be an array of numbers. Received: list." in refusal_of(
        lambda: Vocabulary(("a",), embeddings, kind="plain", detector="", text_tower=TOWER, guide=GUIDE)
    )
    assert "`thresholds` must be an array of numbers" in refusal_of(lambda: learned("a", thresholds=["high"]))


def test_vocabulary_with_provenance_that_is_no_json_is_refused() -> None:
    for provenance in ({"array": np.zeros(2)}, {"set": {1}}, {"ap": float("inf")}, {1: "a", "b": 2}):
        assert "`provenance` must be plain JSON" in refusal_of(lambda p=provenance: learned("a", provenance=p))  # type: ignore[misc]


def test_pickled_vocabulary_comes_back_read_only() -> None:
    saved = learned("lorry", "car", n_prompts=2, calibration=[[2, 1], [1, 0]], provenance={"seed": 1})
    back = pickle.loads(pickle.dumps(saved))
    assert back.to_bytes() == saved.to_bytes() and not back.embeddings.flags.writeable


def test_new_vocabulary_with_controls_of_direction_is_refused() -> None:
    for name in ("exe.\u202egnp", "a\u200f", "\u2066b"):
        assert "control the direction of text" in refusal_of(partial(learned, "a", name))
        assert "control the direction of text" in refusal_of(partial(learned("a").rename, {"a": name}))
    assert learned("\U0001f469\u200d\U0001f692", "گاو\u200cمیش").names[1] == "گاو\u200cمیش"  # joiners stay


def test_file_made_before_with_such_a_name_still_loads_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, name = tmp_path / "old.vocab.safetensors", "exe.\u202egnp"
    learned("plain", "x" * 5).save(path)
    fields, tensors = decode(path)
    path.write_bytes(encode(fields | {"names": ["plain", name]}, tensors))
    old = Vocabulary.load(path)
    assert old.names == ("plain", name)
    assert caplog.messages == [
        f"{path}: class names have characters that control the direction of text: 'exe.\\u202egnp'. Rename them "
        "(`vocab rename`)."
    ]
    caplog.clear()
    kept = [old.select([name]), old.remove(["plain"]), merge([old, learned("b")]), pickle.loads(pickle.dumps(old))]
    assert all(name in part.names for part in kept)  # what is made from it still has the name
    old.save(tmp_path / "again.vocab.safetensors")
    assert (tmp_path / "again.vocab.safetensors").read_bytes() == path.read_bytes() and not caplog.messages
    assert old.rename({name: "exe"}).names == ("plain", "exe")


def test_digest_is_sha256_of_the_embeddings_bytes() -> None:
    vocabulary = learned("lorry", "car", n_prompts=2)
    expected = hashlib.sha256(vocabulary.embeddings.astype("<f4").tobytes()).hexdigest()
    assert vocabulary.digest == guide_digest(vocabulary.embeddings) == expected
    assert guide_digest(np.asfortranarray(vocabulary.embeddings.astype(np.float64))) == expected
    assert guide_digest(vocabulary.embeddings[::-1]) != expected


def test_plain_vocabulary_may_be_for_any_detector(tmp_path: Path) -> None:
    path = tmp_path / "a.vocab.safetensors"
    learned("lorry", kind="plain", detector="").save(path)
    assert Vocabulary.load(path).detector == ""


@pytest.mark.parametrize(
    "fields", [{"kind": "original"}, {"guide_mode": "own"}, {"kind": "plain", "guide_mode": "own"}]
)
def test_vocabulary_that_guides_has_its_own_digest_as_guide(fields: dict[str, Any]) -> None:
    embeddings = unit_rows(2, 1)
    assert learned("lorry", "car", guide=guide_digest(embeddings), **fields).digest == guide_digest(embeddings)
    assert "`guide` must be the vocabulary's own digest" in refusal_of(lambda: learned("lorry", "car", **fields))


# Editing


def calibrated() -> Vocabulary:
    return learned(
        "lorry",
        "car",
        "van",
        n_prompts=2,
        thresholds=[0.1, 0.2, 0.3],
        calibration=[[1, 0.1], [2, 0.2], [3, 0.3]],
        nms_iou=[0.4, 0.5, 0.6],
        box_offsets=[[0.1, 0, 0, 0], [0.2, 0, 0, 0], [0.3, 0, 0, 0]],
    )


def test_select_takes_the_rows_of_the_names_in_their_order() -> None:
    selected = calibrated().select(["van", "lorry"])
    assert selected.names == ("van", "lorry")
    assert np.array_equal(selected.embeddings, calibrated().embeddings[[2, 0]])
    assert np.allclose(selected.thresholds, [0.3, 0.1])
    assert selected.calibration is not None and np.allclose(selected.calibration, [[3, 0.3], [1, 0.1]])
    assert selected.nms_iou is not None and np.allclose(selected.nms_iou, [0.6, 0.4])
    assert selected.box_offsets is not None and np.allclose(selected.box_offsets[:, 0], [0.3, 0.1])
    assert selected.guide == GUIDE


def test_remove_keeps_the_others_in_order() -> None:
    removed = calibrated().remove(["car"])
    assert removed.to_bytes() == calibrated().select(["lorry", "van"]).to_bytes()


def test_rename_changes_names_alone_and_all_at_once() -> None:
    renamed = calibrated().rename({"lorry": "car", "car": "lorry", "van": "Transporter"})
    assert renamed.names == ("car", "lorry", "Transporter")
    assert replace(renamed, names=calibrated().names).to_bytes() == calibrated().to_bytes()


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda v: v.select([]), "A vocabulary must have at least one class."),
        (lambda v: v.remove(["lorry", "car", "van"]), "A vocabulary must have at least one class."),
        (lambda v: v.select(["lory"]), "No class 'lory' in this vocabulary. It has: 'lorry', 'car', 'van'."),
        (lambda v: v.select(["car", "car"]), "Class names must be unique; classes 0 and 1 are both 'car'."),
        (lambda v: v.remove(["car", "lory"]), "No class 'lory' in this vocabulary."),
        (lambda v: v.rename({"lory": "a"}), "No class 'lory' in this vocabulary."),
        (lambda v: v.rename({"lorry": "car"}), "Class names must be unique; classes 0 and 1 are both 'car'."),
        (lambda v: v.rename({"lorry": " "}), "The name of class 0 is empty."),
        (lambda v: v.padded(1), "`n_prompts` must be at least 2. Received: 1."),
    ],
)
def test_edit_with_bad_arguments_is_refused(edit: Callable[[Vocabulary], object], reason: str) -> None:
    assert reason in refusal_of(lambda: edit(calibrated()))


def test_unknown_class_of_large_vocabulary_lists_some() -> None:
    text = refusal_of(lambda: learned(*(f"thing {i}" for i in range(50))).select(["x"]))
    assert text.endswith("It has: " + ", ".join(f"'thing {i}'" for i in range(10)) + ", ... (50 in all).")


def seconds_of(edit: Callable[[Vocabulary], object], n_cls: int) -> float:
    """The best of nine runs of an edit on a vocabulary of so many classes."""
    embeddings = np.broadcast_to(unit_rows(), (n_cls, 1, 512))
    names = tuple(f"class {i}" for i in range(n_cls))
    vocabulary = Vocabulary(names, embeddings, kind="learned", detector=DETECTOR, text_tower=TOWER, guide=GUIDE)
    seconds = []
    for _ in range(9):  # other work on the machine only adds
        start = time.perf_counter()
        edit(vocabulary)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v.select(v.names[::-1]),
        lambda v: v.remove(v.names[::2]),
        lambda v: v.rename({name: f"new {name}" for name in v.names}),
        lambda v: merge([v, v.rename({name: f"new {name}" for name in v.names})]),
    ],
    ids=["select", "remove", "rename", "merge"],
)
def test_edit_of_twice_the_classes_takes_about_twice_the_time(edit: Callable[[Vocabulary], object]) -> None:
    # 4 times where each name is looked up in a list; both are larger than a processor's cache
    assert seconds_of(edit, 32_000) < 3.4 * seconds_of(edit, 16_000)


def test_select_of_original_vocabulary_is_a_guide_of_its_own() -> None:
    embeddings = unit_rows(3, 1)
    original = learned("a", "b", "c", kind="original", guide=guide_digest(embeddings))
    fewer = original.remove(["b"])
    assert fewer.guide == fewer.digest == guide_digest(embeddings[[0, 2]])


def test_select_of_vocabulary_with_own_guide_is_refused() -> None:
    own = learned("a", "b", guide_mode="own", guide=guide_digest(unit_rows(2, 1)))
    assert "with fewer classes, scores would change. Hide classes during" in refusal_of(lambda: own.remove(["b"]))
    assert own.rename({"a": "c"}).names == ("c", "b")


def test_padded_repeats_prompts_and_keeps_their_maximum() -> None:
    vocabulary = learned("lorry", "car", n_prompts=2)
    padded = vocabulary.padded(5)
    assert padded.shape == (2, 5, 512) and padded.dtype == np.float32
    assert np.array_equal(padded, vocabulary.embeddings[:, [0, 1, 0, 1, 0]])
    assert np.array_equal(vocabulary.padded(2), vocabulary.embeddings)


# Merging


def test_merge_keeps_order_pads_prompts_and_fills_calibration() -> None:
    one = learned("lorry", n_prompts=1, seed=1, thresholds=0.1, provenance={"seed": 1})
    two = learned(
        "car", "van", n_prompts=3, seed=2, thresholds=0.2, calibration=[[2, 0.5], [3, 1]], nms_iou=[0.5, 0.75]
    )
    merged = merge([one, two])
    assert merged.names == ("lorry", "car", "van") and merged.n_prompts == 3
    assert np.array_equal(merged.embeddings[:1], one.padded(3)) and np.array_equal(
        merged.embeddings[1:], two.embeddings
    )
    assert np.allclose(merged.thresholds, [0.1, 0.2, 0.2])
    assert merged.calibration is not None and merged.calibration.tolist() == [[1, 0], [2, 0.5], [3, 1]]
    assert merged.nms_iou is not None and merged.nms_iou.tolist() == [1, 0.5, 0.75]
    assert merged.box_offsets is None
    moving = merge([one, replace(two, box_offsets=np.full((2, 4), 0.25))])
    assert moving.box_offsets is not None and moving.box_offsets.tolist() == [[0] * 4, [0.25] * 4, [0.25] * 4]
    assert (merged.kind, merged.detector, merged.text_tower, merged.guide) == ("learned", DETECTOR, TOWER, GUIDE)
    assert merged.provenance == {
        "merged": [{"digest": one.digest, "provenance": {"seed": 1}}, {"digest": two.digest, "provenance": {}}]
    }
    assert merge([one, two]).to_bytes() == merged.to_bytes()
    assert merge([one]).calibration is None and merge([one]).nms_iou is None


@pytest.mark.parametrize(
    ("kinds", "expected"), [(("plain", "plain"), "plain"), (("plain", "learned"), "learned"), (("learned",), "learned")]
)
def test_merge_is_plain_only_where_all_are(kinds: tuple[str, ...], expected: str) -> None:
    assert merge([learned(f"class {i}", kind=kind) for i, kind in enumerate(kinds)]).kind == expected


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (
            {"detector": "0" * 64},
            f"Vocabulary 2 was made for detector {'0' * 12}, but vocabulary 1 has {DETECTOR[:12]}. Build them for one",
        ),
        ({"detector": "", "kind": "plain"}, f"was made for detector any, but vocabulary 1 has {DETECTOR[:12]}."),
        ({"text_tower": "0" * 64}, f"was made for text tower {'0' * 12}, but vocabulary 1 has {TOWER[:12]}."),
        (
            {"guide": "0" * 64},
            f"was made for guide {'0' * 12}, but vocabulary 1 has {GUIDE[:12]}.",
        ),
        (
            {"kind": "original", "guide": guide_digest(unit_rows(1, 1))},
            "Vocabulary 2 guides the neck (kind `original`, guide mode `original`); with more classes",
        ),
        (
            {"guide_mode": "own", "guide": guide_digest(unit_rows(1, 1))},
            "Vocabulary 2 guides the neck (kind `learned`, guide",
        ),
    ],
)
def test_merge_of_what_does_not_go_together_is_refused(other: dict[str, Any], reason: str) -> None:
    assert reason in refusal_of(lambda: merge([learned("lorry"), learned("car", **other)]))


def test_merge_of_nothing_or_of_one_name_twice_is_refused() -> None:
    assert refusal_of(lambda: merge([])) == "Nothing to merge: give at least one vocabulary."
    assert "classes 1 and 2 are both 'car'." in refusal_of(lambda: merge([learned("lorry", "car"), learned("car")]))


# The inference box


def test_import_without_torch_ultralytics_and_open_clip_works(tmp_path: Path) -> None:
    path = tmp_path / "a.vocab.safetensors"
    golden().save(path)
    code = """if True:
        import sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {"torch", "torchvision", "ultralytics", "open_clip", "onnx", "cv2"}:
                    raise ImportError(f"{name} is blocked")

        sys.meta_path.insert(0, Blocked())
        try:
            import torch
        except ImportError:
            print("blocked")
        import prompt_tune.vocabulary.names
        import prompt_tune.vocabulary.vocabulary
        vocabulary = prompt_tune.vocabulary.vocabulary.Vocabulary.load(sys.argv[1])
        print(vocabulary.names[0], len(prompt_tune.vocabulary.names.read_classes("coco")))
    """
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("blocked\nlorry 80\n", "")


def test_repr_is_one_line_that_names_the_classes() -> None:
    assert repr(learned("car")) == "<Vocabulary of 1 learned class: 'car'>"
    text = repr(learned(*(f"class {number}" for number in range(12))))
    assert text.startswith("<Vocabulary of 12 learned classes: 'class 0', ") and text.endswith("... (12 in all)>")
