"""Trackers without their libraries; test_tensorboard.py and others read back what they log."""

import configparser
from pathlib import Path

import extras
import pytest
from places import ROOT

from prompt_tune.services.trackers import MADE, _flat, _wandb_home
from prompt_tune.services.tracking import PACKAGES


def test_settings_stand_beside_the_rest_as_texts() -> None:
    config = {"model": "tiny", "classes": [["a", "b"]], "settings": {"epochs": 3, "boxes": "frozen"}}
    assert _flat(config) == {"model": "tiny", "classes": '[["a", "b"]]', "epochs": "3", "boxes": "frozen"}
    assert _flat({}) == {}


def test_wandb_writes_below_the_run() -> None:
    home = _wandb_home(Path("run/wandb"))
    assert home == {f"WANDB_{kind}_DIR": f"run/wandb/{kind.lower()}" for kind in ("CACHE", "CONFIG", "DATA")}


@pytest.mark.parametrize("name", sorted(MADE))
def test_tracker_has_an_extra_with_its_packages_and_a_test(name: str) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    brought = config["options.extras_require"][name].replace("-skinny", "").split()
    assert set(PACKAGES[name]) <= set(brought)
    assert extras.FILES[name] == (f"tests/services/test_{name}.py",)


def test_every_tracker_can_be_asked_for() -> None:
    from prompt_tune.cli.fit import command

    (option,) = (part for part in command.params if part.name == "log")
    assert list(option.type.choices) == list(MADE) == list(PACKAGES)  # type: ignore[attr-defined]
