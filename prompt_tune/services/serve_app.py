"""The web application of `prompt-tune serve`: routes, limits, and errors as JSON. Needs the extra `serve`."""

import asyncio
import json
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from prompt_tune.errors import DataError, GraphError, PromptTuneError, ProviderError, VocabularyError
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import Letterboxed, Picture, decode_picture
from prompt_tune.runtime.slices import Slices
from prompt_tune.services import kserve, openapi
from prompt_tune.services.batching import Answer, Batcher, Terms, Windows
from prompt_tune.services.gate import Gate, Traffic
from prompt_tune.services.multipart import only_file
from prompt_tune.services.refusal import RefusalError
from prompt_tune.services.serve_config import ServeConfig
from prompt_tune.services.serve_metrics import CONTENT_TYPE, ServeMetrics
from prompt_tune.vocabulary.vocabulary import Vocabulary

T = TypeVar("T")
MANY = 300  # detections whose answer is written in a thread, so that other requests do not wait for it
PARAMETERS: dict[str, tuple[Callable[[str], Any], str]] = {  # of `POST /detect`, each once
    "conf": (float, "a number from 0 to 1"),
    "iou": (float, "a number from 0 to 1"),
    "overlap": (str, ""),
    "slice": (int, "a whole number of pixels"),
    "slice_overlap": (float, "a number from 0 to 0.9"),
}
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of an uploaded vocabulary


