"""Progress bars: one per stage, on standard error."""

import pytest

from prompt_tune.cli.progress import stages


def test_stages_show_one_bar_each_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with stages() as progress:
        for done in range(4):
            progress("read", done, 3, "a.png")
        progress("detect", 5, None, "stream [1]")
    out, errors = capfd.readouterr()
    assert out == ""
    read, detect = (line.split() for line in errors.splitlines() if line.strip())
    assert read[0] == "read" and "3/3" in read and read[-1] == "a.png"
    assert detect[0] == "detect" and "5/?" in detect


def test_note_is_shown_as_it_is_and_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    with stages() as progress:
        progress("read", 1, 1, "[/red]\x1b[2J.png")
    assert "[/red]\\x1b[2J.png" in capfd.readouterr().err
