"""What `doctor` found as one page of Markdown that a user can send back: no path or name of the user's is in it."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prompt_tune.services.anonymity import anonymous
from prompt_tune.services.environment import PURPOSES, Environment

if TYPE_CHECKING:
    from prompt_tune.services.checkup import Checkup


def page(environment: Environment, checkup: "Checkup | None" = None) -> str:
    """The page, which ends with a line break."""
    lines = ["# prompt-tune doctor", "", *_machine(environment), *_packages(environment), *_problems(environment)]
    if checkup is not None:
        lines += _steps(checkup)
    return anonymous("\n".join(lines).rstrip() + "\n")


def _machine(found: Environment) -> Iterable[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    memory = f", {found.memory_gb:g} GB of memory" if found.memory_gb is not None else ""
    yield f"{versions}, on {found.system}; {found.cores} cores{memory}."
    yield ""
    yield f"- GPUs: {'; '.join(found.gpus) or 'no NVIDIA driver found'}"
    yield f"- ONNX Runtime's providers: {', '.join(found.providers) or 'not installed'}"
    if found.onnxruntime_cuda:
        missing = f"; cannot load {', '.join(found.missing_libraries)}" if found.missing_libraries else ""
        works = "works" if found.cuda else "does not work"
        yield f"- CUDA in ONNX Runtime: built with {found.onnxruntime_cuda}, {works} here{missing}"
    if found.torch_cuda:
        yield f"- CUDA in torch: {found.torch_cuda}"
    yield ""


def _packages(found: Environment) -> Iterable[str]:
    rows = [(part.name, part.version, part.wanted, PURPOSES[part.extra]) for part in found.packages if part.version]
    if rows:
        yield from _table(("package", "version", "wanted", "for"), rows)


def _problems(found: Environment) -> Iterable[str]:
    for title, broken in (("Does not work", True), ("Not installed", False)):
        problems = [problem for problem in found.problems if problem.broken == broken]
        if problems:
            yield f"## {title}"
            yield ""
            yield from (f"- {problem.what} {problem.cure}" for problem in problems)
            yield ""
    if not found.broken:
        yield "Everything that is installed fits together."
        yield ""


def _steps(checkup: "Checkup") -> Iterable[str]:
    yield f"## The chain on {checkup.model}"
    yield ""
    rows = [(step.name, step.result, step.found, f"{step.seconds:.1f}") for step in checkup.steps]
    yield from _table(("step", "result", "found", "seconds"), rows)
    failed = sum(step.result == "failed" for step in checkup.steps)
    yield f"{failed} of {len(rows)} steps failed." if failed else "No step failed."


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """A table in Markdown, with an empty line after it."""
    for row in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""
