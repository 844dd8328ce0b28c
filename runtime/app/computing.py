"""What computes the images of a run: a pipeline in this process, or others elsewhere that it gives them to."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from uid.bundles.declarations import Bundle
from uid.runtime.app.settings import RunSettings
from uid.runtime.options import Options, check_inputs

if TYPE_CHECKING:
    from uid.bundles.tensors import Array
    from uid.runtime.options import Result

# "module:function" of what lies above the runtime: given settings, a bundle and a report, it returns an ``Elsewhere``.
CLUSTER = "uid.serve.actors:spread"


class Computing(Protocol):
    """What a run needs of a pipeline; threads may share one."""

    @property
    def bundle(self) -> Bundle:
        """The model."""

    @property
    def backend(self) -> str:
        """Name of the backend that runs."""

    def __call__(
        self, image: "Array", options: Options, *, on_step: Callable[[int, int], None] | None = None, **extra: Any
    ) -> "Result":
        """As ``Pipeline``."""


class Elsewhere(Computing, Protocol):
    """Computes in other processes, several images at once, when several threads call it."""

    at_once: int  # images that are computed at the same time

    def close(self) -> None:
        """Let go of the other processes."""


def loaded(settings: RunSettings, report: Callable[[str], None]) -> Computing:
    """What computes as the settings say, able to do it. Raises ``UIDError`` where there is none."""
    made = _here(settings, report) if settings.cluster is None else _elsewhere(settings, report)
    options = settings.options.resolved(made.bundle)
    check_inputs(made.bundle, options.mode, settings.extra_images)
    if not made.bundle.trained:
        report(f"warning: the weights of bundle {made.bundle.name} are random: no output is a deblurred image")
    return made


def at_once(computing: Computing) -> int:
    """How many images are computed at the same time."""
    return int(getattr(computing, "at_once", 1))


def close(computing: Computing) -> None:
    """Let go of what computes."""
    getattr(computing, "close", lambda: None)()


def _here(settings: RunSettings, report: Callable[[str], None]) -> Computing:
    from uid.runtime.app.devices import backend_on, spread
    from uid.runtime.pipeline import load

    backend = backend_on(spread(settings.device, 1)[0], settings.backend)
    return load(settings.model, backend=backend, threads=settings.threads, report=report)


def _elsewhere(settings: RunSettings, report: Callable[[str], None]) -> Computing:
    module, _, name = CLUSTER.partition(":")
    made: Computing = getattr(importlib.import_module(module), name)(settings, report)
    return made
