"""A model of Triton's Python backend that runs whole images: the pipeline, with a Triton model for each component.

``uid-export triton`` writes the repository that it is part of. It has not run on a server.
"""

import json
from pathlib import Path
from typing import Any

import click
import triton_python_backend_utils as utils

from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import IMAGE, OUTPUT
from uid.engines.triton import TritonBackend
from uid.errors import InputError, UIDError
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline
from uid.serve.parameters import MADE, chosen, options_of
from uid.serve.work import AbandonedError

BATCH = "batch"  # parameter of the configuration: the most tiles and transforms that run together


class TritonPythonModel:
    """What Triton makes, and calls. A subclass names the folder.

    A request has the tensor ``image``, (H, W, 3) RGB uint8, and those of the mode's further images; the response has
    ``output``, uint8. Its parameters are the options of ``uid-run`` that say how an image is made.
    """

    folder: Path  # has the bundle's manifest and constants

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle. Raises ``BundleError``."""
        config = json.loads(args["model_config"])
        batch = int(config["parameters"][BATCH]["string_value"])
        bundle = read_bundle(self.folder, graphs=False)
        self.pipeline = Pipeline(bundle, TritonBackend(utils, args["model_name"], batch))

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response to each request, in order: the sharp image, or an error that tells what is wrong."""
        return [self.response(request) for request in requests]

    def response(self, request: Any) -> Any:
        """The response to one request."""
        kind = utils.TritonError
        try:
            return utils.InferenceResponse([utils.Tensor(OUTPUT, self.sharpened(request))])
        except AbandonedError:
            error = kind("nobody waits for the image any more", kind.CANCELLED)
        except click.UsageError as wrong:
            error = kind(wrong.format_message(), kind.INVALID_ARG)
        except InputError as wrong:
            error = kind(str(wrong), kind.INVALID_ARG)
        except UIDError as failed:
            error = kind(str(failed), kind.INTERNAL)
        return utils.InferenceResponse(output_tensors=[], error=error)

    def sharpened(self, request: Any) -> Any:
        """The output's pixels. Raises ``UIDError``, click's ``UsageError`` and ``AbandonedError``."""

        def on_step(done: int, total: int) -> None:
            if request.is_cancelled():
                raise AbandonedError

        images = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        return self.pipeline(images.pop(IMAGE), options(request.parameters()), on_step=on_step, **images).image


def options(parameters: str) -> Options:
    """The options in a request's parameters, which Triton hands on as JSON, or as "" where there are none.

    Raises ``InputError`` and click's ``UsageError``.
    """
    given = json.loads(parameters or "{}")
    return options_of(chosen([(name, str(value)) for name, value in given.items()], names=MADE))
