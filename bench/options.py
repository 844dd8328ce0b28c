"""Options that several commands of ``uid-bench`` share."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

OUTPUT = click.Path(path_type=Path, dir_okay=False)


def size_type(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Height and width in pixels; the two separated as in 480x640."""
    sizes = []
    for value in values:
        match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", value)
        if match is None:
            raise click.BadParameter(
                f"{value!r} is not a size; expected HEIGHTxWIDTH such as 480x640, or a square's side"
            )
        sizes.append((int(match[1]), int(match[2] or match[1])))
    return tuple(dict.fromkeys(sizes))


def one_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """One height and width, or None."""
    return None if value is None else size_type(ctx, param, [value])[0]


def options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown in this order."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


MODEL = click.option(
    "-m", "--model", type=click.Path(path_type=Path), metavar="BUNDLE", help="Default: the built-in one."
)

SIZES = click.option(
    "--size",
    "sizes",
    multiple=True,
    callback=size_type,
    metavar="HxW",
    help="Of the image; repeat for more.  Default: 512x512, or the bundle's tile.",
)

OUTPUT_ROWS = click.option(
    "-o", "--output", type=OUTPUT, metavar="FILE.jsonl", help="One JSON object per image, written as it is made."
)

CHECKPOINT = click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="What the bundle was exported from: PyTorch runs too, and every image is held against its.",
)

THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads.  Default: every core that may be used."
)

RUNS = options(
    MODEL,
    CHECKPOINT,
    click.option(
        "--backend",
        "backends",
        multiple=True,
        metavar="NAME",
        help="Repeat for more; with --checkpoint also pytorch-fp16, pytorch-fp16-channels-last, pytorch-compiled and "
        "pytorch-fp16-compiled (which takes minutes).  Default: all that work here.",
    ),
    SIZES,
    THREADS,
    OUTPUT_ROWS,
)

STEPS = click.option(
    "--steps",
    multiple=True,
    type=click.IntRange(min=1),
    help="Denoising steps; repeat for more.  Default: the bundle's.",
)

REPEATS = options(
    click.option("--repeats", type=click.IntRange(min=1), default=7, show_default=True, help="Images that count."),
    click.option("--warm-up", type=click.IntRange(min=0), default=2, show_default=True, help="Images before them."),
)

TILE = click.option(
    "--tile", type=click.IntRange(min=1), help="Run images in tiles of this side, as `uid-run` does.  Default: whole."
)

PLOT = click.option("--plot", "plotted", type=OUTPUT, metavar="FILE.png", help="Times as an image.")
