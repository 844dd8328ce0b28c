"""``python -m uid.bench.hardware.proof BUNDLE BACKEND SIZE``: whether a backend computes right here.

An image as the backend runs it, captured where it can, twice; the same launch by launch; and ONNX Runtime's on the
CPU. Prints what came of it as JSON. Exit status 1: the images differ.
"""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from uid.bench.speed.latency import agreement, sample_picture
from uid.bundles.manifest import read_bundle
from uid.command import Command
from uid.engines import OneByOne, create
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline

STEPS = 4
RIGHT = 45.0  # dB, which arithmetic in float16 keeps over so few steps


def prove(folder: Path, name: str, height: int, width: int) -> dict[str, Any]:
    """What the images have in common."""
    bundle, image = read_bundle(folder), sample_picture(height, width)
    options = Options(steps=STEPS, transforms=1, tile=2 * max(height, width))
    expected = Pipeline(bundle, create("onnxruntime"))(image, options).image
    backend: Any = create(name, report=click.echo)
    pipeline = Pipeline(bundle, backend)
    results = [pipeline(image, options) for _ in range(2)]
    backend.capture = OneByOne
    launched = Pipeline(bundle, backend)(image, options).image
    psnr, difference = agreement(results[-1].image, expected)
    return {
        "backend": name,
        "bundle": bundle.name,
        "size": f"{height}x{width}",
        "steps": STEPS,
        "psnr": psnr,
        "max_difference": difference,
        "captured": results[-1].captured,
        "same_each_time": np.array_equal(results[0].image, results[1].image),
        "same_launch_by_launch": np.array_equal(results[-1].image, launched),
    }


@click.command(cls=Command, extra="bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("backend")
@click.argument("size", metavar="HEIGHTxWIDTH")
@click.pass_context
def main(ctx: click.Context, bundle: Path, backend: str, size: str) -> None:
    """Print whether BACKEND computes BUNDLE's image right, and whether its replay is what its launches give."""
    found = prove(bundle, backend, *(int(side) for side in size.split("x")))
    click.echo(json.dumps(found))
    right = found["psnr"] >= RIGHT and found["same_each_time"] and found["same_launch_by_launch"]
    ctx.exit(0 if right else 1)


if __name__ == "__main__":
    main()
