"""Clients that stop in the middle are answered where that is possible, and never hold a connection for long."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import extras
import pytest

extras.needs("uvicorn", "h11")

import uvicorn  # noqa: E402

from prompt_tune.services import connection  # noqa: E402

SECONDS = 0.3
HEAD = b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, works for a while, and says how long the body was; `/large` gets a large answer."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    await asyncio.sleep(0.1)
    answer = bytes(50_000_000) if scope["path"] == "/large" else str(len(body)).encode()
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@pytest.fixture(scope="module")
def server() -> Iterator[uvicorn.Server]:
    settings = uvicorn.Config(
        application,
        port=0,
        http=connection.Connection,
        lifespan="off",
        log_config=None,
        log_level="critical",
        ws="none",
    )
    running = uvicorn.Server(settings)
    patch = pytest.MonkeyPatch()
    patch.setattr(connection, "SECONDS", SECONDS)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield running
    running.should_exit = True
    thread.join(20)
    patch.undo()


def talk(server: uvicorn.Server, *parts: bytes, end: bool = False, pause: float = 0.0) -> tuple[bytes, float]:
    """All that comes back until the server closes, and how long that took."""
    began = time.monotonic()
    with socket.create_connection(server.servers[0].sockets[0].getsockname(), timeout=10) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause)
        if end:
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while got := client.recv(65536):
            answer += got
    return answer, time.monotonic() - began


def test_client_that_closes_its_own_side_gets_its_answer(server: uvicorn.Server) -> None:
    answer, _ = talk(server, HEAD + b"0123456789", end=True)
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n10")


def test_half_a_body_is_an_error(server: uvicorn.Server) -> None:
    answer, _ = talk(server, HEAD + b"01234", end=True)
    assert answer.startswith(b"HTTP/1.1 400")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error == "The body ended before its stated length. Send all of it."


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
    ],
)
def test_what_is_not_http_is_an_error(server: uvicorn.Server, sent: bytes) -> None:
    answer, _ = talk(server, sent, end=len(sent) < 10)
    if not answer and len(sent) < 10:
        return  # too short to tell
    assert answer.startswith(b"HTTP/1.1 400")
    assert "is not HTTP/1.1, or its headers take more than" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize("sent", [b"", b"POST /detect HTTP/1.1\r\nHost: "])
def test_headers_that_do_not_come_are_not_waited_for(server: uvicorn.Server, sent: bytes) -> None:
    answer, took = talk(server, sent)
    assert answer.startswith(b"HTTP/1.1 408") and SECONDS * 0.9 < took < SECONDS * 6


def test_headers_that_drip_are_not_waited_for(server: uvicorn.Server) -> None:
    with pytest.raises(ConnectionError):
        talk(server, *[b"X: y\r\n" if number else HEAD[:-2] for number in range(30)], pause=0.1)


def test_request_that_takes_long_is_waited_for(server: uvicorn.Server) -> None:
    answer, took = talk(server, HEAD, b"0123", b"456789", end=True, pause=SECONDS * 3)
    assert answer.endswith(b"10") and took > SECONDS * 6


def test_client_that_does_not_read_loses_its_connection(server: uvicorn.Server) -> None:
    with socket.create_connection(server.servers[0].sockets[0].getsockname(), timeout=10) as client:
        client.sendall(HEAD.replace(b"/detect", b"/large") + b"0123456789")
        time.sleep(SECONDS * 5)
        got = 0
        with pytest.raises(ConnectionError):
            while part := client.recv(1 << 20):
                got += len(part)
            raise ConnectionError  # closed without a reset
        assert got < 50_000_000
