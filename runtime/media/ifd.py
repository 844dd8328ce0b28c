"""TIFF directories, entry by entry, with each value as its bytes: what EXIF and TIFF files are made of.

Values stay bytes so that one of an unusual type survives as it is: nothing here casts what it does not understand.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965  # tags whose value is the place of another directory
DIRECTORIES = frozenset({EXIF, GPS, INTEROPERABILITY})
SHORT, LONG, RATIONAL = 3, 4, 5
# Format character of struct, and how many of them one value has.
TYPES = {
    1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I",
    16: "Q", 17: "q", 18: "Q",
}  # fmt: skip
MAX_DEPTH = 4  # of directories within directories
MAX_METADATA = 64 << 20  # bytes of all values together


@dataclass(frozen=True)
class Entry:
    type: int  # a key of TYPES
    count: int
    data: bytes  # in the byte order of its file

    def numbers(self, order: "Order") -> tuple[Any, ...]:
        """The values: whole numbers or floats, quotients of rationals; of text its bytes. Empty where it is garbled."""
        letters = TYPES[self.type]
        if letters == "s":
            return (self.data,)
        values = struct.unpack(f"{order}{letters * self.count}", self.data)
        if len(letters) == 1:
            return values
        pairs = zip(values[::2], values[1::2], strict=True)
        return tuple(top / bottom for top, bottom in pairs if bottom)


Buffer = bytes | bytearray
Order = Literal["<", ">"]  # of bytes, as struct and numpy name it
Directory = Mapping[int, Union[Entry, "Directory"]]


def header(data: Buffer) -> tuple[Order, bool, int]:
    """Byte order for struct, whether it is BigTIFF, and where the first directory is. Raises ``ValueError``."""
    order: Order = "<" if data[:2] == b"II" else ">"
    if data[:2] not in (b"II", b"MM") or len(data) < 8:
        raise ValueError("no TIFF header")
    (magic,) = struct.unpack_from(f"{order}H", data, 2)
    if magic not in (42, 43) or (magic == 43 and len(data) < 16):
        raise ValueError("no TIFF header")
    (first,) = struct.unpack_from(f"{order}Q", data, 8) if magic == 43 else struct.unpack_from(f"{order}I", data, 4)
    return order, magic == 43, first


def places(data: Buffer, order: Order, big: bool, start: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Of each entry of a directory: its own place, tag, type, count, and the place of its value.

    Entries of unknown type and those whose value lies outside ``data`` are left out. Raises ``ValueError`` for a
    directory that is not within ``data``.
    """
    size, head, room = (20, 8, 8) if big else (12, 2, 4)
    if start < 8 or start + head > len(data):
        raise ValueError("a directory lies outside the file")
    (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, start)
    if start + head + size * count > len(data):
        raise ValueError("a directory is cut short")
    for at in range(start + head, start + head + size * count, size):
        tag, kind, number = struct.unpack_from(f"{order}HH{'Q' if big else 'I'}", data, at)
        if kind not in TYPES:
            continue
        length = number * struct.calcsize("=" + TYPES[kind])
        value = at + size - room
        if length > room:
            (value,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, value)
        if value + length <= len(data):
            yield at, tag, kind, number, value


def next_directory(data: Buffer, order: Order, big: bool, start: int) -> int:
    """Where the directory after this one is; 0: there is none."""
    size, head = (20, 8) if big else (12, 2)
    (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, start)
    end = start + head + size * count
    width = 8 if big else 4
    return int.from_bytes(data[end : end + width], "little" if order == "<" else "big")


def read(data: Buffer, without: frozenset[int] = frozenset(), depth: int = 0, start: int | None = None) -> Directory:
    """The first directory (or that at ``start``) and those below it, but for the tags in ``without``.

    Raises ``ValueError`` for a garbled one, and for values of more than ``MAX_METADATA`` bytes together.
    """
    order, big, first = header(data)
    found: dict[int, Entry | Directory] = {}
    left = MAX_METADATA
    for _, tag, kind, count, value in places(data, order, big, first if start is None else start):
        length = count * struct.calcsize("=" + TYPES[kind])
        left -= length
        if tag in without:
            left += length
        elif left < 0:
            raise ValueError(f"more than {MAX_METADATA} bytes of metadata")
        elif tag in DIRECTORIES:
            below = Entry(kind, count, bytes(data[value : value + length])).numbers(order)
            if depth < MAX_DEPTH and len(below) == 1 and isinstance(below[0], int):
                found[tag] = read(data, frozenset(), depth + 1, below[0])
        else:
            found[tag] = Entry(kind, count, bytes(data[value : value + length]))
    return found


def packed(directory: Directory, order: Order, at: int) -> bytes:
    """The bytes of a directory that stands at ``at`` in its file, with its values and the directories below it."""
    entries, values = b"", b""
    behind = at + 2 + 12 * len(directory) + 4
    for tag in sorted(directory):
        entry = directory[tag]
        if not isinstance(entry, Entry):
            place = behind + len(values)
            values += _even(packed(entry, order, place))
            entry = Entry(LONG, 1, struct.pack(f"{order}I", place))
        if len(entry.data) > 4:
            field = struct.pack(f"{order}I", behind + len(values))
            values += _even(entry.data)
        else:
            field = entry.data.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, entry.type, entry.count) + field
    return struct.pack(f"{order}H", len(directory)) + entries + bytes(4) + values


def _even(data: bytes) -> bytes:
    """Directories and values start at even places."""
    return data + bytes(len(data) % 2)


def file_header(order: Order) -> bytes:
    """The 8 bytes before a directory that follows at once."""
    return (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)


def shorts(order: Order, *values: int) -> Entry:
    return Entry(SHORT, len(values), struct.pack(f"{order}{len(values)}H", *values))


def longs(order: Order, *values: int) -> Entry:
    return Entry(LONG, len(values), struct.pack(f"{order}{len(values)}I", *values))


def rational(order: Order, value: float) -> Entry:
    """A positive number to four decimals."""
    return Entry(RATIONAL, 1, struct.pack(f"{order}II", min(round(value * 10_000), 2**32 - 1), 10_000))
