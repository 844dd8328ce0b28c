"""The image and video formats: how a file is recognised, what it can hold, and a decoded image."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uid.errors import InputError

# What is read at most; docs/using.md has the table.
MAX_PIXELS = 200_000_000
MAX_BYTES = 2 << 30  # of a file
MAX_PROFILE = 64 << 20  # bytes of a colour profile, unpacked
MAX_SCANS = 100  # of a progressive JPEG; each takes the time of a whole decoding
MAX_CHANNELS = 8  # of a TIFF
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")  # of a JPEG's colours

Samples = NDArray[Any]  # (H, W) or (H, W, C), uint8 or uint16
MUXERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".ts": "mpegts",
    ".mts": "mpegts",
    ".m2ts": "mpegts",
}
_ONLY_READ = ".avi .mpg .mpeg .vob .wmv .asf .flv .gif .3gp .3g2 .ogv .mxf .dv .y4m .mjpeg .nut .ivf .rm .wtv .gxf"
VIDEO_SUFFIXES = {*MUXERS, *_ONLY_READ.split()}


@dataclass(frozen=True)
class JpegCoding:
    """How a JPEG was compressed: what its pixels are compressed with again."""

    tables: tuple[tuple[int, ...], ...]  # quantisation tables, 64 numbers each, in zigzag order
    subsampling: str | None  # "4:4:4", "4:2:2", "4:2:0"; None: grey, or another one


@dataclass(frozen=True)
class DecodedImage:
    """An image as decoded: upright RGB plus what must survive the round trip."""

    pixels: Samples  # (H, W, 3) RGB, uint8 or uint16, EXIF orientation already applied
    alpha: Samples | None  # (H, W), same dtype; None also where all of it is opaque
    grey: bool  # the file held one colour channel; written back as one
    exif: bytes | None  # raw EXIF, orientation reset to 1, without its thumbnail
    icc: bytes | None  # ICC profile, of the colour space of the pixels
    format: str  # a key of FORMATS
    xmp: bytes | None = None  # an XMP packet, UTF-8
    iptc: bytes | None = None  # IPTC records (IIM)
    comment: bytes | None = None  # free text in the encoding of its file
    dpi: tuple[float, float] | None = None  # pixels an inch, across and down
    extra: Samples | None = None  # (H, W, n) of a TIFF: channels of no stated meaning, such as infrared; never changed
    # What only files of the same format have a place for, as they name it: PNG chunks, JPEG segments.
    native: tuple[tuple[bytes, bytes], ...] = ()
    jpeg: JpegCoding | None = None
    compression: int = 1  # of a TIFF, as its tag says; 1: none
    warnings: tuple[str, ...] = ()  # what was wrong with the file and did not cost a pixel, or was salvaged

    def with_pixels(self, pixels: Samples, *others: Samples | None) -> "DecodedImage":
        """The image with other pixels, and with ``others`` in place of alpha and extra channels if given."""
        alpha, extra = (*others, *(self.alpha, self.extra)[len(others) :])
        return dataclasses.replace(self, pixels=pixels, alpha=alpha, extra=extra)

    def cropped(self, left: int, top: int, width: int, height: int) -> "DecodedImage":
        """A part of the image. Raises ``InputError`` where it is not within the image."""
        rows, columns = self.pixels.shape[:2]
        if min(left, top) < 0 or min(width, height) < 1 or left + width > columns or top + height > rows:
            raise InputError(
                f"the part {left},{top},{width},{height} is not within the image of {columns} x {rows}; expected "
                "left, top, width and height in pixels",
                option="preview",
            )
        part = np.s_[top : top + height, left : left + width]
        cut = [None if one is None else np.ascontiguousarray(one[part]) for one in (self.alpha, self.extra)]
        return self.with_pixels(np.ascontiguousarray(self.pixels[part]), *cut)


@dataclass(frozen=True)
class ImageFormat:
    """What one file format holds, and how it is recognised."""

    suffixes: tuple[str, ...]  # the first is the usual one
    signature: bytes  # pattern of a file's first bytes
    sixteen_bit: bool = False
    alpha: bool = False
    grey: bool = True  # one channel for colour; else grey is written as RGB
    longest: int | None = None  # width or height in pixels
    metadata: frozenset[str] = frozenset()  # fields of DecodedImage that a file has a place for
    written: bool = True  # else it is only read


_ALL = frozenset({"exif", "icc", "xmp", "iptc", "comment", "dpi"})
_BOXES = frozenset({"exif", "icc", "xmp"})
FORMATS = {
    "png": ImageFormat((".png",), rb"\x89PNG\r\n\x1a\n", sixteen_bit=True, alpha=True, metadata=_ALL),
    "jpeg": ImageFormat(
        (".jpg", ".jpeg", ".jpe", ".jfif"), rb"\xff\xd8\xff", longest=65_500, metadata=_ALL
    ),
    "webp": ImageFormat((".webp",), rb"RIFF....WEBP", alpha=True, grey=False, longest=16_383, metadata=_BOXES),
    "tiff": ImageFormat(
        (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", sixteen_bit=True, alpha=True, metadata=_ALL | {"extra"}
    ),
    "bmp": ImageFormat((".bmp", ".dib"), rb"BM", metadata=frozenset({"dpi"})),
    "avif": ImageFormat(
        (".avif", ".avifs"), rb"....ftyp.{0,60}avi[fs]", alpha=True, grey=False, longest=65_535, metadata=_BOXES
    ),
    "heic": ImageFormat(
        (".heic", ".heif", ".hif"), rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)", True, True, written=False
    ),
    "jxl": ImageFormat((".jxl",), rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", True, True, written=False),
}  # fmt: skip
WRITTEN = [name for name, kind in FORMATS.items() if kind.written]
SUFFIXES = {suffix: name for name, kind in FORMATS.items() for suffix in kind.suffixes}
NAMES = "PNG, JPEG, WebP, TIFF, BMP, AVIF, HEIC or JPEG XL"
# Suffixes of files that are no folder's name, and that are neither read nor written here.
FOREIGN_SUFFIXES = frozenset(
    {".gif", ".jp2", ".j2k", ".psd", ".psb", ".exr", ".hdr", ".svg", ".pdf", ".ico", ".tga", ".ppm"}
)
RAW_SUFFIXES = frozenset({
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
})  # fmt: skip
RAW, UNKNOWN = "a camera's RAW file", "of no format that is known here"
# First bytes of what is not read here, and what to call it.
FOREIGN = {
    rb"GIF8": "a GIF",
    rb"II\*\0.{4}CR|....ftypcrx |FUJIFILMCCD-RAW|IIU\0|II(RO|RS)|MMOR|FOVb|\0MRM|II\x1a\0\0\0HEAPCCDR": RAW,
    rb"8BPS": "a Photoshop document",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
    rb"v/1\x01": "OpenEXR",
    rb"%PDF": "a PDF",
    rb"<(\?xml|svg|!DOCTYPE|html)": "XML, SVG or HTML text",
    rb"....ftyp": "a video",
}


def is_image_path(path: Path) -> bool:
    """Whether the suffix is that of a format in ``FORMATS``."""
    return path.suffix.lower() in SUFFIXES


def is_raw_path(path: Path) -> bool:
    """Whether the suffix is that of a camera's RAW file, which is not read here."""
    return path.suffix.lower() in RAW_SUFFIXES


