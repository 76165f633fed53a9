"""The gate on paths: what lists, JSON files and relative entries name stays inside the data set."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from data_sets import NAMES, TRAIN, VAL, save_images, write_coco, write_grounding, write_roboflow, write_voc, write_yolo

from prompt_tune.datasets.gate import Gate
from prompt_tune.datasets.grounding import read_grounding
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.replay import read_replay
from prompt_tune.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a data set, three levels below pictures of somebody else."""
    save_images(tmp_path / "private", ["secret"])
    folder = tmp_path / "home" / "sets" / "custom"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/data/set/a.png", True),
        ("/data/set/../train/a.png", True),
        ("/data/a.png", True),
        ("/data/set/../../a.png", False),
        ("/a.png", False),
        ("/database/a.png", False),
        ("/ssd/photos/x/a.png", True),
        ("/ssd/photos/../a.png", False),
        ("/ssd/photos2/a.png", False),
    ],
)
def test_gate_opens_a_folder_the_one_above_it_and_what_is_named(path: str, inside: bool) -> None:
    gate = Gate.of([Path("/data/set")], [Path("/ssd/photos")])
    assert gate.has(Path(path)) == inside


def test_gate_never_opens_the_whole_disk() -> None:
    assert not Gate.of([Path("/data")], [Path("/")]).has(Path("/etc/a.png"))
    assert Gate.of([Path("/data")]).has(Path("/data/a.png"))


