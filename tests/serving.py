"""A server in a thread, with a pipeline that inverts, and that a test can hold."""

import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from inverting_cli import InvertingPipeline
from PIL import Image

from uid.serve.app import application
from uid.serve.hosting import address_of, host_app, listening
from uid.serve.queue import Queue
from uid.serve.settings import ServeSettings

WAIT = 60.0  # seconds; ends a test that hangs


class HeldPipeline(InvertingPipeline):
    """Inverts, and at each step waits until it is let go."""

    def __init__(self) -> None:
        super().__init__(trained=True)
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Semaphore(0)
        self.finished: list[tuple[int, ...]] = []  # shapes of the images that were done

    def __call__(self, image, options, *, on_step=None, **extra) -> Any:
        self.begun.release()

        def step(done: int, total: int) -> None:
            assert self.go.wait(WAIT)
            on_step(done, total)

        result = super().__call__(image, options, on_step=step, **extra)
        self.finished.append(image.shape)
        return result


@dataclass
class Running:
    """A server that runs."""

    url: str
    port: int
    pipeline: HeldPipeline
    queue: Queue
    http: httpx.Client
    thread: threading.Thread
    logged: list[str]

    def deblur(self, data: bytes, **options: Any) -> httpx.Response:
        return self.http.post("/api/deblur", content=data, params=options)

    def raw(self, *parts: bytes) -> socket.socket:
        """A connection to which bytes were sent."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        for part in parts:
            sock.sendall(part)
        return sock


@contextmanager
def served(load: Callable[[], Any] | None = None, **settings: Any) -> Iterator[Running]:
    pipeline, logged = HeldPipeline(), []
    made = ServeSettings(**settings)
    sock = listening("127.0.0.1", 0)
    url, port = address_of(sock), sock.getsockname()[1]
    queue = Queue(load or (lambda: pipeline), places=made.queue, workers=made.workers)
    app = application(queue, made, log=logged.append)
    thread = threading.Thread(target=host_app, args=(app, queue, sock), daemon=True)
    thread.start()
    with httpx.Client(base_url=url, timeout=WAIT) as http:
        try:
            yield Running(url, port, pipeline, queue, http, thread, logged)
        finally:
            pipeline.go.set()
            queue.draining = True
            thread.join(WAIT)
    assert not thread.is_alive()
    assert not queue.taken


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def answered(sock: socket.socket) -> bytes:
    """All that a server sends until it closes, or all of an answer with a length."""
    data = b""
    while block := sock.recv(1 << 16):
        data += block
        head, _, body = data.partition(b"\r\n\r\n")
        length = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        if length and len(body) >= int(length[0]):
            break
    return data
