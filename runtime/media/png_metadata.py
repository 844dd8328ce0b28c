"""What a PNG file holds beside its pixels, read from its chunks and written as chunks."""

import re
import struct
import zlib
from collections.abc import Iterator

from uid.runtime.media import iptc
from uid.runtime.media.exif import EXIF_PREFIX
from uid.runtime.media.formats import MAX_PROFILE, DecodedImage
from uid.runtime.media.reading import Content, Reading

INCH = 0.0254  # metres
COMMENT, XMP = b"Comment\0", b"XML:com.adobe.xmp\0"  # how a text chunk begins that holds it
RAW_PROFILE = b"Raw profile type "  # ImageMagick's way to keep what PNG had no place for: hexadecimal digits
# What describes the stored samples rather than the image, or what has a place of its own here.
NOT_CARRIED = set(b"sBIT bKGD hIST iDOT dSIG pHYs iCCP eXIf fcTL fdAT acTL IEND".split())


def describe(content: Content, chunks: list[tuple[bytes, bytes]], reading: Reading) -> None:
    """Fill in the metadata from the chunks that hold no pixels."""
    native = []
    for kind, body in chunks:
        if not _filled_in(content, kind, body, reading) and kind not in NOT_CARRIED:
            native.append((kind, body))
        if kind == b"tEXt" and body.startswith(COMMENT):
            content.comment = body.removeprefix(COMMENT)
    content.native = tuple(native)


def _filled_in(content: Content, kind: bytes, body: bytes, reading: Reading) -> bool:
    """Fill in the field that a chunk holds; whether it holds one."""
    if kind == b"eXIf":
        content.exif = body
    elif kind == b"iCCP":
        content.icc = _profile(body, reading)
    elif kind == b"pHYs" and len(body) == 9:
        content.dpi = _resolution(body)
    elif kind == b"iTXt" and body.startswith(XMP):
        content.xmp = _international(body, reading)
    else:
        return kind == b"zTXt" and body.startswith(RAW_PROFILE) and _raw_profile(content, body)
    return True


def _resolution(body: bytes) -> tuple[float, float] | None:
    """Pixels an inch from those of a metre; None where the numbers are only a ratio."""
    across, down, unit = struct.unpack(">IIB", body)
    return (across * INCH, down * INCH) if unit == 1 and across and down else None


def _profile(body: bytes, reading: Reading) -> bytes | None:
    packed = body.partition(b"\0")[2][1:]
    profile = _inflated(packed)
    if profile is None:
        reading.warn(f"its colour profile is damaged or of more than {MAX_PROFILE} bytes, so it was left out")
    return profile


def _inflated(packed: bytes) -> bytes | None:
    """What is packed; None where it is damaged, cut short or too long."""
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(packed, MAX_PROFILE)
    except zlib.error:
        return None
    return found if inflater.eof else None


def _international(body: bytes, reading: Reading) -> bytes | None:
    """The text of an iTXt chunk."""
    _, _, rest = body.partition(b"\0")
    text = rest[2:].split(b"\0", 2)[-1]
    found = _inflated(text) if rest[:1] == b"\1" else text
    if found is None:
        reading.warn("its XMP is damaged, so it was left out")
    return found


def _raw_profile(content: Content, body: bytes) -> bool:
    """Take EXIF, IPTC or XMP from ImageMagick's chunk; whether it was one of these and sound."""
    name = body.partition(b"\0")[0].removeprefix(RAW_PROFILE)
    text = _inflated(body.partition(b"\0")[2][1:]) or b""
    digits = re.fullmatch(rb"\s*\w+\s+(\d+)\s+([0-9a-fA-F\s]*)", text)
    if digits is None:
        return False
    try:
        found = bytes.fromhex(digits[2].decode())
    except ValueError:
        return False
    if name in (b"exif", b"APP1") and found.startswith(EXIF_PREFIX):
        content.exif = content.exif or found
    elif name == b"iptc":
        content.iptc = iptc.records(found) or found
    else:
        return False
    return True


def metadata_chunks(image: DecodedImage) -> Iterator[tuple[bytes, bytes]]:
    """The chunks, each as its type and body, for the metadata of an image."""
    native = image.native if image.format == "png" else ()
    if image.icc:
        yield b"iCCP", b"ICC profile\0\0" + zlib.compress(image.icc)
    if image.dpi:
        yield b"pHYs", struct.pack(">IIB", *(min(round(one / INCH), 2**31 - 1) for one in image.dpi), 1)
    if image.exif:
        yield b"eXIf", image.exif.removeprefix(EXIF_PREFIX)
    if image.xmp:
        yield b"iTXt", XMP + b"\0\0\0\0" + image.xmp
    if image.iptc:
        record = iptc.resource(image.iptc)
        text = f"\niptc\n{len(record):8}\n{record.hex()}\n".encode()
        yield b"zTXt", RAW_PROFILE + b"iptc\0\0" + zlib.compress(text)
    if image.comment and not native:
        yield b"tEXt", COMMENT + image.comment.replace(b"\0", b" ")
    yield from native
