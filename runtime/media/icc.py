"""ICC colour profiles: for which pixels one is, and the one of the same curve for grey or for RGB.

Where three channels are equal, an RGB profile and a grey one of the same curve give the same light (ICC.1, F.2
and F.3). So a grey image keeps its look where a format has only colours, and where its file has the
wrong kind of profile.
"""

import struct

GREY, RGB, CMYK = b"GRAY", b"RGB ", b"CMYK"
SPACES = {1: GREY, 3: RGB, 4: CMYK}  # by channels
HEADER = 128
# sRGB's primaries under D50, which any RGB profile may have as far as grey goes.
COLORANTS = {
    b"rXYZ": (0.43607, 0.22249, 0.01392),
    b"gXYZ": (0.38515, 0.71687, 0.09708),
    b"bXYZ": (0.14307, 0.06061, 0.71410),
}
CURVES = {GREY: (b"kTRC",), RGB: (b"rTRC", b"gTRC", b"bTRC")}
KEPT = (b"desc", b"cprt", b"wtpt")


def space(icc: bytes) -> bytes | None:
    """The colour space of the pixels that a profile is for; None where it is no profile."""
    return icc[16:20] if len(icc) > HEADER + 4 and icc[36:40] == b"acsp" else None


def fitted(icc: bytes, wanted: bytes) -> bytes | None:
    """A profile for ``wanted`` (GREY or RGB) that gives grey pixels the light that ``icc`` gives them.

    None where there is none: for a profile that has tables instead of a curve, or different curves for its colours.
    """
    found = space(icc)
    if found == wanted:
        return icc
    tags = _tags(icc)
    curves = {tags.get(name) for name in CURVES.get(found or b"", ())}
    curve = next(iter(curves), None)
    if len(curves) != 1 or curve is None or icc[20:24] != b"XYZ " or any(name[:1] == b"A" for name in tags):
        return None
    made = {name: tags[name] for name in KEPT if name in tags} | dict.fromkeys(CURVES[wanted], curve)
    if wanted == RGB:
        made |= {name: b"XYZ \0\0\0\0" + _fixed(xyz) for name, xyz in COLORANTS.items()}
    return _packed(icc[:HEADER], wanted, made)


def _tags(icc: bytes) -> dict[bytes, bytes]:
    """The content of each tag that lies within the profile."""
    (count,) = struct.unpack_from(">I", icc, HEADER)
    places = [
        struct.unpack_from(">4sII", icc, at)
        for at in range(HEADER + 4, min(HEADER + 4 + 12 * count, len(icc) - 11), 12)
    ]
    return {name: icc[start : start + size] for name, start, size in places if start + size <= len(icc)}


def _fixed(values: tuple[float, ...]) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65_536) for value in values))


def _packed(header: bytes, wanted: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body, at = b"", b"", HEADER + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    changed = struct.pack(">I", at + len(body)) + header[4:16] + wanted + header[20:84] + bytes(16) + header[100:]
    return changed + struct.pack(">I", len(tags)) + table + body
