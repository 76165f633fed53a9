"""`prompt-tune serve`: a bundle behind HTTP, in one process. Needs the extra `serve`."""

import asyncio
import socket
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from prompt_tune.errors import PromptTuneError
from prompt_tune.services.serve_config import ServeConfig, read_api_key
from prompt_tune.version import install

if TYPE_CHECKING:
    from prompt_tune.runtime.detector import Detector
    from prompt_tune.services.gate import Traffic

PACKAGES = ("starlette", "uvicorn", "h11", "prometheus_client")  # what the extra `serve` installs
KEEP_ALIVE = 75  # seconds: longer than load balancers keep an idle connection, so that they close it


def check_installed() -> None:
    """Refuse to go on without the extra.

    Raises:
        PromptTuneError: A package of it is missing.
    """
    for name in PACKAGES:
        if find_spec(name) is None:
            raise PromptTuneError(f"{name} is not installed, and this needs it: {install('serve')}")


def bind(host: str, port: int) -> socket.socket:
    """A socket that has its address, but does not listen yet.

    Raises:
        PromptTuneError: The address is taken, or not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise PromptTuneError(
            f"Cannot listen on {host}, port {port}: {reason}. Choose another --host or --port."
        ) from error
    return bound


def serve(
    make_detector: "Callable[[], Detector]",
    config: ServeConfig,
    *,
    api_key: str | None = None,
    started: Callable[[str], None] = lambda _: None,
) -> "Traffic":
    """Serve a detector until the process is asked to stop, with Ctrl-C or SIGTERM; a second one ends it at once.

    Every request that was accepted is answered before this returns.

    Args:
        make_detector: Called once the address is taken.
        config: Limits and address.
        api_key: See `read_api_key`.
        started: Called with the address when requests are taken.

    Returns:
        How many requests came and were answered.

    Raises:
        PromptTuneError: A package of the extra is missing, the address cannot be had, or there must be a key.
    """
    check_installed()
    import uvicorn

    from prompt_tune.services.connection import MAX_HEAD, Connection
    from prompt_tune.services.serve_app import Service

    if api_key is None:
        read_api_key(None, host=config.host, environment={})  # refuses an open server
    listener = bind(config.host, config.port)
    try:
        service = Service(make_detector(), config, api_key=api_key)
    except BaseException:
        listener.close()
        raise

    class Server(uvicorn.Server):
        """uvicorn, which goes on for a while when it is asked to stop, and then ends without a signal."""

        stops_at: float | None = None

        def handle_exit(self, sig: int, frame: object) -> None:
            """Take note of the first signal, and end at once with the second."""
            self.force_exit = self.stops_at is not None
            self.should_exit = self.force_exit
            self.stops_at = self.stops_at or time.monotonic() + config.drain
            service.traffic.is_stopping = True

        async def on_tick(self, counter: int) -> bool:
            """Whether it is time to stop."""
            self.should_exit |= self.stops_at is not None and time.monotonic() >= self.stops_at
            return bool(await super().on_tick(counter))

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Say where requests are taken."""
            await super().startup(sockets)
            host, port = listener.getsockname()[:2]
            started(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    settings = uvicorn.Config(
        service.app,
        http=Connection,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,  # addresses that a client states are not believed
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(2 * config.timeout) + 5,  # no request takes longer
        h11_max_incomplete_event_size=MAX_HEAD,
    )
    server = Server(settings)
    with listener:
        asyncio.run(server.serve(sockets=[listener]))
    return service.traffic
