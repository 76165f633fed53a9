"""The rules of the house hold for the checkout, and the checks fail where they are broken."""

import subprocess
from pathlib import Path

import pytest
from house import (
    NO_TEST,
    PACKAGE,
    busy_packages,
    heavy_imports,
    imports_of,
    private_imports,
    read_package,
    strangers,
    untested,
    wrong_floors,
    wrong_packages,
)
from places import ROOT

# The checkout


def test_imports_run_downwards() -> None:
    assert wrong_floors(read_package(ROOT)) == []


def test_no_private_name_crosses_modules() -> None:
    assert private_imports(read_package(ROOT)) == []


def test_light_rooms_import_nothing_heavy() -> None:
    assert heavy_imports(read_package(ROOT)) == []


def test_packages_only_hand_names_on() -> None:
    assert busy_packages(read_package(ROOT)) == []


def test_top_level_holds_what_the_house_lists() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    assert strangers(done.stdout.splitlines()) == []


def test_every_module_has_a_test_file() -> None:
    assert untested(ROOT) == []
    assert all((ROOT / PACKAGE / f"{module}.py").is_file() for module in NO_TEST)


def test_every_package_is_listed_once() -> None:
    assert wrong_packages((ROOT / "setup.cfg").read_text(), ROOT) == []


# The checks


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", []),
        ("import a.b, c", [("a.b", (), True), ("c", (), True)]),
        ("from a.b import c as d, e", [("a.b", ("c", "e"), True)]),
        ("def f():\n    import a", [("a", (), False)]),
        ("class C:\n    import a\n    def f(self):\n        from b import c", [("a", (), True), ("b", ("c",), False)]),
        ("try:\n    import a\nexcept ImportError:\n    import b", [("a", (), True), ("b", (), True)]),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", [("b", (), True)]),
        ("import typing\nif typing.TYPE_CHECKING:\n    import a", [("typing", (), True)]),
        ("from . import c", [("prompt_tune.runtime", ("c",), True)]),
        ("from .c import d", [("prompt_tune.runtime.c", ("d",), True)]),
        ("from ..models import d", [("prompt_tune.models", ("d",), True)]),
        ("import importlib\nimportlib.import_module('a.b')", [("importlib", (), True), ("a.b", (), True)]),
    ],
)
def test_imports_are_read(source: str, expected: list[tuple[str, tuple[str, ...], bool]]) -> None:
    found = imports_of(source, "prompt_tune.runtime.x")
    assert [(part.module, part.names, part.at_import) for part in found] == expected


def test_relative_imports_of_a_package_are_its_own() -> None:
    found = imports_of("from . import c\nfrom .. import d", "prompt_tune.runtime.__init__")
    assert [part.module for part in found] == ["prompt_tune.runtime", "prompt_tune"]


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("runtime.x", "from prompt_tune.models.world import World", "a room that is not below runtime"),
        ("runtime.x", "def f():\n    from prompt_tune.models.world import World", "not below runtime"),
        ("runtime.x", "from prompt_tune import models", "not below runtime"),
        ("runtime.x", "from ..models import world", "not below runtime"),
        ("runtime.x", "import prompt_tune.tuning.fit", "not below runtime"),
        ("models.x", "from prompt_tune.datasets.samples import Labels", "not below models"),
        ("evaluation.x", "from prompt_tune.deployment.graph import f", "not below evaluation"),
        ("files", "from prompt_tune.vocabulary.names import f", "the ground uses nothing but ground"),
        ("files", "from prompt_tune.nowhere import f", "which has no place in the house"),
        ("cellar.x", "", "`cellar` has no place in the house"),
        ("stray", "", "`stray` has no place in the house"),
    ],
)
def test_import_that_does_not_run_downwards_is_found(module: str, source: str, complaint: str) -> None:
    (found,) = wrong_floors({f"prompt_tune.{module}": source})
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("runtime.x", "from prompt_tune.vocabulary.names import f\nfrom prompt_tune.errors import E\nimport numpy"),
        ("runtime.x", "from prompt_tune.runtime.y import f\nfrom . import y\nfrom prompt_tune.prompts import z"),
        ("vocabulary.x", "if TYPE_CHECKING:\n    from prompt_tune.models.world import World"),
        ("files", "from prompt_tune.contract import KEY"),
        ("cli.x", "from prompt_tune.tiny.demo import f\nfrom prompt_tune import __version__"),
        ("__main__", "from prompt_tune.cli import main"),
    ],
)
def test_import_that_runs_downwards_passes(module: str, source: str) -> None:
    assert wrong_floors({f"prompt_tune.{module}": source}) == []


