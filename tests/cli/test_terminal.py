"""What the command line prints of names, labels and paths that mean harm."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from vocabularies import learned

from prompt_tune.cli.terminal import cell, echo
from prompt_tune.vocabulary.format import decode, encode

CLEAR, TURN = "\x1b[2J", "exe.\u202egnp"
BUNDLE = ROOT / "tests" / "data" / "bundle"


def test_line_is_one_line_without_control_sequences(capfd: pytest.CaptureFixture[str]) -> None:
    echo(f"a{CLEAR}\nError: b", TURN)
    echo("گاو\u200cمیش", err=True)
    assert capfd.readouterr() == ("a\\x1b[2J\\nError: b\nexe.\\u202egnp\n", "گاو\u200cمیش\n")


def test_cell_shows_brackets_and_escapes() -> None:
    assert cell(f"[red]{CLEAR}").plain == "[red]\\x1b[2J"


def test_commands_print_through_this_module_alone() -> None:
    """`click.echo` writes JSON alone, which is ASCII; `Text` of rich is made by `cell` or from escaped rows."""
    for path in sorted((ROOT / "prompt_tune" / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if path.name == "terminal.py" or not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("click.echo", "click.secho", "print"):
                assert ast.unparse(node.args[0]).startswith("json.dumps("), f"{path}:{node.lineno}"
            assert called != "Text" or path.name in ("progress.py", "vocab_tables.py"), f"{path}:{node.lineno}"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prompt_tune", *map(str, arguments)]
    kept = os.environ | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "200"}
    return subprocess.run(command, env=kept, capture_output=True, text=True, check=False)


def is_harmless(done: subprocess.CompletedProcess[str]) -> bool:
    return not set("\x1b\u202e\x07") & set(done.stdout + done.stderr)


def test_names_and_paths_are_escaped_by_the_commands(tmp_path: Path) -> None:
    folder = tmp_path / f"photos{CLEAR}\x07"
    folder.mkdir()
    (folder / f"{TURN}.png").write_bytes(b"nothing")
    (folder / "[").mkdir()
    (folder / "[" / "red].png").write_bytes((ROOT / "tests" / "data" / "photo.png").read_bytes())
    done = run("detect", BUNDLE, "--source", folder, "--out", tmp_path / "out")
    assert (done.returncode, is_harmless(done)) == (0, True), done.stderr
    assert f"Skipped: {folder}".replace("\x1b", "\\x1b").replace("\x07", "\\x07") in done.stderr.replace("`", "")
    done = run("val", BUNDLE, "--data", folder)
    assert (done.returncode, is_harmless(done)) == (1, True) and "\\x1b[2J" in done.stderr
    done = run("detect", BUNDLE, "--source", folder, "--out", tmp_path / "out", "--show", TURN)
    assert (done.returncode, is_harmless(done)) == (2, True) and "\\u202e" in done.stderr


def test_names_of_a_file_made_before_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / f"old{TURN}.vocab.safetensors"
    learned("plain", "xxxxx").save(path)
    fields, tensors = decode(path)
    path.write_bytes(encode(fields | {"names": ["plain", TURN], "provenance": {"note": f"a{CLEAR}"}}, tensors))
    learned("plain").save(tmp_path / "other.vocab.safetensors")
    for arguments in (
        ("vocab", "show", path, "--all"),
        ("vocab", "diff", path, tmp_path / "other.vocab.safetensors", "--all"),
        ("vocab", "diff", path, tmp_path / "other.vocab.safetensors", "--json"),
        ("vocab", "remove", path, "gone", "--out", tmp_path / "x.vocab.safetensors"),
        ("vocab", "remove", path, TURN, "--out", tmp_path / f"y{CLEAR}.vocab.safetensors"),
    ):
        done = run(*arguments)
        assert is_harmless(done) and "\\u202e" in done.stdout + done.stderr, arguments
        assert done.stderr.count("control the direction of text") <= 1
    (diff,) = (json.loads(run("vocab", "diff", path, tmp_path / "other.vocab.safetensors", "--json").stdout),)
    assert TURN in json.dumps(diff, ensure_ascii=False)
