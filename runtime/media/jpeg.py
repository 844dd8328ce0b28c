"""JPEG files: segments, how the pixels were compressed, and whether any is missing.

simplejpeg decodes: unlike Pillow and OpenCV it tells when libjpeg had to make pixels up. It is given the image alone,
without metadata. Pillow encodes, since it takes the input's own quantisation tables.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile, get_sampling

from uid.errors import InputError
from uid.runtime.media import iptc, jpeg_scans
from uid.runtime.media.exif import EXIF_PREFIX
from uid.runtime.media.formats import MAX_SCANS, SUBSAMPLINGS, DecodedImage, JpegCoding, Samples
from uid.runtime.media.jpeg_scans import FRAMES, MARKER, SCAN, SEGMENT, SOI
from uid.runtime.media.reading import Content, Reading, with_channels

APP0, APP1, APP2, APP11, APP13, APP14, COMMENT = 0xE0, 0xE1, 0xE2, 0xEB, 0xED, 0xEE, 0xFE
EOI = b"\xff\xd9"
OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF}
ICC, XMP, PHOTOSHOP = b"ICC_PROFILE\0", b"http://ns.adobe.com/xap/1.0/\0", b"Photoshop 3.0\0"
OF_OTHER_IMAGES = b"MPF\0", b"urn:iso:std:iso:ts:21496"  # an index of further images, and a gain map's description
# The metadata that segments hold: the marker, how the body begins, and its least length.
HELD = {
    "density": (APP0, b"JFIF\0", 12),
    "exif": (APP1, EXIF_PREFIX, 0),
    "xmp": (APP1, XMP, 0),
    "icc": (APP2, ICC, len(ICC) + 3),
    "photoshop": (APP13, PHOTOSHOP, 0),
    "comment": (COMMENT, b"", 0),
    "credentials": (APP11, b"", 0),
}
LONGEST = 65_533  # bytes of a segment
QUALITY, SUBSAMPLING = 95, "4:4:4"  # of what was no JPEG before


@dataclass
class Segments:
    """A JPEG taken apart."""

    pixels: bytes = b""  # the file without what does not take part in decoding
    size: tuple[int, int] = (0, 0)  # width, height
    components: int = 0
    others: list[tuple[int, bytes]] = field(default_factory=list)


def decode(data: bytes, reading: Reading) -> Content:
    """CMYK comes as four colours. Raises ``InputError`` for what is damaged, unusual, or has pixels missing."""
    found = _segments(data, reading)
    reading.check_size(*found.size)
    samples = _samples(found, reading)
    header = JpegImageFile(io.BytesIO(found.pixels))
    content = Content(samples, jpeg=_coding(header))
    _describe(content, found.others, reading)
    return content


def _segments(data: bytes, reading: Reading) -> Segments:
    found, kept, at = Segments(), [SOI], 2
    while True:
        marker, body, end = _segment(data, at, reading)
        if marker == SCAN:
            break
        _note(found, marker, body, reading)
        if _takes_part(marker, body):
            kept.append(data[at:end])
        at = end
    if found.components not in (1, 3, 4):
        raise reading.unusual(f"{found.components} channels")
    found.pixels = b"".join(kept) + _scans(data, at, reading)
    return found


def _note(found: Segments, marker: int, body: bytes, reading: Reading) -> None:
    """Note what a segment says. Raises ``InputError`` for pixels that are not read here."""
    if marker in FRAMES and len(body) >= 6 and not found.components:
        precision, height, width, found.components = struct.unpack_from(">BHHB", body)
        found.size = width, height
        if precision != 8 or not height:
            raise reading.unusual(f"{precision} bit a channel" if height else "no height in its header")
    elif marker in OTHER_FRAMES:
        raise reading.unusual("a lossless or hierarchical JPEG", "save it as PNG or TIFF")
    elif marker >= APP0:
        found.others.append((marker, body))


def _takes_part(marker: int, body: bytes) -> bool:
    """Whether a segment takes part in decoding: tables and frames, and what tells the colour space."""
    mark = {APP0: b"JFIF", APP14: b"Adobe"}.get(marker)
    return marker < APP0 or (mark is not None and body.startswith(mark))


def _segment(data: bytes, at: int, reading: Reading) -> tuple[int, bytes, int]:
    """The marker, body and end of the segment at ``at``."""
    match = SEGMENT.match(data, at)
    if match is None or match.end() + 2 > len(data) or match[1] == b"\xd9":
        reading.damage("it ends before its pixels")
        raise reading.unusual("no pixels", "there is nothing to take")
    (length,) = struct.unpack_from(">H", data, match.end())
    end = match.end() + length
    if length < 2 or end > len(data):
        reading.damage("a segment is cut short")
        raise reading.unusual("no pixels", "there is nothing to take")
    return match[1][0], data[match.end() + 2 : end], end


def _scans(data: bytes, start: int, reading: Reading) -> bytes:
    """The compressed pixels from ``start`` to the end mark."""
    scans, at, end = 0, start, len(data)
    while (match := MARKER.search(data, at)) is not None:
        at = match.end()
        if match[1] == b"\xd9":
            end = match.start()
            break
        if match[1] != b"\xda":  # tables between scans, which may hold any bytes
            at += int.from_bytes(data[at : at + 2], "big")
            continue
        scans += 1
        if scans > MAX_SCANS:
            raise reading.unusual(f"more than {MAX_SCANS} scans, each of which takes the time of a whole image")
    else:
        reading.warn("its end mark is missing")
    if len(behind := data[end + 2 :].strip(b"\0\xff")) > 2:
        reading.warn(f"{len(behind)} bytes after the image were left out: a further image, a film or a gain map")
    return data[start:end] + EOI


def _samples(found: Segments, reading: Reading) -> Samples:
    import simplejpeg

    space = {1: "GRAY", 3: "RGB", 4: "CMYK"}[found.components]
    if lacking := jpeg_scans.lacking(found.pixels):
        reading.damage(lacking)
    try:
        samples = simplejpeg.decode_jpeg(found.pixels, space, strict=True)
    except ValueError as error:
        samples = _padded(found.pixels, space) if "extraneous" in str(error) else None
        if samples is None:
            reading.damage(str(error).removeprefix("Corrupt JPEG data: "))
            samples = _salvaged(found, space, reading)
        else:
            reading.warn("there are zeros between its pixels and its end mark")
    return with_channels(samples if space != "CMYK" else 255 - samples)  # which Adobe stores inverted


def _salvaged(found: Segments, space: str, reading: Reading) -> Samples:
    """What libjpeg makes of a damaged image; black where it gives up, which would else be whatever memory held."""
    import simplejpeg

    width, height = found.size
    blank = np.zeros((height, width, found.components), np.uint8)
    samples: Samples = simplejpeg.decode_jpeg(found.pixels, space, strict=False, buffer=blank)
    if not samples.any():
        raise InputError(f"{reading.label} is damaged from its first pixel on: nothing is left to salvage; get it anew")
    return samples


def checked(data: bytes, what: str, reading: Reading) -> None:
    """See that no pixel of a JPEG is missing, such as one within a TIFF."""
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(data, "GRAY", strict=True)
    except ValueError as error:
        if "colorspace" not in str(error).lower():
            reading.damage(f"{what}: {error}")


def _padded(pixels: bytes, space: str) -> Samples | None:
    """The pixels where nothing is wrong but zeros before the end mark."""
    import simplejpeg

    try:
        found: Samples = simplejpeg.decode_jpeg(pixels[:-2].rstrip(b"\0") + EOI, space, strict=True)
    except ValueError:
        return None
    return found


def _coding(header: JpegImageFile) -> JpegCoding | None:
    tables = [tuple(header.quantization.get(layer[3], ())) for layer in header.layer]
    if tables[1:2] == tables[2:3]:
        del tables[2:]
    if any(len(table) != 64 or max(table) > 255 or min(table) < 1 for table in tables):
        return None
    found = get_sampling(header)
    return JpegCoding(tuple(tables), SUBSAMPLINGS[found] if found in (0, 1, 2) and len(header.layer) == 3 else None)


def _describe(content: Content, segments: list[tuple[int, bytes]], reading: Reading) -> None:
    """Fill in the metadata."""
    held, native = _sorted(segments)
    if held["credentials"]:
        reading.warn("its content credentials (JUMBF) vouch for other pixels, so they were left out")
    for body in held["density"]:
        content.dpi = _density(*struct.unpack_from(">BHH", body, 7))
    for body in held["xmp"]:
        content.xmp = body.removeprefix(XMP)
    content.exif = b"".join(body.removeprefix(EXIF_PREFIX) for body in held["exif"]) or None
    content.icc = _profile(held["icc"])
    content.comment = next(iter(held["comment"]), None)
    if held["photoshop"]:
        resources = b"".join(body.removeprefix(PHOTOSHOP) for body in held["photoshop"])
        content.iptc = iptc.records(resources)
        native.append((bytes([APP13]), iptc.without_thumbnail(resources)))
    content.native = tuple(native)


def _sorted(segments: list[tuple[int, bytes]]) -> tuple[dict[str, list[bytes]], list[tuple[bytes, bytes]]]:
    """The segments of each key of ``HELD``, and those that only a JPEG has a place for."""
    held: dict[str, list[bytes]] = {name: [] for name in HELD}
    native = []
    for marker, body in segments:
        name = _held(marker, body)
        if name and not (name == "comment" and held[name]):  # an image has one comment
            held[name].append(body)
        elif marker not in (APP0, APP14) and not body.startswith(OF_OTHER_IMAGES):
            native.append((bytes([marker]), body))
    return held, native


def _held(marker: int, body: bytes) -> str | None:
    """The key of ``HELD`` that a segment belongs to."""
    for name, (kind, beginning, least) in HELD.items():
        if marker == kind and body.startswith(beginning) and len(body) >= least:
            return name
    return None


def _profile(bodies: list[bytes]) -> bytes | None:
    """The colour profile, whose parts are numbered from 1 and may stand in any order."""
    parts: dict[int, bytes] = {}
    for body in bodies:
        parts.setdefault(body[12], body[14:])
    return b"".join(parts[number] for number in sorted(parts)) or None


def _density(unit: int, across: int, down: int) -> tuple[float, float] | None:
    """Pixels an inch from JFIF's numbers, which are by the inch or the centimetre; else they are only a ratio."""
    factor = {1: 1.0, 2: 2.54}.get(unit)
    return (across * factor, down * factor) if factor and across and down else None


