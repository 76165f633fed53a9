"""README and docs: their commands parse, their snippets compile, and what they mark with `<!-- run -->` really runs.

Other markers name a command for other programs: `.ci/run` takes the README's test command, and people its demo command.
"""

import ast
import configparser
import importlib
import inspect
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from bundles import learned_for_tiny, original_vocabulary
from places import ROOT, TESTS
from vocabularies import unit_rows

from prompt_tune.cli import command as prompt_tune
from prompt_tune.config import FitConfig
from prompt_tune.datasets.sample import CLASSES, write_sample
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.vocabulary.format import LEARNED_FILE

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
README_LINES, README_COLUMNS = 150, 120  # what a newcomer reads in two minutes, on a narrow screen
KIT_PROGRAM = "python/detect.py"  # in every bundle; in the checkout it is below export/
KIT_PROGRAMS = {KIT_PROGRAM, "annotation/label_studio.py"}
FOREIGN = {
    "cd",
    "cvat-cli",
    "curl",
    "diff",
    "docker",
    "echo",
    "export",
    "jq",
    "mkdocs",
    "mypy",
    "npm",
    "ruff",
    "sha256sum",
    "truncate",
}  # programs whose arguments are not checked
RUN_SECONDS = 300
BLOCK = re.compile(r"(?:^<!-- ([^\n]*?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")  # of a variable, before a command
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: The file.
        line: Number of the line of its first fence, from 1.
        marker: The text of the comment before it, or "".
        language: As the fence says.
        code: Its content.
    """

    page: Path
    line: int
    marker: str
    language: str
    code: str

    @property
    def runs(self) -> bool:
        """Whether it is to be run."""
        return self.marker == "run" or self.marker.startswith("run in ")

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(2)) + 1
        yield Block(page, line, match[1] or "", match[2], match[3])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [block for block in BLOCKS if block.language == "bash"]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def prose_of(page: Path) -> str:
    """A page without its fenced blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


# commands


