"""A wheel of the package itself, from its checkout."""

import zipfile
from pathlib import Path

import pytest
from places import ROOT

from prompt_tune.deployment import wheel
from prompt_tune.deployment.wheel import WHEELS, build_wheel, find_checkout
from prompt_tune.errors import GraphError


def test_wheel_of_the_checkout_holds_the_package_and_leaves_the_checkout_alone(tmp_path: Path) -> None:
    before = {path.name for path in ROOT.iterdir()}
    built = build_wheel(tmp_path)
    assert built.parent == tmp_path and built.match(WHEELS) and [*tmp_path.iterdir()] == [built]
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
    assert {"prompt_tune/version.py", "prompt_tune/export/web/index.html", "prompt_tune/prompts/coco.txt"} <= names
    assert {path.name for path in ROOT.iterdir()} == before


def test_package_without_a_checkout_says_how_to_get_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_checkout() == ROOT
    monkeypatch.setattr(wheel, "__file__", str(tmp_path / "site-packages" / "prompt_tune" / "deployment" / "wheel.py"))
    with pytest.raises(GraphError, match=r"installed without a checkout\. .*`pip wheel --no-deps \.` in a checkout"):
        build_wheel(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_build_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in wheel.SOURCES:
        (tmp_path / part).write_text("nonsense")
    file = tmp_path / "prompt_tune_" / "deployment" / "wheel.py"
    monkeypatch.setattr(wheel, "__file__", str(file))
    with pytest.raises(GraphError, match=r"^The wheel cannot be built from '.*': .*Without --with-wheel") as refusal:
        build_wheel(tmp_path)
    assert len(str(refusal.value).splitlines()) == 1
