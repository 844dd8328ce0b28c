"""Which encoder writes a clip, at which depth and with which settings."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from uid.errors import InputError, OutputError
from uid.runtime.media.frames import Clip, Mastering

if TYPE_CHECKING:
    from av.codec import Codec

# The names that people type, and FFmpeg's encoders; any other encoder of FFmpeg goes by its own name.
CODECS = {
    "h264": "libx264",
    "hevc": "libx265",
    "av1": "libsvtav1",
    "vp9": "libvpx-vp9",
    "prores": "prores_ks",
    "ffv1": "ffv1",
}
# Near visual losslessness: a sharpened detail must not be lost again.
_SETTINGS: Mapping[str, Mapping[str, str]] = {
    "libx264": {"crf": "16", "preset": "medium"},
    "libx265": {"crf": "16", "preset": "medium"},
    "libsvtav1": {"crf": "20", "preset": "6"},
    "libvpx-vp9": {"crf": "16", "b": "0", "row-mt": "1", "cpu-used": "2"},
    "prores_ks": {"profile": "hq"},
}
_TAGS = {"libx265": "hvc1"}  # Apple's players want it; for MP4 and MOV


@dataclass(frozen=True)
class Encoding:
    """An encoder and all that it is told."""

    codec: str  # FFmpeg's name of the encoder
    pixel_format: str
    options: Mapping[str, str] = field(default_factory=dict)
    tag: str = ""  # of MP4 and MOV; empty: FFmpeg's choice


@dataclass(frozen=True)
class Wanted:
    """What a user asks of the encoder; None: a choice that fits the clip."""

    codec: str | None = None  # a key of CODECS, or the name of one of FFmpeg's encoders
    crf: float | None = None
    pixel_format: str | None = None


FITTING = Wanted()


def encoding(clip: Clip, destination: Path, wanted: Wanted) -> Encoding:
    """How ``clip`` is encoded. Raises ``InputError`` for an encoder, quality or pixel format that does not exist."""
    name = CODECS.get(wanted.codec, wanted.codec) if wanted.codec else _default(clip, destination.suffix.lower())
    codec = _encoder(name)
    pixel_format = _pixel_format(clip, codec, wanted.pixel_format)
    options = dict(_SETTINGS.get(name, {}))
    if wanted.crf is not None:
        options[_quality_option(codec)] = f"{wanted.crf:g}"
    options |= _carried(name, clip.mastering)
    return Encoding(name, pixel_format, options, _TAGS.get(name, ""))


def _default(clip: Clip, suffix: str) -> str:
    if suffix == ".webm":
        return CODECS["vp9"] if clip.depth == 8 else CODECS["av1"]
    return CODECS["h264"] if clip.depth == 8 else CODECS["hevc"]


def _encoder(name: str) -> "Codec":
    import av

    os.environ.setdefault("SVT_LOG", "1")  # errors only: SVT-AV1 talks over a progress bar
    known = f"expected one of {', '.join(CODECS)}"
    try:
        codec = av.Codec(name, "w")
    except ValueError:
        raise InputError(f"{name} is no video encoder here; {known}", option="codec") from None
    if codec.type != "video":
        raise InputError(f"{name} is no video encoder; {known}", option="codec")
    return codec


def _pixel_format(clip: Clip, codec: "Codec", wanted: str | None) -> str:
    """The wanted one, or the one nearest to the clip's own that the encoder has."""
    known = [format.name for format in codec.video_formats or []]
    if wanted is not None:
        if known and wanted not in known:
            raise InputError(f"{codec.name} does not write {wanted}; it writes {', '.join(known)}", option="pix_fmt")
        _refuse_halves(clip, wanted)
        return wanted
    for choice in _fitting_formats(clip):
        if not known or choice in known:
            return choice
    raise InputError(
        f"{codec.name} does not write {clip.size[0]}x{clip.size[1]} pixels; choose another", option="codec"
    )


