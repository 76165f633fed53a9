"""A refusal is one line of JSON with its status."""

import json

import extras

extras.needs("starlette")

from prompt_tune.services.refusal import RefusalError  # noqa: E402


def test_refusal_is_json_with_status_and_headers() -> None:
    response = RefusalError(503, "Full\nof work.", retry=2).response({"allow": "GET"})
    assert json.loads(bytes(response.body)) == {"error": "Full\\nof work."}
    assert response.status_code == 503
    assert (response.headers["retry-after"], response.headers["allow"]) == ("2", "GET")
    assert response.headers["content-type"] == "application/json"
    assert "retry-after" not in RefusalError(404, "None.").response().headers
