"""Completion in bash, zsh and fish, with the lines that the documentation has."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from prompt_tune.cli import COMMANDS

LINES = dict(
    (match[2], match[1])
    for match in re.finditer(
        r"^```\w+\n(.*_PROMPT_TUNE_COMPLETE=(\w+)_source.*)\n```$",
        (ROOT / "docs" / "commands.md").read_text("utf-8"),
        re.MULTILINE,
    )
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """In which `prompt-tune` is a console script that runs this checkout."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "prompt-tune"
    script.write_text(f"#!{sys.executable}\nfrom prompt_tune.cli import main\nmain()\n")
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def run(environment: dict[str, str], *command: str, **more: str) -> str:
    done = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)
    assert done.stderr == "", done.stderr
    return done.stdout


def test_documentation_has_a_line_for_each_shell() -> None:
    assert list(LINES) == ["bash", "zsh", "fish"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["d"], ["demo", "data", "detect", "doctor"]),
        (["vocab", "re"], ["remove", "rename"]),
        (["data", ""], ["check"]),
        (["fit", "--im"], ["--image-size", "--imgsz"]),
        (["fit", "--guide", ""], ["original", "own"]),
        (["detect", "--learned", "a", "--learned", "b", "--iou", "1", "--iou", "2", "--sho"], ["--show"]),
        (["fit", "--config", "nowhere.yaml", "--save-"], ["--save-config"]),
        (["--verb"], ["--verbose"]),
    ],
)
def test_bash_completes(words: list[str], expected: list[str], environment: dict[str, str]) -> None:
    typed = " ".join(f"'{word}'" for word in ("prompt-tune", *words))
    script = f"{LINES['bash']}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words)}\n"
    script += (
        'complete -p prompt-tune >/dev/null && _prompt_tune_completion prompt-tune && printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert run(environment, "bash", "--norc", "-c", script).split() == expected


def test_all_commands_are_offered_and_none_is_imported(environment: dict[str, str]) -> None:
    code = """
import sys
from prompt_tune.cli import main
sys.argv = ["prompt-tune"]
try:
    main()
finally:
    print(sorted(name for name in sys.modules if name.startswith("prompt_tune.cli.")))
"""
    asked = {"_PROMPT_TUNE_COMPLETE": "bash_complete", "COMP_WORDS": "prompt-tune ", "COMP_CWORD": "1"}
    *lines, imported = run(environment, sys.executable, "-c", code, **asked).splitlines()
    assert lines == [f"plain,{name}" for name in COMMANDS]
    assert imported == "['prompt_tune.cli.entry', 'prompt_tune.cli.verbosity']"


@pytest.mark.parametrize(
    "words",
    [
        *(
            "fit --data ",
            "fit --model ",
            "fit --out ",
            "fit --config ",
            "fit --replay ",
            "detect ",
            "detect b ",
            "data check ",
        ),
        *(
            "detect b --source ",
            "val r --data ",
            "verify b --images ",
            "vocab show ",
            "vocab build --model ",
            "doctor --model ",
        ),
    ],
)
def test_files_are_left_to_the_shell(words: str, environment: dict[str, str]) -> None:
    asked = {"COMP_WORDS": f"prompt-tune {words}", "COMP_CWORD": str(len(words.split()) + 1)}
    (line,) = run(environment, "prompt-tune", **asked, _PROMPT_TUNE_COMPLETE="bash_complete").splitlines()
    assert line == "file,"


def test_zsh_and_fish_get_names_with_their_help(environment: dict[str, str]) -> None:
    asked = {"COMP_WORDS": "prompt-tune ver", "COMP_CWORD": "1"}
    zsh = run(environment, "prompt-tune", **asked, _PROMPT_TUNE_COMPLETE="zsh_complete")
    assert zsh.splitlines() == ["plain", "verify", COMMANDS["verify"][1]]
    asked |= {"COMP_CWORD": "ver"}
    fish = run(environment, "prompt-tune", **asked, _PROMPT_TUNE_COMPLETE="fish_complete")
    assert "verify" in fish and COMMANDS["verify"][1] in fish


@pytest.mark.parametrize(("shell", "check"), [("zsh", "-n"), ("fish", "--no-execute")])
def test_script_for_other_shells_is_what_they_read(
    shell: str, check: str, environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "completion"
    script.write_text(run(environment, "prompt-tune", _PROMPT_TUNE_COMPLETE=f"{shell}_source"))
    text = script.read_text()
    assert "_prompt_tune_completion" in text and f"_PROMPT_TUNE_COMPLETE={shell}_complete" in text
    if shutil.which(shell) is not None:
        run(environment, shell, check, str(script))


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(
    ("typed", "expected"), [("d", "detect\tRun a bundle on images, videos, cameras and"), ("vocab re", "remove\t")]
)
def test_fish_completes_with_whole_descriptions(typed: str, expected: str, environment: dict[str, str]) -> None:
    script = f"{LINES['fish']}; complete -C 'prompt-tune {typed}'"
    assert expected in run(environment, "fish", "--no-config", "-c", script)


def test_description_in_fish_does_not_end_at_a_comma(environment: dict[str, str]) -> None:
    """The script takes what `prompt-tune` prints apart at the first comma alone."""
    script = run(environment, "prompt-tune", _PROMPT_TUNE_COMPLETE="fish_source")
    assert 'string split --max 1 "," $completion' in script and 'split ","' not in script
