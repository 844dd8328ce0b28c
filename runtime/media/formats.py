"""The image and video formats: how a file is recognised, what it can hold, and a decoded image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from uid.errors import InputError

MAX_PIXELS = 200_000_000


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
class DecodedImage:
    """An image as decoded: upright RGB plus what must survive the round trip."""

    pixels: Samples  # (H, W, 3) RGB, uint8 or uint16, EXIF orientation already applied
    alpha: Samples | None  # (H, W), same dtype
    grey: bool  # the file held one colour channel; written back as one
    exif: bytes | None  # raw EXIF, orientation reset to 1, without its thumbnail
    icc: bytes | None  # ICC profile
    format: str  # a key of FORMATS


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
    "tiff": ImageFormat((".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", TiffImageFile, sixteen_bit=True, alpha=True),
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


def is_video_path(path: Path) -> bool:
    """Whether the name's suffix is one of ``VIDEO_SUFFIXES``, in any case."""
    return path.suffix.lower() in VIDEO_SUFFIXES
