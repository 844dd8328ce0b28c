"""uvicorn on one box: the socket, signals and draining, and connections that say nothing."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from uid import stop
from uid.errors import InputError
from uid.serve.queue import Queue

PATIENCE = 10.0  # seconds for a request's head, and for the end of a body or answer that nobody wants any more
CONNECTIONS = 512
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Connection(H11Protocol):
    """A connection that is ended where nothing comes of it: no request, a body without end, an answer nobody reads."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch."""
        super().connection_made(transport)
        # asyncio does so only for sockets that name their protocol, which a listening one of Python's does not. Without
        # it each answer waits 40 ms for the client's delayed acknowledgement.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.loop.call_later(PATIENCE, self._look, None)

    def _look(self, before: object) -> None:
        """End the connection where it is as idle as it was before."""
        if self not in self.connections:
            return
        idle = self.conn.their_state is h11.IDLE or self.conn.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        now = (self.cycle, self.conn) if idle or self.transport.is_closing() else None
        if now is not None and now == before:
            self.transport.abort()
            return
        self.loop.call_later(PATIENCE, self._look, now)


class Server(uvicorn.Server):
    """Ends by SIGTERM or Ctrl-C once the work in hand is done; a second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, queue: Queue) -> None:
        super().__init__(config)
        self._queue = queue

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals over while the server runs; in another thread than the main one they are not ours."""
        own = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self._on_signal) for number in own}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: nothing is left to do, or the model did not load."""
        done = self._queue.draining and not self._queue.taken
        return done or self._queue.failure is not None or await super().on_tick(counter)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._queue.draining:
            stop.end_now(128 + number)
        self._queue.draining = True


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free. Raises ``InputError`` where that is not possible."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}, port {port}: {why}; choose another", option="port") from error


def address_of(sock: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def host_app(app: ASGIApp, queue: Queue, sock: socket.socket) -> None:
    """Serve an application until a signal ends it. Raises what kept the queue's pipeline from loading."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the application tells its errors itself
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(PATIENCE),
    )
    try:
        Server(config, queue).run(sockets=[sock])
    finally:
        queue.close()
    if queue.failure is not None:
        raise queue.failure
