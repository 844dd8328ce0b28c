"""What the command line ``uid-serve`` asks for."""

import math
from dataclasses import dataclass
from pathlib import Path

from uid.errors import InputError
from uid.runtime.options import AUTO


@dataclass(frozen=True)
class ServeSettings:
    """How to serve; everything has a default."""

    model: Path | None = None  # a bundle; None: the built-in one
    backend: str = AUTO
    threads: int | None = None  # of the backend; None: its choice
    preset: str | None = None  # of requests that name none; None: the bundle's own
    workers: int = 1  # threads that decode, compute and encode; computing itself is one image at a time
    queue: int = 32  # most requests at once: being received, waiting, computed, and sent
    max_pixels: int = 50_000_000  # of an image
    max_bytes: int = 64 << 20  # of a request's body
    timeout: float = 300.0  # seconds from the end of an upload to the image
    token: str | None = None  # that clients must show; None: anyone may ask
    hosts: tuple[str, ...] | None = None  # names that clients may call this server; None: any

    def __post_init__(self) -> None:
        if not 0 < self.timeout < math.inf:
            raise InputError(f"the timeout is {self.timeout:g}; expected seconds, more than 0", option="timeout")
        # Headers carry other characters in more than one way, and lose spaces at their ends.
        token = self.token or "-"
        if not (token.isascii() and token.isprintable() and token == token.strip()):
            raise InputError(
                "the token is not of ASCII characters alone, without spaces at its ends; choose another", option="token"
            )
