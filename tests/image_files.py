"""Images and files of images that tests make: drawn by program, some of them tag by tag."""

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from uid.runtime.media.formats import DecodedImage

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 6, 9
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
NESTED = {33434: 0.01, 36867: "2020:01:02 03:04:05", 37500: b"maker note"}
UPRIGHT = {  # EXIF 2.3, table 6: how to turn the stored array upright
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.flipud(np.rot90(a)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.fliplr(np.rot90(a)),
    8: np.rot90,
}


def picture(dtype=np.uint8, grey=False, alpha=False, exif=None, icc=None, size=(HEIGHT, WIDTH)) -> DecodedImage:
    top = np.iinfo(dtype).max + 1
    pixels = RNG.integers(0, top, (*size, 3), dtype=dtype)
    if grey:
        pixels[:] = pixels[..., :1]
    see_through = RNG.integers(0, top, size, dtype=dtype) * RNG.integers(0, 2, size, dtype=dtype) if alpha else None
    return DecodedImage(pixels=pixels, alpha=see_through, grey=grey, exif=exif, icc=icc, format="png")


def camera_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[271], exif[274], exif[282] = "camera", orientation, 72.0
    exif[34665], exif[34853] = NESTED, {1: "N", 2: (1.0, 2.5, 3.0)}
    return exif.tobytes()


def parsed(raw: bytes | None) -> Image.Exif:
    assert raw is not None
    exif = Image.Exif()
    exif.load(raw)
    return exif


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, compressed: bytes) -> bytes:
    """An 8-bit RGB PNG that says it has this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def tiff(samples: np.ndarray, order: str = "<", pixels: bytes | None = None, **tags: int | tuple[int, ...]) -> bytes:
    """A TIFF of (H, W, channels) made tag by tag, to hold what Pillow cannot write."""
    height, width, channels = samples.shape
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes() if pixels is None else pixels
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II" if order == "<" else b"MM")
    standard = {"t256": width, "t257": height, "t258": (samples.itemsize * 8,) * channels, "t259": 1, "t277": channels}
    standard |= {"t262": 1 if channels < 3 else 2, "t273": 0, "t278": height, "t279": len(data)}
    for name, value in (standard | tags).items():
        directory[int(name[1:])] = value
    buffer = io.BytesIO()
    directory.save(buffer)
    return buffer.getvalue() + data


def grey_profile(gamma: float) -> bytes:
    """An ICC profile for grey, which LittleCMS has none of to offer through Pillow."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 14)
    head = (
        bytes(8) + b"\2\x40\0\0mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    )
    body = head.ljust(128, b"\0") + tags + white + curve + b"\0\0"
    return struct.pack(">I", len(body)) + body[4:]


# 64 x 64 pixels of grey in 10 bits, as no library here writes it without FFmpeg.
AVIF_OF_10_BITS = base64.b64decode(
    "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAAD5bWV0YQAAAAAAAAAvaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAFBpY3R1cm"
    "VIYW5kbGVyAAAAAA5waXRtAAAAAAABAAAAHmlsb2MAAAAARAAAAQABAAAAAQAAASEAAAAdAAAAKGlpbmYAAAAAAAEAAAAaaW5mZQIAAAAAAQAA"
    "YXYwMUNvbG9yAAAAAGppcHJwAAAAS2lwY28AAAAUaXNwZQAAAAAAAABAAAAAQAAAABBwaXhpAAAAAAMKCgoAAAAMYXYxQ4EATAAAAAATY29scm"
    "5jbHgAAgACAAIAAAAAF2lwbWEAAAAAAAAAAQABBAECgwQAAAAlbWRhdAoKAAAAAq//jV84CDIPEAC6AgssUUEAAAgH7k4w"
)
