"""Bundles on pairs of a blurred image and a sharp one from files: the user's copy of a data set."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from uid.bench.quality.fidelity import psnr, ssim
from uid.bench.quality.metrics import Score
from uid.bench.quality.perceptual import SMALLEST, gmsd, haarpsi, vif
from uid.bundles.tensors import Array
from uid.errors import InputError
from uid.runtime.media.decode import read_image
from uid.runtime.media.formats import is_image_path
from uid.runtime.pixels import in_dtype, to_float

BLURRED, SHARP = "blurred", "sharp"
FOLDERS = {BLURRED: ("blur", "blurred", "blurry", "input"), SHARP: ("sharp", "gt", "target")}  # of data sets
LEFT_OUT = "blur_gamma"  # of GoPro: the same images once more
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that exchange height and width
NAMED = 3  # names that an error lists


@dataclass(frozen=True)
class Pair:
    """A blurred image and its sharp one; both of one size."""

    name: str  # what their paths have in common
    blurred: Path
    sharp: Path


# -- finding ----------------------------------------------------------------------------------------------------------


def find_pairs(blurry: Path, sharp: Path) -> list[Pair]:
    """Every image of a folder with the image of the same name in another one, in order; subfolders count.

    The same name: the path below the folder, whatever its suffix, and without folders called ``FOLDERS``. Both may be
    one folder that has such folders, as GoPro's ``scene/blur/000001.png`` beside ``scene/sharp/000001.png`` and
    RealBlur's ``scene/blur/blur_1.png`` beside ``scene/gt/gt_1.png``. Raises ``InputError`` for images without a
    partner, for sizes that differ, and where there are none.
    """
    together = blurry.resolve() == sharp.resolve()
    one, other = named(blurry, BLURRED, together), named(sharp, SHARP, together)
    if not one and not other:
        raise InputError(
            f"no images in {blurry} and {sharp}; expected images of the same names in both, or one folder with folders "
            f"{' or '.join(FOLDERS[BLURRED])} and {' or '.join(FOLDERS[SHARP])} in it"
        )
    for mine, theirs, where in ((one, other, sharp), (other, one, blurry)):
        if lonely := [str(mine[name]) for name in mine if name not in theirs]:
            raise InputError(f"{counted(lonely)} without an image of the same name in {where}: {listed(lonely)}")
    pairs = [Pair(name, one[name], other[name]) for name in sorted(one)]
    check_sizes(pairs)
    return pairs


def named(folder: Path, kind: str, together: bool) -> dict[str, Path]:
    """The images of a kind in a folder by what they have in common with their partners'.

    ``together``: both kinds are in it, so that an image is of this kind only if one of its folders says so.
    """
    found: dict[str, Path] = {}
    own, others = set(FOLDERS[kind]), {*FOLDERS[SHARP if kind == BLURRED else BLURRED], LEFT_OUT}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts[:-1]
        ours = not others & set(parts) and not (together and own.isdisjoint(parts))
        if not ours or not is_image_path(path) or not path.is_file():
            continue
        stem = path.stem
        for word in FOLDERS[kind]:
            stem = stem.removeprefix(f"{word}_")
        name = "/".join([*(part for part in parts if part not in FOLDERS[kind]), stem])
        if name in found:
            raise InputError(f"{found[name]} and {path} are two images of one name; expected one of each")
        found[name] = path
    return found


def check_sizes(pairs: Iterable[Pair]) -> None:
    """Raise ``InputError`` for images whose sizes differ, or that are too small to compare."""
    for pair in pairs:
        height, width = size_of(pair.blurred)
        if (height, width) != (other := size_of(pair.sharp)):
            raise InputError(
                f"{pair.blurred} is {height} x {width} pixels and {pair.sharp} {other[0]} x {other[1]}; expected one "
                "size"
            )
        if min(height, width) < SMALLEST:
            raise InputError(f"{pair.blurred} is {height} x {width} pixels; expected {SMALLEST} x {SMALLEST} at least")


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image as it is seen, from the beginning of its file."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in TURNED
    except Exception:  # a format that Pillow does not know, or a damaged file, of which the reader says more
        height, width = read_image(path).pixels.shape[:2]
        turned = False
    return (width, height) if turned else (height, width)


def counted(names: Sequence[str]) -> str:
    """One image, or several."""
    return "1 image is" if len(names) == 1 else f"{len(names)} images are"


def listed(names: Sequence[str]) -> str:
    """The first of the names."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairRow:
    """One method on one pair, its output in 8 bits."""

    pair: str
    method: str
    psnr: float  # dB over the whole image, at most 100
    ssim: float
    haarpsi: float
    gmsd: float
    vif: float
    seconds: float
    height: int  # pixels
    width: int
    metrics: Mapping[str, float]  # learned ones that were asked for
    fid: float | None = None  # of the method over all pairs


Restore = Callable[[Array], Array]  # (H, W, 3) uint8 or uint16 -> the same size


def measure(
    pairs: Iterable[Pair], methods: Mapping[str, Restore], metrics: Mapping[str, Score]
) -> Iterator[tuple[Pair, PairRow, Array]]:
    """Every method on every pair, with its output, (H, W, 3) uint8."""
    for pair in pairs:
        blurred, sharp = read_image(pair.blurred).pixels, to_float(read_image(pair.sharp).pixels)
        for name, method in methods.items():
            started = time.perf_counter()
            output = method(blurred)
            seconds = time.perf_counter() - started
            eight = output if output.dtype == np.uint8 else in_dtype(to_float(output), np.dtype(np.uint8))
            yield pair, scored(pair, name, eight, sharp, seconds, metrics), eight


def scored(
    pair: Pair, method: str, output: Array, sharp: Array, seconds: float, metrics: Mapping[str, Score]
) -> PairRow:
    """The row of an output."""
    image = to_float(output)
    return PairRow(
        pair=pair.name,
        method=method,
        psnr=psnr(image, sharp, border=0),
        ssim=ssim(image, sharp, border=0),
        haarpsi=haarpsi(image, sharp),
        gmsd=gmsd(image, sharp),
        vif=vif(image, sharp),
        seconds=seconds,
        height=image.shape[0],
        width=image.shape[1],
        metrics={name: score(image, sharp) for name, score in metrics.items()},
    )
