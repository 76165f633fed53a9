"""Labels of vocabulary files: given, from the file, from `export --name`, from the folder."""

from pathlib import Path

import pytest
from vocabularies import learned, refusal_of

from prompt_tune.runtime.labels import checked_label, label_of, load_labelled, named_file


def test_name_before_the_equals_sign_is_the_label(tmp_path: Path) -> None:
    assert named_file("night=run/learned.vocab.safetensors") == ("night", Path("run/learned.vocab.safetensors"))
    assert named_file(Path("night=run/a=b")) == ("night", Path("run/a=b"))
    assert named_file("run/a.vocab.safetensors") == (None, Path("run/a.vocab.safetensors"))
    assert named_file("/data/a=b/c") == (None, Path("/data/a=b/c"))  # a folder, no label
    assert named_file(f"{'x' * 5000}=run/a") == ("x" * 5000, Path("run/a"))  # too long for the name of a file
    there = tmp_path / "a=b.vocab.safetensors"
    there.touch()
    assert named_file(there) == (None, there)


@pytest.mark.parametrize("name", ["", " ", "original", "a\nb", "a\u202eb"])
def test_names_that_cannot_be_labels_are_refused(name: str) -> None:
    text = refusal_of(lambda: checked_label(name))
    assert text.startswith("A label must be a word such as `forklifts`, and not `original`. Received: ")
    assert refusal_of(lambda: named_file(f"{name}=a.vocab.safetensors")) == text


@pytest.mark.parametrize(
    ("file", "given", "taken", "label"),
    [
        ("run/night.vocab.safetensors", None, (), "night"),
        ("run/night.vocab.safetensors", "day", (), "night"),  # a file with a name of its own
        ("run/learned.vocab.safetensors", None, (), "learned"),
        ("run/learned.vocab.safetensors", None, ("learned",), "run"),
        ("run/learned.vocab.safetensors", "day", ("learned",), "day"),
        ("run/learned.vocab.safetensors", "day", ("day",), "run"),
        ("run/learned.vocab.safetensors", "original", (), "learned"),
        ("run/learned.vocab.safetensors", 7, (), "learned"),
        ("run/learned.vocab.safetensors", "a\u2028b", (), "learned"),
        ("run/other", None, ("other",), "other"),  # which the detector refuses
    ],
)
def test_label_of_a_file(file: str, given: object, taken: tuple[str, ...], label: str, tmp_path: Path) -> None:
    vocabulary = learned("a", provenance={} if given is None else {"label": given})
    assert label_of(tmp_path / file, vocabulary, taken) == label


def test_files_of_several_runs_have_labels_of_their_own(tmp_path: Path) -> None:
    places = []
    for run in ("first", "second", "third"):
        (tmp_path / run).mkdir()
        places.append(tmp_path / run / "learned.vocab.safetensors")
        learned(run).save(places[-1])
    found = load_labelled([places[0], places[1], f"mine={places[2]}"])
    assert {label: part.names for label, part in found.items()} == {
        "learned": ("first",),
        "second": ("second",),
        "mine": ("third",),
    }
