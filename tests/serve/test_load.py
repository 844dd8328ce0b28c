"""Under load: what is full, large, slow or abandoned is refused or given up, and touches nothing else."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from inverting_cli import pixels
from serving import WAIT, Running, answered, opened, png, served

from uid.serve import guard, hosting, requests

HEAD = b"POST /api/deblur HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def held(server: Running) -> Iterator[Running]:
    """A server that computes one image, at which it waits."""
    server.pipeline.go.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.deblur, png(pixels()))
        assert server.pipeline.begun.acquire(timeout=WAIT)
        yield server
        server.pipeline.go.set()
        assert first.result().status_code == 200


def length(data: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(data)


def test_a_full_queue_refuses_at_once(held: Running) -> None:
    data = png(pixels(1))
    others = [held.raw(HEAD, length(data), data) for _ in range(2)]
    until(lambda: held.queue.taken == 3)
    refused = held.deblur(data)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert held.queue.taken == 3
    held.pipeline.go.set()
    for sock in others:
        assert answered(sock).startswith(b"HTTP/1.1 200")
        sock.close()


def test_an_abandoned_request_is_not_run(held: Running) -> None:
    data = png(pixels(1, height=8, width=8))
    sock = held.raw(HEAD, length(data), data)
    until(lambda: held.queue.waiting == 1)
    sock.close()
    until(lambda: held.queue.waiting == 0)
    held.pipeline.go.set()
    assert held.deblur(png(pixels(2))).status_code == 200
    assert (8, 8, 3) not in held.pipeline.finished


def test_an_abandoned_request_ends_at_its_next_step(server: Running) -> None:
    data = png(pixels(1))
    for accept in (b"", b"Accept: application/x-ndjson\r\n"):
        server.pipeline.go.clear()
        sock = server.raw(HEAD, accept, length(data), data)
        assert server.pipeline.begun.acquire(timeout=WAIT)
        sock.close()
        until(lambda: server.queue.taken == 0)
        server.pipeline.go.set()
    assert server.deblur(png(pixels(2, height=8, width=8))).status_code == 200
    assert server.pipeline.finished == [(8, 8, 3)]


def test_too_large_is_refused_while_it_arrives(server: Running) -> None:
    sock = server.raw(HEAD, b"Transfer-Encoding: chunked\r\n\r\n")
    sock.setblocking(False)
    block, sent, answer = b"10000\r\n" + bytes(1 << 16) + b"\r\n", 0, b""
    end = time.monotonic() + WAIT
    while not answer and time.monotonic() < end:
        try:
            sent += sock.send(block[sent % len(block) :])
        except BlockingIOError:
            time.sleep(0.001)
        try:
            answer = sock.recv(1 << 16)
        except BlockingIOError:
            continue
    assert answer.startswith(b"HTTP/1.1 413")
    sock.close()
    sock = server.raw(HEAD, b"Content-Length: 99999999\r\n\r\n")
    assert answered(sock).startswith(b"HTTP/1.1 413")
    sock.close()
    until(lambda: server.queue.taken == 0)


def test_a_slow_client_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "GRACE", 0.2)
    sock = server.raw(HEAD, b"Content-Length: 1000\r\n\r\n", b"begin")
    assert answered(sock).startswith(b"HTTP/1.1 408")
    sock.close()


def test_connections_that_say_nothing_are_ended(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "PATIENCE", 0.2)
    for beginning in (b"", b"POST /api/deb", HEAD):
        sock = server.raw(beginning)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
        sock.close()


def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PATIENCE", 0.2)
    monkeypatch.setattr(hosting, "PATIENCE", 0.2)
    image = pixels(height=2000, width=2000)
    with served() as server:
        data = png(image)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(HEAD + length(data) + data)
        until(lambda: 'uid_failures_total{kind="abandoned"} 1.0' in server.http.get("/metrics").text)
        until(lambda: server.queue.taken == 0)
        sock.close()


def test_an_image_that_takes_too_long_is_given_up() -> None:
    with served(timeout=0.1) as server:
        server.pipeline.go.clear()
        answer = server.deblur(png(pixels()))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
        server.pipeline.go.set()
    assert not server.pipeline.finished


def test_a_server_that_ends_finishes_what_it_has_begun(held: Running) -> None:
    held.queue.draining = True  # as a signal does
    assert held.http.get("/readyz").status_code == 503
    assert held.http.get("/healthz").status_code == 200
    assert held.deblur(png(pixels())).status_code == 503
    held.pipeline.go.set()
    held.thread.join(WAIT)
    assert not held.thread.is_alive()


def test_many_clients_get_their_own_images() -> None:
    def one(number: int) -> bool:
        image = pixels(number, height=8 + number, width=16)
        return np.array_equal(opened(server.deblur(png(image)).content), 255 - image)

    with served(workers=3, queue=64) as server, ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(64)))


# -- hostile requests -------------------------------------------------------------------------------------------------

FORM = b"Content-Type: multipart/form-data; boundary=x\r\n"


def part(head: bytes, body: bytes = b"data") -> bytes:
    return b"--x\r\n" + head + b"\r\n\r\n" + body + b"\r\n"


IMAGE = b'Content-Disposition: form-data; name="image"; filename="%s"'
BODIES = {
    "nothing": b"",
    "no end": part(IMAGE % b"a.png"),
    "no boundary inside": b"rubbish" * 99,
    "no disposition": part(b"X: y") + b"--x--\r\n",
    "no name": part(b"Content-Disposition: form-data") + b"--x--\r\n",
    "no text": part(b'Content-Disposition: form-data; name="seed"', b"\xff\xfe") + b"--x--\r\n",
    "long field": part(b'Content-Disposition: form-data; name="seed"', b"1" * 99_999) + b"--x--\r\n",
    "long number": part(b'Content-Disposition: form-data; name="seed"', b"1" * 4000)
    + part(IMAGE % b"a")
    + b"--x--\r\n",
    "many fields": part(b'Content-Disposition: form-data; name="seed"', b"1") * 999 + b"--x--\r\n",
    "many files": part(IMAGE % b"a.png") * 99 + b"--x--\r\n",
    "many part headers": part(b"\r\n".join(b"X-%d: y" % i for i in range(9999))) + b"--x--\r\n",
    "long part header": part(IMAGE % (b"a" * 500_000)) + b"--x--\r\n",
    "path": part(IMAGE % b"../../../etc/passwd") + b"--x--\r\n",
    "zero byte": part(IMAGE % b"a\0.png") + b"--x--\r\n",
    "file as option": part(b'Content-Disposition: form-data; name="seed"; filename="a"') + b"--x--\r\n",
}


@pytest.mark.parametrize("name", BODIES)
def test_hostile_forms_are_refused(server: Running, name: str) -> None:
    for route in (b"/api/deblur", b"/v1/images/edits"):
        head = HEAD.replace(b"/api/deblur", route)
        sock = server.raw(head, FORM, length(BODIES[name]), BODIES[name])
        status = int(answered(sock).split()[1])
        assert 400 <= status < 500, name
        sock.close()
    assert server.deblur(png(pixels())).status_code == 200


HEADS = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "header flood": HEAD + b"".join(b"X-%d: y\r\n" % i for i in range(20_000)) + b"\r\n",
    "long header": HEAD + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
    "long address": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "length and chunks": HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "huge length": HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "boundary missing": HEAD + b"Content-Type: multipart/form-data\r\nContent-Length: 3\r\n\r\nabc",
    "boundary long": HEAD + FORM.replace(b"=x", b"=" + b"x" * 9999) + b"Content-Length: 3\r\n\r\nabc",
    "path": b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "encoded path": b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "odd query": HEAD.replace(b"deblur", b"deblur?%00=%ff&=&&seed") + b"Content-Length: 0\r\n\r\n",
    "odd accept": HEAD + b"Accept: \xff\xfe;q=,,;\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", HEADS)
def test_hostile_heads_are_refused(server: Running, name: str) -> None:
    sock = server.raw()
    threading.Thread(target=_send, args=(sock, HEADS[name]), daemon=True).start()
    try:
        answer = answered(sock)
    except ConnectionResetError:
        answer = b""  # it was closed while more was sent
    assert not answer or 400 <= int(answer.split()[1]) < 500, name
    sock.close()
    assert server.deblur(png(pixels())).status_code == 200


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)
