"""`report.html` of a small real fit and of verifications: self-contained, escaped, complete, small."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import make_bundle, original_vocabulary
from disks import full_disk
from PIL import Image
from places import ROOT

from prompt_tune.config import FitConfig
from prompt_tune.datasets.sample import write_sample
from prompt_tune.errors import RunError
from prompt_tune.evaluation.alarms import AlarmExamples
from prompt_tune.evaluation.outcomes import Example
from prompt_tune.evaluation.validate import validate_run
from prompt_tune.evaluation.verify import Collision, FalseAlarms, Setting, Verification
from prompt_tune.report.page import PICTURED, write_verification_page
from prompt_tune.run import RunFolder
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs
from prompt_tune.vocabulary.vocabulary import Vocabulary

HEIGHT = 176  # pixels of the images, which are 256 wide
NASTY = '<b>&"'
CLASSES = [(NASTY,), ("gizmo", "star thing"), ("sprocket",), ("widget",), ("flange",), ("doodad",)]


class Page(HTMLParser):
    """A page as the tests see it: its elements, its text by section, and the elements that were never closed."""

    VOID = ("meta", "img", "br", "path", "polyline", "circle", "rect")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.open: list[str] = []
        self.section = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = str(dict(attrs)["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of three epochs on wide images; one class name has HTML in it, one class has a synonym."""
    folder = tmp_path_factory.mktemp("report")
    data = write_sample(folder / "set", n_images=10)[0]
    for path in (data.parent / "images").rglob("*.jpg"):
        _cut(path)
    fit(FitInputs("tiny", data, classes=CLASSES), folder / "run", config=FitConfig(epochs=3, updates=4, views=1))
    return RunFolder(folder / "run")


@pytest.fixture(scope="module")
def page(run: RunFolder) -> Page:
    return Page(run.report)


