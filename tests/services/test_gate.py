"""No request passes without the key, under a foreign name, or beyond the limit; each one is counted."""

import asyncio
import json
from typing import Any

import extras
import pytest

extras.needs("starlette", "prometheus_client")

from prompt_tune.services.gate import Gate, Traffic, route_of  # noqa: E402
from prompt_tune.services.refusal import RefusalError  # noqa: E402
from prompt_tune.services.serve_metrics import ServeMetrics  # noqa: E402

KEY = "0123456789abcdef"


def ask(
    path: str = "/detect",
    *,
    method: str = "POST",
    host: str = "localhost:8000",
    given: str | None = None,
    key: str | None = None,
    origin: str | None = None,
    in_work: int = 0,
    stopping: bool = False,
    fails: bool = False,
) -> tuple[int, dict[str, str], str, Traffic]:
    """Status, headers, error and traffic after a request for an application that always answers with 200."""
    traffic = Traffic(in_work=in_work, is_stopping=stopping)
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert traffic.in_work == in_work + (method in ("POST", "PUT"))
        if fails:
            raise KeyError("secret")
        await RefusalError(200, "fine").response()(scope, receive, send)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", host.encode())] + ([(b"authorization", given.encode())] if given is not None else [])
    headers += [(b"origin", origin.encode())] if origin is not None else []
    gate = Gate(app, traffic=traffic, metrics=ServeMetrics(), most=5, api_key=key)
    asyncio.run(gate({"type": "http", "method": method, "path": path, "headers": headers}, None, send))  # type: ignore[arg-type]
    got = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], got, json.loads(sent[1]["body"])["error"], traffic


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST:1", 200),
        ("evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("", 421),
    ],
)
def test_without_a_key_only_this_machine_is_meant(host: str, status: int) -> None:
    assert ask(host=host)[0] == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost:3000", 200), ("http://127.0.0.1:8000", 200), ("https://evil.example", 403), ("null", 403)],
)
def test_without_a_key_pages_of_other_sites_may_not_ask(origin: str, status: int) -> None:
    assert ask(origin=origin)[0] == status
    assert ask(origin=origin, key=KEY, given=f"Bearer {KEY}")[0] == 200


@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        ("/detect", None, 401),
        ("/detect", "", 401),
        ("/detect", KEY, 401),
        ("/detect", f"Bearer {KEY[:-1]}", 401),
        ("/detect", f"Bearer {KEY}x", 401),
        ("/detect", f"bearer {KEY}", 401),
        ("/detect", f"Bearer {KEY}", 200),
        ("/metrics", None, 401),
        ("/vocabularies", None, 401),
        ("/v2", None, 401),
        ("/v2/models/prompt_tune/ready", None, 401),
        ("/nothing", None, 401),
        ("/v2/health/live", None, 200),
        ("/v2/health/ready", None, 200),
        ("/docs", None, 200),
        ("/openapi.json", None, 200),
    ],
)
def test_with_a_key_all_but_health_and_description_need_it(path: str, given: str | None, status: int) -> None:
    found, _, error, _ = ask(path, given=given, key=KEY, host="elsewhere.example")
    assert found == status
    assert status == 200 or error == "This needs the server's API key: `Authorization: Bearer KEY`."


def test_more_work_than_the_limit_is_refused() -> None:
    status, headers, error, _ = ask(in_work=5)
    assert (status, headers["retry-after"]) == (503, "1")
    assert error == "The server has 5 requests in work, its limit. Ask again soon."
    assert ask(in_work=4)[0] == 200
    assert ask("/v2/health/live", method="GET", in_work=5)[0] == 200


def test_requests_are_counted_and_the_last_ones_close_their_connections() -> None:
    _, headers, _, traffic = ask()
    assert (traffic.accepted, traffic.answered, traffic.in_work) == (1, 1, 0)
    assert "connection" not in headers
    assert ask(stopping=True)[1]["connection"] == "close"
    assert ask(host="evil.example")[3].answered == 1


def test_fault_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    status, _, error, traffic = ask(fails=True)
    assert (status, error) == (500, "The server failed on this request. Its log says why.")
    assert (traffic.answered, traffic.in_work) == (1, 0)
    assert "KeyError: 'secret'" in caplog.text and "A request for /detect failed." in caplog.text


def test_addresses_are_counted_under_a_few_names() -> None:
    paths = ("/detect", "/v2/models/prompt_tune/infer", "/vocabularies/x", "/v2/health/live", "/metrics", "/x" * 9)
    assert [route_of(path) for path in paths] == ["detect", "infer", "vocabularies", "health", "metrics", "other"]
