"""What the command lines share."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator

import click

from uid.errors import UIDError


def interval(text: str) -> tuple[float, float]:
    """Start and end as parts of a whole, 0 <= start < end <= 1, from words such as 0.2:0.8; a click type."""
    number = r"(\d+\.?\d*|\.\d+)"
    match = re.fullmatch(f"{number}:{number}", text)
    start, end = (float(match[1]), float(match[2])) if match else (1.0, 0.0)
    if not 0.0 <= start < end <= 1.0:
        raise click.BadParameter(f"{text!r} is no interval; expected START:END, a part of 0:1 such as 0.2:0.8")
    return start, end


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
