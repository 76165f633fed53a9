"""XML files that mean harm."""

from pathlib import Path

import pytest

from prompt_tune.datasets.xml_files import parsed_xml
from prompt_tune.errors import DataError


def test_parsed_xml(tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    file.write_bytes("<?xml version='1.0' encoding='latin-1'?><a b='é'/>".encode("latin-1"))
    assert parsed_xml(file, 1000).get("b") == "é"
    with pytest.raises(DataError, match="has more than 10 bytes"):
        parsed_xml(file, 10)
    for text in ("<a>", "<!DOCTYPE a><a/>", "<?xml version='1.0' encoding='none'?><a/>"):
        file.write_text(text)
        with pytest.raises(ValueError):
            parsed_xml(file, 1000)
