"""Steadier video: each frame is blended with the one before, moved to where things are now.

Two frames of one scene show the same with other noise, which a sharpening model amplifies. Their outputs agree better
once they are averaged, where the motion is known: everywhere else, a frame stays as it is. Only the output of the
frame right before is read, so that a run that was interrupted goes on with the same frames.
"""

import cv2
import numpy as np
import numpy.typing as npt

from uid.bundles.tensors import Array

Flow = npt.NDArray[np.float32]  # (H, W, 2): how far back in x and y the frame before shows what is here, in pixels

LARGE = 512  # pixels of a side above which the motion is searched at half the size
LEAST = 32  # pixels of a side that the flow's coarsest level needs
SHARE = 0.5  # of the frame before in the blend, where the two agree: equal parts have the least noise
TOLERANCE = 4.0 / 255.0  # difference of the inputs, smoothed, at which they agree half as well
SMOOTHING = 1.5  # pixels, of those differences
CUT = 0.3  # correlation of two frames below which they are of different scenes


def luma_of(frame: Array) -> Array:
    """(H, W) uint8 of (H, W, 3) RGB, uint8 or uint16."""
    luma = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
    return luma if luma.dtype == np.uint8 else (luma // 257).astype(np.uint8)


def flow_between(before: Array, now: Array) -> Flow:
    """The motion from ``now`` back to ``before``, (H, W) uint8 luma each: OpenCV's dense inverse search.

    Large frames are searched at half their size, which finds the same motion in a third of the time.
    """
    height, width = now.shape
    if min(height, width) > LARGE:
        half = (width // 2, height // 2)
        small = flow_between(*(cv2.resize(one, half, interpolation=cv2.INTER_AREA) for one in (before, now)))
        return enlarged(small, height, width)
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(search.calc(now, before, np.zeros((height, width, 2), np.float32)), np.float32)


def enlarged(flow: Flow, height: int, width: int) -> Flow:
    """The same motion for larger frames."""
    factors = np.array([width / flow.shape[1], height / flow.shape[0]], np.float32)
    larger: Flow = np.asarray(cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR)) * factors
    return larger


def moved(image: Array, flow: Flow, interpolation: int = cv2.INTER_CUBIC) -> Array:
    """``image``, (H, W) or (H, W, C), as it looks after the motion; its edge goes on beyond the frame."""
    height, width = flow.shape[:2]
    columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    places = flow[..., 0] + columns, flow[..., 1] + rows
    return np.asarray(cv2.remap(image, *places, interpolation, borderMode=cv2.BORDER_REPLICATE))


def agreement(before: Array, now: Array, flow: Flow) -> Flow:
    """From 0 to 1, how well ``now`` agrees with ``before`` after the motion; (H, W, 3) uint8 or uint16 each."""
    difference = cv2.subtract(moved(before, flow, cv2.INTER_LINEAR), now, dtype=cv2.CV_32F)
    difference = np.abs(cv2.GaussianBlur(difference, (0, 0), SMOOTHING)).max(axis=2)  # noise of both signs cancels
    weight: Flow = np.exp2(-((difference / (TOLERANCE * np.iinfo(now.dtype).max)) ** 2))
    height, width = weight.shape
    x, y = flow[..., 0] + np.arange(width), flow[..., 1] + np.arange(height)[:, None]
    weight[(x < 0) | (y < 0) | (x > width - 1) | (y > height - 1)] = 0.0  # it comes into view
    return weight


def same_scene(before: Array, now: Array) -> bool:
    """Whether two frames, (H, W) luma, are of one scene: their small pictures correlate."""
    small = [cv2.resize(one, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float64) for one in (before, now)]
    first, second = (one - one.mean() for one in small)
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return bool(scale == 0.0 or (first * second).sum() > CUT * scale)


class Steadied:
    """Blends sharpened frames, in order, each with the one before; a new scene begins anew."""

    def __init__(self) -> None:
        self._before: tuple[Array, Array] | None = None  # input and output

    def __call__(self, frame: Array, made: Array) -> Array:
        """The next frame's output; (H, W, 3) RGB, uint8 or uint16. ``made`` is sharpened, as large or larger."""
        before, self._before = self._before, (frame, made)
        if before is None or before[0].shape != frame.shape or min(frame.shape[:2]) < LEAST:
            return made
        return blended(*before, frame, made)


def blended(frame_before: Array, made_before: Array, frame: Array, made: Array) -> Array:
    """An output with its part of the one before, each given with its input."""
    lumas = luma_of(frame_before), luma_of(frame)
    if not same_scene(*lumas):
        return made
    flow = flow_between(*lumas)
    weight = SHARE * agreement(frame_before, frame, flow)
    height, width = made.shape[:2]
    if made.shape != frame.shape:
        flow = enlarged(flow, height, width)
        weight = np.asarray(cv2.resize(weight, (width, height), interpolation=cv2.INTER_LINEAR))
    past = moved(made_before, flow)
    if made.dtype == np.uint8:
        return np.asarray(cv2.blendLinear(made, past, 1.0 - weight, weight))
    newest = made.astype(np.float32)
    mixed = newest + weight[..., None] * (past.astype(np.float32) - newest)
    return np.rint(mixed).clip(0, np.iinfo(made.dtype).max).astype(made.dtype)
