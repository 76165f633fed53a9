"""Texts without paths and names of the user."""

import getpass
import socket
from pathlib import Path

import pytest

from prompt_tune.services.anonymity import anonymous


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cannot read `/home/anna/bilder/a b.pt`.", "Cannot read `<path> b.pt`."),
        ("'/mnt/x/y.pt' is missing", "'<path>' is missing"),
        ("see ~/models/y.pt, please", "see <path>, please"),
        (r"C:\Users\anna\y.pt: no", "<path>: no"),
        ("fetch https://github.com/ultralytics/assets/y.pt elsewhere", None),
        ("boxes/scores, 7/8 and and/or", None),
        ("a learned row | 0.5 px", None),
    ],
)
def test_absolute_paths_go_and_the_rest_stays(text: str, expected: str | None) -> None:
    assert anonymous(text) == (text if expected is None else expected)


def test_what_is_named_private_goes_longest_first() -> None:
    text = "geheim/anna.pt and anna.pt and 'Bauteil 7' and anna"
    assert anonymous(text, ["anna.pt", "geheim/anna.pt", "'Bauteil 7'", "", "an"]) == (
        "<private> and <private> and <private> and anna"
    )


def test_plain_word_goes_only_where_it_is_a_name() -> None:
    text = "Text tower 'local-dir:tower' has no tower/config.json in 'tower'; a tower and YOLO-World's towers do."
    assert anonymous(text, ["tower"]) == (
        "Text tower 'local-dir:<private>' has no <private>/config.json in '<private>'; "
        "a tower and YOLO-World's towers do."
    )


def test_names_of_user_and_machine_go_as_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "wegner")
    monkeypatch.setattr(socket, "gethostname", lambda: "box-17.example.org")
    monkeypatch.setenv("HOME", str(Path("/home/anna")))
    assert anonymous("wegner on box-17: wegnerite, box-175, anna") == "<name> on <name>: wegnerite, box-175, <name>"
