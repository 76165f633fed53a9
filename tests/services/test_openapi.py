"""The description is whole in itself, and its page needs nothing from elsewhere."""

import json
import re
from html.parser import HTMLParser

from prompt_tune.services.openapi import document, page


def test_references_lead_somewhere_and_every_operation_has_its_parameters() -> None:
    described = document()
    assert described["openapi"] == "3.1.0"
    schemas = described["components"]["schemas"]
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described))
    assert set(references) == set(schemas) and len(references) > 20
    for path, operations in described["paths"].items():
        for operation in operations.values():
            named = {part["name"] for part in operation.get("parameters", ()) if part["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
            assert operation["responses"] and operation["summary"]


def test_detect_describes_its_parameters_and_errors() -> None:
    detect = document()["paths"]["/detect"]["post"]
    assert [part["name"] for part in detect["parameters"]] == [
        *("conf", "iou", "overlap", "slice", "slice_overlap", "vocabularies")
    ]
    assert {"200", "400", "401", "413", "415", "503"} <= set(detect["responses"])
    assert set(detect["requestBody"]["content"]) == {"image/*", "application/octet-stream", "multipart/form-data"}


class Tags(HTMLParser):
    """The tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)


def test_page_shows_every_operation_and_loads_nothing() -> None:
    tags = Tags()
    tags.feed(page())
    assert "table" in tags.found and tags.found.isdisjoint({"script", "link", "img", "iframe"})
    assert "src=" not in page() and "http" not in page() and "url(" not in page()
    for path, operations in document()["paths"].items():
        for method in operations:
            assert f"<code>{method.upper()} {path}</code>" in page()