def _fitting_formats(clip: Clip) -> list[str]:
    """Pixel formats that can hold the clip, the nearest to its own first; 8 bits are written as 4:2:0."""
    if clip.size[0] % 2 or clip.size[1] % 2:
        chromas = ["444"]  # halved chroma needs even sizes
    else:
        chromas = ["420" if clip.depth == 8 else clip.chroma, "422", "444", "420"]
    depths = ["10le", ""]
    if clip.depth == 8:
        depths = ["", "10le"]
    elif clip.depth > 10:
        depths = ["12le", "10le", ""]
    return [f"yuv{chroma}p{depth}" for chroma in chromas for depth in depths]


def _refuse_halves(clip: Clip, name: str) -> None:
    """Refuse odd sizes where the format has half as many samples of colour."""
    from av import VideoFormat

    format, (width, height) = VideoFormat(name, 2, 2), clip.size
    halved = (width % 2 and format.chroma_width() == 1) or (height % 2 and format.chroma_height() == 1)
    if halved and len(format.components) > 1 and not format.is_rgb:
        raise InputError(f"{name} needs even sizes, got {width}x{height}; choose yuv444p", option="pix_fmt")


def _quality_option(codec: "Codec") -> str:
    import av

    supported = {option.name for option in av.CodecContext.create(codec, "w").supported_options.private}
    for name in ("crf", "cq", "qp"):
        if name in supported:
            return name
    raise InputError(f"{codec.name} has no setting of quality; leave it out, or choose another codec", option="crf")


def _carried(name: str, mastering: Mastering) -> dict[str, str]:
    """The mastering data as the encoder is told it, and silence."""
    if name == "libx265":
        parts = ["log-level=none", *_x265(mastering)]
        return {"x265-params": ":".join(parts)}
    if name == "libx264" and (parts := _x265(mastering, "mastering-display", "cll")):
        return {"x264-params": ":".join(parts)}
    if name == "libsvtav1" and (parts := _svt(mastering)):
        return {"svtav1-params": ":".join(parts)}
    return {}


def can_carry(codec: str, mastering: Mastering) -> bool:
    """Whether an encoder writes the mastering data, where there is any."""
    return codec in ("libx265", "libx264", "libsvtav1") or mastering == Mastering()


def _points(mastering: Mastering, number: Callable[[Fraction, int], str]) -> str:
    """Green, blue, red, white, and most and least light, in the words that encoders share."""
    red, green, blue, white = (mastering.primaries[i : i + 2] for i in range(0, 8, 2))
    pairs = {"G": green, "B": blue, "R": red, "WP": white}
    least, most = mastering.luminance
    points = "".join(f"{key}({number(x, 50_000)},{number(y, 50_000)})" for key, (x, y) in pairs.items())
    return f"{points}L({number(most, 10_000)},{number(least, 10_000)})"


def _x265(mastering: Mastering, display: str = "master-display", light: str = "max-cll") -> list[str]:
    """In units of 0.00002 and 0.0001 candela per square metre."""
    parts = []
    if mastering.primaries and mastering.luminance:
        parts.append(f"{display}={_points(mastering, lambda value, unit: str(round(value * unit)))}")
    if mastering.light:
        parts.append(f"{light}={mastering.light[0]},{mastering.light[1]}")
    return parts


def _svt(mastering: Mastering) -> list[str]:
    parts = []
    if mastering.primaries and mastering.luminance:
        parts.append(f"mastering-display={_points(mastering, lambda value, _: f'{float(value):.5f}')}")
    if mastering.light:
        parts.append(f"content-light={mastering.light[0]},{mastering.light[1]}")
    return parts


def refuse_destination(destination: Path, muxers: Mapping[str, str]) -> None:
    """Raise ``OutputError`` for a name that no video is written under."""
    if destination.suffix.lower() not in muxers:
        raise OutputError(f"cannot write {destination}: expected {', '.join(muxers)}, or a folder without a suffix")