def _cut(path: Path) -> None:
    """Keep the upper part of an image and of its boxes. Some objects are cut, and letterboxing adds grey below."""
    image = Image.open(path)
    share = HEIGHT / image.height
    image.crop((0, 0, image.width, HEIGHT)).save(path, quality=95)
    label = path.parents[2] / "labels" / path.parent.name / f"{path.stem}.txt"
    lines = []
    for line in label.read_text().splitlines():
        name, x, y, width, height = line.split()
        top, bottom = (min(float(y) + sign * float(height) / 2, share) / share for sign in (-1, 1))
        if bottom - top > 0.02:
            lines.append(f"{name} {x} {(top + bottom) / 2} {width} {bottom - top}\n")
    label.write_text("".join(lines))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The vocabularies of a bundle; the page does not open its graph."""
    original = original_vocabulary()
    original.save(tmp_path / "bundle" / "original.vocab.safetensors")
    learned = replace(original.select(original.names[:2]), kind="learned", guide=original.digest)
    learned.rename({learned.names[0]: NASTY}).save(tmp_path / "bundle" / "learned.vocab.safetensors")
    return tmp_path / "bundle"


VERIFIED = Verification(
    images=8,
    skipped=("`bad.jpg` cannot be read as an image: truncated.",),
    original_detections=50,
    settings=(Setting(("learned",), 0), Setting(("more",), 0)),
    false_alarms=(FalseAlarms("learned", NASTY, 2),),
    collisions=(Collision("learned", NASTY, "red circle", 3),),
)


def test_page_of_a_fit_loads_nothing_and_runs_nothing(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not any(name.startswith("on") for name in attributes)
        if tag == "a":
            assert str(attributes["href"]).startswith("#")
        assert str(attributes.get("src", "data:")).startswith("data:")
    text = str(page.text)
    assert "url(" not in text and "@import" not in text


def test_page_of_a_fit_is_whole_and_small(run: RunFolder, page: Page) -> None:
    assert page.open == []
    assert run.report.stat().st_size < 3_000_000
    targets = {str(attributes["href"])[1:] for attributes in page.all("a")}
    sections = {str(attributes["id"]) for attributes in page.all("section")}
    wanted = {"before", "classes", "curves", "training", "pictures", "boxes", "confusion", "retention", "movement"}
    wanted |= {"tokens", "provenance"}
    assert targets == sections == wanted
    assert "viewport" in [attributes.get("name") for attributes in page.all("meta")]


def test_pictures_of_a_fit_decode_and_have_words(page: Page) -> None:
    pictures = page.all("img")
    assert len(pictures) > 10
    for attributes in pictures:
        head, content = str(attributes["src"]).split(",")
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        image.load()
        assert head == f"data:image/{str(image.format).lower()};base64"
        assert image.size == (int(str(attributes["width"])), int(str(attributes["height"])))
        assert attributes["alt"]
    kinds = {kind for kind in ("hit", "miss", "false alarm") for p in pictures if f", {kind} in " in str(p["alt"])}
    assert kinds == {"hit", "miss", "false alarm"}


def test_names_of_the_user_are_text_not_markup(run: RunFolder, page: Page) -> None:
    assert not page.all("b")
    assert "<b>" not in run.report.read_text()
    for section in ("classes", "curves", "movement", "tokens"):
        assert NASTY in page.text[section], section
    assert "star thing" in page.text["classes"]


def test_numbers_of_a_fit_are_those_of_the_run(run: RunFolder, page: Page) -> None:
    learned = Vocabulary.load(run.learned)
    config = json.loads(run.config.read_text())
    best = max(run.read_metrics(), key=lambda line: line["ap"])
    header = page.text[""]
    assert f"{best['epoch']} of 3" in header
    shown = re.search(r"(\d\.\d{3})\s*AP50", header)
    assert shown and float(shown[1]) == pytest.approx(learned.provenance["val_ap50"], abs=0.02)
    rows = page.text["classes"]
    for threshold in learned.thresholds:
        assert f"{threshold:.3f}" in rows
    for digest in config["digests"].values():
        assert digest in page.text["provenance"]
    assert torch.__version__.split("+")[0] in page.text["provenance"]


def test_average_precision_of_the_report_is_what_val_measures(run: RunFolder, page: Page) -> None:
    measured = validate_run(
        run.folder, json.loads(run.config.read_text())["data"], names=[name for name, *_ in CLASSES]
    )
    shown = dict(re.findall(r"(\d\.\d{3})\s*(AP50|AP) ?", page.text[""]))
    numbers = {metric: float(number) for number, metric in shown.items()}
    assert measured.learned is not None
    assert numbers["AP50"] == pytest.approx(measured.learned.ap50, abs=0.002)  # features are float16 in the cache
    assert numbers["AP"] == pytest.approx(measured.learned.ap, abs=0.002)


def test_same_run_gives_the_same_page(run: RunFolder, tmp_path: Path) -> None:
    config = json.loads(run.config.read_text())
    before = run.report.read_bytes()
    learned = run.learned.read_bytes()
    fit(
        FitInputs("tiny", config["data"], classes=CLASSES),
        run.folder,
        config=FitConfig(epochs=3, updates=4, views=1),
        resume=True,
    )
    assert run.report.read_bytes() == before and run.learned.read_bytes() == learned


def test_image_that_went_missing_is_named_and_costs_one_picture(tmp_path: Path) -> None:
    data = write_sample(tmp_path / "set", n_images=3)[0]
    gone = sorted((data.parent / "images" / "val").iterdir())[0]
    inputs = FitInputs("tiny", data, cache=tmp_path / "cache")
    fit(inputs, tmp_path / "whole", config=FitConfig(epochs=1, views=1))
    content = gone.read_bytes()

    def damage(stage: str, done: int, total: int | None, note: str) -> None:
        if stage == "train":
            gone.write_bytes(content[: len(content) // 2])

    fit(inputs, tmp_path / "run", config=FitConfig(epochs=1, views=1), progress=damage)
    whole, run = Page(tmp_path / "whole" / "report.html"), Page(tmp_path / "run" / "report.html")
    assert gone.name in run.text["pictures"] and gone.name not in whole.text["pictures"]
    assert 2 < len(run.all("img")) < len(whole.all("img"))


def test_page_of_a_verification_says_that_it_passed(bundle: Path, tmp_path: Path) -> None:
    write_verification_page(tmp_path / "out" / "page.html", VERIFIED, bundle)
    page = Page(tmp_path / "out" / "page.html")
    assert page.open == [] and not page.all("b")
    assert "Passed: not one bit of 50 original detections changed." in page.text[""]
    assert "250.0" in page.text[""] and NASTY in page.text["false-alarms"] and "250.0" in page.text["false-alarms"]
    assert NASTY in page.text["collisions"] and "red circle" in page.text["collisions"]
    assert "more" in page.text["retention"] and "Average precision" not in page.text["retention"]
    assert Vocabulary.load(bundle / "learned.vocab.safetensors").digest[:12] in page.text["provenance"]
    assert "truncated" in page.text["provenance"]


def test_page_of_a_verification_says_that_it_failed(bundle: Path, tmp_path: Path) -> None:
    settings = (Setting(("learned",), 7), Setting((NASTY,), 0))
    failed = replace(VERIFIED, settings=settings, labelled_images=4, original_ap_before=0.5, original_ap_after=0.25)
    failed = replace(failed, original_ap50_before=0.75, original_ap50_after=0.5)
    write_verification_page(tmp_path / "page.html", failed, bundle)
    page = Page(tmp_path / "page.html")
    assert "Failed: 7 bits of 50 original detections changed." in page.text[""]
    for number in ("0.500", "0.250", "0.750"):
        assert number in page.text["retention"]


@pytest.mark.parametrize(
    ("changes", "look", "said"),
    [
        ({}, "open", "no limit is set (--max-false-alarms)."),
        ({"false_alarms": ()}, "good", "0.0 false alarms per 1,000 images."),
        ({"max_false_alarms": 250}, "good", "within --max-false-alarms 250."),
        ({"max_false_alarms": 249}, "bad", "(2 in 8) exceed --max-false-alarms 249."),
    ],
)
def test_banner_of_a_verification_speaks_of_false_alarms(
    changes: dict[str, Any], look: str, said: str, bundle: Path, tmp_path: Path
) -> None:
    write_verification_page(tmp_path / "page.html", replace(VERIFIED, **changes), bundle)
    page = Page(tmp_path / "page.html")
    assert [p["class"] for p in page.all("p") if "verdict" in str(p.get("class"))] == [f"verdict {look}"]
    assert said in page.text[""] and "not one bit of 50" in page.text[""]


def test_verify_writes_its_page_where_torch_is_not_installed(tmp_path: Path) -> None:
    images = write_sample(tmp_path / "set", n_images=2)[0].parents[1] / "original" / "images" / "val"
    make_bundle(tmp_path / "bundle", leaky=True)
    code = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))  # None: importing it fails
from prompt_tune.cli import main
main()
"""
    command = [sys.executable, "-c", code, "torch,torchvision,ultralytics,open_clip,onnx,matplotlib", "verify"]
    options = [tmp_path / "bundle", "--images", images, "--report", tmp_path / "page.html"]
    done = subprocess.run([*command, *map(str, options)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    bits = re.search(r"FAILED: (\d+) bits", done.stdout)
    page = Page(tmp_path / "page.html")
    assert bits and f"Failed: {bits[1]} bits" in page.text[""]
    kinds = {kind for kind in ("false alarm", "collision") for p in page.all("img") if f", {kind} in " in str(p["alt"])}
    assert kinds == {"false alarm", "collision"}
    assert (tmp_path / "page.html").stat().st_size < 2_500_000


def test_pictures_of_a_verification_have_captions_and_are_few(bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), (90, 90, 90)).save(tmp_path / "photo.png")

    def example(note: str, file: str = "photo.png") -> Example:
        return Example(tmp_path / file, None, (10, 10, 30, 30), (), note)

    names = [f"class {k}" for k in range(PICTURED + 1)] + [NASTY]
    examples = AlarmExamples(
        {("learned", name): (example("score 0.900"), example("score 0.800", "gone.png")) for name in names},
        {(("learned", name), "red circle"): example("score 0.900, on the box of red circle") for name in names},
    )
    rows = tuple(FalseAlarms("learned", name, 9) for name in (NASTY, *names[:-1]))
    pairs = tuple(Collision("learned", name, "red circle", 1) for name in (NASTY, *names[:-1]))
    result = replace(VERIFIED, false_alarms=rows, collisions=pairs, examples=examples)
    write_verification_page(tmp_path / "page.html", result, bundle)
    page = Page(tmp_path / "page.html")
    assert page.open == [] and not page.all("b") and "<b>" not in (tmp_path / "page.html").read_text()
    assert len(page.all("img")) == 2 * PICTURED
    alarms, collisions = page.text["false-alarms"], page.text["collisions"]
    assert alarms.count("photo.png: score 0.900") == PICTURED and "highest scores" in alarms
    assert f"the {PICTURED} classes with the most" in alarms and alarms.count("gone.png") == 1
    assert f"{NASTY}, photo.png: score 0.900, on the box of red circle" in collisions
    assert all(str(p["src"]).startswith("data:image/jpeg;base64,") and p["alt"] for p in page.all("img"))


def test_page_of_a_fit_names_the_classes_that_are_hardly_learned(run: RunFolder, page: Page) -> None:
    learned = Vocabulary.load(run.learned)
    expected = learned.provenance["thresholds"]["expected"]
    weak = [name for name, row in expected.items() if row["precision"] < 0.4]  # clear of features in float16
    assert weak
    text = page.text["classes"].partition("Hardly learned, so expect many false alarms: ")[2].partition(". Give")[0]
    assert set(weak) <= set(text.split(", "))


def test_page_of_a_verification_without_any_detection_does_not_pass(bundle: Path, tmp_path: Path) -> None:
    write_verification_page(tmp_path / "page.html", replace(VERIFIED, original_detections=0), bundle)
    text = Page(tmp_path / "page.html").text[""]
    assert "Nothing was compared" in text and "Passed" not in text


def test_page_of_a_verification_that_cannot_be_written_is_one_line(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "page.html"
    with pytest.raises(RunError) as refusal:
        write_verification_page(place, VERIFIED, bundle)
    assert str(refusal.value) == f"Cannot write {place}: File exists. Choose another place or make room."
    page = tmp_path / "page.html"
    page.write_text("old")
    with pytest.raises(RunError, match=r"Cannot write .*page\.html: File too large"), full_disk():
        write_verification_page(page, VERIFIED, bundle)
    assert page.read_text() == "old"


def test_page_of_a_fit_that_cannot_be_written_is_one_line(run: RunFolder, tmp_path: Path) -> None:
    for file in run.folder.iterdir():
        if file.is_file() and file != run.report:
            shutil.copy(file, tmp_path)
    (tmp_path / run.report.name).mkdir()
    config = json.loads(run.config.read_text())
    inputs = FitInputs("tiny", config["data"], classes=CLASSES, cache=run.folder / "regions")
    with pytest.raises(RunError) as refusal:
        fit(inputs, tmp_path, config=FitConfig(epochs=3, updates=4, views=1), resume=True)
    expected = f"Cannot write {tmp_path / 'report.html'}: Is a directory. Choose another place or make room."
    assert str(refusal.value) == expected
