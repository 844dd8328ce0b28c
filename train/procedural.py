"""Made images to train on where no photos may be used: dead leaves, as seen through a camera.

Opaque shapes with radii of density r^-3 cover one another, which gives images the occlusions and the scale invariance
of photos (Lee, Mumford and Huang, 2001). Each leaf has its own colour, taken after the leaf it lies upon, its own
shading and its own texture. The scene is painted at twice the size as a map of leaf numbers, coloured in linear light,
reduced by area, and brought through a lens that is sharp at one depth only. `uid.train.statistics` holds the images
against photos.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uid.train.blur import to_srgb

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Labels = NDArray[np.int32]
Random = np.random.Generator

SCALE = 2  # pixels are painted at this multiple, so that edges are antialiased as a sensor's
CORNERS = 48  # of a leaf's outline; divisible by 3, 4 and 6, so that regular polygons keep their corners
SUBPIXEL = 4  # fractional bits of the coordinates handed to OpenCV
LEAVES_PER_PIXEL = 1 / 75  # at most; the smallest leaves of an image that needs more are left out
NOISE_SIDE = 256  # of the periodic tile that textures are cut from
GLYPHS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789&%?!+-"))

# Ruderman, Cronin and Chiao (1998): lightness, yellow against blue, and red against green, in log10 LMS.
OPPONENT_TO_LOG_LMS = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
WARMTH = 0.2  # red per yellow: in photos the two go together, from skin and wood to sky and shade
LMS_TO_RGB = np.array([[4.4679, -1.2186, 0.0497], [-3.5873, 2.3809, -0.2439], [0.1193, -0.1624, 1.2045]])


@dataclass(frozen=True)
class Scene:
    """Leaves numbered from the hindmost; leaf 0 is the ground behind all others."""

    labels: Labels  # (height, width) the leaf seen at each painted pixel
    centre: Floats  # (n, 2) x and y in painted pixels
    radius: Floats  # (n,) in painted pixels
    parent: Labels  # (n,) the leaf that each was laid upon, an earlier one


def procedural_image(rng: Random, height: int, width: int) -> Floats:
    """One image, (height, width, 3) float32 sRGB in [0, 1]; the generator's state decides every pixel.

    Both sides should be at least 16; leaves keep their size in pixels, so that a larger image shows more of them.
    """
    scene = paint(rng, SCALE * height, SCALE * width)
    tone = np.exp(shading(rng, scene) + texture(rng, scene))
    light = albedo(rng, scene)[scene.labels] * tone[..., None]
    light = cv2.resize(light, (width, height), interpolation=cv2.INTER_AREA)
    depth = (scene.labels[::SCALE, ::SCALE] / np.float32(len(scene.radius))).astype(np.float32)
    light *= illumination(rng, depth)[..., None]
    light *= np.exp(rng.normal(-1.7, 0.5)) / light.mean()  # the camera's automatic exposure, seldom quite right
    return to_srgb(lens(rng, light + lamps(rng, height, width), depth))


def one_of(rng: Random, *values: float) -> float:
    """One of a few values, so that images differ from one another in kind and not only in detail."""
    return values[rng.integers(len(values))]


# -- shapes -----------------------------------------------------------------------------------------------------------


def paint(rng: Random, height: int, width: int) -> Scene:
    """Leaves laid from back to front, the large ones mostly first, on a ground that fills (height, width)."""
    radius = radii(rng, height, width)
    centre = centres(rng, len(radius), height, width)
    outline = outlines(rng, radius, centre)
    text = rng.random(len(radius)) < one_of(rng, 0, 0, 0.1) * (radius > 12)
    inside = np.clip(centre, 0, [width - 1, height - 1]).astype(int).tolist()
    labels: Labels = np.zeros((height, width), np.int32)
    parent = np.zeros(len(radius), np.int32)
    for leaf in range(1, len(radius)):
        x, y = inside[leaf]
        parent[leaf] = labels[y, x]
        if text[leaf]:
            write(rng, labels, leaf, (x, y), radius[leaf])
        else:
            cv2.fillPoly(labels, [outline[leaf]], leaf, shift=SUBPIXEL)
    return Scene(labels, centre, radius, parent)


def radii(rng: Random, height: int, width: int) -> Floats:
    """Radii of density r^-3 between the image's own smallest and its size, as many as cover it about once."""
    most = 0.5 * max(height, width)
    least = np.exp(rng.uniform(np.log(2.5), np.log(min(14, most / 2))))
    mean_area = 2 * np.pi * least**2 * np.log(most / least)
    count = min(rng.uniform(0.6, 2) / mean_area, LEAVES_PER_PIXEL / SCALE**2) * height * width
    small = (least**-2 - rng.random(int(count)) * (least**-2 - most**-2)) ** -0.5
    large = most * np.exp(-rng.exponential(0.8, rng.integers(3, 16)))
    radius = np.concatenate([small, large])
    order = np.argsort(-np.log(radius) + rng.normal(0, 0.6, len(radius)))
    return np.concatenate([[most], radius[order]]).astype(np.float32)


