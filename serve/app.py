"""The application: routes and their handlers, the same whatever hosts it."""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import click
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from uid.serve import requests
from uid.serve.answers import (
    RefusedError,
    error_body,
    error_response,
    image_response,
    last_line,
    line,
    openai_response,
    refusal,
)
from uid.serve.guard import Guard
from uid.serve.metrics import Metrics
from uid.serve.openapi import description
from uid.serve.queue import Queue
from uid.serve.settings import ServeSettings
from uid.serve.work import AbandonedError, Answer, Job

PAGE = Path(__file__).parent / "page"
POLL = 0.1  # seconds between looks at a job's progress
# Nothing is fetched from elsewhere; photos are shown from the browser's memory.
POLICY = "default-src 'self'; img-src 'self' blob: data:; connect-src 'self' data:; frame-ancestors 'none'"
AskJob = Callable[[requests.Form, str, ServeSettings], Job]


Note = Callable[[Exception], RefusedError]


def application(
    queue: Queue,
    settings: ServeSettings,
    *,
    log: Callable[[str], None] = lambda text: click.echo(text, err=True),
) -> Starlette:
    """The routes over a queue; ``log`` gets the traceback of each error that nobody thought of."""
    metrics = Metrics(queue)

    def note(error: Exception) -> RefusedError:
        """What to tell of an error, counted and logged."""
        refused = refusal(error)
        metrics.failures.labels(refused.code).inc()
        if refused.status == 500:
            log("".join(traceback.format_exception(error)))
        return refused

    def no_route(request: Request, error: Exception) -> Response:
        return error_response(note(error))

    return Starlette(
        routes=[
            *_pages(),
            *_states(queue, settings, metrics),
            Route("/api/deblur", Sharpen(queue, settings, metrics, note), methods=["POST"]),
            Route("/v1/images/edits", OpenAIEdit(queue, settings, metrics, note), methods=["POST"]),
        ],
        middleware=[Middleware(Guard, settings=settings, metrics=metrics, note=note)],
        exception_handlers={HTTPException: no_route},
    )


def _pages() -> list[Route]:
    """The page, read once."""

    def page(name: str, media_type: str) -> Callable[[Request], Response]:
        body = (PAGE / name).read_bytes()
        headers = {"content-security-policy": POLICY, "cache-control": "no-cache", "x-content-type-options": "nosniff"}

        def shown(request: Request) -> Response:
            return Response(body, media_type=media_type, headers=headers)

        return shown

    return [
        Route("/", page("index.html", "text/html")),
        Route("/style.css", page("style.css", "text/css")),
        Route("/page.js", page("page.js", "text/javascript")),
    ]


def _states(queue: Queue, settings: ServeSettings, metrics: Metrics) -> list[Route]:
    """What operators and programs ask."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"alive": True})

    async def readyz(request: Request) -> Response:
        return JSONResponse({"ready": queue.ready, "stopping": queue.draining}, 200 if queue.ready else 503)

    async def metrics_text(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    async def api(request: Request) -> Response:
        return JSONResponse(description(queue.pipeline, settings))

    handlers = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics_text, "/api": api}
    return [Route(path, handler) for path, handler in handlers.items()]


class Sharpen:
    """``POST /api/deblur``: takes an image and gives a sharp one.

    Its place in the queue is held until the answer is sent, so that the memory of all requests is bounded.
    """

    def __init__(self, queue: Queue, settings: ServeSettings, metrics: Metrics, note: Note) -> None:
        self._queue, self._settings, self._metrics, self._note = queue, settings, metrics, note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Raises what ``answers.refusal`` explains, and ``AbandonedError`` where nobody waits."""
        with self._queue.place():
            request = Request(scope, receive)
            form = await requests.received(request, self._settings)
            response = await self._response(form, request.headers.get("accept", ""), receive)
            await response(scope, receive, send)

    async def _response(self, form: requests.Form, accept: str, receive: Receive) -> Response:
        job = requests.job(form, accept, self._settings)
        if requests.wants_progress(accept):
            return StreamingResponse(self._progress(job), media_type=requests.PROGRESS)
        return image_response(await self._answer(job, receive))

    async def _answer(self, job: Job, receive: Receive) -> Answer:
        """The answer to a job, unless the client leaves or time is up before."""
        gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(receive))
        try:
            with self._queue.running(job) as future:
                both: set[asyncio.Future[Any]] = {future, gone}
                await asyncio.wait(both, timeout=self._settings.timeout, return_when=asyncio.FIRST_COMPLETED)
                if gone.done() and not future.done():
                    raise AbandonedError
                return self._made(future)
        finally:
            gone.cancel()

    async def _progress(self, job: Job) -> AsyncIterator[bytes]:
        """Lines of progress, and in the last one the image or the error. Who leaves ends it at the next line."""
        told: dict[str, Any] = {}
        end = time.monotonic() + self._settings.timeout
        try:
            with self._queue.running(job) as future:
                while not future.done() and time.monotonic() < end:
                    ahead, (done, total) = self._queue.ahead_of(job), job.progress
                    now = {"done": done, "total": total} if ahead is None else {"ahead": ahead}
                    if now != told:
                        yield line(now)
                    told = now
                    await asyncio.wait({future}, timeout=POLL)
                answer = self._made(future)
            yield last_line(answer)
        except Exception as error:
            refused = self._note(error)
            yield line(error_body(refused) | {"status": refused.status})

    def _made(self, future: "asyncio.Future[Answer]") -> Answer:
        if not future.done():
            raise RefusedError(
                503, f"the image took more than {self._settings.timeout:g} s; send a smaller one", "timeout"
            )
        answer = future.result()
        self._metrics.observe(answer)
        return answer


class OpenAIEdit(Sharpen):
    """``POST /v1/images/edits``: the same, in the form that OpenAI's clients know."""

    async def _response(self, form: requests.Form, accept: str, receive: Receive) -> Response:
        return openai_response(await self._answer(requests.openai_job(form, self._settings), receive))


async def _gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
