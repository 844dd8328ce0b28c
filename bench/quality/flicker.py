"""How steady a video comes out, and how good: ways to treat the noise of the sampler and of the camera, compared.

Scenes are made from held-out photos, so that the true motion and the sharp frames are known.
``python -m uid.bench.quality.flicker`` prints the table of docs/quality.md.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean

import cv2
import numpy as np

from uid.bundles.tensors import Array
from uid.runtime import Options, load
from uid.runtime.pipeline import Pipeline
from uid.runtime.temporal import Steadied, flow_between, moved
from uid.train.blur import UNKNOWN_KERNELS, RgbImage
from uid.train.held_out import held_out

PHOTOS = ("astronaut", "coffee", "motorcycle_left", "china")
SIDE = 192  # pixels of a frame
FRAMES = 8
CAMERA_NOISE = 2.0 / 255.0  # standard deviation, new in each frame
BORDER = 16
PAN = (2.3, 0.8)  # pixels a frame in x and y
OBJECT = (-3.6, 1.7)


@dataclass(frozen=True)
class Clip:
    """Frames of a known scene."""

    sharp: list[RgbImage]
    seen: list[Array]  # uint8: blurred, with noise
    flows: list[Array]  # from each frame but the first back to the one before, (H, W, 2)


def crop(photo: RgbImage, x: float, y: float) -> RgbImage:
    """The part of a photo at a fraction of a pixel."""
    centre = x + (SIDE - 1) / 2, y + (SIDE - 1) / 2
    return np.asarray(cv2.getRectSubPix(photo, (SIDE, SIDE), centre))


def clip(scene: str, photo: RgbImage, seed: int) -> Clip:
    """A scene: "still", "pan", or an "object" of the photo's other corner that moves in front of it."""
    rng = np.random.default_rng(seed)
    psf = list(UNKNOWN_KERNELS.values())[seed % len(UNKNOWN_KERNELS)](rng)
    row, column = np.indices((SIDE, SIDE), np.float32)
    sharp, seen, flows = [], [], []
    for t in range(FRAMES):
        pan = PAN if scene == "pan" else (0.0, 0.0)
        image = crop(photo, 8 + t * pan[0], 8 + t * pan[1])
        field = np.zeros((SIDE, SIDE, 2), np.float32) + np.asarray(pan, np.float32)
        if scene == "object":
            x, y = 120 + t * OBJECT[0], 70 + t * OBJECT[1]
            disc = np.clip(36.5 - np.hypot(column - x, row - y), 0, 1)[..., None]
            face = crop(photo, 150 - t * OBJECT[0], 150 - t * OBJECT[1])
            image = image + disc * (face - image)
            field[disc[..., 0] > 0] = -np.asarray(OBJECT, np.float32)
        sharp.append(image)
        noisy = cv2.filter2D(image, -1, psf, borderType=cv2.BORDER_REFLECT) + rng.normal(0, CAMERA_NOISE, image.shape)
        seen.append(np.round(noisy.clip(0, 1) * 255).astype(np.uint8))
        flows.append(field)
    return Clip(sharp, seen, flows[1:])


def ways(pipeline: Pipeline) -> Iterator[tuple[str, Callable[[list[Array]], list[Array]]]]:
    """The treatments, each from the frames of a clip to its outputs."""

    def seeded(frame: Array, seed: int) -> Array:
        return pipeline(frame, Options(seed=seed)).image

    def following(frames: list[Array]) -> list[Array]:
        made, noise = [], dict(noise_of(pipeline, frames[0]))
        for before, now in zip([frames[0], *frames], frames, strict=False):
            noise = {name: carried(array, before, now) for name, array in noise.items()}
            made.append(pipeline(now, noise=noise).image)
        return made

    yield "blurred input", lambda frames: frames
    yield "new noise for each frame", lambda frames: [seeded(frame, t) for t, frame in enumerate(frames)]
    yield "the same noise for all frames", lambda frames: [seeded(frame, 0) for frame in frames]
    yield "noise that follows the motion", following
    yield "blended with the frame before", lambda frames: list(map(Steadied(), frames, [seeded(f, 0) for f in frames]))


def noise_of(pipeline: Pipeline, frame: Array) -> Iterator[tuple[str, Array]]:
    """The noise that a frame is given, by name."""
    from uid.runtime.noise import drawn

    mode = pipeline.bundle.modes["deblur"]
    steps = pipeline(frame).options.steps or 0
    yield from drawn(tuple(mode.noise), *frame.shape[:2], steps, 0).items()


def carried(noise: Array, before: Array, now: Array) -> Array:
    """Noise at latent resolution, moved with the frames and scaled to its variance."""
    lumas = [cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in (before, now)]
    flow = flow_between(*lumas)
    height, width = noise.shape[-2:]
    small = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) * (height / flow.shape[0])
    planes = noise.reshape(-1, height, width)
    followed = np.stack([moved(plane, small) for plane in planes]).reshape(noise.shape)
    return np.ascontiguousarray(followed * (noise.std() / followed.std()), np.float32)


def warping_error(frames: list[Array], flows: list[Array]) -> float:
    """Root mean square, in levels, of each frame less the one before after the true motion."""
    errors = []
    for before, now, flow in zip(frames, frames[1:], flows, strict=False):
        error = now.astype(np.float32) - moved(before, flow).astype(np.float32)
        inner = error[BORDER:-BORDER, BORDER:-BORDER]
        still = np.abs(np.gradient(flow[..., 0])).sum(axis=0)[BORDER:-BORDER, BORDER:-BORDER] == 0
        errors.append(float((inner[still] ** 2).mean()))
    return float(fmean(errors) ** 0.5)


def psnr(frames: list[Array], sharp: list[RgbImage]) -> float:
    """Mean over the frames, in dB."""
    errors = [
        float(((made.astype(np.float32) / 255 - true)[BORDER:-BORDER, BORDER:-BORDER] ** 2).mean())
        for made, true in zip(frames, sharp, strict=True)
    ]
    return fmean(-10 * float(np.log10(error)) for error in errors)


def main() -> None:
    """Print a row for each treatment, with the scenes in columns."""
    pipeline = load()
    scenes = ("still", "pan", "object")
    clips = {scene: [clip(scene, photo, n) for n, photo in enumerate(held_out(PHOTOS).values())] for scene in scenes}
    print("| treatment |" + "".join(f" {scene}: warping error | PSNR |" for scene in scenes))
    print("|---|" + "---|" * (2 * len(scenes)))
    for how, treat in ways(pipeline):
        cells = []
        for scene in scenes:
            made = [(one, treat(one.seen)) for one in clips[scene]]
            cells += [
                f"{fmean(warping_error(frames, one.flows) for one, frames in made):.2f}",
                f"{fmean(psnr(frames, one.sharp) for one, frames in made):.2f}",
            ]
        print(f"| {how} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
