"""The readers of vocabulary files in package, Python kit and page, on one table of good and bad files."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import kit
import numpy as np
import pytest
from places import ROOT, TESTS
from vocabularies import learned
from vocabulary_files import Case, cases, damaged, write

from prompt_tune.errors import VocabularyError
from prompt_tune.runtime.labels import label_of
from prompt_tune.vocabulary.vocabulary import Vocabulary

OLD = sorted((TESTS / "data").rglob("*.vocab.safetensors"))
PAGE = """
import { readFileSync } from "node:fs";
const { readVocabulary } = await import(process.argv[1]);
const verdicts = readFileSync(0, "utf8").split("\\n").map((path) => {
  const bytes = readFileSync(path);
  try {
    readVocabulary(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length), path);
    return "";
  } catch (error) {
    return error.message;
  }
});
console.log(JSON.stringify(verdicts));
"""


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The Python kit's module that reads them."""
    return kit.module("kit_vocabulary")


def package_says(places: Sequence[Path]) -> list[str]:
    """For each file the error, or an empty text if it is read."""
    said = []
    for place in places:
        try:
            Vocabulary.load(place)
            said.append("")
        except VocabularyError as error:
            said.append(str(error))
    return said


def kit_says(program: ModuleType, places: Sequence[Path]) -> list[str]:
    said = []
    for place in places:
        try:
            program.read_vocabulary(place)
            said.append("")
        except SystemExit as error:
            said.append(str(error))
    return said


def page_says(places: Sequence[Path]) -> list[str]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    module = (ROOT / "export" / "web" / "vocabulary.js").as_uri()
    command = [node, "--input-type=module", "--eval", PAGE, module]
    done = subprocess.run(command, input="\n".join(map(str, places)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: list[str] = json.loads(done.stdout)
    return said


def check(files: Sequence[Case], places: Sequence[Path], said: Sequence[str]) -> None:
    wrong = [f"{one.name}: {text or 'taken'}" for one, text in zip(files, said, strict=True) if one.good == bool(text)]
    assert wrong == []
    for place, text in zip(places, said, strict=True):
        assert text == "" or (text.startswith(str(place)) and len(text.splitlines()) == 1 and len(text) < 600), text


@pytest.fixture(scope="module")
def files() -> list[Case]:
    found = cases()
    assert len(found) > 300 and sum(case.good for case in found) > 20
    assert len({case.name for case in found}) == len(found)
    assert [case.content for case in cases()] == [case.content for case in found]
    return found


@pytest.fixture(scope="module")
def places(files: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("vocabulary-files"), files)


def test_package_agrees_with_the_table(files: list[Case], places: list[Path]) -> None:
    check(files, places, package_says(places))


@pytest.mark.filterwarnings("error")
def test_python_kit_agrees_with_the_table(program: ModuleType, files: list[Case], places: list[Path]) -> None:
    check(files, places, kit_says(program, places))


def test_page_agrees_with_the_table(files: list[Case], places: list[Path]) -> None:
    check(files, places, page_says(places))


def test_old_files_are_read_by_all_three(program: ModuleType) -> None:
    assert len(OLD) == 8
    for said in (package_says(OLD), kit_says(program, OLD), page_says(OLD)):
        assert said == [""] * len(OLD)


def test_all_three_agree_on_files_with_random_damage(program: ModuleType, tmp_path: Path) -> None:
    files = damaged(600)
    places = write(tmp_path, files)
    said = {"package": package_says(places), "kit": kit_says(program, places), "page": page_says(places)}
    verdicts = np.array([[not text for text in texts] for texts in said.values()])  # (3, n)
    apart = np.flatnonzero(verdicts.any(axis=0) != verdicts.all(axis=0))
    assert [{reader: texts[number] for reader, texts in said.items()} for number in apart] == []
    assert 0 < verdicts[0].sum() < len(files)  # some damage changes nothing that is checked


def test_place_that_is_no_file_is_refused_by_the_kit(program: ModuleType, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for place in (tmp_path, tmp_path / "pipe"):
        (text,) = kit_says(program, [place])
        assert text == f"{place}: it must be a file of at most 2.25 GiB. Copy or build the file again."


def test_digest_of_the_page_is_sha_256() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    texts = [bytes(range(256))[:size] * times for size in (*range(57), 63, 64, 65, 119, 120, 128) for times in (1, 7)]
    script = """
        import { readFileSync } from "node:fs";
        const { sha256 } = await import(process.argv[1]);
        const parts = JSON.parse(readFileSync(0, "utf8")).map((hex) => Buffer.from(hex, "hex"));
        console.log(JSON.stringify(parts.map((part) => sha256(part.subarray(0, 5), part.subarray(5)))));
    """
    command = [node, "--input-type=module", "--eval", script, (ROOT / "export" / "web" / "sha256.js").as_uri()]
    given = json.dumps([text.hex() for text in texts])
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [hashlib.sha256(text).hexdigest() for text in texts]


def test_label_of_export_is_read_by_the_page_as_by_the_package(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    labels: list[object] = ["forklifts", "", " ", "original", 7, None, "a\u202eb", "a\nb", "Gabelstapler ü", "a b"]
    script = """
        import { readFileSync } from "node:fs";
        const { readVocabulary } = await import(process.argv[1]);
        const said = JSON.parse(readFileSync(0, "utf8")).map(([path, name]) => {
          const bytes = readFileSync(path);
          return readVocabulary(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length), name).label;
        });
        console.log(JSON.stringify(said));
    """
    asked, wanted = [], []
    for number, label in enumerate(labels):
        vocabulary = learned("a", provenance={"label": label})
        vocabulary.save(tmp_path / f"{number}.vocab.safetensors")
        for name in ("learned.vocab.safetensors", "night.vocab.safetensors"):
            asked.append([str(tmp_path / f"{number}.vocab.safetensors"), name])
            wanted.append(label_of(Path(name), vocabulary, ()))
    command = [node, "--input-type=module", "--eval", script, (ROOT / "export" / "web" / "vocabulary.js").as_uri()]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == wanted and set(wanted) == {
        "forklifts",
        "learned",
        "night",
        "Gabelstapler ü",
        "a b",
    }
