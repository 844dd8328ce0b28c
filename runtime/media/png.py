"""PNG files: chunks, what is sound among them, and an encoder for every depth and number of channels.

The libraries are given the pixels alone, in chunks that were checked here: so nothing that stands beside the pixels can
cost them, and 8 and 16 bit are checked alike. Pillow decodes 8 bits. It has no 16-bit colour, so OpenCV decodes those.
Neither encodes 16-bit grey with alpha, so the encoder is here.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from uid.runtime.media import png_metadata
from uid.runtime.media.formats import DecodedImage, Samples
from uid.runtime.media.reading import Content, Reading, stderr_muted, with_channels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")  # all that a decoder of the pixels needs
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # colour type by channels
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7
BAND = 1 << 22  # samples that are encoded at once
MOST_BYTES = 1032  # that a byte of deflate can stand for


@dataclass(frozen=True)
class Header:
    """What IHDR says."""

    width: int
    height: int
    depth: int  # bits of a sample
    colour_type: int  # a key of CHANNELS
    compression: int
    filters: int
    interlace: int  # 1: in the passes of PASSES


@dataclass(frozen=True)
class Chunk:
    """A chunk as it stands in a file."""

    kind: bytes
    body: bytes
    whole: bool  # not cut short
    sound: bool  # whole, and its checksum is right

    @property
    def fault(self) -> str:
        """What is wrong with a chunk that is not sound."""
        name = self.kind.decode("latin-1")
        return f"the checksum of {name} is wrong" if self.whole else f"{name} is cut short"


@dataclass
class Chunks:
    """The chunks of a file whose type and checksum are as they should be."""

    pixels: list[tuple[bytes, bytes]] = field(default_factory=list)
    others: list[tuple[bytes, bytes]] = field(default_factory=list)

    def first(self, kind: bytes) -> bytes | None:
        return next((body for name, body in (*self.pixels, *self.others) if name == kind), None)


def decode(data: bytes, reading: Reading) -> Content:
    """Raises ``InputError`` for what is damaged, animated, or has pixels missing."""
    chunks = _chunks(data, reading)
    header = _header(chunks, reading)
    _refuse_animation(chunks, reading)
    clean = _clean(chunks, _expected(header), reading)
    colour, alpha = _split(_deep(clean, header.colour_type) if header.depth == 16 else _shallow(clean))
    if header.depth == 16 and alpha is None:
        alpha = _keyed_alpha(colour, chunks.first(b"tRNS"))
    content = Content(colour, alpha)
    png_metadata.describe(content, chunks.others, reading)
    return content


def _chunks(data: bytes, reading: Reading) -> Chunks:
    """The chunks up to the end mark. Damaged ones are left out, except those of the pixels."""
    found = Chunks()
    for one in _walk(data):
        if one.kind == b"IEND":
            return found
        if one.kind in PIXELS:
            if not one.sound and (one.whole or one.kind != b"IDAT"):  # _clean counts what a cut IDAT lacks
                reading.damage(one.fault)
            found.pixels.append((one.kind, one.body))
        elif not one.sound:
            reading.warn(f"{one.fault}, so it was left out" if one.whole else one.fault)
        elif not one.kind[0] & 32:
            raise reading.unusual(f"a chunk {one.kind.decode('latin-1')} that PNG does not have")
        else:
            found.others.append((one.kind, one.body))
    reading.warn("its end mark is missing")
    return found


def _walk(data: bytes) -> Iterator[Chunk]:
    """Every chunk behind the signature: length, type, body, checksum."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body, end = data[at + 8 : at + 8 + length], at + 12 + length
        whole = end <= len(data)
        checksum = int.from_bytes(data[end - 4 : end], "big")
        yield Chunk(kind, body, whole, whole and zlib.crc32(body, zlib.crc32(kind)) == checksum)
        at = end


def _header(chunks: Chunks, reading: Reading) -> Header:
    body = chunks.first(b"IHDR")
    if body is None or len(body) != 13:
        raise reading.unusual("no image header")
    header = Header(*struct.unpack(">IIBBBBB", body))
    reading.check_size(header.width, header.height)
    known = header.depth in DEPTHS.get(header.colour_type, ()) and header.interlace <= 1
    if not known or header.compression or header.filters:
        raise reading.unusual("a header that PNG does not have")
    return header


def _refuse_animation(chunks: Chunks, reading: Reading) -> None:
    control = chunks.first(b"acTL") or b""
    if len(control) >= 4 and struct.unpack_from(">I", control)[0] > 1:
        raise reading.unusual("it holds several frames or pages", "extract the one you want as an image of its own")


