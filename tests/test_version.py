"""How the package is installed: one constant, and every text that says so."""

import configparser
import re

import pytest
from places import ROOT

from prompt_tune.version import CPU_PACKAGES, NAME, PUBLISHED, __version__, install, install_on_cpu

PAGES = ("README.md", "docs/deployment.md", "docs/index.md", "docs/troubleshooting.md", "docs/other-tools.md")


def test_install_names_what_pip_can_find() -> None:
    assert install("fit") == ("pip install 'prompt-tune[fit]'" if PUBLISHED else "pip install '.[fit]' (in a checkout)")
    assert install_on_cpu("a.whl") == f"pip install {CPU_PACKAGES} && pip install --no-deps a.whl"


def test_install_on_cpu_brings_what_the_base_install_does_but_for_the_gpu() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [line.strip() for line in config["options"]["install_requires"].splitlines()]
    names = {re.split(r"[ ;<>=]", line)[0] for line in lines if line and not line.startswith("#")}
    assert set(CPU_PACKAGES.split()) == names - {"onnxruntime-gpu"}


@pytest.mark.parametrize("page", PAGES)
def test_page_installs_as_the_constant_says(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"pip install (?:-e )?'?([^\s'\[`]+)(?:\[\w+\])?'?", text):
        assert name in (NAME, "--no-deps", *CPU_PACKAGES.split(), "av"), f"{page}: {name}"


@pytest.mark.parametrize("page", ["README.md", "docs/deployment.md"])
def test_page_has_the_commands_for_the_cpu_and_says_whether_the_package_is_published(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert install_on_cpu() in text
    assert ("prompt-tune is not on PyPI yet" in text) is not PUBLISHED


def test_version_has_one_home_and_the_changelog_names_it() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    for name in ("setup.cfg", "pyproject.toml", "CITATION.cff", "mkdocs.yml", "README.md"):
        assert __version__ not in (ROOT / name).read_text(encoding="utf-8"), name
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]
