"""Everything that a GPU can tell, in six minutes: `python tests/gpu/check.py --out FOLDER`.

Each step has a process of its own and at most a minute. After each, FOLDER/results.json and FOLDER/results.md are
written, so nothing is lost if the machine is. A step that is there is not run again. With `--provider cpu` the same
script runs, smaller, without a GPU.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from prompt_tune.files import replacing

LIMIT = 60.0  # seconds of a step
TOTAL = 360.0  # of all


SCALES = {"cuda": ("s", "l"), "cpu": ("n",)}  # those of `gpu_parts.Sizes`


def names(provider: str) -> list[str]:
    """The steps in their order: what matters most comes first."""
    first, *more = (f"speed {scale}" for scale in SCALES[provider])
    return ["versions", "session", "retention", "agreement", first, "loading", "caching", "training", *more]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for results and parts.")
@click.option("--provider", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
def main(out: Path, provider: str) -> None:
    """Run the steps that FOLDER lacks, and write a table of their results."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    started = time.monotonic()
    for name in names(provider):
        file = out / f"{name}.json"
        if not file.is_file():
            click.echo(f"{name} ...", err=True)
            results[name] = _apart(name, out, provider, min(LIMIT, TOTAL - (time.monotonic() - started)))
        else:
            results[name] = json.loads(file.read_text())
        with replacing(out / "results.json") as path:
            path.write_text(json.dumps(results, indent=1) + "\n")
        with replacing(out / "results.md") as path:
            path.write_text(table(results))
    click.echo(table(results))
    if any(result.get("passed") is False or "error" in result for result in results.values()):
        sys.exit(1)


def _apart(name: str, out: Path, provider: str, limit: float) -> dict[str, Any]:
    """A step in a process of its own; what it says if it fails."""
    here = Path(__file__).parent
    command = [sys.executable, str(here / "steps.py"), name, "--out", str(out), "--provider", provider]
    places = os.pathsep.join(filter(None, (str(here.parent), os.environ.get("PYTHONPATH"))))
    if limit <= 0:
        return {"error": "no time was left"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env=os.environ | {"PYTHONPATH": places}
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {limit:.0f} s"}
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return {"error": lines[-1] if lines else f"status {done.returncode}"}
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return found


def table(results: dict[str, Any]) -> str:
    """All results as a Markdown table, one row a figure."""
    rows = ["| step | what | value |", "| --- | --- | --- |"]
    for name, result in results.items():
        for what, value in _flat(result):
            rows.append(f"| {name} | {what} | {str(value).replace('|', '/')} |")
            name = ""
    return "\n".join(rows) + "\n"


def _flat(result: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in result.items():
        what = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{what}: ")
        else:
            rows.append((what, ", ".join(map(str, value)) if isinstance(value, list) else value))
    return rows


if __name__ == "__main__":
    main()
