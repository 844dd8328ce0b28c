"""EXIF and XMP that stay correct when the image changes: orientation reset, size as written, thumbnail unlinked."""

import re
import struct

from uid.runtime.media import ifd

EXIF_PREFIX = b"Exif\0\0"
ORIENTATION, RESOLUTION, RESOLUTION_Y, RESOLUTION_UNIT = 274, 282, 283, 296
CENTIMETRE = 3
# Width and height: in the first directory, and in EXIF's own.
SIZES = {256: 0, 257: 1, 40962: 0, 40963: 1}
# TIFF tags that say how a file stores its pixels, or that have a place of their own here: no metadata of the image.
LAYOUT = frozenset({
    *range(254, 260), *range(262, 267), 273, *range(277, 282), 284, *range(288, 294), 301, 317, 318, 319,
    *range(320, 326), 330, *range(332, 348), *range(512, 522), *range(529, 533), 700, 33723, 34377, 34675, 37724,
    50908,
})  # fmt: skip


def upright_exif(raw: bytes) -> tuple[bytes, int]:
    """EXIF with orientation 1 and without its thumbnail, and the orientation (1 to 8) that it had.

    It is changed in place, so that maker notes keep their offsets. Raises ``ValueError`` for garbled EXIF.
    """
    exif = bytearray(raw.removeprefix(EXIF_PREFIX))
    order, big, start = ifd.header(exif)
    if big:
        raise ValueError("EXIF within a BigTIFF")
    orientation = 1
    for at, tag, kind, count, value in ifd.places(exif, order, big, start):
        if tag == ORIENTATION:
            orientation = _number(exif, order, kind, count, value)
            _set(exif, order, at, 1)
    end = start + 2 + 12 * struct.unpack_from(f"{order}H", exif, start)[0]
    exif[end : end + 4] = bytes(len(exif[end : end + 4]))  # the thumbnail shows the old image
    return EXIF_PREFIX + bytes(exif), orientation if orientation in range(1, 9) else 1


def sized_exif(exif: bytes, width: int, height: int) -> bytes:
    """EXIF whose own width and height, where it has them, are those of the image."""
    changed = bytearray(exif.removeprefix(EXIF_PREFIX))
    order, big, start = ifd.header(changed)
    for place in (start, *_below(changed, order, start)):
        for at, tag, *_ in list(ifd.places(changed, order, big, place)):
            if tag in SIZES:
                _set(changed, order, at, (width, height)[SIZES[tag]])
    return EXIF_PREFIX + bytes(changed)


def _below(exif: bytearray, order: ifd.Order, start: int) -> list[int]:
    """Where EXIF's own directory is, if it is within the bytes."""
    found = []
    for _, tag, kind, count, value in ifd.places(exif, order, False, start):
        place = _number(exif, order, kind, count, value) if tag == ifd.EXIF else 0
        whole = 8 <= place <= len(exif) - 2
        if whole and place + 2 + 12 * struct.unpack_from(f"{order}H", exif, place)[0] <= len(exif):
            found.append(place)
    return found


def _number(exif: bytearray, order: ifd.Order, kind: int, count: int, value: int) -> int:
    """A whole number, of whatever type; 0 where it is none."""
    length = struct.calcsize("=" + ifd.TYPES[kind]) * count
    numbers = ifd.Entry(kind, count, bytes(exif[value : value + length])).numbers(order)
    if not numbers:
        return 0
    first = numbers[0].split(b"\0")[0].strip() if isinstance(numbers[0], bytes) else numbers[0]
    try:
        return int(first)
    except (ValueError, OverflowError):  # text, NaN
        return 0


def _set(exif: bytearray, order: ifd.Order, at: int, value: int) -> None:
    """Make the entry at ``at`` one whole number, of type SHORT where that holds it."""
    if value < 65536:
        struct.pack_into(f"{order}HIHH", exif, at + 2, ifd.SHORT, 1, value, 0)
    else:
        struct.pack_into(f"{order}HII", exif, at + 2, ifd.LONG, 1, value)


def exif_of_tiff(data: bytes) -> bytes | None:
    """A TIFF's tags that are metadata as EXIF, each value as it was; None for none. Raises ``ValueError``."""
    order, _, _ = ifd.header(data)
    found = ifd.read(data, LAYOUT)
    return EXIF_PREFIX + ifd.file_header(order) + ifd.packed(found, order, 8) if found else None


def resolution(exif: bytes) -> tuple[float, float] | None:
    """Pixels an inch, across and down, as EXIF or the tags of a TIFF say."""
    data = exif.removeprefix(EXIF_PREFIX)
    order, _, _ = ifd.header(data)
    found = ifd.read(data, LAYOUT)
    across, down, unit = (_first(found, order, tag) for tag in (RESOLUTION, RESOLUTION_Y, RESOLUTION_UNIT))
    if not across or unit == 1:  # unit 1: only the ratio is known
        return None
    factor = 2.54 if unit == CENTIMETRE else 1.0
    return across * factor, (down or across) * factor


def _first(directory: ifd.Directory, order: ifd.Order, tag: int) -> float:
    entry = directory.get(tag)
    numbers = entry.numbers(order) if isinstance(entry, ifd.Entry) else ()
    return float(numbers[0]) if numbers and not isinstance(numbers[0], bytes) else 0.0


def upright_xmp(xmp: bytes) -> bytes:
    """XMP whose orientation is 1; a reader that trusts XMP would turn the image again."""
    xmp = re.sub(rb'(tiff:Orientation\s*=\s*["\'])\s*\d+\s*(["\'])', rb"\g<1>1\g<2>", xmp)
    return re.sub(rb"(<tiff:Orientation>)\s*\d+\s*(</tiff:Orientation>)", rb"\g<1>1\g<2>", xmp)


def sized_xmp(xmp: bytes, width: int, height: int) -> bytes:
    """XMP whose width and height, where it has them, are those of the image."""
    for names, value in (
        (b"tiff:ImageWidth|exif:PixelXDimension", width),
        (b"tiff:ImageLength|exif:PixelYDimension", height),
    ):
        number = str(value).encode()
        xmp = re.sub(rb'((?:%s)\s*=\s*["\'])\s*\d+\s*(["\'])' % names, rb"\g<1>%s\g<2>" % number, xmp)
        xmp = re.sub(rb"(<(%s)>)\s*\d+\s*(</\2>)" % names, rb"\g<1>%s\g<3>" % number, xmp)
    return xmp
