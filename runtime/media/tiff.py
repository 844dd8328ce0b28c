"""TIFF files, strip by strip: every strip is there and unpacks to its length.

Pillow and OpenCV each read some layouts, differ in what they make of further channels, and take short strips for whole
ones. So the layout is read here. JPEG and fax compression, and YCbCr, go through Pillow.
"""

import io
import lzma
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL.TiffImagePlugin import TiffImageFile

from uid.runtime.media import ifd, iptc
from uid.runtime.media.exif import exif_of_tiff
from uid.runtime.media.formats import MAX_CHANNELS, Samples
from uid.runtime.media.jpeg import checked
from uid.runtime.media.reading import Content, Reading, stderr_muted, with_channels

NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA = 1, 5, 7, 8, 32946, 32773, 34925
WRITTEN = {NONE: NONE, LZW: LZW, DEFLATE: DEFLATE, OLD_DEFLATE: DEFLATE, PACKBITS: PACKBITS, LZMA: DEFLATE}
WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
COLOURS = {WHITE_IS_ZERO: 1, GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4}  # channels of each that is read here
UNSPECIFIED, MULTIPLIED, SEPARATE = 0, 1, 2  # what a further channel is: unknown, or alpha of either kind
MAX_PADDING = 1 << 24  # bytes behind the rows of a last strip that is filled up
PADDING = 1 << 30  # of a directory's offsets: no strip is as long
RAW = {32803, 34892}  # photometric interpretations of a camera's RAW file
XMP, IPTC, PHOTOSHOP, PROFILE = 700, 33723, 34377, 34675