def simple_commands(code: str) -> Iterator[list[str]]:
    """The words of every command in shell code, without comments, operators and redirections."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        redirected = False
        for token in lexer:
            if set(token) <= set("();<>|&"):
                redirected = bool(set(token) & set("<>"))
                if words and not redirected:
                    yield words
                    words = []
            elif not redirected:
                words.append(token)
            else:
                redirected = False
        if words:
            yield words


def parse(command: click.Command, words: Sequence[str]) -> None:
    """Parse arguments with click, without running anything. Raises what click raises for a usage error."""
    arguments, parent = list(words), None
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        parent = click.Context(command, info_name=command.name, parent=parent)
        _, found, arguments = command.resolve_command(parent, arguments)
        assert found is not None
        command = found
    context = click.Context(command, info_name=command.name, parent=parent)
    if "--config" in arguments:  # a file that is not there: it may have any option, those that are required too
        place = arguments.index("--config")
        del arguments[place : place + 2]
        context.resilient_parsing = True
    try:
        command.parse_args(context, arguments)
    except click.exceptions.Exit:  # --help and --version
        return
    settings = {field.name: context.params.get(field.name) for field in fields(FitConfig)}
    if None not in settings.values():  # `fit`: refuses values that do not go together
        FitConfig(**settings)  # type: ignore[arg-type]


def check_pip(words: Sequence[str]) -> None:
    assert words[0] == "install", words
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    known = set(config["options.extras_require"])
    for word in words[1:]:
        assert not word.startswith("prompt-tune"), f"prompt-tune is not on PyPI: {words}"
        if match := re.fullmatch(r"\.\[(.+)\]", word):
            assert set(match[1].split(",")) <= known, word


def check_python(words: Sequence[str]) -> None:
    if words[0] == "-m":
        assert words[1] in {"http.server", "pytest"}, words
        paths = [word for word in words[2:] if "/" in word] if words[1] == "pytest" else []
        assert all((ROOT / path).exists() for path in paths), words
        return
    program = ROOT / "export" / words[0] if words[0] in KIT_PROGRAMS else ROOT / words[0]
    assert program.is_file(), words
    if program.parent == TESTS:
        parse(importlib.import_module(program.stem).main, words[1:])


def check_torchrun(words: Sequence[str]) -> None:
    from torch.distributed.run import get_args_parser

    arguments = get_args_parser().parse_args(words)
    assert arguments.module and arguments.training_script == "prompt_tune", words
    parse(prompt_tune, arguments.training_script_args)


def check_command(words: Sequence[str]) -> None:
    """Refuse a command that cannot be right."""
    words = list(itertools.dropwhile(ASSIGNMENT.fullmatch, words))
    program = words[0]
    if program == "prompt-tune":
        parse(prompt_tune, words[1:])
    elif program == "torchrun":
        check_torchrun(words[1:])
    elif program == "pip":
        check_pip(words[1:])
    elif program == "python":
        check_python(words[1:])
    elif "/" in program:
        assert os.access(ROOT / program, os.X_OK), program
    else:
        assert program in FOREIGN, f"{program}: check its arguments here, or add it to FOREIGN"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_command_of_a_shell_block_is_right(block: Block) -> None:
    commands = list(simple_commands(block.code))
    assert commands
    for words in commands:
        check_command(words)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("prompt-tune fitt --model tiny", click.UsageError),
        ("prompt-tune fit --model tiny --data a.yaml --out run --viewz 4", click.NoSuchOption),
        ("prompt-tune fit --model tiny --data a.yaml --out run --views four", click.BadParameter),
        ("prompt-tune fit --model tiny --data a.yaml --out run --guide joint", click.BadParameter),
        ("prompt-tune fit --model tiny --data a.yaml --out run --epochs 0", Exception),
        ("pip install . && prompt-tune fit --model tiny \\\n  --out run", click.MissingParameter),
        ("prompt-tune vocab shew a.vocab.safetensors", click.UsageError),
        ("prompt-tune detect bundle --source 0 --stream | prompt-tune verify", click.MissingParameter),
        ("pip install '.[fits]'", AssertionError),
        ("pip install prompt-tune", AssertionError),
        ("python tests/bench_nothing.py", AssertionError),
        ("OMP_NUM_THREADS=1 torchrun --nproc-per-node=2 -m prompt_tune fit --model tiny", click.MissingParameter),
        ("torchrun --processes=2 -m prompt_tune sample --out a", SystemExit),
        ("torchrun --nproc-per-node=2 -m prompt_tone sample --out a", AssertionError),
        ("python tests/bench_fit.py --epoch 0", click.NoSuchOption),
        ("conda install prompt-tune", AssertionError),
    ],
)
def test_wrong_command_is_noticed(code: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        for words in simple_commands(code):
            check_command(words)


def all_options() -> set[str]:
    """Every option of the command line, of the benchmarks and of the kit's program."""
    found = set(re.findall(r'"(--[\w-]+)"', (ROOT / "export" / KIT_PROGRAM).read_text()))
    commands: list[click.Command] = [prompt_tune]
    commands += [importlib.import_module(path.stem).main for path in TESTS.glob("bench_*.py")]
    commands.append(runpy.run_path(str(TESTS / "gpu" / "check.py"))["main"])
    for command in commands:
        if isinstance(command, click.Group):
            context = click.Context(command)
            commands += filter(None, (command.get_command(context, name) for name in command.list_commands(context)))
        for parameter in command.params:
            found.update((*parameter.opts, *parameter.secondary_opts))
    return found | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    options = all_options()
    for span in INLINE.findall(prose_of(page)):
        if span.startswith("--"):
            assert re.split(r"[ =]", span)[0] in options, span
        elif span.startswith(("prompt-tune ", "pip ", "python ")):
            for words in simple_commands(span):
                try:
                    check_command(words)
                except click.MissingParameter:  # text may name a command without its arguments
                    continue


# Python


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_block_compiles_and_uses_what_exists(block: Block) -> None:
    check_python_code(block.code)


