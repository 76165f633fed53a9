"""The test files of extras, each run in an environment that has what they need."""

import configparser
import subprocess
from pathlib import Path

import pytest
from extras import FILES, ROOT, environment


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extra", FILES)
def test_extra(extra: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    python = environment(extra, tmp_path_factory.mktemp("environment"))
    ran = subprocess.run(
        [python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *FILES[extra]],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert not ran.returncode, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert "in an environment of its own" not in ran.stdout, ran.stdout


def test_files_and_extras_exist() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert set(FILES) <= set(config["options.extras_require"])
    assert all(Path(ROOT, file).is_file() for files in FILES.values() for file in files)