def is_foreign_path(path: Path) -> bool:
    """Whether the suffix is that of an image that cannot be written: no name for a folder either."""
    suffix = path.suffix.lower()
    return suffix in FOREIGN_SUFFIXES | RAW_SUFFIXES or not FORMATS[SUFFIXES.get(suffix, "png")].written


def format_of(path: Path) -> str:
    """The format that the suffix names. Raises ``InputError`` for an unknown suffix."""
    if not is_image_path(path):
        raise InputError(f"{path} has no image suffix; expected one of {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix.lower()]


def written_format(format: str) -> str:
    """The format that an image of ``format`` is written in unless another one is asked for: PNG where it cannot be."""
    return format if FORMATS[format].written else "png"


def is_video_path(path: Path) -> bool:
    """Whether the name's suffix is one of ``VIDEO_SUFFIXES``, in any case."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def recognised(data: bytes, label: str) -> str:
    """The format by content, a key of ``FORMATS``. Raises ``InputError`` for none of them, and says what it is."""
    if not data:
        raise InputError(f"{label} is empty; expected a {NAMES} image")
    raw = is_raw_path(Path(label))
    foreign = (what for pattern, what in FOREIGN.items() if re.match(pattern, data, re.DOTALL))
    kind = next((name for name, one in FORMATS.items() if re.match(one.signature, data, re.DOTALL)), None)
    what = RAW if raw and kind in (None, "tiff") else next(foreign, UNKNOWN)
    if kind and what in (UNKNOWN, "a video"):
        return kind
    remedy = (
        "develop it to TIFF first, e.g. with darktable or RawTherapee" if what == RAW else "convert it to PNG first"
    )
    raise InputError(f"{label} is {what}; {remedy} (expected a {NAMES} image)")
