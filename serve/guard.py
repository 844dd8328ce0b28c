"""What every request passes: is it allowed, is it counted, does somebody read the answer, is every error told?"""

import asyncio
import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from uid.serve.answers import RefusedError, error_response
from uid.serve.metrics import Metrics
from uid.serve.settings import ServeSettings
from uid.serve.work import AbandonedError

OPEN = {"/", "/style.css", "/page.js", "/healthz", "/readyz"}  # without a token
COUNTED = OPEN | {"/api", "/api/deblur", "/v1/images/edits", "/metrics"}
CHUNK = 256 << 10  # bytes that are sent at once
PATIENCE = 10.0  # seconds in which a client must take them
LEFT = 499  # the status that is counted where a client did not wait for one


class Guard:
    """An application behind the checks that all its routes share; ``note`` says what to tell of an error."""

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, note: Callable[[Exception], RefusedError]
    ) -> None:
        self._app, self._settings, self._metrics, self._note = app, settings, metrics, note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sender = _Sender(send)
        try:
            check_allowed(scope, self._settings)
            await self._app(scope, receive, sender)
        except (ClientDisconnect, AbandonedError, NotReadError):
            sender.status = LEFT
            self._metrics.failures.labels("abandoned").inc()
        except Exception as error:
            refused = self._note(error)
            if not sender.status:
                await error_response(refused)(scope, receive, sender)
        route = scope["path"] if scope["path"] in COUNTED else "other"
        self._metrics.requests.labels(route, str(sender.status)).inc()


class NotReadError(Exception):
    """A client does not read its answer."""


class _Sender:
    """ASGI's ``send`` in chunks; gives up on a client that does not take them."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        body, more = message.get("body", b""), message.get("more_body", False)
        for start in range(0, max(1, len(body)), CHUNK):
            left = start + CHUNK < len(body)
            part = message if not start and not left else {**message, "body": body[start : start + CHUNK]}
            try:
                await asyncio.wait_for(self._send({**part, "more_body": more or left}), PATIENCE)
            except asyncio.TimeoutError as error:
                raise NotReadError from error


def check_allowed(scope: Scope, settings: ServeSettings) -> None:
    """Raise ``RefusedError`` for a request without the token, or, where there is none, one that another site sent."""
    headers = Headers(scope=scope)
    if settings.token is not None:
        kind, _, given = headers.get("authorization", "").partition(" ")
        sent = given.strip().encode("latin-1")  # which is how the header was decoded
        right = kind.lower() == "bearer" and hmac.compare_digest(sent, settings.token.encode())
        if not right and scope["path"] not in OPEN:
            raise RefusedError(401, "this server wants its token: Authorization: Bearer TOKEN", "unauthorized")
        return
    # A page of another site, or another name of this machine, could have this server work for it.
    host = headers.get("host", "")
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if settings.hosts is not None and name.lower() not in settings.hosts:
        told = f"this server is not called {name[:100]!r}; ask it as {settings.hosts[0]}"
        raise RefusedError(421, told, "wrong_host")
    if scope["method"] == "POST" and _is_foreign(headers, host):
        raise RefusedError(403, "a page of another site asks, which a server without a token refuses", "cross_site")


def _is_foreign(headers: Headers, host: str) -> bool:
    """Whether a page of another site sends a request: by what browsers say, the older ones in Origin alone."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower())
