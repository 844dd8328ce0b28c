"""What an ONNX graph refers to outside itself, found without any of the libraries that would follow it.

An ONNX file is a protobuf message. This reads just enough of it: every message that may hold a tensor, in the main
graph, in graphs inside nodes, in functions and in sparse tensors. What a library may understand otherwise than this
does (a field given twice, a field of another wire type) is refused, as no exporter writes it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from uid.bundles.names import FILE, LONGEST_SHOWN
from uid.errors import BundleError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protobuf
DEEPEST = 64  # messages inside each other
# By message: its fields that are messages that may hold a tensor, and the kind of each; "*" after those that repeat.
MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training*", 25: "function*"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node*", 5: "tensor*", 15: "sparse*"},
    "function": {7: "node*", 11: "attribute*"},
    "node": {5: "attribute*"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor*", 11: "graph*", 22: "sparse", 23: "sparse*"},
    "sparse": {1: "tensor", 2: "tensor"},
}
DIMS, DATA_TYPE, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 9, 13, 14  # fields of a tensor
EXTERNAL = 1  # value of ``DATA_LOCATION``
# Bits of an element by ONNX's data type. Text (8) has no size, and stands inside the graph alone.
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
BITS |= {17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}
LARGEST = 1 << 62
NUMBER = re.compile(r"[0-9]{1,18}")
# Locations of ONNX Runtime's own that are addresses in memory, and not files; OpenVINO follows them too.
ADDRESS = b"_ORT_MEM_ADDR_"
Field = tuple[int, int, "int | memoryview"]  # number, wire type, and value


@dataclass(frozen=True)
class External:
    """A part of a file that holds a tensor's values."""

    location: str  # a path below the graph's own folder
    offset: int  # bytes
    length: int


def external_data(graph: bytes, name: str) -> list[External]:
    """What the ONNX file ``graph`` refers to, each once; ``name`` is for errors.

    Raises ``BundleError`` for a file that is not ONNX, or has a reference that is no plain name below its folder, or
    whose length is not the tensor's.
    """
    try:
        if not graph.startswith(b"\x08"):  # its first field, the version of its format
            raise ValueError("it does not begin as an ONNX file")
        if ADDRESS in graph:
            raise ValueError(f"it has the reserved name {ADDRESS.decode()}, which is an address in memory")
        found = (external_of(tensor) for tensor in tensors(memoryview(graph), "model"))
        return list(dict.fromkeys(one for one in found if one is not None))
    except (ValueError, IndexError) as error:
        raise BundleError(f"cannot load {name}: {error}; do not use this bundle") from error


def tensors(data: memoryview, kind: str, depth: int = 0) -> Iterator[memoryview]:
    """All tensors in a message of this kind."""
    if kind == "tensor":
        yield data
        return
    if depth > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    seen: set[int] = set()
    for number, wire, value in fields(data):
        inner = MESSAGES[kind].get(number)
        if inner is None:
            continue
        if not isinstance(value, memoryview):
            raise ValueError(f"field {number} of a {kind} has wire type {wire}")
        if number in seen and not inner.endswith("*"):
            raise ValueError(f"a {kind} has its field {number} twice")
        seen.add(number)
        yield from tensors(value, inner.rstrip("*"), depth + 1)


def fields(data: memoryview) -> Iterator[Field]:
    """The fields of a message."""
    at, end = 0, len(data)
    while at < end:
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = varint(data, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = varint(data, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"it has a field of wire type {wire}")
        if number == 0 or size > end - at:
            raise ValueError("it is cut off, or no ONNX file")
        yield number, wire, data[at : at + size]
        at += size


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise ValueError("it has a number of more than 64 bits")


def external_of(tensor: memoryview) -> External | None:
    """Where a tensor's values are, if outside the graph; raises ``ValueError`` for what is not as it should be."""
    dims: list[int] = []
    single: dict[int, int | memoryview] = {}
    entries: dict[str, str] = {}
    for number, wire, value in fields(tensor):
        if number == DIMS:
            dims += [value] if isinstance(value, int) else packed(value)
        elif number == EXTERNAL_DATA:
            key, text = entry(value)
            if key in entries:
                raise ValueError(f"a tensor has the {key!r} of its external data twice")
            entries[key] = text
        elif number in (DATA_TYPE, RAW_DATA, DATA_LOCATION):
            if number in single or (wire == BYTES) != (number == RAW_DATA):
                raise ValueError(f"a tensor has its field {number} twice, or in another wire type")
            single[number] = value
    size = size_of(dims, single.get(DATA_TYPE, 0))
    if not entries and single.get(DATA_LOCATION, 0) != EXTERNAL:
        raw = single.get(RAW_DATA)
        if isinstance(raw, memoryview) and len(raw) != size:
            raise ValueError(f"a tensor of {size} bytes has {len(raw)}")
        return None
    return checked_external(entries, size)


def packed(data: int | memoryview) -> list[int]:
    """Numbers that are written one after another."""
    values: list[int] = []
    at = 0
    while isinstance(data, memoryview) and at < len(data):
        value, at = varint(data, at)
        values.append(value)
    return values


def entry(data: int | memoryview) -> tuple[str, str]:
    """Key and value of an entry of external data."""
    if not isinstance(data, memoryview):
        raise ValueError("a tensor's external data has another wire type")
    parts: dict[int, str] = {}
    for number, _, value in fields(data):
        if number in parts or number not in (1, 2) or not isinstance(value, memoryview):
            raise ValueError("an entry of a tensor's external data is malformed")
        parts[number] = bytes(value).decode("utf-8")
    return parts.get(1, ""), parts.get(2, "")


def size_of(dims: list[int], data_type: int | memoryview) -> int | None:
    """Bytes of a tensor's values; None for text."""
    if data_type == 8:
        return None
    if not isinstance(data_type, int) or data_type not in BITS:
        raise ValueError(f"a tensor has the data type {data_type if isinstance(data_type, int) else '?'}")
    bits = math.prod(dims) * BITS[data_type]
    if max(dims, default=0) >= LARGEST or bits >= LARGEST:
        raise ValueError("a tensor is larger than any file")
    return -(-bits // 8)


def checked_external(entries: Mapping[str, str], size: int | None) -> External:
    """A reference, if it is sound."""
    location = entries.get("location", "")
    if size is None or not FILE.fullmatch(location):
        raise ValueError(f"it refers to {repr(location)[:LONGEST_SHOWN]}, which is no plain name beside it")
    numbers = [entries.get("offset", "0"), entries.get("length", str(size))]
    if not all(NUMBER.fullmatch(text) for text in numbers):
        raise ValueError(f"it refers to {location} at {repr(numbers)[:LONGEST_SHOWN]}; expected offset and length")
    offset, length = map(int, numbers)
    if length != size:
        raise ValueError(f"it refers to {length} bytes of {location} for a tensor of {size}")
    return External(location, offset, length)
