"""EXIF that stays correct when the image changes: orientation reset, thumbnail unlinked, layout tags left out."""

import struct
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

EXIF_PREFIX = b"Exif\0\0"
# TIFF tags that describe the image rather than the file's layout: description, camera, resolution, author, rights.
EXIF_DIRECTORIES = {IFD.Exif, IFD.GPSInfo}
DESCRIPTIVE = {270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 33432, *range(40091, 40096)} | EXIF_DIRECTORIES


def upright_exif(image: Image.Image) -> tuple[bytes | None, int]:
    """EXIF with orientation 1, and the orientation that the decoded pixels still have. EXIF that is garbled is dropped.

    Pillow turns TIFF upright itself, and rewrites EXIF from TIFF tags and from PNG text.
    """
    raw = image.info.get("exif") or rewritten(image.getexif())
    try:
        return reset_orientation(bytearray(raw.removeprefix(EXIF_PREFIX))) if raw else (None, 1)
    except (struct.error, KeyError):
        return None, 1


def rewritten(exif: Image.Exif) -> bytes:
    fresh = Image.Exif()
    fresh.update(descriptive_tags(exif))
    return fresh.tobytes() if fresh else b""


def descriptive_tags(exif: Image.Exif) -> dict[int, Any]:
    """The sound ones of the descriptive tags, with an orientation; those of EXIF's own directories as dictionaries."""
    tags = {tag: exif.get_ifd(tag) if tag in EXIF_DIRECTORIES else exif[tag] for tag in DESCRIPTIVE & set(exif)}
    sound = {tag: value for tag, value in tags.items() if packable(tag, value)}
    return {Base.Orientation: 1, **sound} if sound else {}


def packable(tag: int, value: Any) -> bool:
    """Whether the value is of its tag's type; cameras and editors write some that are not."""
    alone = ImageFileDirectory_v2()
    try:
        alone[tag] = value
        alone.tobytes()
    except (TypeError, ValueError, AttributeError, struct.error):
        return False
    return True


def reset_orientation(exif: bytearray) -> tuple[bytes, int]:
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
        struct.pack_into(f"{order}I", exif, end, 0)  # unlinks the thumbnail, which shows the old image
    return EXIF_PREFIX + bytes(exif), orientation if orientation in range(1, 9) else 1
