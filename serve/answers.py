"""What a client gets: an image with headers, the OpenAI form, lines of progress, or an error as JSON."""

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

import click
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, Response

from uid.errors import InputError, OutOfMemoryError, OutputError
from uid.serve.queue import NoPlaceError
from uid.serve.work import Answer, BadOptionError


class RefusedError(Exception):
    """A request that gets no image: the status, what to tell, a code for programs, the option that mends it."""

    def __init__(self, status: int, message: str, code: str, option: str = "", seconds: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.option = status, code, option
        self.seconds = seconds  # after which to ask again; None: never with this request


def refusal(error: BaseException) -> RefusedError:
    """What to tell of an error; a text that a client can act on, or that something unexpected happened."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, NoPlaceError):
        code = "stopping" if error.draining else "queue_full"
        return RefusedError(503 if error.draining else 429, f"{error}; try again later", code, seconds=error.seconds)
    if isinstance(error, BadOptionError):
        return RefusedError(400, str(error), "bad_option", error.option)
    if isinstance(error, InputError | OutputError):
        return RefusedError(422, str(error), "bad_image", error.option)
    if isinstance(error, MemoryError | OutOfMemoryError):
        return RefusedError(
            503, "this server's memory does not hold the image; send a smaller one", "memory", seconds=30
        )
    if isinstance(error, MultiPartException):
        return RefusedError(400, f"the form cannot be read: {error.message}", "bad_form")
    if isinstance(error, click.UsageError):
        return RefusedError(400, error.format_message(), "bad_option", getattr(error, "option_name", None) or "")
    if isinstance(error, HTTPException):
        return RefusedError(error.status_code, f"{error.detail}; GET /api describes this server", "no_such_route")
    return RefusedError(
        500, "something went wrong here that is not the image's fault; the server's log tells more", "error"
    )


def error_body(refused: RefusedError) -> dict[str, Any]:
    """An error as JSON, in the form that OpenAI's clients read."""
    kind = "server_error" if refused.status >= 500 else "invalid_request_error"
    error = {"message": str(refused), "type": kind, "param": refused.option or None, "code": refused.code}
    return {"error": error}


def error_response(refused: RefusedError) -> Response:
    """The response to a request that is refused."""
    headers = {} if refused.seconds is None else {"retry-after": str(refused.seconds)}
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(refused), refused.status, headers)


def image_response(answer: Answer) -> Response:
    """The image, with headers that tell how it was made."""
    return Response(answer.data, media_type=f"image/{answer.format}", headers=told(answer))


def told(answer: Answer) -> dict[str, str]:
    """How an image was made, as headers; times in milliseconds."""
    made = answer.result
    times = {"queued": answer.queued, "done": answer.computed, **made.seconds}
    headers = {
        "uid-backend": made.backend,
        "uid-seed": str(made.options.seed),
        "uid-preset": made.options.preset or "",
        "server-timing": ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in times.items()),
    }
    if answer.warnings:
        headers["uid-warnings"] = json.dumps([one[:200] for one in answer.warnings[:10]])  # in ASCII, and not too long
    return headers


def openai_response(answer: Answer) -> Response:
    """The answer of ``POST /v1/images/edits``."""
    image = {"b64_json": _base64(answer)}
    body = {"created": int(time.time()), "data": [image], "output_format": answer.format}
    return JSONResponse(body, headers=told(answer))


def line(values: Mapping[str, Any]) -> bytes:
    """One line of progress, as JSON."""
    return json.dumps(values).encode() + b"\n"


def last_line(answer: Answer) -> bytes:
    """The line that ends the progress with the image."""
    return line({"image": _base64(answer), "type": f"image/{answer.format}", "headers": told(answer)})


def _base64(answer: Answer) -> str:
    return base64.b64encode(answer.data).decode()
