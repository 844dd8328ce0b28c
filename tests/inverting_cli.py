"""``uid-run`` with a pipeline that inverts pixels, which this file runs as a program, and its files."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uid.bundles.declarations import Bundle, Component, Mode
from uid.errors import BackendError
from uid.runtime import pipeline
from uid.runtime.app import cli

DEADLY = 13  # rows of an image that ends its process, as a fault in a library does


class InvertingPipeline:
    """Returns 255 - image; a thousandth of a second per step."""

    backend = "inverter"

    def __init__(self, trained: bool = False) -> None:
        self.bundle = Bundle(
            folder=Path(),
            digest="",
            name="fake",
            family="fake",
            trained=trained,
            precision="fp32",
            size_multiple=4,
            tile=512,
            presets={},
            preset=None,
            steps=2,
            guidance=1.5,
            schedule={"num_train_timesteps": 1_000_000, "timestep_spacing": "leading", "steps_offset": 0},
            components={"step": Component("step", "step.onnx", "step", (), ())},
            modes={"deblur": Mode("", ("step",), {})},
            constants={},
        )

    def __call__(self, image, options, *, on_step=None, **extra) -> pipeline.Result:
        options = options.resolved(self.bundle)
        if image.shape[0] == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        for step in range(options.steps):
            time.sleep(0.001)
            if on_step:
                on_step(step + 1, options.steps)
        return pipeline.Result(
            image=np.iinfo(image.dtype).max - image,
            backend=self.backend,
            options=options,
            height=image.shape[0],
            width=image.shape[1],
            seconds={"prepare": 0.25, "step": 0.5, "finish": 0.25},
        )


def load(
    bundle: Path | None = None, *, backend: str = "auto", threads: int | None = None, report: Any = None
) -> InvertingPipeline:
    if backend != "auto":
        raise BackendError(f"no backend {backend}; expected auto")
    return InvertingPipeline()


def pixels(seed: int = 0, height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def draw(path: Path | str, seed: int = 0, height: int = 32) -> np.ndarray:
    """Write an image and return its pixels."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, height)).save(path)
    return pixels(seed, height)


def shown(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path))


def tree(folder: Path | str) -> list[str]:
    """Every file under ``folder``, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


if __name__ in ("__main__", "__mp_main__"):  # the latter: a worker
    pipeline.load = load  # type: ignore[assignment]  # the stand-in, as in the fixture
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner in the background ignores it
    cli.main()