class Service:
    """What the routes share: a detector, its queue, threads that read images, and what is counted.

    Attributes:
        traffic: The requests that came and were answered.
    """

    def __init__(self, detector: Detector, config: ServeConfig, *, api_key: str | None = None) -> None:
        """A service that begins with its application's lifespan.

        Args:
            detector: Which detects.
            config: Limits.
            api_key: What requests need, except those for health and the description; None for nothing.
        """
        self.detector, self.config = detector, config
        self.metrics = ServeMetrics()
        self.traffic = Traffic()
        self.is_ready = False
        self._readers = ThreadPoolExecutor(config.readers or os.cpu_count(), "read")
        self.batcher = Batcher(detector, sizes=config.batch_sizes, seen=self.metrics.passed)
        handlers: dict[Any, Any] = {
            RefusalError: _refused,
            HTTPException: _http_error,
            PromptTuneError: _own_error,
            ClientDisconnect: _gone,
        }
        gate = Middleware(Gate, traffic=self.traffic, metrics=self.metrics, most=config.max_requests, api_key=api_key)
        self.app = Starlette(
            routes=self._routes(), middleware=[gate], exception_handlers=handlers, lifespan=self._lifespan
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Warm up before the first request, and answer the last one before the end."""
        await self.batcher.start()
        self.metrics.started(self.detector.device)
        self.is_ready = True
        yield
        await self.batcher.close()
        self._readers.shutdown()

    def _routes(self) -> list[Route]:
        model = f"/v2/models/{kserve.MODEL}"
        routes = [
            Route("/detect", self.detect, methods=["POST"]),
            Route("/vocabularies", self.vocabularies),
            Route("/vocabularies/{name}", self.put_vocabulary, methods=["PUT"]),
            Route("/vocabularies/{name}", self.delete_vocabulary, methods=["DELETE"]),
            Route("/v2", _json(kserve.server_metadata())),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/metrics", self.show_metrics),
            Route("/openapi.json", _json(openapi.document())),
            Route("/docs", _html(openapi.page())),
        ]
        for place in (model, f"{model}/versions/{kserve.MODEL_VERSION}"):
            routes += [
                Route(place, _json(kserve.model_metadata())),
                Route(f"{place}/ready", self.ready),
                Route(f"{place}/config", _json(kserve.model_config())),
                Route(f"{place}/infer", self.infer, methods=["POST"]),
            ]
        return routes

    async def live(self, request: Request) -> Response:
        """Whether the process runs."""
        return JSONResponse({})

    async def ready(self, request: Request) -> Response:
        """Whether requests are taken."""
        if not self.is_ready or self.traffic.is_stopping:
            raise RefusalError(503, "The server stops. Ask another one.")
        return JSONResponse({})

    async def show_metrics(self, request: Request) -> Response:
        """What was counted."""
        classes = {label: len(part.names) for label, part in self.detector.vocabularies.items()}
        content = self.metrics.page(in_work=self.traffic.in_work, waiting=self.batcher.waiting, classes=classes)
        return Response(content, headers={"content-type": CONTENT_TYPE})

    async def detect(self, request: Request) -> Response:
        """An image file in, JSON out."""
        kind = _content_type(request)
        if not kind.startswith("image/") and kind not in ("application/octet-stream", "multipart/form-data"):
            raise RefusalError(
                415,
                "`Content-Type` must be image/jpeg or another image, application/octet-stream, or multipart/form-data. "
                f"Received: {kind or 'none'}.",
            )
        wanted = _query(request)
        slices = Slices.of(wanted.pop("slice", None), wanted.pop("slice_overlap", None))
        terms = Terms.of(self.detector, **wanted)
        body = await self._body(request)

        def read() -> Letterboxed | Windows:
            is_form = kind == "multipart/form-data"
            content = only_file(body, request.headers["content-type"]) if is_form else body
            return self._read(content, slices)

        async with self._deadline():
            answer = await self._answer(read, terms)
            content = await self._encoded(answer.found, partial(_as_json, answer))
        return Response(content, media_type="application/json")

    async def infer(self, request: Request) -> Response:
        """KServe's infer request."""
        kind = _content_type(request)
        if kind not in ("", "application/json", "application/octet-stream"):
            raise RefusalError(
                415, f"`Content-Type` must be application/json or application/octet-stream. Received: {kind}."
            )
        body = await self._body(request)
        async with self._deadline():
            began = time.perf_counter()
            question = await self._thread(kserve.read_question, body, request.headers.get(kserve.HEADER_LENGTH))
            terms = Terms.of(
                self.detector,
                vocabularies=question.vocabularies,
                iou=question.iou,
                conf=question.conf,
                overlap=question.overlap,
            )
            answer = await self._answer(partial(self._read, question.image, question.slices), terms, began=began)
            found = answer.found.shown
            content, n_json = await self._encoded(
                found, partial(kserve.answer, found, question, {"batch": answer.batch})
            )
        if n_json is None:
            return Response(content, media_type="application/json")
        headers = {kserve.HEADER_LENGTH: str(n_json)}
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def vocabularies(self, request: Request) -> Response:
        """The loaded vocabularies, the original one first."""
        return JSONResponse([_described(label, part) for label, part in self.detector.vocabularies.items()])

    async def put_vocabulary(self, request: Request) -> Response:
        """Load a vocabulary file under a label, or put it in the place of the one that has the label."""
        label = request.path_params["name"]
        self._check_upload()
        if not LABEL.fullmatch(label) or label == ORIGINAL:
            raise RefusalError(
                400,
                "The label of a vocabulary must be 1 to 100 letters, digits, dots, dashes or underscores, and not "
                f"`{ORIGINAL}`. Choose another one.",
            )
        kind = _content_type(request)
        if kind not in ("", "application/octet-stream"):
            raise RefusalError(415, f"`Content-Type` must be application/octet-stream. Received: {kind}.")
        body = await self._body(request)
        is_new = label not in self.detector.vocabularies
        async with self._deadline():
            vocabulary = await self._thread(_read_vocabulary, body)
            await self._thread(partial(self.detector.load, vocabulary, label, replace=True))
        return JSONResponse(_described(label, vocabulary), 201 if is_new else 200)

    async def delete_vocabulary(self, request: Request) -> Response:
        """Unload a vocabulary."""
        self._check_upload()
        try:
            await self._thread(self.detector.unload, request.path_params["name"])
        except VocabularyError as error:
            raise RefusalError(404, str(error)) from error
        return Response(status_code=204)

    def _check_upload(self) -> None:
        if not self.config.allow_upload:
            raise RefusalError(403, "Vocabularies of this server cannot be changed. Start it with --allow-upload.")

    async def _body(self, request: Request) -> bytes:
        """The body of a request, if it is not too long and comes in time."""
        most, seconds = self.config.max_bytes, self.config.timeout
        began = time.perf_counter()
        if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
            raise RefusalError(415, f"`Content-Encoding` must be identity. Received: {encoding}.")
        parts, size = [], int(request.headers.get("content-length", 0))
        text = f"A request may have {most} bytes. Send a smaller image, or start the server with a larger --max-mb."
        if size > most:
            raise RefusalError(413, text)
        size = 0
        try:
            async with asyncio.timeout(seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise RefusalError(413, text)
                    parts.append(part)
        except TimeoutError as error:
            raise RefusalError(408, f"The body did not come within {seconds:g} s. Send all of it, faster.") from error
        self.metrics.stage("read", time.perf_counter() - began)
        return b"".join(parts)

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """A block that must end in time."""
        try:
            async with asyncio.timeout(self.config.timeout):
                yield
        except TimeoutError as error:
            raise RefusalError(
                504, f"No answer within {self.config.timeout:g} s: the server has too much to do. Ask later.", retry=1
            ) from error

    async def _thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in one of the threads that read."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    def _read(self, image: bytes | np.ndarray, slices: Slices | None) -> Letterboxed | Windows:
        """An image, ready for the network."""
        most = self.config.max_megapixels
        if isinstance(image, bytes):
            picture = decode_picture(image, max_megapixels=most, whole=slices is not None)
        elif image.shape[0] * image.shape[1] > most * 1_000_000:
            raise DataError(f"`raw` has more than {most} megapixels. Scale it down.")
        else:
            picture = Picture.of(image)
        if slices is None or not (count := slices.count(picture.size_wh)):
            return self.detector.letterboxed(picture)
        if count > self.config.max_slices:
            width, height = picture.size_wh
            raise DataError(
                f"An image of {width} x {height} pixels has {count} slices of {slices.size} pixels. At most "
                f"{self.config.max_slices} are looked at here. Ask for larger ones, or start the server with a larger "
                "--max-slices."
            )
        places = slices.windows(picture.size_wh)
        crops = (picture.pixels[top:bottom, left:right] for left, top, right, bottom in places)
        return Windows(places, [self.detector.letterboxed(crop) for crop in crops])

    async def _answer(
        self, read: Callable[[], Letterboxed | Windows], terms: Terms, *, began: float | None = None
    ) -> Answer:
        """Read an image in a thread, then let it wait for its batch."""
        began = time.perf_counter() if began is None else began
        image = await self._thread(read)
        self.metrics.stage("decode", time.perf_counter() - began)
        return await self.batcher.detect(image, terms)

    async def _encoded(self, found: Detections, encode: Callable[[], T]) -> T:
        """The content of an answer."""
        began = time.perf_counter()
        content = await self._thread(encode) if len(found) > MANY else encode()
        self.metrics.stage("encode", time.perf_counter() - began)
        return content


def _as_json(answer: Answer) -> bytes:
    """The answer to `POST /detect`. Numbers are exact: read as float32, they have the same bits."""
    found = answer.found
    width, height = found.size_wh
    rows = zip(found.vocabularies, found.class_names, found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True)
    detections: list[dict[str, object]] = [
        {"vocabulary": label, "class": name, "score": score, "box": box} for label, name, score, box in rows
    ]
    if found.hidden is not None:
        for one, is_hidden in zip(detections, found.hidden.tolist(), strict=True):
            one["hidden"] = is_hidden
    return json.dumps({"width": width, "height": height, "batch": answer.batch, "detections": detections}).encode()


def _described(label: str, vocabulary: Vocabulary) -> dict[str, object]:
    return {
        "name": label,
        "kind": vocabulary.kind,
        "digest": vocabulary.digest,
        "classes": list(vocabulary.names),
    }


def _read_vocabulary(content: bytes) -> Vocabulary:
    """A vocabulary from the content of its file."""
    with tempfile.TemporaryDirectory(prefix="prompt-tune-") as folder:
        path = Path(folder) / "upload.vocab.safetensors"
        path.write_bytes(content)
        try:
            return Vocabulary.load(path)
        except VocabularyError as error:
            raise VocabularyError(str(error).replace(f"{folder}{os.sep}", "")) from error


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _query(request: Request) -> dict[str, Any]:
    """What a request's address asks for, by name."""
    wanted: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name == "vocabularies":
            wanted.setdefault(name, []).append(text)
        elif name not in PARAMETERS or name in wanted:
            known = ", ".join(f"`{one}`" for one in PARAMETERS)
            raise DataError(f"The address may have {known}, each once, and `vocabularies`. Received: `{name:.50}`.")
        else:
            read, rule = PARAMETERS[name]
            try:
                wanted[name] = read(text)
            except ValueError as error:
                raise DataError(f"`{name}` must be {rule}. Received: `{text:.50}`.") from error
    return wanted


def _json(document: object) -> Callable[[Request], Any]:
    """A route that always answers with the same JSON."""
    content = json.dumps(document).encode()

    async def show(request: Request) -> Response:
        return Response(content, media_type="application/json")

    return show


def _html(text: str) -> Callable[[Request], Any]:
    async def show(request: Request) -> Response:
        return HTMLResponse(text, headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"})

    return show


async def _refused(request: Request, error: RefusalError) -> Response:
    return error.response()


async def _own_error(request: Request, error: PromptTuneError) -> Response:
    """Of our errors, those of the graph and the device are not the client's fault."""
    return RefusalError(500 if isinstance(error, (GraphError, ProviderError)) else 400, str(error)).response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What the router says of addresses and methods."""
    rule = "has no such address" if error.status_code == 404 else f"does not take {request.method} at this address"
    return RefusalError(error.status_code, f"The server {rule}. See /docs.").response(error.headers)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return RefusalError(400, "The client has gone.").response()
