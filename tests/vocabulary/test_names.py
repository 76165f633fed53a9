import importlib.util
import os
import string
from importlib import resources
from pathlib import Path

import pytest

from prompt_tune.errors import VocabularyError
from prompt_tune.vocabulary.names import (
    BUILT_IN,
    check_names,
    kept_names,
    name_hints,
    parse_inline,
    parse_line,
    read_classes,
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lorry", ("lorry",)),
        ("lorry; truck", ("lorry", "truck")),
        ("  traffic \t light ;stop light  ", ("traffic light", "stop light")),
        ("Käfer; doll's house; C#", ("Käfer", "doll's house", "C#")),
    ],
)
def test_parse_line_of_names_returns_them_trimmed(line: str, expected: tuple[str, ...]) -> None:
    assert parse_line(line) == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "A class name or synonym is empty in ''"),
        ("   ", "A class name or synonym is empty in ''"),
        ("lorry;", "A class name or synonym is empty in 'lorry;'"),
        ("; lorry", "is empty in '; lorry'"),
        ("lorry;;truck", "is empty in 'lorry;;truck'"),
        ("lorry; truck; lorry", "'lorry' appears twice in the class 'lorry; truck; lorry'"),
        ("lor\x1b[31mry", r"must not have control characters or line breaks. Received: 'lor\x1b[31mry'"),
        ("lor\ud800ry", "must not have control characters"),
        ("lor\u202ery", r"must not have characters that control the direction of text. Received: 'lor\u202ery'"),
        ("lor\u200fry; truck", "control the direction of text"),
        ("lorry; tr\u2066uck", "control the direction of text"),
    ],
)
def test_parse_line_of_bad_names_is_refused(line: str, reason: str) -> None:
    with pytest.raises(VocabularyError) as refusal:
        parse_line(line)
    assert reason in str(refusal.value)


def test_parse_inline_with_synonyms_keeps_order() -> None:
    assert parse_inline("lorry; truck, car,fire  hydrant") == [("lorry", "truck"), ("car",), ("fire hydrant",)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty in ''"),
        ("lorry,", "is empty in ''"),
        ("lorry,,car", "is empty in ''"),
        ("lorry, car, lorry; truck", "classes 0 and 2 are both 'lorry'. Rename or remove one."),
    ],
)
def test_parse_inline_of_bad_names_is_refused(text: str, reason: str) -> None:
    with pytest.raises(VocabularyError) as refusal:
        parse_inline(text)
    assert reason in str(refusal.value)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a", ""], "The name of class 1 is empty"),
        ([" \t"], "The name of class 0 is empty"),
        (["a", "b", "a"], "Class names must be unique; classes 0 and 2 are both 'a'"),
        (["a", 7], "Class names must be text; class 1 is 7"),
        (["a\nb"], "control characters or line breaks"),
        (["a\u2028b"], "control characters or line breaks"),
    ],
)
def test_check_names_of_bad_names_is_refused(names: list[str], reason: str) -> None:
    with pytest.raises(VocabularyError) as refusal:
        check_names(names)
    assert reason in str(refusal.value)


def test_check_names_of_good_names_passes() -> None:
    check_names([])
    check_names(kept_names(["exe.\u202egnp", "a"]))  # from a file that was made before
    check_names(["\U0001f469\u200d\U0001f692", "\u0915\u094d\u200d\u0937"])  # joiners: emoji, Hindi
    check_names(["car", "Car", "traffic light", "گاو\u200cمیش"])  # a zero-width non-joiner belongs to some scripts


@pytest.mark.parametrize(("name", "count"), [("coco", 80), ("lvis", 1203), ("objects365", 365)])
def test_built_in_list_has_its_classes_and_each_name_once(name: str, count: int) -> None:
    classes = read_classes(name)
    assert len(classes) == count
    assert len({prompts[0] for prompts in classes}) == count
    every = [prompt.lower() for prompts in classes for prompt in prompts]
    assert len(set(every)) == len(every)  # a prompt of two classes could not tell them apart


def test_built_in_lists_begin_and_end_as_their_sources_do() -> None:
    coco, lvis, objects365 = (read_classes(name) for name in ("coco", "lvis", "objects365"))
    assert (coco[0], coco[9], coco[79]) == (("person",), ("traffic light",), ("toothbrush",))
    assert (lvis[0], lvis[1202]) == (("aerosol can", "spray can"), ("zucchini", "courgette"))
    assert (objects365[0], objects365[12], objects365[364]) == (("Person",), ("Cabinet", "shelf"), ("Table Tennis",))


def test_lvis_names_that_repeat_in_short_are_full() -> None:
    names = [prompts[0] for prompts in read_classes("lvis")]
    assert names[135:137] == ["bow weapon", "bow decorative ribbons"]
    assert names[446:448] == ["fish", "fish food"]
    assert names[728:730] == ["octopus food", "octopus animal"]
    assert names[750:752] == ["pan for cooking", "pan metal container"]
    assert names[906:908] == ["salmon fish", "salmon food"]


