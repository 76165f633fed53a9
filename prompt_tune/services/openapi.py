"""The description of a server's interface: OpenAPI's JSON, and a page of it that needs no script and no network."""

from collections.abc import Iterator
from html import escape
from typing import Any, get_args

from prompt_tune.runtime.overlap import Overlap
from prompt_tune.runtime.slices import LEAST_SLICE, MOST_OVERLAP
from prompt_tune.services.kserve import MODEL
from prompt_tune.version import __version__

_JSON = "application/json"
_IMAGE: dict[str, Any] = {"type": "string", "format": "binary"}
_NUMBER = {"type": "number", "minimum": 0, "maximum": 1}
_BOX = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
SCHEMAS: dict[str, Any] = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "Detection": {
        "type": "object",
        "required": ["vocabulary", "class", "score", "box"],
        "properties": {
            "vocabulary": {"type": "string", "description": "`original`, or the label of a learned vocabulary"},
            "class": {"type": "string"},
            "score": _NUMBER,
            "box": {**_BOX, "description": "x1, y1, x2, y2 in pixels of the image, upright"},
            "hidden": {"type": "boolean", "description": "only with `overlap`: whether another box hides it"},
        },
    },
    "Detections": {
        "type": "object",
        "required": ["width", "height", "batch", "detections"],
        "properties": {
            "width": {"type": "integer"},
            "height": {"type": "integer"},
            "batch": {"type": "integer", "description": "size of the batch in which the image was"},
            "detections": {"type": "array", "items": {"$ref": "#/components/schemas/Detection"}},
        },
    },
    "Vocabulary": {
        "type": "object",
        "required": ["name", "kind", "digest", "classes"],
        "properties": {
            "name": {"type": "string"},
            "kind": {"type": "string", "enum": ["original", "learned", "plain"]},
            "digest": {"type": "string"},
            "classes": {"type": "array", "items": {"type": "string"}},
        },
    },
}


def document() -> dict[str, Any]:
    """The interface in OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "prompt-tune",
            "version": __version__,
            "description": "Detection with original and learned classes. Errors are JSON with one key, `error`.",
        },
        "paths": _paths(),
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "If the server has a key"}},
        },
        "security": [{}, {"key": []}],
    }


def page() -> str:
    """The same as HTML, without scripts, fonts and pictures."""
    sections = "\n".join(_section(path, method, operation) for path, method, operation in _operations())
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>prompt-tune {escape(__version__)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }}
code {{ font-family: ui-monospace, monospace }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .3rem }}
td {{ padding: .1rem 1rem .1rem 0; vertical-align: top }}
</style></head>
<body>
<h1>prompt-tune {escape(__version__)}</h1>
<p>{escape(document()["info"]["description"])} For programs: <a href="/openapi.json">openapi.json</a>.</p>
{sections}
</body></html>
"""


