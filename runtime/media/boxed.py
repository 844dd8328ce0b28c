"""WebP, BMP, AVIF, HEIC and JPEG XL, which Pillow and its plug-ins read whole; and those of them that Pillow writes."""

import importlib
import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.WebPImagePlugin import WebPImageFile

from uid.errors import InputError
from uid.runtime.media import ifd
from uid.runtime.media.exif import EXIF_PREFIX, ORIENTATION
from uid.runtime.media.formats import DecodedImage, Samples
from uid.runtime.media.reading import Content, Reading, with_channels

OPENERS: dict[str, type[ImageFile.ImageFile]] = {"webp": WebPImageFile, "bmp": BmpImageFile, "avif": AvifImageFile}
PLUGINS = {"heic": ("pillow_heif", "HEIC"), "jxl": ("pillow_jxl", "JPEG XL")}
SEARCHED = 1 << 16  # bytes, in which the boxes that describe an image lie
OPTIONS: dict[str, dict[str, Any]] = {
    "webp": {"lossless": True, "exact": True},  # exact: colours under full transparency are kept too
    "bmp": {},
    "avif": {"quality": 90, "subsampling": "4:4:4"},
}


def decode(data: bytes, reading: Reading, format: str) -> Content:
    """Raises ``InputError`` where a plug-in is missing, and for several frames and sizes beyond the limit."""
    if format == "heic":
        return _heic(data, reading)
    if format == "webp":
        _check_webp(data, reading)
    if format == "jxl":
        image = _plugin("jxl", reading).JpegXLImagePlugin.JXLImageFile(io.BytesIO(data))
    else:
        image = OPENERS[format](io.BytesIO(data))
    reading.check_size(*image.size)
    if getattr(image, "is_animated", False):
        raise reading.unusual("it holds several frames or pages", "extract the one you want as an image of its own")
    if format == "avif" and (depth := _avif_depth(data)) > 8:
        reading.warn(f"its samples have {depth} bits, and are read as 8")
    return _loaded(image, turned=format == "jxl")


def _plugin(format: str, reading: Reading) -> Any:
    name, called = PLUGINS[format]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{reading.label} is {called}, which needs a plug-in that is not installed: pip install 'uid-runtime[heif]'"
        ) from error


def _loaded(image: Image.Image, turned: bool) -> Content:
    """Pixels and metadata; ``turned``: EXIF's orientation has been applied, or does not count."""
    image.load()
    samples = _samples(image)
    colour, alpha = (samples, None) if samples.shape[2] % 2 else (samples[..., :-1], samples[..., -1])
    info = image.info
    exif = info.get("exif")
    return Content(
        colour,
        alpha,
        orientation=0 if turned else 1,
        exif=exif if isinstance(exif, bytes) else None,
        icc=info.get("icc_profile"),
        xmp=info.get("xmp"),
        dpi=info.get("dpi"),
    )


def _samples(image: Image.Image) -> Samples:
    """(H, W, 1 to 4), uint8 or uint16."""
    if image.mode.startswith("I;16"):
        return with_channels(np.asarray(image).astype(np.uint16))
    if image.mode in ("I", "F", "LAB", "CMYK"):
        raise ValueError(f"{image.mode} is neither grey nor RGB")
    grey = image.mode in ("1", "L", "LA", "La")
    return with_channels(
        np.asarray(image.convert(("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")))
    )


def _avif_depth(data: bytes) -> int:
    """Bits of a sample, as the decoder's configuration (av1C) states them: Pillow gives 8 of them."""
    at = data.find(b"av1C", 0, SEARCHED)
    flags = data[at + 6] if 0 <= at < len(data) - 6 else 0
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


def _check_webp(data: bytes, reading: Reading) -> None:
    """Refuse by the chunks: libwebp takes memory for the size that the header states before it looks for an image."""
    at, size = 12, (0, 0)
    image = None
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + min(length, 32)]
        if kind == b"VP8X" and len(body) >= 10:
            size = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
            reading.check_size(*size)
        elif kind in (b"VP8 ", b"VP8L", b"ANMF"):
            image = image or kind
            if at + 8 + length > len(data):
                raise ValueError(f"{kind.decode().strip()} is cut short")
            if kind != b"ANMF":
                reading.check_size(*(found := _webp_size(kind, body)))
                if size not in ((0, 0), found):
                    raise ValueError(f"its header says {size}, its image {found}")
        at += 8 + length + length % 2
    if image is None:
        raise ValueError("cut short: it holds no image")


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int]:
    """Width and height, as the compressed image states them."""
    if len(body) < 10:
        raise ValueError("an image is cut short")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF


def _heic(data: bytes, reading: Reading) -> Content:
    """HEIC by libheif, which turns it upright; more than 8 bits come as 16."""
    file = _plugin("heic", reading).open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    reading.check_size(*file.size)
    if len(file) > 1:
        reading.warn(f"it holds {len(file)} images, of which the main one was taken")
    samples = with_channels(np.asarray(file))
    if samples.dtype == np.uint16:  # which are in the upper bits
        depth = int(file.info["bit_depth"])
        samples = ((samples >> (16 - depth)).astype(np.uint32) * 65_535 // (2**depth - 1)).astype(np.uint16)
    alpha = samples[..., -1] if samples.shape[2] in (2, 4) else None
    colour = samples if alpha is None else samples[..., :-1]
    info = file.info
    return Content(
        colour, alpha, orientation=0, exif=info.get("exif"), icc=info.get("icc_profile"), xmp=info.get("xmp")
    )


def encode(samples: Samples, image: DecodedImage, format: str) -> Iterator[bytes]:
    """A file of ``samples`` (H, W, 1 to 4), uint8, in one piece."""
    options = dict(OPTIONS[format])
    given = {
        "icc_profile": image.icc,
        "xmp": image.xmp,
        "exif": _plain_exif(image.exif) if format == "avif" else image.exif,
    }
    if format != "bmp":
        options |= {name: value for name, value in given.items() if value}
    elif image.dpi:
        options["dpi"] = image.dpi
    buffer = io.BytesIO()
    shown = samples[..., 0] if samples.shape[2] == 1 else samples
    Image.fromarray(np.ascontiguousarray(shown)).save(buffer, format.upper(), **options)
    yield buffer.getvalue()


def _plain_exif(exif: bytes | None) -> bytes | None:
    """EXIF without an orientation, which Pillow would take out, and write the rest anew as it understands it."""
    if not exif:
        return None
    data = exif.removeprefix(EXIF_PREFIX)
    order = ifd.header(data)[0]
    return ifd.file_header(order) + ifd.packed(ifd.read(data, frozenset({ORIENTATION})), order, 8)