@pytest.mark.parametrize(("name", "file"), [("coco", "coco"), ("lvis", "lvis"), ("objects365", "Objects365")])
def test_built_in_list_says_what_its_source_says(name: str, file: str) -> None:
    found = importlib.util.find_spec("ultralytics")
    if found is None or found.origin is None:
        pytest.skip("needs ultralytics' data set descriptions")
    import yaml

    path = Path(found.origin).parent / "cfg" / "datasets" / f"{file}.yaml"
    sources = list(yaml.safe_load(path.read_text("utf-8"))["names"].values())
    for source, prompts in zip(sources, read_classes(name), strict=True):
        if source == "Cutting/chopping Board":
            assert prompts == ("Cutting Board", "chopping Board")
        else:
            assert set(prompts) <= set(source.split("/"))
            dropped = set(source.split("/")) - set(prompts)  # short halves of what stands in full
            assert all(any(prompt.startswith(short + " ") for prompt in prompts) for short in dropped)


def test_templates_have_one_place_for_the_name() -> None:
    text = resources.files("prompt_tune.prompts").joinpath("templates.txt").read_text("utf-8")
    templates = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(templates) == len(set(templates)) == 7
    for template in templates:
        assert [field for _, field, _, _ in string.Formatter().parse(template) if field is not None] == [""]


def test_read_classes_of_text_file_skips_comments_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\xef\xbb\xbf# all of them\r\n\r\nlorry; truck  # on roads\r\n  C# book\r\n\tcar\r\n")
    expected = [("lorry", "truck"), ("C# book",), ("car",)]
    assert read_classes(file) == expected
    assert read_classes(str(file)) == expected


def test_read_classes_of_inline_names_returns_them() -> None:
    assert read_classes("lorry; truck, car") == [("lorry", "truck"), ("car",)]
    assert len(read_classes(", ".join(f"thing {i}" for i in range(2000)))) == 2000  # longer than any file name


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has no classes. Write one class per line."),
        (b"# nothing\n\n", "has no classes"),
        (b"lorry\nlorry;;truck\n", ", line 2: A class name or synonym is empty in 'lorry;;truck'"),
        (b"# x\nlorry, car\n", ", line 2: write one class per line, no commas"),
        (b"lorry\ncar\nlorry; truck\n", ": Class names must be unique; classes 0 and 2 are both 'lorry'"),
        (b"lorry\n\xff\n", "is not UTF-8 text. Save it as UTF-8."),
        (b"lor\0ry\n", ", line 1: Class names must not have control characters"),
    ],
)
def test_read_classes_of_bad_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with pytest.raises(VocabularyError) as refusal:
        read_classes(file)
    assert reason in str(refusal.value)
    assert str(file) in str(refusal.value)


def test_read_classes_of_what_is_no_list_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing.txt"
    with pytest.raises(VocabularyError, match=r"Cannot read the class list .*missing\.txt: No such file"):
        read_classes(missing)
    with pytest.raises(VocabularyError, match=r"Cannot read the class list .*: Is a directory"):
        (tmp_path / "folder.txt").mkdir()
        read_classes(tmp_path / "folder.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    for name, reason in (("pipe.txt", "it is no regular file"), ("a\0.txt", "no file can have this name")):
        with pytest.raises(VocabularyError, match=f"Cannot read the class list .*: {reason}"):
            read_classes(tmp_path / name)
    other = tmp_path / "names.yaml"
    other.write_text("names: [lorry]\n")
    for source in (other, str(other)):
        with pytest.raises(
            VocabularyError, match=r"A class list is a \.txt file with one class per line\. Received: .*names"
        ):
            read_classes(source)


def test_built_in_lists_are_all_there() -> None:
    for name in BUILT_IN:
        assert read_classes(name)


@pytest.mark.parametrize(
    ("names", "original", "beginnings"),
    [
        ([], [], []),
        (["lorry", "van"], ["person", " "], []),
        (
            ["Car", "car ", "van"],
            [],
            ["Class names that differ in case, spaces or dashes only: 'Car' and 'car '. Each"],
        ),
        (
            ["traffic_light", "traffic light", "T-shirt", "t shirt"],
            ["person"],
            ["Class names that differ in case, spaces or dashes only: 'traffic_light' and 'traffic light', 'T-shirt'"],
        ),
        (["person"], ["car", "person"], ["The original class exists already: 'person'. Its detections stay as they"]),
        (
            ["Traffic_Light", "_"],
            ["traffic light", "", " "],
            ["The original class exists already: 'Traffic_Light' (original: 'traffic light'). Its detections"],
        ),
        (["car", "Car"], ["car"], ["Class names that differ", "The original class exists already: 'car', 'Car' (orig"]),
        ([f"c{i}" for i in range(12)], [f"C{i}" for i in range(12)], ["The original class exists already: 'c0' (o"]),
    ],
)
def test_name_hints_are_one_line_for_each_kind(names: list[str], original: list[str], beginnings: list[str]) -> None:
    hints = name_hints(names, original)
    assert len(hints) == len(beginnings)
    for hint, beginning in zip(hints, beginnings, strict=True):
        assert hint.startswith(beginning) and "\n" not in hint


def test_name_hints_name_ten_and_count_the_rest() -> None:
    (hint,) = name_hints([f"c{i}" for i in range(12)], [f"c{i}" for i in range(12)])
    assert "'c9' and 2 more. Its detections" in hint
