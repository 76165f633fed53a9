"""What the report of a fit is made from: images by their place, confusions by overlap, settings in words."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch

from prompt_tune.config import FitConfig
from prompt_tune.datasets.reading import read_split
from prompt_tune.datasets.sample import write_sample
from prompt_tune.evaluation.baselines import recorded_baselines
from prompt_tune.evaluation.matching import HIT_IOU
from prompt_tune.models.suppression import find
from prompt_tune.models.world import World, region_logits
from prompt_tune.report.page import NO_NUMBER
from prompt_tune.run import RunFolder
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.images import letterbox, read_rgb
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs
from prompt_tune.vocabulary.vocabulary import Vocabulary

CONFIG = FitConfig(epochs=2)


def section(run: RunFolder, name: str) -> str:
    """A section of the page, markup included."""
    return run.report.read_text(encoding="utf-8").split(f'<section id="{name}">')[1].split("</section>")[0]


def rows(run: RunFolder, name: str) -> list[list[str]]:
    """The cells of the body of the first table in a section."""
    body = section(run, name).split("<tbody>")[1].split("</tbody>")[0]
    return [
        [unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", body)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("summary") / "set", n_images=8)[0]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("run") / "run"
    fit(FitInputs("tiny", data), folder, config=CONFIG)
    return RunFolder(folder)


def test_report_with_a_damaged_image_is_that_of_a_set_without_it(data: Path, run: RunFolder, tmp_path: Path) -> None:
    images = data.parent / "images" / "val"
    damaged = images / "0002.jpg"
    content = damaged.read_bytes()
    try:
        damaged.write_bytes(content[: len(content) // 2])  # its header is whole, so it is found out when it is cached
        fit(FitInputs("tiny", data), tmp_path / "damaged", config=CONFIG)
        damaged.unlink()
        fit(FitInputs("tiny", data), tmp_path / "without", config=CONFIG)
    finally:
        damaged.write_bytes(content)
    first, second = RunFolder(tmp_path / "damaged"), RunFolder(tmp_path / "without")
    for name in ("classes", "pictures", "confusion"):
        assert section(first, name) == section(second, name) != section(run, name)
    assert "the 7 validation images" in first.report.read_text()


def test_confusions_are_those_of_all_anchors(data: Path, run: RunFolder) -> None:
    """The report scores original classes only near objects; here they are detected in the whole image."""
    world, original = World.load("tiny"), Vocabulary.load(run.original)
    learned = Vocabulary.load(run.learned)
    embeddings = torch.tensor(original.embeddings)
    counts: dict[tuple[str, str], int] = {}
    for sample in read_split(data, "val")[1].samples:
        pixels, placed = letterbox(read_rgb(sample.path), 256)
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            head, boxes = world.features(image, embeddings.flatten(0, 1))
            level = world.anchors(256, 256)[2]
            found = find(boxes[0], region_logits(world, head[0], level, embeddings).sigmoid())
        found = found.select(np.flatnonzero(found.scores > original.thresholds[found.class_ids]))
        overlaps = box_iou(placed.to_original(found.boxes_xyxy), sample.labels.boxes_xyxy) >= HIT_IOU
        for k, label in enumerate(sample.labels.classes):
            for name in {original.names[found.class_ids[row]] for row in np.flatnonzero(overlaps[:, k])}:
                counts[learned.names[label], name] = counts.get((learned.names[label], name), 0) + 1
    shown = {(row[0], row[1]): int(row[2]) for row in rows(run, "confusion")}
    assert len(shown) > 5 and shown == counts
    numbers = [int(row[2]) for row in rows(run, "confusion")]
    assert numbers == sorted(numbers, reverse=True)


def test_facts_are_the_settings_and_inputs_of_the_run_in_words(data: Path, run: RunFolder) -> None:
    text = section(run, "provenance")
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    learned = Vocabulary.load(run.learned)
    assert facts["model"] == "tiny" and facts["data"] == str(data)
    assert (facts["epochs"], facts["class specific"], facts["calibrate"]) == ("2", "yes", "no")
    assert facts["region budget"] == "600, 50, 64" and facts["initial words"] == "(none)"
    assert facts["nms iou"] == f"{learned.provenance['nms_iou']:g}, chosen on the validation images"
    assert facts["learned vocabulary"] == learned.digest
    digests = json.loads(run.config.read_text())["digests"]
    assert {facts[name.replace("_", " ")] for name in digests} == set(digests.values())


def test_report_has_the_names_before_and_after_learning(run: RunFolder) -> None:
    plain, template = recorded_baselines(Vocabulary.load(run.learned).provenance)
    table = rows(run, "before")
    assert [row[0].split()[0] for row in table] == ["plain", "best", "learned"]
    assert template.template in table[1][0] and "the best of 7 templates on these images" in table[1][0]
    for row, part in zip(table, (plain, template), strict=False):
        assert row[1:] == [f"{part.metrics.ap50:.3f}", f"{part.metrics.ap:.3f}"]
    by_class = [float(row[3]) for row in rows(run, "classes") if row[3] != NO_NUMBER]
    assert np.mean(by_class) == pytest.approx(plain.metrics.ap50, abs=0.001)


def test_report_shows_training_images_with_their_boxes(data: Path, run: RunFolder) -> None:
    names = re.findall(r"<figcaption>(\S+\.jpg): \d", section(run, "training"))
    assert names == sorted(path.name for path in (data.parent / "images" / "train").iterdir())


def test_classes_of_the_report_stand_in_the_order_of_the_vocabulary(run: RunFolder) -> None:
    learned = Vocabulary.load(run.learned)
    table = rows(run, "classes")
    assert [row[0] for row in table] == list(learned.names)
    assert [row[5] for row in table] == [f"{threshold:.3f}" for threshold in learned.thresholds]
    for objects, hits, misses in ((int(row[1]), int(row[8]), int(row[9])) for row in table):
        assert objects == hits + misses