def centres(rng: Random, count: int, height: int, width: int) -> Floats:
    """(count, 2) positions that gather in parts of the image and leave others empty, as detail does in photos."""
    cells = np.exp(rng.uniform(0, 2.2) * cv2.resize(rng.normal(size=(4, 4)), (16, 16), interpolation=cv2.INTER_CUBIC))
    cell = rng.choice(cells.size, count, p=(cells / cells.sum()).ravel())
    corner = np.stack([cell % 16, cell // 16], axis=1)
    return ((corner + rng.random((count, 2))) / 16 * [width, height]).astype(np.float32)


def outlines(rng: Random, radius: Floats, centre: Floats) -> Labels:
    """(n, CORNERS, 2) fixed-point outlines: discs, polygons, rectangles and blobs, stretched, bent and turned."""
    n = len(radius)
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    polar = regular_polygons(rng, n, angle) * np.exp(one_of(rng, 0, 0.15, 0.4) * waves(rng, n, angle))
    slender = (rng.random(n) < one_of(rng, 0, 0.1, 0.4)) * rng.uniform(1, 2, n)  # twigs, wires, cracks
    stretch = np.exp(np.abs(rng.normal(0, 0.4, n)) + slender)[:, None]
    x, y = polar * np.cos(angle) * stretch, polar * np.sin(angle) / stretch
    y = y + rng.normal(0, 0.1, (n, 1)) * x**2 / stretch
    turn = rng.uniform(0, np.pi) + rng.normal(0, one_of(rng, 0.02, 0.3, 3), n) + np.pi / 2 * rng.integers(0, 2, n)
    point = (x + 1j * y) * (np.exp(1j * turn) * radius)[:, None]
    corner = np.stack([point.real, point.imag], axis=2) + centre[:, None]
    outline: Labels = np.rint(corner * 2**SUBPIXEL).astype(np.int32)
    return outline


def regular_polygons(rng: Random, n: int, angle: Doubles) -> Doubles:
    """(n, CORNERS) polar radii of discs, triangles, squares and hexagons, in shares of the image's own."""
    sides = rng.choice([CORNERS, 3, 4, 6], n, p=rng.dirichlet([0.8, 0.8, 1.6, 0.8])).astype(np.float64)[:, None]
    sector = np.pi / sides
    return np.cos(sector) / np.cos(angle % (2 * sector) - sector)


def waves(rng: Random, n: int, angle: Doubles) -> Doubles:
    """(n, CORNERS) smooth periodic noise along the outlines."""
    order = np.arange(2, 6)
    wave = np.cos(order[:, None] * angle + rng.uniform(0, 2 * np.pi, (n, 4, 1)))
    noise: Doubles = (rng.normal(size=(n, 4, 1)) / order[:, None] * wave).sum(axis=1)
    return noise


def write(rng: Random, labels: Labels, leaf: int, at: tuple[int, int], radius: float) -> None:
    """A few letters about as high as the radius, from `at` to the right, as one leaf."""
    word = "".join(rng.choice(GLYPHS, rng.integers(1, 10)))
    mask = np.zeros(labels.shape, np.uint8)
    font = int(one_of(rng, cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX))
    cv2.putText(mask, word, at, font, radius / 22, 1, max(1, int(radius / rng.uniform(3, 10))))
    labels[mask > 0] = leaf


# -- surfaces ---------------------------------------------------------------------------------------------------------


def albedo(rng: Random, scene: Scene) -> Floats:
    """(n, 3) linear RGB of the leaves: each is near its parent's colour, moved towards one of a few materials'."""
    n = len(scene.radius)
    spread = np.array([rng.uniform(0.5, 0.9), rng.uniform(0.05, 0.18), rng.uniform(0.003, 0.02)])
    materials = rng.laplace(size=(8, 3)) * spread
    opponent = 0.6 * materials[rng.integers(0, 8, n)] + 0.5 * rng.laplace(size=(n, 3)) * spread
    average = np.array([-1.4, rng.normal(0.22, 0.18), rng.normal(0.01, 0.006)])
    kept = rng.uniform(0.4, 0.9)  # of a parent's departure from the average, by its children
    for leaf in range(1, n):
        opponent[leaf] += kept * opponent[scene.parent[leaf]]
    opponent += average
    opponent[:, 2] += WARMTH * opponent[:, 1]
    lms = 10 ** np.clip(opponent @ OPPONENT_TO_LOG_LMS, -2.5, 0)
    rgb: Floats = np.clip(lms @ LMS_TO_RGB, 0.002, 1).astype(np.float32)
    return rgb


def shading(rng: Random, scene: Scene) -> Floats:
    """(height, width) log of the light that each leaf's slant and roundness reflect."""
    n = len(scene.radius)
    slant = rng.normal(0, rng.uniform(0.05, 0.4), (n, 3)).astype(np.float32)
    slant[:, :2] /= scene.radius[:, None]
    slant[:, 2] = -np.abs(slant[:, 2]) / scene.radius**2
    x, y = leaf_coordinates(scene)
    a, b, c = (slant[:, i][scene.labels] for i in range(3))
    return np.clip(a * x + b * y + c * (x * x + y * y), -1.5, 1.5)


def texture(rng: Random, scene: Scene) -> Floats:
    """(height, width) log of what each leaf's own texture reflects: noise, on some leaves stripes or checks."""
    n = len(scene.radius)
    strength = one_of(rng, 0.07, 0.15, 0.3) * np.exp(rng.normal(0, 0.8, n))
    turn, zoom = rng.uniform(0, 2 * np.pi, n), np.exp(-np.abs(rng.normal(0, 0.7, n)))
    squeeze = np.exp(-np.abs(rng.normal(0, one_of(rng, 0.1, 1), n)))  # below 1: wood, fur, grass
    leaf = np.stack([zoom * np.cos(turn), zoom * np.sin(turn), rng.uniform(0, NOISE_SIDE, n), squeeze, strength])
    cos, sin, start, across, amplitude = (values[scene.labels] for values in leaf.astype(np.float32))
    x, y = leaf_coordinates(scene)
    u, v = cos * x + sin * y + start, across * (cos * y - sin * x) + start
    wrapped = cv2.remap(noise_tile(rng), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    result = np.asarray(wrapped, np.float32)
    kind = (rng.random(n) < one_of(rng, 0, 0.05, 0.2)) * rng.integers(1, 3, n)  # 1: stripes, 2: checks
    regular = kind[scene.labels] > 0
    u, v, checked = u[regular], v[regular], kind[scene.labels[regular]] == 2
    stripes = np.sin(0.5 * u)
    result[regular] += 2 * np.where(checked, np.sign(stripes * np.sin(0.5 * v)), stripes)
    result *= amplitude
    return result


def noise_tile(rng: Random) -> Floats:
    """A periodic square of noise of standard deviation 1, its amplitude falling as a power of the frequency."""
    frequency = np.hypot(np.fft.fftfreq(NOISE_SIDE)[:, None], np.fft.rfftfreq(NOISE_SIDE))
    frequency[0, 0] = np.inf
    white = rng.standard_normal((NOISE_SIDE, NOISE_SIDE), np.float32)
    noise = np.fft.irfft2(np.fft.rfft2(white) * frequency ** -rng.uniform(0.6, 1.4))
    tile: Floats = (noise / noise.std()).astype(np.float32)
    return tile


def leaf_coordinates(scene: Scene) -> tuple[Floats, Floats]:
    """(height, width) x and y of each pixel from the centre of the leaf seen there, in painted pixels."""
    height, width = scene.labels.shape
    x = np.arange(width, dtype=np.float32) - scene.centre[:, 0][scene.labels]
    y = np.arange(height, dtype=np.float32)[:, None] - scene.centre[:, 1][scene.labels]
    return x, y


# -- light and lens ---------------------------------------------------------------------------------------------------


def illumination(rng: Random, depth: Floats) -> Floats:
    """(height, width) factor of the light that falls on the scene: uneven, and shadowed by the leaves in front."""
    height, width = depth.shape
    uneven = rng.normal(0, rng.uniform(0, 0.5), (3, 3)).astype(np.float32)
    light: Floats = np.exp(cv2.resize(uneven, (width, height), interpolation=cv2.INTER_CUBIC))
    dx, dy = rng.normal(0, 4, 2)
    shifted = cv2.warpAffine(depth, np.array([[1, 0, dx], [0, 1, dy]]), (width, height), borderMode=cv2.BORDER_REFLECT)
    shadow = cv2.GaussianBlur((shifted > depth).astype(np.float32), (0, 0), np.exp(rng.uniform(-0.5, 1.5)))
    light *= 1 - rng.uniform(0, 0.7) * shadow
    return light


def lamps(rng: Random, height: int, width: int) -> Floats:
    """(height, width, 3) light of a few small spots brighter than white; in most images none."""
    light = np.zeros((height, width, 3), np.float32)
    for _ in range(int(one_of(rng, 0, 0, 0, rng.uniform(1, 30)))):
        at = (int(rng.integers(width)), int(rng.integers(height)))
        colour = np.exp(rng.uniform(-0.5, 2) + rng.normal(0, 0.3, 3)).tolist()
        cv2.circle(light, at, int(rng.exponential(1.0)), colour, -1)
    return light


def lens(rng: Random, light: Floats, depth: Floats) -> Floats:
    """The scene through a lens in focus at one depth, and as soft as lenses are even there."""
    softest = one_of(rng, 0, 0, rng.uniform(0, 2.5))  # place in the stack below of what is furthest from the focus
    stack = [cv2.GaussianBlur(light, (0, 0), sigma) for sigma in (rng.uniform(0.2, 0.5), 1.5, 4)]
    distance = np.abs(cv2.GaussianBlur(depth, (0, 0), 1.5) - np.float32(rng.random()))
    level = np.clip(softest * distance, 0, len(stack) - 1)[..., None]
    seen: Floats = np.zeros_like(light)
    for place, image in enumerate(stack):
        seen += np.maximum(0, 1 - np.abs(level - place)) * image
    return seen
