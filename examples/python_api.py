"""Sharpen one image from Python, and say how: python examples/python_api.py [IMAGE [OUTPUT]]."""

import sys
from dataclasses import replace
from pathlib import Path

from uid.runtime import Options, load
from uid.runtime.media.decode import read_image
from uid.runtime.media.encode import write_image

EXAMPLE = Path(__file__).with_name("astronaut_blurred.jpg")


def main(source: Path = EXAMPLE, destination: Path = Path("sharp.png")) -> None:
    """Read, sharpen and write; alpha, EXIF and ICC are kept."""
    pipeline = load()  # the built-in bundle on the first backend that works
    image = read_image(source)  # image.pixels: (H, W, 3) RGB, uint8 or uint16, upright
    result = pipeline(image.pixels, Options(preset="fast", seed=1))
    write_image(replace(image, pixels=result.image), destination)
    used = result.options
    print(f"{result.backend}: {used.steps} steps, {used.transforms} transforms, {sum(result.seconds.values()):.2f} s")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
