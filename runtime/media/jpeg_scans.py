"""The scans of a JPEG: what they lack of its pixels without a word from libjpeg.

A sequential JPEG sends all 64 coefficients of a block at once, mostly in one scan. A progressive one sends a band of
them in each scan, first without their lowest bits and then bit by bit. libjpeg makes an image of any of it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

SOI, SCAN, HUFFMAN = b"\xff\xd8", 0xDA, 0xC4
PROGRESSIVE = {0xC2, 0xCA}
FRAMES = {0xC0, 0xC1, 0xC9, *PROGRESSIVE}  # baseline, extended and progressive; Huffman and arithmetic
COEFFICIENTS = 64
SEGMENT = re.compile(rb"\xff+([^\x00\xff])")
MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # not what stands for a byte of pixels, or starts anew among them
HOLE, REFINING_HOLE = re.compile(rb"\0{64}"), re.compile(rb"\0{136}")
UNLIKE_ANY_IMAGE = 5  # coefficients of a block that zeros set to one and the same value, block after block


@dataclass(frozen=True)
class Scan:
    """One scan: what of which channels it sends."""

    channels: bytes  # their identifiers
    band: range  # places of the coefficients, in zigzag order
    refines: bool  # sends a further bit of coefficients that are known
    bits_left: int  # lowest bits that a later scan has to send
    first_symbols: tuple[int, ...]  # of the shortest code of each table for details (AC) that it uses
    data: bytes


@dataclass
class _Frame:
    """What the segments before a scan say."""

    progressive: bool = False
    channels: bytes = b""
    first_symbols: dict[int, int] = field(default_factory=dict)  # by table


def lacking(pixels: bytes) -> str:
    """What a file without metadata lacks, or "". It need not be sound; what libjpeg tells of is not looked for."""
    frame = _Frame()
    scans = [*_scans(pixels, frame)]
    if any(map(_has_hole, scans)):
        return "there is a hole of zeros among its pixels"
    unfinished = _unfinished(frame.channels, scans)
    of = f"{unfinished} of {len(frame.channels)} channels" if len(frame.channels) > 1 else "its details"
    return f"scans are missing: {of} are not there in full" if unfinished else ""


def _has_hole(scan: Scan) -> bool:
    """Whether zeros stand where pixels were: libjpeg decodes them to something, and mostly falls into step again.

    Zeros are the shortest code of a table again and again, each followed by the least value of its size. Where the code
    does not end a block, they say that every block has one negative value at the same distances: no image has that.
    Where it does, and among averages (DC), zeros are common. A scan that refines has the further bits of up to a
    thousand coefficients between two codes, and all of these are zero in some drawn images.
    """
    hole = REFINING_HOLE if scan.refines else HOLE
    wide = len(scan.band) - (scan.band.start == 0)
    telling = (symbol & 15 and wide // ((symbol >> 4) + 1) >= UNLIKE_ANY_IMAGE for symbol in scan.first_symbols)
    return any(telling) and hole.search(scan.data.rstrip(b"\0")) is not None


def _unfinished(channels: bytes, scans: list[Scan]) -> int:
    """The number of channels of which a coefficient is never sent, or not to its last bit."""
    left = {channel: [1] * COEFFICIENTS for channel in channels}
    for scan in scans:
        for channel in filter(left.__contains__, scan.channels):
            left[channel][scan.band.start : scan.band.stop] = [scan.bits_left] * len(scan.band)
    return sum(any(bits) for bits in left.values())


def _scans(pixels: bytes, frame: _Frame) -> Iterator[Scan]:
    at = len(SOI)
    while (match := SEGMENT.match(pixels, at)) is not None:
        kind, at = match[1][0], match.end() + int.from_bytes(pixels[match.end() : match.end() + 2], "big")
        body = pixels[match.end() + 2 : at]
        if kind in FRAMES and len(body) >= 6:
            frame.progressive, frame.channels = kind in PROGRESSIVE, body[6 : 6 + 3 * body[5] : 3]
        elif kind == HUFFMAN:
            frame.first_symbols |= _first_symbols(body)
        elif kind == SCAN:
            start, behind = at, MARKER.search(pixels, at)
            at = behind.start() if behind else len(pixels)
            if (scan := _scan(body, pixels[start:at], frame)) is not None:
                yield scan


def _scan(body: bytes, data: bytes, frame: _Frame) -> Scan | None:
    """The scan with this header; None: the header is garbled."""
    count = body[0] if body else 0
    if len(body) < 2 * count + 4:
        return None
    start, end, bits = body[2 * count + 1 : 2 * count + 4] if frame.progressive else (0, COEFFICIENTS - 1, 0)
    tables = (selector & 15 for selector in body[2 : 2 * count + 1 : 2])
    symbols = tuple(frame.first_symbols.get(table, 0) for table in tables)
    band = range(start, min(end + 1, COEFFICIENTS))
    return Scan(body[1 : 2 * count + 1 : 2], band, bits >> 4 > 0, bits & 15, symbols, data)


def _first_symbols(body: bytes) -> dict[int, int]:
    """The symbol of the shortest code of each table for details (AC) in a segment."""
    found, at = {}, 0
    while at + 17 < len(body):
        if body[at] >> 4:
            found[body[at] & 15] = body[at + 17]
        at += 17 + sum(body[at + 1 : at + 17])
    return found
