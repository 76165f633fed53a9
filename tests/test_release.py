"""The files of a release: built, checked, what is in them, and the wheel at work in an environment of its own."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import extras
import pytest
from places import ROOT, TESTS

from prompt_tune.deployment.wheel import SOURCES
from prompt_tune.version import __version__

extras.needs("build", "twine")

NAME = f"prompt_tune-{__version__}"
PLACES = {"prompt_tune/": "prompt_tune/", "prompts/": "prompt_tune/prompts/", "export/": "prompt_tune/export/"}
SOME = {  # of what a user needs: kits, class lists, `tiny`, the page, type hints
    *(
        "export/python/detect.py",
        "export/python/kit_detector.py",
        "export/web/index.html",
        "export/web/worker.js",
        "export/bundle_README.md",
    ),
    *("prompts/coco.txt", "prompts/lvis.txt", "prompts/templates.txt", "py.typed"),
    *("tiny/weights/detector.safetensors", "tiny/weights/detector.yaml", "report/templates/fit.html.j2"),
}


def git(*arguments: str) -> str:
    """What git prints about the checkout."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout


@pytest.fixture(scope="module")
def commit() -> str:
    """The last commit, with what has been changed since."""
    return git("-c", "user.name=test", "-c", "user.email=test", "stash", "create").strip() or "HEAD"


@pytest.fixture(scope="module")
def dist(commit: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the release, with what `.ci/release` printed."""
    folder = tmp_path_factory.mktemp("release")
    program = f'PATH="{Path(sys.executable).parent}:$PATH" exec .ci/release "$0" "$1"'
    done = subprocess.run(
        ["bash", "-c", program, folder / "dist", commit], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "log").write_text(done.stdout)
    return folder / "dist"


@pytest.fixture(scope="module")
def sources(commit: str) -> set[str]:
    """The files of the commit that belong into a release."""
    return set(git("ls-tree", "-r", "--name-only", commit, "--", *SOURCES).splitlines())


def test_release_is_one_sdist_and_one_wheel_that_pass_twine(dist: Path) -> None:
    assert {path.name for path in dist.iterdir()} == {f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"}
    log = (dist.parent / "log").read_text()
    assert log.count("PASSED") == 2 and log.splitlines()[-1] == (
        f"Written to {dist}: {NAME}-py3-none-any.whl {NAME}.tar.gz"
    )
    assert f"{NAME}/prompts/coco.txt" in log.splitlines()


def test_sdist_has_the_sources_and_no_tests(dist: Path, sources: set[str]) -> None:
    with tarfile.open(dist / f"{NAME}.tar.gz") as sdist:
        names = {member.name.removeprefix(f"{NAME}/") for member in sdist.getmembers() if member.isfile()}
    made = {name for name in names if name == "PKG-INFO" or name.startswith("prompt_tune.egg-info/")}
    assert names - made == sources
    assert not [name for name in names if "test" in name]


def test_wheel_has_what_a_user_needs_and_no_tests(dist: Path, sources: set[str]) -> None:
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if not name.startswith(f"{NAME}.dist-info/")}
        metadata = wheel.read(f"{NAME}.dist-info/METADATA").decode()
        assert f"{NAME}.dist-info/licenses/LICENSE" in wheel.namelist()
    expected = {new + path.removeprefix(old) for path in sources for old, new in PLACES.items() if path.startswith(old)}
    assert names == expected and {f"prompt_tune/{name}" for name in SOME} <= names
    assert f"\nVersion: {__version__}\n" in metadata and "\nDescription-Content-Type: text/markdown\n" in metadata


def test_installed_wheel_works_in_an_environment_of_its_own(dist: Path, tmp_path: Path) -> None:
    """Only the packages that it needs come from here, by path: nothing of this checkout can be seen."""
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    wheel = dist / f"{NAME}-py3-none-any.whl"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "install", *options, str(wheel)], check=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    beneath = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "beneath.pth").write_text("\n".join(beneath) + "\n")  # an editable install there stays unseen

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [str(part) for part in arguments], cwd=tmp_path, env={}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = "import prompt_tune, prompt_tune.prompts, prompt_tune.export as e; print(prompt_tune.__file__, *e.__path__)"
    assert run(python, "-c", where).split() == [
        str(packages / "prompt_tune" / part) for part in ("__init__.py", "export")
    ]
    program = tmp_path / "venv" / "bin" / "prompt-tune"
    assert __version__ in run(program, "--version")
    run(program, "vocab", "build", "--model", "tiny", "--names", "coco", "--out", "coco.vocab.safetensors")
    run(program, "export", TESTS / "data" / "run", "--out", "bundle")
    assert (tmp_path / "bundle" / "web" / "index.html").is_file()
    found = run(python, "bundle/python/detect.py", TESTS / "data" / "photo.png")
    assert found.strip()