def check_python_code(code: str) -> None:
    """Refuse code that does not compile, or that uses what prompt_tune or its classes do not have."""
    tree = ast.parse(code)
    imported: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "prompt_tune":
            module = importlib.import_module(str(node.module))
            imported |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    made: dict[str, type] = {}  # variables that hold an object of an imported class
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in imported:
            continue
        signature = inspect.signature(imported[node.func.id])
        signature.bind(*node.args, **{word.arg: word.value for word in node.keywords if word.arg})
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
            of = imported.get(node.value.func.id)
            if isinstance(of, type):
                made |= {target.id: of for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in made:
            of = made[node.value.id]
            has = hasattr(of, node.attr) or f"self.{node.attr}" in inspect.getsource(of)
            assert has, f"{of.__name__} has no {node.attr}"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("from prompt_tune import Detecter", AttributeError),
        ("from prompt_tune.tuning.fits import fit", ModuleNotFoundError),
        ("from prompt_tune import Detector\nDetector('bundle', devise='cpu')", TypeError),
        ("from prompt_tune import Detector\nd = Detector('bundle')\nd.detekt('a.jpg')", AssertionError),
        ("for x in:", SyntaxError),
    ],
)
def test_wrong_python_is_noticed(code: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_python_code(code)


# running


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small files of the names that README and docs use."""
    folder = tmp_path_factory.mktemp("docs")
    write_sample(folder / "sample", n_images=6)
    shutil.copytree(TESTS / "data" / "run", folder / "run")
    export_bundle(folder / "run", folder / "bundle")
    shutil.copytree(folder / "sample" / "custom" / "images" / "test", folder / "photos")
    shutil.copy(folder / "photos" / "0000.jpg", folder / "photo.jpg")
    shutil.copy(folder / "run" / LEARNED_FILE, folder / "night-shift.vocab.safetensors")
    for name in ("bundle", "run", "sample"):
        shutil.copytree(folder / name, folder / "demo" / name)
    n_prompts = original_vocabulary().n_prompts
    plain = learned_for_tiny(tuple(CLASSES), unit_rows(len(CLASSES), n_prompts), kind="plain")
    plain.save(folder / "demo" / "plain.vocab.safetensors")
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """In which `prompt-tune` and `python` are those of the tests."""
    programs = tmp_path_factory.mktemp("bin")
    for name, words in (("prompt-tune", "-m prompt_tune"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        program.chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def run_block(block: Block, folder: Path, environment: dict[str, str]) -> None:
    """Run a block in a folder with the inputs; it has to succeed."""
    commands = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    where = folder / block.marker.removeprefix("run").removeprefix(" in ")
    done = subprocess.run(
        [*commands[block.language], block.code],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{block.code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.runs for block in blocks_of(page))], ids=lambda page: page.name
)
def test_marked_blocks_of_a_page_run_one_after_another(
    page: Path, inputs: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(inputs, folder)
    for block in blocks_of(page):
        if block.runs:
            run_block(block, folder, environment)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_block_that_fails_is_noticed(inputs: Path, environment: dict[str, str]) -> None:
    block = Block(DOCS / "page.md", 1, "run in photos", "bash", "prompt-tune vocab show nothing | cat")
    with pytest.raises(AssertionError, match=r"nothing: there is no such file"):
        run_block(block, inputs, environment)


def test_every_marker_is_known_and_marks_a_block() -> None:
    markers = {"demo-command": 0, "test-command": 0}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        marked = [block for block in blocks_of(page) if block.marker]
        assert len(re.findall(r"^<!-- ", text, re.MULTILINE)) == len(marked), page.name
        for block in marked:
            assert block.runs or block.marker in markers, f"{block}: {block.marker}"
            if not block.runs:
                assert page.name == "README.md" and block.language == "bash"
                markers[block.marker] += 1
    assert markers == {"demo-command": 1, "test-command": 1}


# texts, links and the site


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES
    assert [line for line in lines if len(line) > README_COLUMNS] == []


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, and of the objects that its API reference documents."""
    text = prose_of(page)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose_of(page)):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        assert file.is_file(), f"{page.name}: {link}"
        if page.parent == DOCS:
            assert file.parent == DOCS, f"{page.name}: {link} is outside the site"
        if anchor:
            assert anchor in anchors_of(file), f"{page.name}: {link}"


def test_site_lists_every_page_and_loads_nothing_from_the_network() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def listed(entries: Any) -> Iterator[str]:
        for entry in entries:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else listed(value)

    assert sorted(listed(site["nav"])) == sorted(page.name for page in PAGES if page.parent == DOCS)
    assert site["theme"]["font"] is False  # else the theme loads fonts from Google
    assert not {"extra_javascript", "extra_css"} & site.keys()


def documented() -> list[str]:
    return re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", documented())
def test_documented_object_exists(path: str) -> None:
    module, _, name = path.rpartition(".")
    found = importlib.import_module(path) if module == "prompt_tune" else getattr(importlib.import_module(module), name)
    assert inspect.getdoc(found)


def texts_of_the_package() -> list[str]:
    """The constant texts in the code, and the constant parts of its f-strings."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "prompt_tune").rglob("*.py")]
    nodes = (node for tree in trees for node in ast.walk(tree))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_messages_that_troubleshooting_explains_are_those_of_the_code() -> None:
    table = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(table) > 10
    texts = texts_of_the_package()
    assert [message for message in table if not any(message in text for text in texts)] == []
