"""JSON in files that strangers may have made: what other readers could understand otherwise is refused."""

import json
import math
from typing import Any

MAX_DEPTH = 300  # lists and objects inside one another; Python's own limit depends on who calls


def parse(text: str, *, depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text.

    Args:
        text: What to read.
        depth: How many lists and objects may lie inside one another.

    Raises:
        ValueError: It is not JSON; a key stands twice in an object; a number is not finite, or a whole number exceeds
            what a float can hold; or it is nested too deep. The text of the error is a clause.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_int=_finite, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError as error:
        raise ValueError(f"it is nested more than {depth} deep") from error
    level: list[Any] = [value]
    for _ in range(depth + 1):
        level = [part for part in level if isinstance(part, (dict, list))]
        if not level:
            return value
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    raise ValueError(f"it is nested more than {depth} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise ValueError("a key stands twice")
    return keys


def _finite(text: str) -> int | float:
    """The number that a text stands for; `NaN`, `Infinity` and what is too large for a float are refused."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"a number is not finite: {text:.20}")
    return int(text) if text.lstrip("-").isdigit() else number