def encode(samples: Samples, image: DecodedImage, quality: int | None, subsampling: str | None) -> Iterator[bytes]:
    """A file of ``samples`` (H, W, 1 or 3), uint8, compressed as ``image`` was unless told otherwise, in pieces."""
    grey = samples.shape[2] == 1
    buffer = io.BytesIO()
    options = _options(image, grey, quality, subsampling)
    Image.fromarray(samples[..., 0] if grey else samples).save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    start = 20 if data[2:4] == b"\xff\xe0" else 2  # behind JFIF's own segment
    yield data[:start]
    for marker, body in _metadata(image):
        yield struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
    yield data[start:]


def _options(image: DecodedImage, grey: bool, quality: int | None, subsampling: str | None) -> dict[str, object]:
    """What Pillow is told: the quality and subsampling asked for, else those of the image."""
    coding = image.jpeg or JpegCoding((), None)
    options: dict[str, object] = {"subsampling": subsampling or coding.subsampling or SUBSAMPLING}
    if quality is None and 1 <= len(coding.tables) <= (1 if grey else 3):
        options["qtables"] = [list(table) for table in coding.tables]
    else:
        options["quality"] = QUALITY if quality is None else quality
    if image.dpi and max(image.dpi) < 65_536:
        options["dpi"] = tuple(max(1, round(one)) for one in image.dpi)
    return options