@dataclass(frozen=True)
class Layout:
    """How a file stores its pixels."""

    order: ifd.Order  # of bytes
    width: int
    height: int
    bits: int
    channels: int
    photometric: int
    compression: int
    predictor: int
    planar: bool  # channels one after the other
    tile: tuple[int, int]  # width and height; strips are tiles of the image's width
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    extra: tuple[int, ...]  # what each further channel is

    @property
    def pixels(self) -> int:
        """Channels that a strip interleaves."""
        return 1 if self.planar else self.channels

    @property
    def across(self) -> int:
        return -(-self.width // self.tile[0])

    @property
    def down(self) -> int:
        return -(-self.height // self.tile[1])


class Tags:
    """The tags of the first directory, as numbers."""

    def __init__(self, data: bytes) -> None:
        self.order, self.big, start = ifd.header(data)
        self._data = data
        self._places = {tag: rest for _, tag, *rest in ifd.places(data, self.order, self.big, start)}
        self.pages = 1 + (ifd.next_directory(data, self.order, self.big, start) != 0)

    def raw(self, tag: int) -> bytes | None:
        """The value as its bytes."""
        if tag not in self._places:
            return None
        kind, count, at = self._places[tag]
        return self._data[at : at + count * struct.calcsize("=" + ifd.TYPES[kind])]

    def numbers(self, tag: int, *default: int) -> tuple[int, ...]:
        """Whole numbers, or the default where there are none."""
        if tag not in self._places:
            return default
        kind, count, _ = self._places[tag]
        found = ifd.Entry(kind, count, self.raw(tag) or b"").numbers(self.order)
        return tuple(int(one) for one in found) if found and all(isinstance(one, int) for one in found) else default

    def one(self, tag: int, default: int) -> int:
        return self.numbers(tag, default)[0]


def decode(data: bytes, reading: Reading) -> Content:
    """Raises ``InputError`` for what is damaged, unusual, has several pages, or pixels missing."""
    tags = Tags(data)
    width, height = tags.one(256, 0), tags.one(257, 0)
    reading.check_size(width, height)
    _refuse(tags, reading)
    layout = _layout(tags, width, height, reading)
    if layout is None:
        content = _through_pillow(data, tags, reading)
    else:
        samples = _expanded(_samples(data, layout, reading), layout, tags, reading)
        content = _content(samples, layout, reading)
        content.orientation = tags.one(274, 1)
    _describe(content, data, tags, reading)
    return content


def _refuse(tags: Tags, reading: Reading) -> None:
    """Refuse by the tags what would be read as something else than what is meant."""
    if tags.one(262, GREY) in RAW or (50706 in tags._places and tags.one(254, 0) & 1):
        raise reading.unusual("a camera's RAW file", "develop it to TIFF first, e.g. with darktable or RawTherapee")
    if tags.pages > 1:
        raise reading.unusual("it holds several frames or pages", "extract the one you want as an image of its own")
    bits, kind = tags.numbers(258, 1), tags.one(339, 1)
    remedy = "convert it: magick IN -colorspace sRGB -depth 16 OUT"
    if kind != 1:
        raise reading.unusual({2: "signed integers", 3: "floating point"}.get(kind, "complex numbers"), remedy)
    if max(bits) > 8 and set(bits) != {16}:
        raise reading.unusual(f"{max(bits)} bit a channel, expected 8 or 16", remedy)
    if tags.one(277, 1) > MAX_CHANNELS:
        raise reading.unusual(f"{tags.one(277, 1)} channels, expected at most {MAX_CHANNELS}", remedy)


def _layout(tags: Tags, width: int, height: int, reading: Reading) -> Layout | None:
    """The layout of what is read here; None for other kinds."""
    if not _is_read_here(tags):
        if max(tags.numbers(258, 1)) == 16:
            raise reading.unusual("16 bit in a compression or colour space that is not read", "save it anew as PNG")
        return None
    channels, photometric = tags.one(277, 1), tags.one(262, GREY)
    offsets, lengths = _strips(tags)
    layout = Layout(
        order=tags.order,
        width=width,
        height=height,
        bits=tags.one(258, 1),
        channels=channels,
        photometric=photometric,
        compression=tags.one(259, NONE),
        predictor=tags.one(317, 1),
        planar=tags.one(284, 1) == 2 and channels > 1,
        tile=(tags.one(322, width), tags.one(323, min(tags.one(278, height), height))),
        offsets=offsets,
        lengths=lengths,
        extra=_extra(tags, channels - COLOURS[photometric]),
    )
    _check_layout(layout, tags, reading)
    return layout


def _is_read_here(tags: Tags) -> bool:
    """Whether the colours are of a kind in ``COLOURS``, of a depth read here, in a compression unpacked here."""
    bits, channels, photometric = tags.numbers(258, 1), tags.one(277, 1), tags.one(262, GREY)
    if photometric not in COLOURS or channels < COLOURS[photometric] or tags.one(259, NONE) not in WRITTEN:
        return False
    if set(bits) == {16}:
        return photometric not in (PALETTE, CMYK)
    return set(bits) == {8} or (channels == 1 and bits in ((1,), (2,), (4,)))


def _strips(tags: Tags) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the tiles or strips are, and how long."""
    return tags.numbers(324) or tags.numbers(273), tags.numbers(325) or tags.numbers(279)


def _extra(tags: Tags, count: int) -> tuple[int, ...]:
    """What each of ``count`` further channels is."""
    stated = tags.numbers(338)[:count]
    if not stated and count == 1:
        return (SEPARATE,)  # as all others read it
    return stated + (UNSPECIFIED,) * (count - len(stated))


def _check_layout(layout: Layout, tags: Tags, reading: Reading) -> None:
    """Raise ``InputError`` for an unknown predictor or order of bits, and for impossible strips."""
    predictor, (width, height) = layout.predictor, layout.tile
    if predictor not in (1, 2) or tags.one(266, 1) != 1 or (predictor == 2 and layout.bits < 8):
        raise reading.unusual(f"predictor {predictor} or a reversed order of bits")
    if min(width, height) < 1 or width * height * layout.channels * layout.bits > 8 * PADDING:
        raise reading.unusual(f"strips of {width} x {height} pixels")


def _samples(data: bytes, layout: Layout, reading: Reading) -> Samples:
    """(H, W, channels), uint8 or uint16."""
    count = layout.across * layout.down * (layout.channels if layout.planar else 1)
    if len(layout.offsets) < count:
        reading.damage(f"{count - len(layout.offsets)} of {count} strips are missing")
    dtype = np.dtype(np.uint16 if layout.bits == 16 else np.uint8)
    samples = np.zeros((layout.height, layout.width, layout.channels), dtype)
    for number in range(min(count, len(layout.offsets))):
        plane, place = divmod(number, layout.across * layout.down)
        row, column = divmod(place, layout.across)
        top, left = row * layout.tile[1], column * layout.tile[0]
        target = samples[top : top + layout.tile[1], left : left + layout.tile[0]]
        if layout.planar:
            target = target[..., plane : plane + 1]
        found = _strip(data, layout, number, target.shape[0], reading)
        target[:] = found[: target.shape[0], : target.shape[1]]
    return samples


def _strip(data: bytes, layout: Layout, number: int, rows: int, reading: Reading) -> Samples:
    """One strip or tile: (rows, tile's width, channels in it). What is missing of it is 0."""
    rows = layout.tile[1] if layout.tile[0] != layout.width else rows
    row = -(-layout.tile[0] * layout.pixels * layout.bits // 8)
    size = rows * row
    start = layout.offsets[number]
    length = layout.lengths[number] if number < len(layout.lengths) else 0
    packed = data[start : start + (length or size)] if layout.compression == NONE or length else b""
    try:
        found = _unpacked(packed, layout.compression, size, row)
        why = "" if len(found) >= size else "it is too short"
    except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
        found, why = b"", str(error)
    if why:
        reading.damage(f"strip {number + 1} of {len(layout.offsets)}: {why}")
    return _numbers(found[:size].ljust(size, b"\0"), rows, layout)


def _numbers(found: bytes, rows: int, layout: Layout) -> Samples:
    """Unpacked bytes as samples."""
    if layout.bits < 8:
        bits = np.unpackbits(np.frombuffer(found, np.uint8).reshape(rows, -1), axis=1)
        weights = 1 << np.arange(layout.bits - 1, -1, -1, dtype=np.uint8)
        fields: Samples = np.matmul(bits.reshape(rows, -1, layout.bits), weights)
        return np.asarray(fields[:, : layout.tile[0], None], np.uint8)
    dtype = np.dtype(f"{layout.order}u{layout.bits // 8}")
    values: Samples = np.frombuffer(found, dtype).reshape(rows, layout.tile[0], layout.pixels)
    values = values.astype(dtype.newbyteorder("="))
    if layout.predictor == 2:
        np.cumsum(values, axis=1, dtype=values.dtype, out=values)
    return values


def _unpacked(packed: bytes, compression: int, size: int, row: int) -> bytes:
    """A strip's ``size`` bytes, ``row`` a row, or as many as there are. Raises the library's errors for damage."""
    if compression == NONE:
        return packed
    if compression in (DEFLATE, OLD_DEFLATE):
        inflater = zlib.decompressobj()
        found, most = inflater.decompress(packed, size), size
        while not inflater.eof and inflater.unconsumed_tail:  # to the checksum at the end; the last strip may be padded
            most += len(inflater.decompress(inflater.unconsumed_tail, 1 << 16))
            if most > size + MAX_PADDING:
                raise ValueError("it holds more than its rows")
        return found
    if compression == LZMA:
        return lzma.LZMADecompressor().decompress(packed, size)
    with stderr_muted():
        return TiffImageFile(io.BytesIO(_wrapped(packed, compression, row, size // row))).tobytes()


def _wrapped(packed: bytes, compression: int, width: int, height: int) -> bytes:
    """A strip as a grey image of bytes, for which libtiff unpacks it."""
    fields = {256: width, 257: height, 258: 8, 259: compression, 262: GREY, 277: 1, 278: height, 279: len(packed)}
    directory = {tag: ifd.longs("<", value) for tag, value in fields.items()}
    start = 8 + len(ifd.packed({**directory, 273: ifd.longs("<", 0)}, "<", 8))
    return ifd.file_header("<") + ifd.packed({**directory, 273: ifd.longs("<", start)}, "<", 8) + packed


def _expanded(samples: Samples, layout: Layout, tags: Tags, reading: Reading) -> Samples:
    """Palette entries as colours, and grey of fewer bits as 8."""
    if layout.photometric == PALETTE:
        table = tags.numbers(320)
        if len(table) != 3 << layout.bits:
            raise reading.unusual("a palette that does not fit its bits")
        scale = 8 if max(table) > 255 else 0  # some writers leave 8-bit colours in a table of 16 bit
        colours = (np.array(table).reshape(3, -1).T >> scale).astype(np.uint8)
        return np.concatenate([colours[samples[..., 0]], samples[..., 1:]], axis=2)
    return samples * np.uint8(255 // (2**layout.bits - 1)) if layout.bits < 8 else samples


def _content(samples: Samples, layout: Layout, reading: Reading) -> Content:
    """Colour, alpha and further channels apart."""
    colours = samples.shape[2] - len(layout.extra)
    colour, rest = samples[..., :colours], samples[..., colours:]
    top = np.iinfo(samples.dtype).max
    if layout.photometric == WHITE_IS_ZERO:
        colour = top - colour
    number = next((at for at, kind in enumerate(layout.extra) if kind in (MULTIPLIED, SEPARATE)), None)
    others = [at for at in range(len(layout.extra)) if at != number]
    alpha = None if number is None else rest[..., number]
    if alpha is not None and number is not None and layout.extra[number] == MULTIPLIED:
        reading.warn("its colours are multiplied by alpha; they are written without that")
        colour = _divided(colour, alpha)
    return Content(colour, alpha, rest[..., others] if others else None)


def _divided(colour: Samples, alpha: Samples) -> Samples:
    """Colours that were multiplied by alpha as they were before; 0 where nothing is to be seen."""
    top = np.iinfo(colour.dtype).max
    divisor = np.maximum(alpha, 1)[..., None].astype(np.uint32)
    found = (colour.astype(np.uint32) * np.uint32(top) + divisor // 2) // divisor
    return np.asarray(np.minimum(found, top), colour.dtype)


def _check_strips(data: bytes, tags: Tags, reading: Reading) -> None:
    """See that no strip is cut short, nor damaged where it is a JPEG: libtiff says neither."""
    offsets, lengths = _strips(tags)
    tables = (tags.raw(347) or b"\xff\xd8\xff\xd9")[:-2]
    for number, (start, length) in enumerate(zip(offsets, lengths, strict=False), 1):
        if start + length > len(data):
            reading.damage(f"strip {number} of {len(offsets)} is cut short")
        elif tags.one(259, NONE) == JPEG:
            checked(tables + data[start + 2 : start + length], f"strip {number} of {len(offsets)}", reading)


def _through_pillow(data: bytes, tags: Tags, reading: Reading) -> Content:
    """What Pillow converts to 8 bits: JPEG and fax compression, YCbCr; CMYK as it is."""
    _check_strips(data, tags, reading)
    image = TiffImageFile(io.BytesIO(data))
    if image.mode in ("LAB", "I", "F"):
        raise reading.unusual(f"{image.mode}, not RGB", "convert it first, e.g. magick IN -colorspace sRGB OUT")
    with stderr_muted():
        image.load()
    if image.mode == "CMYK":
        return Content(np.asarray(image))
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = image.has_transparency_data
    samples = with_channels(np.asarray(image.convert(("L" if grey else "RGB") + ("A" if alpha else ""))))
    return Content(samples[..., :-1], samples[..., -1]) if alpha else Content(samples)


def _describe(content: Content, data: bytes, tags: Tags, reading: Reading) -> None:
    try:
        content.exif = exif_of_tiff(data)
    except ValueError as error:
        reading.warn(f"its tags are garbled ({error}), so they were left out")
    content.icc, content.xmp, content.iptc = (tags.raw(tag) for tag in (PROFILE, XMP, IPTC))
    if photoshop := tags.raw(PHOTOSHOP):
        content.iptc = content.iptc or iptc.records(photoshop)
        content.native = ((str(PHOTOSHOP).encode(), iptc.without_thumbnail(photoshop)),)
    content.compression = WRITTEN.get(tags.one(259, NONE), DEFLATE)