def _expected(header: Header) -> list[tuple[int, int]]:
    """Of each pass: the bytes of a row with its filter's, and the rows."""
    bits = header.depth * CHANNELS[header.colour_type]
    passes = PASSES if header.interlace else ((0, 0, 1, 1),)
    sizes = ((-(-(header.width - x) // across), -(-(header.height - y) // down)) for x, y, across, down in passes)
    return [(1 + -(-columns * bits // 8), rows) for columns, rows in sizes if columns > 0 and rows > 0]


def _clean(chunks: Chunks, passes: list[tuple[int, int]], reading: Reading) -> bytes:
    """A PNG of the pixels alone, of which none is missing."""
    expected = sum(row * rows for row, rows in passes)
    packed = [body for kind, body in chunks.pixels if kind == b"IDAT"]
    if sum(map(len, packed)) * MOST_BYTES < expected:  # before memory is taken for what cannot be there
        reading.damage(f"{sum(map(len, packed))} bytes hold less than its size")
    got, why = _unpacked_length(packed, expected)
    kept = [(kind, body) for kind, body in chunks.pixels if kind != b"IDAT"]
    if got < expected or why:
        missing = f"{max(0, expected - got) * 100 // expected} % of the pixels are missing"
        reading.damage(f"{missing}: {why}" if why else missing)
        packed = [_mended(packed, expected)]
    return b"".join(
        [SIGNATURE, *(chunk(*one) for one in kept), *(chunk(b"IDAT", one) for one in packed), chunk(b"IEND", b"")]
    )


def _unpacked(packed: list[bytes], limit: int) -> Iterator[bytes]:
    """What is packed, up to ``limit`` bytes and a little, in pieces. Raises ``zlib.error`` where it is damaged."""
    inflater = zlib.decompressobj()
    for body in packed:
        left = body
        while left and limit >= 0 and not inflater.eof:
            piece = inflater.decompress(left, 1 << 20)
            limit -= len(piece)
            yield piece
            left = inflater.unconsumed_tail
    if not inflater.eof and limit >= 0:
        yield inflater.flush()


def _unpacked_length(packed: list[bytes], expected: int) -> tuple[int, str]:
    """How many bytes the pixels have, and what is wrong with them; zlib checks their checksum."""
    got = 0
    try:
        for piece in _unpacked(packed, expected):
            got += len(piece)
    except zlib.error as error:
        return got, str(error)
    return got, ""


def _mended(packed: list[bytes], expected: int) -> bytes:
    """What can be unpacked, and black rows for the rest."""
    pieces: list[bytes] = []
    try:
        pieces.extend(_unpacked(packed, expected))
    except zlib.error:
        inflater = zlib.decompressobj()  # byte by byte gives all up to the damage
        pieces = [_as_far_as_possible(inflater, b"".join(packed))]
    return zlib.compress(b"".join(pieces)[:expected].ljust(expected, b"\0"), 1)


def _as_far_as_possible(inflater: "zlib._Decompress", packed: bytes) -> bytes:
    pieces: list[bytes] = []
    try:
        for at in range(0, len(packed), 64):
            pieces.append(inflater.decompress(packed[at : at + 64]))
    except zlib.error:
        pass
    return b"".join(pieces)


def _shallow(clean: bytes) -> Samples:
    image = PngImageFile(io.BytesIO(clean))
    image.load()
    grey = image.mode in ("1", "L", "LA", "La", "I;16", "I")
    mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    return with_channels(np.asarray(image.convert(mode)))


def _deep(clean: bytes, kind: int) -> Samples:
    """16-bit samples (H, W, 1 to 4). OpenCV takes the transparent colour into account for RGB only, so not here."""
    import cv2  # takes 0.3 s, and only 16-bit images need it

    with stderr_muted():
        samples = cv2.imdecode(np.frombuffer(clean, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise ValueError("16-bit samples that OpenCV cannot read")
    samples = samples[..., None] if samples.ndim == 2 else samples[..., [2, 1, 0, 3][: samples.shape[2]]]
    # Grey is expanded when there is alpha.
    return samples[..., {0: [0], 2: [0, 1, 2], 4: [0, -1], 6: [0, 1, 2, 3]}[kind]]


def _split(samples: Samples) -> tuple[Samples, Samples | None]:
    """(H, W, 1 to 4) as colour and alpha."""
    return (samples, None) if samples.shape[-1] % 2 else (samples[..., :-1], samples[..., -1])


def _keyed_alpha(colour: Samples, key: bytes | None) -> Samples | None:
    """The alpha of 16-bit colours of which tRNS names one as transparent; None where it does not."""
    if not key or len(key) != 2 * colour.shape[2]:
        return None
    return np.where((colour == np.frombuffer(key, ">u2")).all(axis=2), 0, 65_535).astype(np.uint16)


def encode(samples: Samples, image: DecodedImage) -> Iterator[bytes]:
    """A file of ``samples`` (H, W, 1 to 4), uint8 or uint16, with the metadata of ``image``, in pieces."""
    height, width, channels = samples.shape
    yield SIGNATURE + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * samples.itemsize, TYPES[channels], 0, 0, 0)
    )
    for kind, body in png_metadata.metadata_chunks(image):
        yield chunk(kind, body)
    packer = zlib.compressobj(6)
    for rows in _filtered(samples):
        if piece := packer.compress(rows):
            yield chunk(b"IDAT", piece)
    yield chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk: length, type, data, checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _filtered(samples: Samples) -> Iterator[bytes]:
    """Bands of rows, each row filtered with Paeth's predictor (PNG, 9.4), which suits photos best."""
    height, width, channels = samples.shape
    step = channels * samples.itemsize  # from a byte to the one on its left that it is predicted from
    above = np.zeros((1, width * step), np.int16)
    rows = max(1, BAND // (width * step))
    for top in range(0, height, rows):
        band = np.ascontiguousarray(samples[top : top + rows], samples.dtype.newbyteorder(">"))
        x = band.view(np.uint8).reshape(len(band), -1).astype(np.int16)
        up = np.vstack([above, x[:-1]])
        left, corner = (np.pad(one, ((0, 0), (step, 0)))[:, :-step] for one in (x, up))
        a, b, c = np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)
        predicted = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
        out = np.full((len(band), 1 + x.shape[1]), 4, np.uint8)
        out[:, 1:] = x - predicted
        above = x[-1:]
        yield out.tobytes()
