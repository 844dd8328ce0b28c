"""Raw frames through a pipe, as other programs write and read them: RGB samples and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from uid.errors import InputError, OutputError
from uid.runtime.media.frames import DEFAULT_FRAME_RATE, Clip, Frame, Load, Stamp
from uid.runtime.media.selection import Part

RAW_FORMATS: dict[str, np.dtype[Any]] = {"rgb24": np.dtype(np.uint8), "rgb48le": np.dtype("<u2")}  # FFmpeg's names


@dataclass(frozen=True)
class RawPipe:
    """A stream of frames, (H, W, 3) RGB each, one after another."""

    stream: BinaryIO
    format: str = "rgb24"  # a key of RAW_FORMATS
    size: tuple[int, int] | None = None  # (width, height); needed for reading only


class RawReader:
    """The frames of a pipe. Raises ``InputError`` where it ends within one."""

    warnings: tuple[str, ...] = ()

    def __init__(self, pipe: RawPipe, rate: Fraction | None, max_pixels: int) -> None:
        if pipe.size is None:
            raise InputError("raw frames do not say how large they are; give their size", option="raw_size")
        self._pipe, (self._width, self._height) = pipe, pipe.size
        if self._width * self._height > max_pixels:
            size = f"{self._width} x {self._height}"
            raise InputError(f"raw frames of {size} have more than {max_pixels} pixels", option="max_pixels")
        rate = rate or DEFAULT_FRAME_RATE
        self.clip = Clip(pipe.size, 1 / rate, rate, None, depth=8 * RAW_FORMATS[pipe.format].itemsize)

    def __iter__(self) -> Iterator[tuple[Stamp, Load]]:
        size = self._width * self._height * 3 * RAW_FORMATS[self._pipe.format].itemsize
        index = 0
        while data := self._read(size):
            if len(data) < size:
                raise InputError(f"the raw frames end within frame {index + 1}: {len(data)} of {size} bytes")
            yield Stamp(index, 1), partial(self._pixels, data)
            index += 1

    def _pixels(self, data: bytes) -> NDArray[Any]:
        dtype = RAW_FORMATS[self._pipe.format]
        samples: NDArray[Any] = np.frombuffer(data, dtype).reshape(self._height, self._width, 3)
        return samples.astype(dtype.newbyteorder("="))

    def _read(self, size: int) -> bytes:
        """That many bytes, or what is left: one read from a pipe may give fewer."""
        parts: list[bytes] = []
        while size and (part := self._pipe.stream.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class RawWriter:
    """Frames to a pipe; 8 and 16 bits are turned into each other where the pipe has the other."""

    audio_streams = 0
    done = 0
    warnings: tuple[str, ...] = ()

    def __init__(self, pipe: RawPipe) -> None:
        self._pipe = pipe

    def put(self, item: Frame | Stamp) -> bool:
        """Write a frame."""
        assert isinstance(item, Frame), "a pipe holds nothing of an earlier run"
        pixels, dtype = item.pixels, RAW_FORMATS[self._pipe.format]
        if pixels.itemsize > dtype.itemsize:
            pixels = (pixels.astype(np.uint32) + 128) // 257
        elif pixels.itemsize < dtype.itemsize:
            pixels = pixels.astype(dtype) * 257
        self._write(np.ascontiguousarray(pixels, dtype).tobytes())
        return True

    def finish(self, part: Part) -> None:
        """A pipe carries frames alone."""
        self._write(b"")

    def close(self) -> None:
        """The pipe is its owner's."""

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:  # where Python runs unbuffered, one write may take only a part
                left = left[self._pipe.stream.write(left) :]
            self._pipe.stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write the raw frames: {error.strerror}") from error
