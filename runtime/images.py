"""Image files to arrays and back: PNG, JPEG, WebP, TIFF and BMP, 8 and 16 bit, with alpha, EXIF and ICC kept.

Pillow reads and writes, except where it holds no 16-bit colour: ``_sixteen_bit`` has it decode the two bytes of a
sample in turn, and 16-bit PNG and all TIFF are written here, as uncompressed TIFF and plain PNG are simple formats.
"""

import contextlib
import io
import os
import re
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import IFD, Base
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from uid.errors import InputError, OutputError
from uid.runtime.files import written_whole

MAX_PIXELS = 200_000_000
EXIF_PREFIX = b"Exif\0\0"
Pixels = NDArray[Any]  # uint8 or uint16


@dataclass(frozen=True)
class Picture:
    """An image as decoded: upright RGB plus what must survive the round trip."""

    pixels: Pixels  # (H, W, 3) RGB, uint8 or uint16, EXIF orientation already applied
    alpha: Pixels | None  # (H, W), same dtype
    grey: bool  # the file held one colour channel; written back as one
    exif: bytes | None  # raw EXIF, orientation reset to 1, without its thumbnail
    icc: bytes | None  # ICC profile
    format: str  # a key of FORMATS


class _Tiff(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF reader, taught 16-bit grey with alpha: the pixel's four bytes pass for 8-bit RGBA."""

    def _setup(self) -> None:
        tags, grey_alpha = self.tag_v2, (1, (16, 16), (2,), 1)
        if tags.get(277, 1) > 4:
            raise SyntaxError(f"{tags[277]} samples a pixel, expected 1 to 4")
        if (tags.get(262), tags.get(258), tags.get(338), tags.get(284, 1)) != grey_alpha:
            return super()._setup()
        tags[262], tags[258], tags[277], tags[339] = 2, (8, 8, 8, 8), 4, (1, 1, 1, 1)
        super()._setup()
        order = "N" if self.use_load_libtiff else {b"II": "L", b"MM": "B"}[tags.prefix]
        self.tile = _with_raw_mode(self.tile, f"LA;16{order}")

    def load(self) -> Any:
        with _stderr_muted() if self.tile and self.use_load_libtiff else contextlib.nullcontext():
            return super().load()


@dataclass(frozen=True)
class ImageFormat:
    """What one file format holds, and how it is recognised, read and written."""

    suffixes: tuple[str, ...]  # the first is the usual one
    signature: bytes  # pattern of a file's first bytes
    opener: type[ImageFile.ImageFile]  # parses the header; used directly since Image.open makes an MPO of phone JPEGs
    sixteen_bit: bool
    alpha: bool
    longest: int | None = None  # width or height in pixels
    options: Mapping[str, Any] = field(default_factory=dict)  # of Pillow's save


FORMATS = {
    "png": ImageFormat((".png",), rb"\x89PNG\r\n\x1a\n", PngImageFile, sixteen_bit=True, alpha=True),
    "jpeg": ImageFormat(
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        rb"\xff\xd8\xff",
        JpegImageFile,
        sixteen_bit=False,
        alpha=False,
        longest=65_500,
        options={"quality": 95, "subsampling": "4:4:4"},
    ),
    "webp": ImageFormat(
        (".webp",),
        rb"RIFF....WEBP",
        WebPImageFile,
        sixteen_bit=False,
        alpha=True,
        longest=16_383,
        options={"lossless": True, "exact": True},  # exact: colours under full transparency are kept too
    ),
    "tiff": ImageFormat((".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", _Tiff, sixteen_bit=True, alpha=True),
    "bmp": ImageFormat((".bmp", ".dib"), rb"BM", BmpImageFile, sixteen_bit=False, alpha=False),
}
SUFFIXES = {suffix: name for name, kind in FORMATS.items() for suffix in kind.suffixes}
NAMES = "PNG, JPEG, WebP, TIFF or BMP"


def is_image_path(path: Path) -> bool:
    """Whether the suffix is that of a format in ``FORMATS``."""
    return path.suffix.lower() in SUFFIXES


def format_of(path: Path) -> str:
    """The format that the suffix names. Raises ``InputError`` for an unknown suffix."""
    if not is_image_path(path):
        raise InputError(f"{path} has no image suffix; expected one of {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix.lower()]


def read_image(source: Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a file, or its bytes, by content whatever the suffix; ``name`` stands for it in errors.

    Palette and 1-bit pictures are expanded. Raises ``InputError`` for what is missing, damaged, not an image, larger
    than ``max_pixels``, of several frames, or neither grey nor RGB of up to 16 bit unsigned.
    """
    label = name or (str(source) if isinstance(source, Path) else "the image")
    data = source if isinstance(source, bytes) else _read_bytes(source, label)
    format = _recognised(data, label)
    with _pillow(label, max_pixels):
        image = FORMATS[format].opener(io.BytesIO(data))
        _refuse(image, label, max_pixels)
        grey = image.mode in ("1", "L", "LA", "La", "I;16", "I;16B") or _raw_mode(image).startswith("LA")
        colour, alpha = _decoded(image, data)
        exif, orientation = _exif(image)
        icc = image.info.get("icc_profile")
    return Picture(
        pixels=_upright(np.broadcast_to(colour, (*colour.shape[:2], 3)), orientation),
        alpha=None if alpha is None else _upright(alpha, orientation),
        grey=grey,
        exif=exif,
        icc=icc if icc and isinstance(icc, bytes) else None,  # a garbled TIFF tag may be a number
        format=format,
    )


def encode_image(picture: Picture, format: str) -> bytes:
    """The bytes of a file: lossless except JPEG (quality 95, 4:4:4).

    16 bit is rounded to 8 where the format has no more. BMP carries neither EXIF nor ICC. Raises ``OutputError`` for
    alpha in JPEG or BMP, and for sizes and metadata beyond the format's limits.
    """
    if format not in FORMATS:
        raise OutputError(f"{format} is not an image format that can be written; expected one of {', '.join(FORMATS)}")
    kind = FORMATS[format]
    if picture.alpha is not None and not kind.alpha:
        raise OutputError(f"{format} cannot hold the picture's transparency; choose --format png, webp or tiff")
    height, width = picture.pixels.shape[:2]
    if kind.longest and max(height, width) > kind.longest:
        limit = f"at most {kind.longest} pixels a side, got {width} x {height}"
        raise OutputError(f"{format} holds {limit}; choose --format png or tiff")
    try:
        with _quiet():
            return _encoded(picture, format)
    except (OSError, ValueError) as error:  # such as EXIF beyond JPEG's 64 KB
        raise OutputError(f"the picture cannot be encoded as {format} ({error}); choose --format png") from error


def write_image(picture: Picture, path: Path, format: str | None = None) -> None:
    """Write the file whole, in the suffix's format unless given. Raises as ``encode_image``, and on disk errors."""
    data = encode_image(picture, format or format_of(path))
    with written_whole(path) as temporary:
        temporary.write_bytes(data)


# Reading


def _read_bytes(path: Path, label: str) -> bytes:
    if path.is_dir():
        raise InputError(f"{label} is a folder; expected an image file")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{label} does not exist; check its name") from error
    except OSError as error:
        raise InputError(f"cannot read {label}: {error.strerror or error}") from error


def _recognised(data: bytes, label: str) -> str:
    """The format by content."""
    if not data:
        raise InputError(f"{label} is empty; expected a {NAMES} image")
    for format, kind in FORMATS.items():
        if re.match(kind.signature, data, re.DOTALL):
            return format
    hint = "a GIF" if data.startswith(b"GIF8") else "HEIC or AVIF" if data[4:8] == b"ftyp" else "none of them"
    raise InputError(f"{label} is not a {NAMES} image but {hint}; convert it to PNG first")


_PROCESS_WIDE = threading.Lock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings. What this and those inside it change is process-wide, and so under a lock."""
    with _PROCESS_WIDE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _stderr_muted() -> Iterator[None]:
    """Keep from the terminal what libtiff prints beside the error that Pillow raises."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _pillow(label: str, max_pixels: int) -> Iterator[None]:
    """Pillow without its warnings, with our size limit, and its errors translated."""
    with _quiet():
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (max_pixels + 1) // 2  # Pillow refuses twice of it
        try:
            yield
        except Image.DecompressionBombError as error:
            raise InputError(f"{label} has more than {max_pixels} pixels; shrink it or raise --max-pixels") from error
        except (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error) as error:  # garbled fields too
            raise InputError(f"{label} is damaged, cut short or of an unusual kind ({error}); save it anew") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _refuse(image: ImageFile.ImageFile, label: str, max_pixels: int) -> None:
    """Refuse by the header, before any pixel is decoded."""
    width, height = image.size
    if width * height > max_pixels:
        limit = f"more than {max_pixels} pixels; shrink it or raise --max-pixels"
        raise InputError(f"{label} is {width} x {height}, {limit}")
    if getattr(image, "is_animated", False):
        raise InputError(f"{label} holds several frames or pages; extract the one you want as a picture of its own")
    if image.mode in ("CMYK", "LAB", "I", "F"):
        kind = {"I": "32-bit or signed integers", "F": "floating point"}.get(image.mode, image.mode)
        raise InputError(
            f"{label} holds {kind}, not RGB; convert it first, e.g. magick IN -colorspace sRGB -depth 16 OUT"
        )
    if isinstance(image, _Tiff):
        _refuse_tiff(image.tag_v2, label)


def _refuse_tiff(tags: TiffImagePlugin.ImageFileDirectory_v2, label: str) -> None:
    """Refuse what Pillow opens but would not decode to the full range of 16 bit."""
    bits = tags.get(258, (1,))[0]
    if 8 < bits < 16:
        raise InputError(f"{label} has {bits} bit a channel, expected 8 or 16; convert it: magick IN -depth 16 OUT")
    if bits == 16 and tags.get(284) == 2 and tags.get(277, 1) > 1:
        raise InputError(f"{label} stores 16-bit channels as separate planes; convert it: tiffcp -p contig IN OUT")


def _decoded(image: ImageFile.ImageFile, data: bytes) -> tuple[Pixels, Pixels | None]:
    """Colour (H, W, 1 or 3) and alpha (H, W)."""
    raw_mode, transparent = _raw_mode(image), image.info.get("transparency")
    deep = re.fullmatch("(LA|RGB[AaX]?);16[BLN]", raw_mode)
    if not deep and not image.mode.startswith("I;16"):
        return _split(_eight_bit(image))
    samples = _sixteen_bit(image, data, raw_mode) if deep else np.asarray(image).astype(np.uint16)[..., None]
    if isinstance(image, _Tiff) and image.tag_v2.get(262) == 0:
        samples = 65535 - samples  # white is zero, which Pillow heeds for 8 bit only
    if transparent is not None:  # the one colour of a PNG that stands for "see through"
        return samples, np.where((samples == transparent).all(axis=-1), 0, 65535).astype(np.uint16)
    colour, alpha = _split(samples)
    if alpha is not None and raw_mode.startswith("RGBa"):
        shown = np.maximum(alpha, 1)[..., None].astype(np.float64)
        colour = np.minimum(colour * 65535.0 / shown + 0.5, 65535).astype(np.uint16)
    return colour, alpha


def _eight_bit(image: Image.Image) -> Pixels:
    grey = image.mode in ("1", "L", "LA", "La")
    mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    samples = np.asarray(image.convert(mode))
    return samples[..., None] if samples.ndim == 2 else samples


def _split(samples: Pixels) -> tuple[Pixels, Pixels | None]:
    """(H, W, 1 to 4) as colour and alpha."""
    return (samples, None) if samples.shape[-1] % 2 else (samples[..., :-1], samples[..., -1])


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's name of the layout of the stored samples, as "RGB;16B"; empty for a decoder that has none."""
    args = image.tile[0].args if image.tile else None
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _with_raw_mode(tiles: list[ImageFile._Tile], mode: str) -> list[ImageFile._Tile]:
    return [tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode) for tile in tiles]


def _sixteen_bit(image: ImageFile.ImageFile, data: bytes, raw_mode: str) -> Pixels:
    """16-bit samples (H, W, 2 to 4) by Pillow, which keeps a sample's high byte only.

    Told the opposite byte order it keeps the low one. Grey with alpha is four bytes, so it passes for 8-bit RGBA.
    """
    layout, order = raw_mode[:-4].replace("a", "A"), raw_mode[-1]
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    if layout == "LA":
        return _loaded(image, "RGBA").view({"B": ">u2", "L": "<u2"}[order]).astype(np.uint16)
    high = _loaded(image, f"{layout};16{order}").astype(np.uint16)
    opposite = "L" if order == "B" else "B"
    return high << 8 | _loaded(type(image)(io.BytesIO(data)), f"{layout};16{opposite}")


def _loaded(image: ImageFile.ImageFile, raw_mode: str) -> Pixels:
    image.tile = _with_raw_mode(image.tile, raw_mode)
    return np.ascontiguousarray(image)


def _upright(array: Pixels, orientation: int) -> Pixels:
    """The array as the EXIF orientation (1 to 8) says it is meant to be seen."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.array(array[rows, columns], order="C")


# Metadata

# What a TIFF says of the picture rather than of its own layout: description, camera, resolution, author, rights.
EXIF_DIRECTORIES = {IFD.Exif, IFD.GPSInfo}
DESCRIPTIVE = {270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 33432, *range(40091, 40096)} | EXIF_DIRECTORIES


def _exif(image: Image.Image) -> tuple[bytes | None, int]:
    """EXIF with orientation 1, and the orientation that the decoded pixels still have. EXIF that is garbled is dropped.

    Pillow turns TIFF upright itself, and rewrites EXIF from TIFF tags and from PNG text.
    """
    raw = image.info.get("exif") or _rewritten(image.getexif())
    try:
        return _reset(bytearray(raw.removeprefix(EXIF_PREFIX))) if raw else (None, 1)
    except (struct.error, KeyError):
        return None, 1


def _rewritten(exif: Image.Exif) -> bytes:
    fresh = Image.Exif()
    fresh.update(_descriptive(exif))
    return fresh.tobytes() if fresh else b""


def _descriptive(exif: Image.Exif) -> dict[int, Any]:
    """The sound ones of the descriptive tags, with an orientation; those of EXIF's own directories as dictionaries."""
    tags = {tag: exif.get_ifd(tag) if tag in EXIF_DIRECTORIES else exif[tag] for tag in DESCRIPTIVE & set(exif)}
    sound = {tag: value for tag, value in tags.items() if _packable(tag, value)}
    return {Base.Orientation: 1, **sound} if sound else {}


def _packable(tag: int, value: Any) -> bool:
    """Whether the value is of its tag's type; cameras and editors write some that are not."""
    alone = TiffImagePlugin.ImageFileDirectory_v2()
    try:
        alone[tag] = value
        alone.tobytes()
    except (TypeError, ValueError, AttributeError, struct.error):
        return False
    return True


def _reset(exif: bytearray) -> tuple[bytes, int]:
    """Orientation set to 1 in place, so that maker notes keep their offsets; returned with what it was."""
    order, orientation = {b"II*\0": "<", b"MM\0*": ">"}[bytes(exif[:4])], 1
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    end = start + 2 + 12 * count
    for entry in range(start + 2, end, 12):
        tag, value = struct.unpack_from(f"{order}H6xH", exif, entry)
        if tag == Base.Orientation:
            orientation = value
            struct.pack_into(f"{order}H", exif, entry + 8, 1)
    if end + 4 <= len(exif):
        struct.pack_into(f"{order}I", exif, end, 0)  # unlinks the thumbnail, which shows the old picture
    return EXIF_PREFIX + bytes(exif), orientation if orientation in range(1, 9) else 1


# Writing


def _samples(picture: Picture) -> Pixels:
    """(H, W, 1 to 4), as the file holds them; a picture that was grey is weighed to grey as Pillow does (BT.601)."""
    colour = picture.pixels
    if picture.grey:
        red, green, blue = np.moveaxis(colour.astype(np.uint32), -1, 0)
        colour = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(colour.dtype)[..., None]
    return colour if picture.alpha is None else np.dstack([colour, picture.alpha])


def _encoded(picture: Picture, format: str) -> bytes:
    samples, kind = _samples(picture), FORMATS[format]
    if samples.dtype == np.uint16 and not kind.sixteen_bit:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if format == "tiff":
        return _tiff(samples, picture.exif, picture.icc)
    if samples.dtype == np.uint16:
        return _sixteen_bit_png(samples, picture.exif, picture.icc)
    return _saved(samples, picture, format)


def _saved(samples: Pixels, picture: Picture, format: str) -> bytes:
    options = dict(FORMATS[format].options)
    if picture.exif:
        options["exif"] = picture.exif
    if picture.icc and not (format == "webp" and picture.icc[16:20] == b"GRAY"):  # WebP has colour only
        options["icc_profile"] = picture.icc
    buffer = io.BytesIO()
    shown = samples[..., 0] if samples.shape[-1] == 1 else samples
    Image.fromarray(np.ascontiguousarray(shown)).save(buffer, FORMATS[format].opener.format, **options)
    return buffer.getvalue()


def _sixteen_bit_png(samples: Pixels, exif: bytes | None, icc: bytes | None) -> bytes:
    """PNG (W3C, third edition): each row stored as its difference to the row above, filter type 2."""
    height, width, channels = samples.shape
    rows = np.ascontiguousarray(samples, dtype=">u2").view(np.uint8).reshape(height, -1)
    filtered = np.full((height, rows.shape[1] + 1), 2, np.uint8)
    filtered[0, 1:], filtered[1:, 1:] = rows[0], rows[1:] - rows[:-1]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(EXIF_PREFIX)))
    # Level 1: the low bytes are noise, which no level makes much smaller.
    chunks += [(b"IDAT", zlib.compress(filtered.data, 1)), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _tiff(samples: Pixels, exif: bytes | None, icc: bytes | None) -> bytes:
    """Little-endian TIFF 6.0, uncompressed in one strip."""
    height, width, channels = samples.shape
    pixels = np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder("<")).tobytes()
    tags, parsed = TiffImagePlugin.ImageFileDirectory_v2(), Image.Exif()
    parsed.load(exif or b"")
    tags.update(_descriptive(parsed))
    tags[256], tags[257], tags[277], tags[278] = width, height, channels, height
    tags[258] = (samples.itemsize * 8,) * channels
    tags[259], tags[262], tags[284] = 1, 1 if channels < 3 else 2, 1
    if channels % 2 == 0:
        tags[338] = 2  # the extra sample is alpha, not multiplied into the colours
    if icc:
        tags[TiffImagePlugin.ICCPROFILE] = icc
    tags[273], tags[279] = 0, len(pixels)  # Pillow adds the directory's end to the strip's offset
    buffer = io.BytesIO()
    tags.save(buffer)
    return buffer.getvalue() + pixels
