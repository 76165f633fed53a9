"""The rules of the house, checked by reading sources: each function returns what breaks a rule, one line per place."""

import ast
import configparser
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "prompt_tune"
FLOORS = (  # from the top down; rooms on one floor are neighbours
    ("cli",),
    ("services",),
    ("tiny",),
    ("tuning",),
    ("report",),
    ("evaluation", "deployment"),
    ("models", "datasets", "media"),
    ("runtime",),
    ("vocabulary",),
)
GROUND = (
    "errors",
    "files",
    "progress",
    "version",
    "config",
    "run",
    "contract",
    "strict_json",
    "wording",
    "texts",
    "hub",
    "privacy",
)  # modules, below all rooms
DATA = ("prompts", "export")  # packages without code
LIGHT = ("vocabulary", "runtime", "media", "evaluation", "report")  # and the ground
HEAVY = ("torch", "torchvision", "ultralytics", "open_clip")
TOP_LEVEL = {
    *("setup.cfg", "pyproject.toml", "ruff.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"),
    *("SECURITY.md", "mkdocs.yml", "Dockerfile", "docs", "prompts", "prompt_tune", "export", "tests", ".ci"),
    *(".gitignore", ".dockerignore"),
}
NO_TEST = {  # modules without a test file of their own, and why
    "__main__": "two lines; every test of a process runs it",
    "progress": "a type, and a function that does nothing",
    "version": "a number from the installed package; the command line's test shows it",
}


@dataclass(frozen=True)
class Import:
    """An import: the module that is imported, the names taken from it, and whether importing the file runs it."""

    module: str
    names: tuple[str, ...]
    at_import: bool
    line: int


def imports_of(source: str, module: str) -> list[Import]:
    """All imports of a module except those for type checkers only. A package is the module `name.__init__`."""
    found: list[Import] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            for other in node.orelse:
                visit(other, at_import)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, (), at_import, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            found.append(Import(base, tuple(alias.name for alias in node.names), at_import, node.lineno))
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"):
            texts = [part.value for part in node.args[:1] if isinstance(part, ast.Constant)]
            found.extend(Import(str(text), (), at_import, node.lineno) for text in texts)
        inside = at_import and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), True)
    return found


