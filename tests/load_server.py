"""Load a server by hand, and print figures: 32 clients, some of which send bad files, are slow, or leave.

python tests/load_server.py [REQUESTS] [CLIENTS] [-- OPTIONS OF uid-serve]

Starts ``uid-serve`` with the built-in model. Every answer is checked: an image is byte for byte the one that a single
client got before, everything else a refusal of the kind that the request deserves. Memory is that of the server.
"""

import io
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import httpx
import psutil
from PIL import Image

PHOTO = Path(__file__).parents[1] / "examples" / "astronaut_blurred.jpg"
SIZES = (96, 128, 192)  # pixels a side
BAD = {"text": b"no image", "cut": PHOTO.read_bytes()[:5000], "empty": b"", "large": b"BM" + bytes(2 << 20)}
STATUSES = {"text": 422, "cut": 422, "empty": 422, "large": 413}
HEAD = "POST /api/deblur HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n"
OPTIONS = ["--preset", "fast", "--max-bytes", str(1 << 20), "--queue", "24", "--workers", "2"]


@dataclass
class Load:
    """Clients of one server, and what became of their requests."""

    url: str
    port: int
    server: psutil.Process
    photos: dict[int, bytes]
    expected: dict[int, bytes]
    seconds: list[float] = field(default_factory=list)  # of accepted requests
    outcomes: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)  # MB, after each request
    lock: Lock = field(default_factory=Lock)

    def request(self, number: int) -> None:
        """One request, as its number says."""
        kind = random.Random(number)
        luck = kind.random()
        with httpx.Client(base_url=self.url, timeout=300) as http:
            if luck < 0.7:
                outcome = self.photo(http, kind.choice(SIZES))
            elif luck < 0.8:
                outcome = self.bad(http, kind.choice(list(BAD)))
            else:
                outcome = self.slow() if luck < 0.85 else self.leaving(kind)
        with self.lock:
            self.outcomes[outcome] += 1
            self.memory.append(self.server.memory_info().rss / 1e6)

    def photo(self, http: httpx.Client, side: int) -> str:
        """A sound image; where the queue is full, again after the time that the server says."""
        while True:
            started = time.monotonic()
            answer = http.post("/api/deblur", content=self.photos[side])
            if answer.status_code != 429:
                break
            with self.lock:
                self.outcomes["429, asked again"] += 1
            time.sleep(float(answer.headers["retry-after"]))
        with self.lock:
            self.seconds.append(time.monotonic() - started)
        return "right image" if answer.content == self.expected[side] else f"WRONG: {answer.status_code}"

    def bad(self, http: httpx.Client, name: str) -> str:
        """A file that is no image, or too large."""
        status = http.post("/api/deblur", content=BAD[name]).status_code
        return f"bad file, {status}" if status in (STATUSES[name], 429) else f"WRONG: {name} {status}"

    def slow(self) -> str:
        """A client that sends a byte a second: it is told 408, or that the queue is full."""
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.sendall(HEAD.format(1000).encode())
            sock.settimeout(1.0)
            for _ in range(60):
                try:
                    sock.sendall(b"x")
                    status = sock.recv(100).split()[1].decode()
                    return f"slow, {status}" if status in ("408", "429") else f"WRONG: slow {status}"
                except TimeoutError:
                    continue
        return "WRONG: slow, not given up"

    def leaving(self, kind: random.Random) -> str:
        """A client that leaves after a while, with all or half of its image sent."""
        data = self.photos[SIZES[0]]
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.sendall(HEAD.format(len(data)).encode() + data[: len(data) // kind.choice((1, 2))])
            time.sleep(kind.uniform(0, 0.5))
        return "left"

    def report(self, wall: float) -> None:
        """Print the figures."""
        self.seconds.sort()
        first, last = statistics.median(self.memory[40:60]), statistics.median(self.memory[-20:])
        p50, p99 = (self.seconds[int(len(self.seconds) * part)] for part in (0.5, 0.99))
        print(f"{sum(self.outcomes.values())} outcomes in {wall:.0f} s: {dict(self.outcomes.most_common())}")
        print(f"accepted: p50 {p50:.2f} s, p99 {p99:.2f} s, {len(self.seconds) / wall:.1f} a second")
        print(f"memory: {first:.0f} MB after 50, {last:.0f} MB after all ({100 * (last / first - 1):+.1f} %)")


def overhead(url: str, photo: bytes) -> float:
    """Milliseconds that a request takes beside decoding, computing and encoding; the median of 50, one at a time."""
    found = []
    with httpx.Client(base_url=url, timeout=300) as http:
        for _ in range(50):
            started = time.monotonic()
            answer = http.post("/api/deblur", content=photo)
            wall = 1000 * (time.monotonic() - started)
            found.append(wall - float(answer.headers["server-timing"].partition("done;dur=")[2].partition(",")[0]))
    return statistics.median(found)


def smaller(side: int) -> bytes:
    """The example photo at another size, as JPEG."""
    buffer = io.BytesIO()
    Image.open(PHOTO).resize((side, side)).save(buffer, "JPEG")
    return buffer.getvalue()


def main() -> int:
    """Run the load; 1 where any answer was wrong."""
    words, _, options = " ".join(sys.argv[1:]).partition("--")
    requests, clients = (int(word) for word in [*words.split(), "500", "32"][:2])
    command = [sys.executable, "-m", "uid", "serve", "--port", "0", *OPTIONS, *options.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[0]
        photos = {side: smaller(side) for side in SIZES}
        expected = {side: httpx.post(f"{url}api/deblur", content=photos[side], timeout=300).content for side in SIZES}
        print(f"overhead of HTTP: {overhead(url, photos[SIZES[0]]):.1f} ms a request")
        load = Load(url, int(url.rstrip("/").rpartition(":")[2]), psutil.Process(process.pid), photos, expected)
        started = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(load.request, range(requests)))
        load.report(time.monotonic() - started)
        process.terminate()
        print(f"exit status after SIGTERM: {process.wait(60)}")
    return int(any(outcome.startswith("WRONG") for outcome in load.outcomes))


if __name__ == "__main__":
    sys.exit(main())