def _paths() -> dict[str, Any]:
    model = f"/v2/models/{MODEL}"
    infer = _operation(
        "Detect in one image, in KServe's protocol, with JSON or binary tensors and the parameters overlap, slice and "
        "slice_overlap",
        {"200": "outputs boxes, scores, labels, vocabulary"},
        body={_JSON: {"type": "object"}, "application/octet-stream": _IMAGE},
        errors=("400", "401", "408", "413", "415", "500", "503", "504"),
    )
    detect = _operation(
        "Detect in an image file",
        {"200": _reference("Detections")},
        body={
            "image/*": _IMAGE,
            "application/octet-stream": _IMAGE,
            "multipart/form-data": {"type": "object", "properties": {"image": _IMAGE}},
        },
        parameters=[
            _parameter("conf", _NUMBER, "Score above which a detection counts; default: each class's threshold"),
            _parameter("iou", _NUMBER, "Overlap above which the lower-scoring box is dropped"),
            _parameter(
                "overlap",
                {"type": "string", "enum": list(get_args(Overlap))},
                "Which of an original and a learned box on the same object is marked as hidden; default: keep, none",
            ),
            _parameter(
                "slice",
                {"type": "integer", "minimum": LEAST_SLICE},
                "For small objects: also look at slices of the image with this side in pixels",
            ),
            _parameter(
                "slice_overlap",
                {"type": "number", "minimum": 0, "maximum": MOST_OVERLAP},
                "Share of a slice that the next one sees too; default: 0.2. Needs `slice`",
            ),
            _parameter(
                "vocabularies",
                {"type": "array", "items": {"type": "string"}},
                "Only these, by label; can be given several times; default: all",
            ),
        ],
        errors=("400", "401", "408", "413", "415", "500", "503", "504"),
    )
    name = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "description": "Its label"}]
    vocabularies = {"type": "array", "items": {"$ref": "#/components/schemas/Vocabulary"}}
    return {
        "/detect": {"post": detect},
        "/vocabularies": {"get": _operation("The loaded vocabularies", {"200": vocabularies})},
        "/vocabularies/{name}": {
            "put": _operation(
                "Load a vocabulary file, or replace the one of that label; off without --allow-upload",
                {"200": _reference("Vocabulary"), "201": _reference("Vocabulary")},
                body={"application/octet-stream": _IMAGE},
                parameters=name,
                errors=("400", "401", "403", "408", "413", "415", "503"),
            ),
            "delete": _operation(
                "Unload a vocabulary; off without --allow-upload",
                {"204": "unloaded"},
                parameters=name,
                errors=("401", "403", "404"),
            ),
        },
        "/v2": {"get": _operation("KServe: name, version, extensions", {"200": {"type": "object"}})},
        "/v2/health/live": {"get": _operation("Whether the process runs", {"200": "it does"}, errors=())},
        "/v2/health/ready": {
            "get": _operation("Whether requests are taken", {"200": "they are"}, errors=("503",)),
        },
        model: {"get": _operation("KServe: inputs and outputs of the model", {"200": {"type": "object"}})},
        f"{model}/ready": {"get": _operation("Whether the model is ready", {"200": "it is"}, errors=("503",))},
        f"{model}/config": {"get": _operation("Triton: the model's configuration", {"200": {"type": "object"}})},
        f"{model}/infer": {"post": infer},
        f"{model}/versions/1": {"get": _operation("The same as without version", {"200": {"type": "object"}})},
        f"{model}/versions/1/ready": {"get": _operation("The same as without version", {"200": "it is"})},
        f"{model}/versions/1/config": {"get": _operation("The same as without version", {"200": {"type": "object"}})},
        f"{model}/versions/1/infer": {"post": {**infer, "summary": "The same as without version"}},
        "/metrics": {"get": _operation("What was counted, for Prometheus", {"200": "text"})},
        "/openapi.json": {"get": _operation("This description", {"200": {"type": "object"}}, errors=())},
        "/docs": {"get": _operation("This description as a page", {"200": "HTML"}, errors=())},
    }


def _operation(
    summary: str,
    answers: dict[str, Any],
    *,
    body: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    errors: tuple[str, ...] = ("401",),
) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in answers.items():
        is_text = isinstance(answer, str)
        responses[status] = {"description": answer if is_text else "as JSON"}
        if not is_text:
            responses[status]["content"] = {_JSON: {"schema": answer}}
    for status in errors:
        responses[status] = {"description": "an error", "content": {_JSON: {"schema": _reference("Error")}}}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body:
        content = {kind: {"schema": schema} for kind, schema in body.items()}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    return ((path, method, found) for path, methods in _paths().items() for method, found in methods.items())


def _section(path: str, method: str, operation: dict[str, Any]) -> str:
    """One operation as HTML."""
    rows = [(part["name"], part["description"]) for part in operation.get("parameters", ())]
    if body := operation.get("requestBody"):
        rows.append(("body", ", ".join(body["content"])))
    rows.append(("answers", ", ".join(operation["responses"])))
    table = "".join(f"<tr><td><code>{escape(name)}</code></td><td>{escape(text)}</td></tr>" for name, text in rows)
    title = f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
    return f"{title}\n<p>{escape(operation['summary'])}.</p>\n<table>{table}</table>"
