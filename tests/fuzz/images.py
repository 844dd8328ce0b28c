"""Alters sound images at random and reads them: any outcome is fine but an error that is not the project's own.

python tests/fuzz/images.py [--count 10000] [--seed 0]
"""

import argparse
import collections
import io
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from uid.errors import UIDError
from uid.runtime.media.decode import read_image
from uid.runtime.media.encode import encode_image, not_carried
from uid.runtime.media.formats import WRITTEN, DecodedImage

MAX_PIXELS = 1_000_000
Alteration = Callable[[bytearray, np.random.Generator], bytes]


def corpus() -> dict[str, bytes]:
    """Small images of every format, depth and number of channels, and those that Pillow writes otherwise."""
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[271], exif[274], exif[34665] = "camera", 6, {40962: 20, 37500: b"note"}
    found = {}
    for format in WRITTEN:
        for dtype in (np.uint8, np.uint16):
            for grey in (False, True):
                pixels = generator.integers(0, np.iinfo(dtype).max, (24, 20, 3), dtype=dtype)
                alpha = pixels[..., 0] if format in ("png", "tiff", "webp") else None
                native = ((b"gAMA", b"\0\0\xb1\x8f"),) if format == "png" else ()
                image = DecodedImage(pixels, alpha, grey, exif.tobytes(), None, format, native=native, xmp=b"<x/>")
                found[f"{format} {dtype.__name__} {grey}"] = encode_image(image, format)
    photo = Image.fromarray(generator.integers(0, 255, (24, 20, 3), dtype=np.uint8))
    compressions = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    variants: list[tuple[str, dict[str, object]]] = [("TIFF", {"compression": one}) for one in compressions]
    variants += [("JPEG", {"progressive": True}), ("WEBP", {"quality": 80}), ("PNG", {"bits": 4})]
    for format, options in variants:
        buffer = io.BytesIO()
        image = photo.quantize(16) if format == "PNG" else photo
        image.save(buffer, format, **options)
        found[f"{format} {options}"] = buffer.getvalue()
    return found


def bytes_replaced(data: bytearray, generator: np.random.Generator) -> bytes:
    for at in generator.integers(0, len(data), generator.integers(1, 8)):
        data[at] = generator.choice([0, 1, 127, 128, 255, int(generator.integers(256))])
    return bytes(data)


def header_replaced(data: bytearray, generator: np.random.Generator) -> bytes:
    for at in generator.integers(0, min(len(data), 200), generator.integers(1, 5)):
        data[at] = int(generator.integers(256))
    return bytes(data)


def cut_short(data: bytearray, generator: np.random.Generator) -> bytes:
    return bytes(data[: generator.integers(0, len(data))])


def part_moved(data: bytearray, generator: np.random.Generator) -> bytes:
    start, length, to = generator.integers(0, len(data), 3)
    part = data[start : start + length // 4]
    return bytes(data[:to] + part + data[to:])


def part_removed(data: bytearray, generator: np.random.Generator) -> bytes:
    start = int(generator.integers(0, len(data)))
    return bytes(data[:start] + data[start + int(generator.integers(1, 40)) :])


ALTERATIONS: tuple[Alteration, ...] = (bytes_replaced, header_replaced, cut_short, part_moved, part_removed)


def outcome(data: bytes, salvage: bool) -> str:
    """What reading gives, and writing what was read; raises what should not be raised."""
    try:
        image = read_image(data, max_pixels=MAX_PIXELS, salvage=salvage)
    except UIDError:
        return "refused"
    for format in ("png", "jpeg", "tiff"):
        not_carried(image, format)
        try:
            encode_image(image, format)
        except UIDError:
            return "read, and refused to be written"
    return "read with a warning" if image.warnings else "read"


def run(count: int, seed: int, failures: Path | None = None) -> collections.Counter[str]:
    """Outcomes by kind; a file that raises another error is put into ``failures``."""
    generator, images, counts = np.random.default_rng(seed), list(corpus().items()), collections.Counter[str]()
    for number in range(count):
        name, data = images[number % len(images)]
        alter = ALTERATIONS[generator.integers(len(ALTERATIONS))]
        altered = alter(bytearray(data), generator)
        try:
            counts[outcome(altered, salvage=bool(number % 2))] += 1
        except Exception:
            counts["FAILED"] += 1
            print(f"{number}: {name}, {alter.__name__}", file=sys.stderr)
            traceback.print_exc()
            if failures:
                failures.mkdir(exist_ok=True)
                (failures / f"{seed}-{number}.bin").write_bytes(altered)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=Path)
    arguments = parser.parse_args()
    result = run(arguments.count, arguments.seed, arguments.failures)
    print(dict(result))
    sys.exit(result["FAILED"] > 0)