def read_package(root: Path) -> dict[str, str]:
    """Source by module name, of every module of the package in a checkout; a package is `name.__init__`."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    return {".".join(file.relative_to(root).with_suffix("").parts): file.read_text("utf-8") for file in files}


def wrong_floors(sources: Mapping[str, str]) -> list[str]:
    """Rule 1: imports that do not run downwards, and modules and rooms that have no place in the house."""
    height = {room: len(FLOORS) - i for i, rooms in enumerate(FLOORS) for room in rooms} | dict.fromkeys(GROUND, 0)
    broken = []
    for module, source in sources.items():
        room = _room(module)
        if room == "__init__":  # of the whole package: only hands names on
            continue
        if room not in height:
            broken.append(f"{module}: `{room}` has no place in the house")
            continue
        for target, line in _targets(source, module):
            other = _room(target)
            if other == room or other in DATA or (other not in height and room == "cli"):
                continue
            if other not in height:
                broken.append(f"{module}:{line} imports {target}, which has no place in the house")
            elif height[room] > 0 and height[other] >= height[room]:
                broken.append(f"{module}:{line} imports {target}, a room that is not below {room}")
            elif height[room] == 0 and height[other] > 0:
                broken.append(f"{module}:{line} imports {target}, and the ground uses nothing but ground")
    return broken


def private_imports(sources: Mapping[str, str]) -> list[str]:
    """Names with an underscore that a module takes from another one."""
    return [
        f"{module}:{found.line} imports {found.module}.{name}"
        for module, source in sources.items()
        for found in imports_of(source, module)
        for name in found.names
        if found.module.split(".")[0] == PACKAGE and name.startswith("_") and not name.startswith("__")
    ]


def heavy_imports(sources: Mapping[str, str]) -> list[str]:
    """Rule 2: light modules whose import loads a heavy package, directly or through modules that they import."""
    at_import = {
        module: [
            name
            for found in imports_of(source, module)
            if found.at_import
            for name in (found.module, *(f"{found.module}.{name}" for name in found.names))
        ]
        for module, source in sources.items()
    }

    def heavy(module: str, seen: set[str]) -> list[str]:
        """The way from a module to a heavy package."""
        if module.split(".")[0] in HEAVY:
            return [module]
        for key in (module, f"{module}.__init__"):
            if key in at_import and key not in seen:
                seen.add(key)
                parents = [f"{key.rsplit('.', i)[0]}.__init__" for i in range(1, key.count(".") + 1)]
                for target in (*at_import[key], *(parent for parent in parents if parent != key)):
                    if way := heavy(target, seen):
                        return [module, *way]
        return []

    light = [module for module in sources if _room(module) in (*LIGHT, *GROUND, "__init__")]
    return [" -> ".join(way) for module in light if (way := heavy(module, set()))]


def busy_packages(sources: Mapping[str, str]) -> list[str]:
    """Rule 3: packages whose `__init__` does more than hand names on."""
    broken = []
    for module, source in sources.items():
        if not module.endswith("__init__"):
            continue
        is_top = module == f"{PACKAGE}.__init__"
        for node in ast.parse(source).body:
            if not _hands_on(node) and not (is_top and _of_top(node)):
                broken.append(f"{module}:{node.lineno} does more than hand names on")
    return broken


def strangers(tracked: Collection[str]) -> list[str]:
    """Rule 4: what the top level of the repository holds and should not."""
    return sorted({path.split("/")[0] for path in tracked} - TOP_LEVEL)


def untested(root: Path) -> list[str]:
    """Modules without a test file named after them."""
    missing = []
    for file in sorted((root / PACKAGE).rglob("*.py")):
        name = file.relative_to(root / PACKAGE).with_suffix("")
        if name.name != "__init__" and name.as_posix() not in NO_TEST:
            test = Path("tests") / name.parent / f"test_{name.name}.py"
            if not (root / test).is_file():
                missing.append(str(test))
    return missing


def wrong_packages(setup_cfg: str, root: Path) -> list[str]:
    """Packages that setup.cfg lists twice, lists although they are absent, or does not list."""
    config = configparser.ConfigParser()
    config.read_string(setup_cfg)
    listed = config["options"]["packages"].split()
    folders = [file.parent.relative_to(root) for file in (root / PACKAGE).rglob("__init__.py")]
    present = {".".join(folder.parts) for folder in folders}
    present |= {f"{PACKAGE}.{name}" for name in DATA if (root / name / "__init__.py").is_file()}
    twice = {name for name in listed if listed.count(name) > 1}
    return [
        *(f"{name} is listed twice" for name in sorted(twice)),
        *(f"{name} is listed, but absent" for name in sorted(set(listed) - present)),
        *(f"{name} is not listed" for name in sorted(present - set(listed))),
    ]


def _targets(source: str, module: str) -> Iterator[tuple[str, int]]:
    """The modules of the package that a module imports, and the lines."""
    for found in imports_of(source, module):
        if found.module == PACKAGE:  # `from prompt_tune import runtime`
            yield from ((f"{PACKAGE}.{name}", found.line) for name in found.names)
        elif found.module.split(".")[0] == PACKAGE:
            yield found.module, found.line


def _room(module: str) -> str:
    """The room of a module, or the name of a module that is in none."""
    name = module.split(".")[1] if "." in module else ""
    return "cli" if name == "__main__" else name


def _is_type_checking(test: ast.expr) -> bool:
    return _called(test) == "TYPE_CHECKING"


def _called(node: ast.expr) -> str:
    """The last name of `name` or `module.name`."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _hands_on(node: ast.stmt) -> bool:
    """Whether a statement is a docstring, an import, or `__all__`."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    if isinstance(node, ast.If):
        return _is_type_checking(node.test) and all(_hands_on(child) for child in (*node.body, *node.orelse))
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    return isinstance(node, (ast.Import, ast.ImportFrom))


def _of_top(node: ast.stmt) -> bool:
    """Whether a statement is one of those that hand names on lazily, or find the data packages of a checkout."""
    if isinstance(node, ast.FunctionDef):
        return node.name in ("__getattr__", "__dir__")
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Name) and target.id == "_HOMES" for target in node.targets)
    names = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
    return isinstance(node, ast.If) and "__path__" in names
