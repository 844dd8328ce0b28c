"""What the command lines share."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import click

from uid.errors import UIDError


@contextlib.contextmanager
def plain_errors(extra: str) -> Iterator[None]:
    """Errors that a user can mend, and libraries of an extra that are missing, as one line without a traceback."""
    try:
        yield
    except UIDError as error:
        raise click.ClickException(str(error)) from error
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is not installed: pip install 'uid-runtime[{extra}]'") from error


def quieten_libraries() -> None:
    """Keep the progress bars and notes of torch, diffusers and transformers off the terminal; errors still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch")
