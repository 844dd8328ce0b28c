"""Images side by side, each under its caption."""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from uid.bench.quality.comparison import Comparison
from uid.bench.quality.gates import NO_DIFFUSION, is_gate
from uid.train.blur import RgbImage
from uid.train.held_out import NO_KERNEL

SHEET_PHOTOS = 4
CELL = 256  # pixels of a photo's middle that a cell shows, unscaled
CAPTION = 20  # pixels above them


def contact_sheet(comparisons: Iterable[Comparison]) -> NDArray[np.uint8]:
    """One row per photo, its first case: sharp, each method, and no diffusion. (H, W, 3) RGB uint8."""
    shown: dict[str, Comparison] = {}
    for comparison in comparisons:
        if comparison.case.kernel != NO_KERNEL and len(shown) < SHEET_PHOTOS:
            shown.setdefault(comparison.case.photo, comparison)
    return np.concatenate([_sheet_row(comparison) for comparison in shown.values()])


def _sheet_row(comparison: Comparison) -> NDArray[np.uint8]:
    case = comparison.case
    cells = [cell(case.sharp, f"{case.photo}, {case.kernel}")]
    shown = [row for row in comparison.rows if not is_gate(row.method) or row.method == NO_DIFFUSION]
    cells += [cell(comparison.images[row.method], f"{row.method}  {row.psnr:.1f} dB") for row in shown]
    return np.concatenate(cells, axis=1)


def cell(image: RgbImage, caption: str) -> NDArray[np.uint8]:
    """The middle of an image under its caption."""
    top, left = ((size - CELL) // 2 for size in image.shape[:2])
    cell = np.zeros((CAPTION + CELL, CELL, 3), np.uint8)
    cell[CAPTION:] = np.rint(image[top : top + CELL, left : left + CELL] * 255.0)
    cv2.putText(cell, caption, (4, CAPTION - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return cell