def test_private_name_of_another_module_is_found() -> None:
    sources = {"prompt_tune.run": "from prompt_tune.files import _sibling\nfrom prompt_tune.version import __version__"}
    assert private_imports(sources) == ["prompt_tune.run:1 imports prompt_tune.files._sibling"]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"runtime.x": "import torch"}, ["prompt_tune.runtime.x -> torch"]),
        ({"runtime.x": "from torch.nn import functional"}, ["prompt_tune.runtime.x -> torch.nn"]),
        (
            {"files": "try:\n    import torchvision\nfinally:\n    pass"},
            ["prompt_tune.files -> torchvision"],
        ),
        ({"runtime.x": "def f():\n    import torch"}, []),
        ({"runtime.x": "if TYPE_CHECKING:\n    import torch"}, []),
        ({"models.x": "import torch"}, []),
        (
            {"evaluation.x": "from prompt_tune.models.y import f", "models.y": "import ultralytics"},
            ["prompt_tune.evaluation.x -> prompt_tune.models.y -> ultralytics"],
        ),
        (
            {"media.x": "from prompt_tune.runtime import y", "runtime.y": "", "runtime.__init__": "import open_clip"},
            [
                "prompt_tune.media.x -> prompt_tune.runtime -> open_clip",
                "prompt_tune.runtime.y -> prompt_tune.runtime.__init__ -> open_clip",
                "prompt_tune.runtime.__init__ -> open_clip",
            ],
        ),
        ({"media.x": "import prompt_tune.media.y", "media.y": "import prompt_tune.media.x"}, []),
    ],
)
def test_heavy_import_is_found_with_the_way_to_it(sources: dict[str, str], expected: list[str]) -> None:
    assert heavy_imports({f"prompt_tune.{module}": source for module, source in sources.items()}) == expected


@pytest.mark.parametrize(
    ("module", "source", "line"),
    [
        ("runtime.__init__", '"""Text."""\nfrom a import b\n__all__ = ["b"]\nif TYPE_CHECKING:\n    import c', None),
        ("runtime.__init__", '"""Text."""\nLIMIT = 5', 2),
        ("runtime.__init__", "def f() -> None: ...", 1),
        ("runtime.__init__", "def __getattr__(name: str) -> object: ...", 1),
        ("runtime.__init__", "print()", 1),
        ("runtime.__init__", "if x:\n    import a", 1),
        ("__init__", "_HOMES = {}\ndef __getattr__(name: str) -> object: ...\nif x:\n    __path__.append('y')", None),
        ("__init__", "class C: ...", 1),
        ("runtime.x", "LIMIT = 5", None),
    ],
)
def test_package_that_does_more_than_hand_names_on_is_found(module: str, source: str, line: int | None) -> None:
    expected = [] if line is None else [f"prompt_tune.{module}:{line} does more than hand names on"]
    assert busy_packages({f"prompt_tune.{module}": source}) == expected


def test_stranger_at_the_top_level_is_found() -> None:
    assert strangers(["README.md", "prompt_tune/run.py", "notes/x.md", "notes/y.md", "a.py"]) == ["a.py", "notes"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout that breaks no rule."""
    for file in (
        *("prompt_tune/__init__.py", "prompt_tune/files.py", "tests/test_files.py"),
        *("prompt_tune/runtime/__init__.py", "prompt_tune/runtime/boxes.py", "tests/runtime/test_boxes.py"),
        *("prompts/__init__.py", "export/__init__.py"),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


PACKAGES = "[options]\npackages =\n    prompt_tune\n    prompt_tune.runtime\n    prompt_tune.prompts\n"


def test_module_without_a_test_file_is_found(checkout: Path) -> None:
    assert untested(checkout) == []
    (checkout / "prompt_tune/runtime/images.py").touch()
    (checkout / "prompt_tune/run.py").touch()
    (checkout / "tests/test_images.py").touch()  # not in the folder of its room
    assert untested(checkout) == ["tests/test_run.py", "tests/runtime/test_images.py"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("    prompt_tune.export\n", []),
        ("", ["prompt_tune.export is not listed"]),
        ("    prompt_tune.export\n    prompt_tune.runtime\n", ["prompt_tune.runtime is listed twice"]),
        ("    prompt_tune.export\n    prompt_tune.gone\n", ["prompt_tune.gone is listed, but absent"]),
    ],
)
def test_package_that_is_not_listed_once_is_found(checkout: Path, more: str, expected: list[str]) -> None:
    assert wrong_packages(PACKAGES + more, checkout) == expected


def test_package_of_a_checkout_is_read_by_module_name(checkout: Path) -> None:
    (checkout / "prompt_tune/files.py").write_text("import os\n")
    sources = read_package(checkout)
    assert sources["prompt_tune.files"] == "import os\n"
    assert {"prompt_tune.__init__", "prompt_tune.runtime.__init__", "prompt_tune.runtime.boxes"} <= set(sources)
