"""Run a bundle on images and video, without torch.

from uid.runtime import load

load()("blurred.jpg").save("sharp.jpg")
sharp = load()(image).image

``options``     what a user may choose, and the result
``pipeline``    a bundle on a backend: call it on an image
``sources``     images as callers have them: arrays, files, Pillow's
``run``         one image within fixed limits: transforms, tiles, batches
``layout``, ``transforms``, ``pixels``, ``schedule``   pure functions that a run uses
``plan``        buffers and launches for one size; what a backend captures
``media/``      image and video files
``app/``        the command line ``uid-run``
"""

from uid.errors import (
    BackendError,
    BundleError,
    InputError,
    ModelError,
    OutOfMemoryError,
    OutputError,
    UIDError,
)
from uid.runtime.options import Options, Result
from uid.runtime.pipeline import Pipeline, load

__all__ = [
    "BackendError",
    "BundleError",
    "InputError",
    "ModelError",
    "Options",
    "OutOfMemoryError",
    "OutputError",
    "Pipeline",
    "Result",
    "UIDError",
    "load",
]
