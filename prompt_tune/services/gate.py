"""What every request passes before its route: the API key, the limit of requests in work, and the counters."""

import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from prompt_tune.services.refusal import RefusalError
from prompt_tune.services.serve_metrics import ServeMetrics

OPEN = ("/v2/health/", "/docs", "/openapi.json")  # without a key: probes have none, and the description is no secret
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
_ROUTES = (
    ("detect", re.compile(r"/detect")),
    ("infer", re.compile(r"/v2/models/.*/infer")),
    ("vocabularies", re.compile(r"/vocabularies(/.*)?")),
    ("health", re.compile(r"/v2/health/.*|/v2/models/.*/ready")),
    ("metrics", re.compile(r"/metrics")),
)
logger = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass
class Traffic:
    """Requests of one server.

    Attributes:
        accepted: How many were read as far as their headers.
        answered: How many got an answer, errors included.
        in_work: How many that need work, POST and PUT, are accepted and not answered.
        is_stopping: Whether the server is asked to stop. Answers then close their connections.
    """

    accepted: int = 0
    answered: int = 0
    in_work: int = 0
    is_stopping: bool = False


class Gate:
    """ASGI middleware around the routes."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        traffic: Traffic,
        metrics: ServeMetrics,
        most: int,
        api_key: str | None,
    ) -> None:
        """Put a gate before an application.

        Args:
            app: The application.
            traffic: Where requests are counted.
            metrics: Where times are counted.
            most: Number of requests in work above which others are refused.
            api_key: What requests need; None for nothing, but only under a name of this machine.
        """
        self.app, self.traffic, self.metrics, self.most = app, traffic, metrics, most
        self._wanted = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.traffic.is_stopping:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self.traffic.answered += 1

        self.traffic.accepted += 1
        works = scope["method"] in ("POST", "PUT")
        refusal = self._refusal(scope, works=works)
        self.traffic.in_work += works
        try:
            await (refusal.response() if refusal else self.app)(scope, receive, counted)
        except Exception:  # a fault of the server: the client gets no details
            logger.exception("A request for %s failed.", scope["path"])
            if status:
                raise  # half an answer: uvicorn closes the connection
            failure = RefusalError(500, "The server failed on this request. Its log says why.")
            await failure.response()(scope, receive, counted)
        finally:
            self.traffic.in_work -= works
            self.metrics.answered(route_of(scope["path"]), status, time.perf_counter() - began)

    def _refusal(self, scope: Scope, *, works: bool) -> RefusalError | None:
        """Why a request does not come through."""
        headers = dict(scope["headers"])
        if self._wanted is None:
            if not _is_local(headers.get(b"host", b"")):  # a web page that gave its own name to this machine
                return RefusalError(421, "Without an API key, `Host` must be localhost or 127.0.0.1.")
            if not _is_local(headers.get(b"origin", b"http://localhost").removeprefix(b"http://")):
                return RefusalError(403, "Without an API key, pages of other sites may not ask this server.")
        elif not scope["path"].startswith(OPEN):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._wanted):
                return RefusalError(401, "This needs the server's API key: `Authorization: Bearer KEY`.")
        if works and self.traffic.in_work >= self.most:
            return RefusalError(
                503, f"The server has {self.most} requests in work, its limit. Ask again soon.", retry=1
            )
        return None


def route_of(path: str) -> str:
    """The name under which requests for an address are counted: one of a few, whatever is asked for."""
    return next((name for name, pattern in _ROUTES if pattern.fullmatch(path)), "other")


def _is_local(name_and_port: bytes) -> bool:
    """Whether a `Host` names this machine."""
    return re.sub(r":\d+$", "", name_and_port.decode("latin-1").lower()) in LOCAL_NAMES
