"""What our files may hold as JSON, and what is refused."""

import pytest

from prompt_tune.strict_json import MAX_DEPTH, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{}", {}),
        ('{"a": [1, -2, 2.5, 1e3, -0, true, null, "\\u00e9"]}', {"a": [1, -2, 2.5, 1000.0, 0, True, None, "é"]}),
        ("9" * 300, int("9" * 300)),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, None),
        ('{"a": ' * MAX_DEPTH + "1" + "}" * MAX_DEPTH, None),
    ],
)
def test_json_is_read(text: str, value: object) -> None:
    got = parse(text)
    assert value is None or (got == value and repr(got) == repr(value))  # 1 is not 1.0, nor True


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("\ufeff{}", "BOM"),
        ('{"a": 1, "a": 1}', "a key stands twice"),
        ('{"a": {"b": 1, "\\u0062": 2}}', "a key stands twice"),
        ("NaN", "a number is not finite: NaN"),
        ("[-Infinity]", "a number is not finite: -Infinity"),
        ("1e999", "a number is not finite: 1e999"),
        ("9" * 310, "a number is not finite: 99999999999999999999"),
        ("9" * 100_000, "a number is not finite"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"it is nested more than {MAX_DEPTH} deep"),
        ("[" * 100_000 + "]" * 100_000, f"it is nested more than {MAX_DEPTH} deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, f"it is nested more than {MAX_DEPTH} deep"),
    ],
)
def test_what_others_could_read_otherwise_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)


def test_depth_can_be_less() -> None:
    assert parse("[[1]]", depth=2) == [[1]]
    with pytest.raises(ValueError, match="nested more than 1 deep"):
        parse("[[]]", depth=1)
