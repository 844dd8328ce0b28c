"""Photoshop's image resources, which hold IPTC records in a JPEG, and sometimes in a TIFF."""

import struct
from collections.abc import Iterator

MARK = b"8BIM"
IPTC = 0x0404
THUMBNAILS = (0x0409, 0x040C)  # which show the old image


def resources(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Of each resource: its number, its content, and all of its bytes. Ends where the data is garbled."""
    at = 0
    while data[at : at + 4] == MARK and at + 12 <= len(data):
        (number,) = struct.unpack_from(">H", data, at + 4)
        name = 1 + data[at + 6]
        start = at + 6 + name + name % 2 + 4
        if start > len(data):
            return
        (length,) = struct.unpack_from(">I", data, start - 4)
        end = start + length
        if end > len(data):
            return
        yield number, data[start:end], data[at:end] + bytes(length % 2)
        at = end + length % 2


def records(data: bytes) -> bytes | None:
    """The IPTC records among image resources."""
    return next((content for number, content, _ in resources(data) if number == IPTC), None)


def without_thumbnail(data: bytes) -> bytes:
    """Image resources that no longer show the old image."""
    return b"".join(whole for number, _, whole in resources(data) if number not in THUMBNAILS)


def resource(content: bytes) -> bytes:
    """IPTC records as an image resource."""
    return MARK + struct.pack(">HHI", IPTC, 0, len(content)) + content + bytes(len(content) % 2)
