"""What a client asks for: the upload as it arrives, within limits, and the options of ``uid-run``."""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser
from starlette.requests import Request
from starlette.types import Message, Receive

from uid.errors import InputError, printable
from uid.runtime.media.encode import Encoding
from uid.runtime.media.formats import WRITTEN, written_format
from uid.serve.answers import RefusedError
from uid.serve.parameters import chosen, options_of, parameter
from uid.serve.settings import ServeSettings
from uid.serve.work import Job, Wanted

PROGRESS = "application/x-ndjson"
IMAGE, BLUR = ("image", "image[]", "file"), ("blur-from", "blur_from")  # names of a form's files
# Fields of OpenAI's form, and the values that mean what is done here.
OPENAI = {"n": ("1",), "size": ("auto",), "response_format": ("b64_json",), "stream": ("false",)}
GRACE = 10.0  # seconds that an upload may take in any case
SLOWEST = 20_000  # bytes a second that it must reach beyond
LONGEST_FIELD = 4096  # bytes


@dataclass
class Form:
    """What came: files by the name of their field, with their own names, and the other fields."""

    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    fields: list[tuple[str, str]] = field(default_factory=list)


class Upload:
    """A request's body as it arrives. Raises ``RefusedError`` where it is too large, or too slow."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self._max_bytes = receive, max_bytes
        self._started, self._bytes = time.monotonic(), 0

    async def __call__(self) -> Message:
        """The next message of the server, as ASGI's ``receive``."""
        left = GRACE + self._bytes / SLOWEST - (time.monotonic() - self._started)
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.0))
        except asyncio.TimeoutError as error:
            raise RefusedError(408, f"the upload is slower than {SLOWEST} bytes a second", "slow_upload") from error
        self._bytes += len(message.get("body", b""))
        check_bytes(self._bytes, self._max_bytes)
        return message


def check_bytes(size: int, most: int) -> None:
    """Raise ``RefusedError`` for more bytes than a request may have."""
    if size > most:
        raise RefusedError(413, f"the request has more than {most} bytes; send a smaller file", "too_large")


async def received(request: Request, settings: ServeSettings) -> Form:
    """A request's body, with the options of its query. Raises ``RefusedError``, and ``MultiPartException``."""
    length = request.headers.get("content-length", "")
    check_bytes(int(length[:20]) if length.isdecimal() else 0, settings.max_bytes)
    request = Request(request.scope, Upload(request.receive, settings.max_bytes))
    form = Form(fields=request.query_params.multi_items())
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":
        await _read_parts(request, form)
    else:
        form.files["image"] = ("", b"".join([chunk async for chunk in request.stream()]))
    return form


class _Parts(MultiPartParser):
    """The parts of a form in memory: the limit of bytes holds for all of them, and nothing is written to disk."""

    spool_max_size = sys.maxsize


async def _read_parts(request: Request, form: Form) -> None:
    parser = _Parts(request.headers, request.stream(), max_files=4, max_fields=64, max_part_size=LONGEST_FIELD)
    for name, value in (await parser.parse()).multi_items():
        if isinstance(value, UploadFile):
            if name in form.files:
                raise RefusedError(400, f"got two files {name!r}; send one image a request", "bad_form")
            form.files[name] = (value.filename or "", await value.read())
        else:
            form.fields.append((name, value))


def job(form: Form, accept: str, settings: ServeSettings) -> Job:
    """The job of ``POST /api/deblur``. Raises ``RefusedError`` and click's ``UsageError``."""
    values = chosen(form.fields, settings.preset)
    return _job(form, values, partial(_in_accepted, _accepted(accept)), settings)


def openai_job(form: Form, settings: ServeSettings) -> Job:
    """The job of ``POST /v1/images/edits``: our options are taken, the prompt and such are not needed."""
    for name, value in form.fields:
        if name in OPENAI and value not in OPENAI[name]:
            raise RefusedError(400, f"{name} is {value!r}; expected {OPENAI[name][0]!r}", "bad_option", name)
    if "mask" in form.files:
        raise RefusedError(400, "got a mask; the whole image is sharpened, so leave it out", "bad_option", "mask")
    renamed = [("format" if name == "output_format" else name, value) for name, value in form.fields]
    values = chosen([(name, value) for name, value in renamed if parameter(name) is not None], settings.preset)
    return _job(form, values, written_format, settings)


def _job(form: Form, values: Mapping[str, Any], choose: Callable[[str], str], settings: ServeSettings) -> Job:
    found = [form.files[name] for name in IMAGE if name in form.files]
    if len(found) != 1:
        raise RefusedError(
            400, f"got {len(found)} images; send one, as the body or as the form's file 'image'", "bad_form"
        )
    blur = next((form.files[name][1] for name in BLUR if name in form.files), None)
    name, data = found[0]
    return Job(
        data=data,
        name=label(name),
        wanted=_wanted(values),
        choose_format=choose if values["format"] is None else partial(_in_one, values["format"]),
        further={} if blur is None else {"blur_image": blur},
        max_pixels=settings.max_pixels,
    )


def _wanted(values: Mapping[str, Any]) -> Wanted:
    try:
        options = options_of(values)
        encoding = Encoding(values["jpeg_quality"], values["jpeg_subsampling"])
    except InputError as error:
        raise RefusedError(400, str(error), "bad_option", error.option) from error
    return Wanted(options, encoding, values["preview"], values["salvage"])


def label(name: str) -> str:
    """What errors call a file: the last part of its name, which may be anything."""
    return printable(name.replace("\\", "/").rpartition("/")[2].replace("\n", " "))[:100] or "the image"


# -- the format of the answer -----------------------------------------------------------------------------------------


def wants_progress(accept: str) -> bool:
    """Whether the client wants lines of progress, and the image in the last one."""
    return PROGRESS in accept


def _accepted(accept: str) -> list[str]:
    """The formats that the client takes, in its order; all of them where it says nothing of images.

    Raises ``RefusedError`` where it takes none.
    """
    types = [one.partition(";")[0].strip().lower() for one in accept.split(",")]
    if not accept or wants_progress(accept) or "*/*" in types or "image/*" in types:
        return WRITTEN
    found = [one.removeprefix("image/") for one in types if one.removeprefix("image/") in WRITTEN]
    if not found:
        expected = ", ".join(f"image/{one}" for one in WRITTEN)
        raise RefusedError(406, f"Accept is {accept[:100]!r}; expected one of {expected}", "not_acceptable")
    return found


def _in_accepted(accepted: Sequence[str], format: str) -> str:
    """The format of the input where the client takes it, else the first that it takes."""
    own = written_format(format)
    return own if own in accepted else accepted[0]


def _in_one(wanted: str, format: str) -> str:
    return wanted
