"""An answer that says in one line of JSON why a request was not done, with its HTTP status."""

from collections.abc import Mapping

from starlette.responses import JSONResponse, Response

from prompt_tune.errors import PromptTuneError


class RefusalError(PromptTuneError):
    """A request that is not done.

    Attributes:
        status: The HTTP status, from 400 on.
        retry: Seconds after which the client may ask again; None if that would not help.
    """

    def __init__(self, status: int, message: str, *, retry: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry = status, retry

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """The answer, with these headers too."""
        more = {} if self.retry is None else {"retry-after": str(self.retry)}
        return JSONResponse({"error": str(self)}, self.status, headers={**(headers or {}), **more})