def test_gate_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "deep" / "set").mkdir(parents=True)
    (tmp_path / "deep" / "set" / "linked").symlink_to("/usr")
    gate = Gate.of([tmp_path / "deep" / "set"])
    assert gate.has(tmp_path / "deep/set/linked/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "set")  # `link/..` is where the link leads
    assert Gate.of([tmp_path / "link"]).has(tmp_path / "deep" / "train")


OUTSIDE = [
    "../../../../private/secret.png",
    "../../../../private/gone.png",
    "..\\..\\..\\..\\private\\secret.png",
    "%2e%2e/%2e%2e/%2e%2e/%2e%2e/private/secret.png",
    "ABSOLUTE",
]


def _coco(root: Path, name: str) -> Path:
    source = write_coco(root, {"train": TRAIN, "val": VAL})
    _rename(root / "train.json", name)
    return source


def _roboflow(root: Path, name: str) -> Path:
    write_roboflow(root, {"train": TRAIN, "val": VAL})
    _rename(root / "train" / "_annotations.coco.json", name)
    return root


def _rename(file: Path, name: str) -> None:
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = name
    file.write_text(json.dumps(content))


def _yolo(root: Path, name: str) -> Path:
    source = write_yolo(root, {"train": TRAIN, "val": VAL}, train="lists/train.txt")
    (root / "lists").mkdir()
    (root / "lists" / "train.txt").write_text(f"../images/train/a.png\n{name}\n")
    return source


def _voc(root: Path, name: str) -> Path:
    write_voc(root, {"train": TRAIN, "val": VAL})
    (root / "train.txt").write_text(f"a\n{name}\n")
    return root


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("write", [_coco, _roboflow, _yolo, _voc])
def test_image_outside_the_data_set_is_refused_in_every_format(
    root: Path, write: Callable[[Path, str], Path], name: str
) -> None:
    secret = root.parents[2] / "private" / "secret.png"
    assert secret.is_file()
    source = write(root, name.replace("ABSOLUTE", str(secret)))
    if write is _voc and "%" in name:  # such a list names images of its folder alone
        (left,) = read_dataset(source).train.left_out
        assert f"`{root}/images/{name}`: no such image" in left.what
        return
    with pytest.raises(DataError) as refusal:
        read_dataset(source)
    text = str(refusal.value)
    assert "lies outside the folder of the data set" in text and "name a folder above it as `path`" in text
    assert str(root) in text.split(": ")[0] and len(text.splitlines()) == 1  # the file that names it


@pytest.mark.parametrize("name", OUTSIDE)
def test_image_outside_a_grounding_set_is_refused(root: Path, name: str) -> None:
    file = write_grounding(root, [("a.png", "a dog", []), ("b.png", "a cat", [])])
    _rename(file, name.replace("ABSOLUTE", str(root.parents[2] / "private" / "secret.png")))
    with pytest.raises(DataError, match="lies outside the folder of the data set"):
        read_grounding(file)
    (root / "set.yaml").write_text(f"images: images\ngrounding: {file.name}\n")
    with pytest.raises(DataError, match="lies outside the folder of the data set"):
        read_replay(root / "set.yaml", [("dog",)])


def test_coco_file_names_inside_the_data_set_are_read(root: Path) -> None:
    save_images(root.parent / "beside", ["x"])
    for name in ("../train/a.png", "./a.png", str(root / "train/a.png"), "../../beside/x.png"):
        source = _coco(root, name)
        assert len(read_dataset(source).train.samples) == 3


def test_path_of_the_yaml_is_a_root_that_the_user_names(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = root.parents[2] / "photos"
    source = write_yolo(photos, {"train": TRAIN, "val": VAL})
    content = yaml.safe_load(source.read_text())
    (photos / "train.txt").write_text("".join(f"{photos}/images/train/{stem}.png\n" for stem in TRAIN))
    own = root / "mine.yaml"
    own.write_text(yaml.safe_dump(content | {"path": str(photos), "train": "train.txt"}))
    caplog.set_level("INFO")
    assert len(read_dataset(own).train.samples) == 3
    assert f"`{own}`: its `path` is outside its own folder: `{photos}`." in caplog.messages


def test_absolute_entries_of_the_yaml_are_the_users(root: Path) -> None:
    photos = root.parents[2] / "photos"
    source = write_yolo(photos, {"train": TRAIN, "val": VAL})
    (root / "all.txt").write_text("".join(f"{photos}/images/train/{stem}.png\n" for stem in TRAIN))
    content = yaml.safe_load(source.read_text())
    own = root / "mine.yaml"
    own.write_text(yaml.safe_dump(content | {"train": str(photos / "images/train"), "val": str(photos / "images/val")}))
    assert len(read_dataset(own).train.samples) == 3
    both = [
        str(photos / "images/val"),
        str(photos / "images/train"),
        "all.txt",
    ]  # the list has images of a named folder
    own.write_text(yaml.safe_dump(content | {"train": both, "val": str(photos / "images/val")}))
    assert len(read_dataset(own).train.samples) == 4


@pytest.mark.parametrize("entry", ["../../../../private", "../../../../private/../private"])
def test_relative_entry_that_leaves_the_data_set_is_refused(root: Path, entry: str) -> None:
    source = write_yolo(root, {"train": TRAIN, "val": VAL}, train=entry)
    with pytest.raises(DataError, match=r"data\.yaml`: '.*private' lies outside the folder of the data set"):
        read_dataset(source)
    source = root / "coco.yaml"
    write_coco(root, {"train": TRAIN, "val": VAL})
    content = yaml.safe_load(source.read_text())
    content["train"]["images"] = entry
    source.write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match=r"coco\.yaml`: '.*private' lies outside the folder of the data set"):
        read_dataset(source)


def test_whole_disk_is_no_folder_of_images(root: Path) -> None:
    source = write_yolo(root, {"train": TRAIN, "val": VAL}, train="/")
    with pytest.raises(DataError, match="the entry `/` is the whole disk"):
        read_dataset(source)


def test_links_that_the_user_made_are_followed(root: Path) -> None:
    photos = root.parents[2] / "photos"
    write_yolo(photos, {"train": TRAIN, "val": VAL})
    for folder in ("images", "labels"):
        (root / folder).symlink_to(photos / folder)
    (root / "train.txt").write_text("".join(f"images/train/{stem}.png\n" for stem in TRAIN))
    (root / "data.yaml").write_text(yaml.safe_dump({"names": NAMES, "train": "train.txt", "val": "images/val"}))
    assert len(read_dataset(root / "data.yaml").train.samples) == 3
