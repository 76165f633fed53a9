"""uvicorn's HTTP connection, with time-outs and errors of ours.

uvicorn waits for ever for the headers of a request, answers what is not HTTP with plain text, and drops an accepted
request whose client has closed its own side, as `nc` does.
"""

import json
from contextlib import suppress

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 10.0  # for the headers of a request, for a rest that nobody reads, and for a client that does not read
MAX_HEAD = 65_536  # bytes of the request line and the headers


class Connection(H11Protocol):
    """A connection that is closed when its client is silent in the middle of a request, or does not read its answer."""

    def connection_made(self, transport: object) -> None:
        """Begin to watch."""
        super().connection_made(transport)
        self._began: float | None = self.loop.time()  # of a request whose headers are not complete
        self._stuck: float | None = None  # since when the client does not read
        self._watch = self.loop.call_later(SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take note of when a request begins."""
        super().data_received(data)
        if self._in_work():
            self._began = None
        elif self._began is None:
            self._began = self.loop.time()

    def eof_received(self) -> bool:
        """The client has closed its side. A complete request gets its answer; half a body is an error."""
        if not self._in_work():
            return False
        if self.cycle.more_body:
            self._refuse(400, "The body ended before its stated length. Send all of it.")
            return False
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        """The client reads more slowly than its answer comes."""
        self._stuck = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client reads."""
        self._stuck = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or has more than `MAX_HEAD` bytes of headers."""
        self._refuse(
            400, f"The request is not HTTP/1.1, or its headers take more than {MAX_HEAD} bytes. Check the client."
        )

    def _look(self) -> None:
        """Close the connection if its client has been silent for too long."""
        now = self.loop.time()
        self._watch = self.loop.call_later(SECONDS, self._look)
        if self._stuck is not None and now - self._stuck > SECONDS:
            self.transport.abort()
        elif self._began is not None and not self._in_work() and now - self._began >= SECONDS:
            self._refuse(408, f"No complete request came within {SECONDS:g} s. Send it faster.")

    def _in_work(self) -> bool:
        """Whether a request has come whose answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, text: str) -> None:
        """Answer without the application, where nothing of an answer was sent, and close."""
        if self.transport.is_closing():
            return
        body = json.dumps({"error": text}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            parts = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
            with suppress(h11.LocalProtocolError):  # an answer has begun
                self.transport.write(b"".join(self.conn.send(part) or b"" for part in parts))
        self.transport.close()