def _metadata(image: DecodedImage) -> Iterator[tuple[int, bytes]]:
    """Segments for the metadata; ``too_long`` tells what has no room in them."""
    native, lost = _native(image), too_long(image)
    if image.exif and "exif" not in lost:
        yield APP1, image.exif
    if image.xmp and "xmp" not in lost:
        yield APP1, XMP + image.xmp
    yield from (one for one in native if one[0] == APP1)
    yield from _profile_segments(image.icc or b"")
    yield from _photoshop_segments(image)
    yield from (one for one in native if one[0] not in (APP1, APP13))
    if image.comment:
        yield COMMENT, image.comment[:LONGEST]


def _native(image: DecodedImage) -> list[tuple[int, bytes]]:
    """The segments that an image keeps from its own JPEG."""
    return [(kind[0], body) for kind, body in image.native] if image.format == "jpeg" else []


def _profile_segments(profile: bytes) -> Iterator[tuple[int, bytes]]:
    parts = _pieces(profile, LONGEST - len(ICC) - 2)
    for number, part in enumerate(parts, 1):
        yield APP2, ICC + bytes([number, len(parts)]) + part


def _photoshop_segments(image: DecodedImage) -> Iterator[tuple[int, bytes]]:
    """Photoshop's resources as they were, else IPTC as one of them."""
    resources = next((body for marker, body in _native(image) if marker == APP13), None)
    if resources is None:
        resources = iptc.resource(image.iptc) if image.iptc else b""
    for part in _pieces(resources, LONGEST - len(PHOTOSHOP)):
        yield APP13, PHOTOSHOP + part


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def too_long(image: DecodedImage) -> set[str]:
    """The metadata that is too long for a JPEG, as fields of ``DecodedImage``."""
    limits = {"exif": LONGEST, "xmp": LONGEST - len(XMP), "comment": LONGEST, "icc": 255 * (LONGEST - 14)}
    return {name for name, limit in limits.items() if len(getattr(image, name) or b"") > limit}
