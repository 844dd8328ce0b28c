"""The command line ``uid-run``: sharpen images and videos, or say what works here."""

import importlib
import platform
import sys
from collections.abc import Sequence
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import click

from uid import __version__
from uid.command import RenamedOptions, interval, with_flag
from uid.errors import UIDError
from uid.runtime.app.jobs import Job, plan
from uid.runtime.app.progress import reporter
from uid.runtime.app.runner import FLAGS, JobRunner
from uid.runtime.app.settings import RunSettings
from uid.runtime.media.formats import FORMATS, MAX_PIXELS
from uid.runtime.options import AUTO, Options
from uid.runtime.transforms import TRANSFORMS

CANNOT_RUN = 2  # as click does for wrong usage
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C
EXAMPLES = """\b
Examples:
  uid-run blurred.jpg -o sharp.png
  uid-run photos/ -o sharp/ --skip-existing --keep-going
  uid-run 'shoot/*.tif' -o sharp/ --suffix _sharp --format png
  uid-run clip.mp4 -o sharp.mp4
  uid-run clip.mp4 -o frames/
  uid-run frames/ -o sharp.mp4 --frame-rate 30000/1001
  uid-run - -o - <blurred.png >sharp.png
  uid-run sharp.png -o blurred.png --mode blur-transfer --blur-from shaken.jpg
"""  # \b: click keeps the lines as they are


def _frame_rate(ctx: click.Context, param: click.Parameter, value: str | None) -> Fraction | None:
    """An exact, positive number of frames per second."""
    try:
        rate = None if value is None else Fraction(value)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate is not None and rate <= 0:
        raise click.BadParameter(f"{value!r} is not a frame rate; expected frames per second such as 25 or 30000/1001")
    return rate


def _tile(ctx: click.Context, param: click.Parameter, value: str | None) -> int | Literal["auto"] | None:
    """A side in pixels, or "auto"."""
    if value is None:
        return None
    if value == "auto":
        return "auto"
    if not (value.isdecimal() and int(value) > 0):
        raise click.BadParameter(f"{value!r} is not a tile size; expected a number of pixels, or auto")
    return int(value)


@click.command(cls=RenamedOptions, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", required=True, metavar="OUT", help="File, folder, or - for standard output.")
@click.option(
    "-m", "--model", type=click.Path(path_type=Path), metavar="BUNDLE", help="Bundle to run. Default: the built-in one."
)
@click.option(
    "--backend", default=AUTO, show_default=True, metavar="NAME", help="What computes; `uid-run doctor` lists them."
)
@click.option(
    "--mode", default="deblur", show_default=True, metavar="NAME", help="deblur, blur-transfer, or the bundle's."
)
@click.option(
    "--blur-from",
    type=click.Path(path_type=Path),
    metavar="IMAGE",
    help="Image whose blur is taken; needed by --mode blur-transfer.",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="One of the bundle's: full, balanced or fast for the built-in one. Default: its own.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Denoising steps. Default: the preset's.")
@click.option(
    "--transforms",
    type=click.IntRange(1, TRANSFORMS),
    help="Flipped and transposed copies to run and average (test-time augmentation). Default: the preset's.",
)
@click.option("--guidance", type=click.FloatRange(min=0), help="Classifier-free guidance scale. Default: the bundle's.")
@click.option(
    "--guidance-interval",
    type=interval,
    metavar="START:END",
    default="0:1",
    show_default=True,
    help="Part of the steps to guide, of 0:1; for bundles exported with --shortcuts.",
)
@click.option(
    "--cache-interval",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Feature cache (DeepCache): compute one in N steps in full; for bundles exported with --shortcuts.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the initial noise.")
@click.option(
    "--tile",
    callback=_tile,
    metavar="PIXELS|auto",
    help="Side of a tile; larger images are cut. auto: smaller where memory runs out. Default: the bundle's.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the backend's choice.")
@click.option("--suffix", default="", metavar="TEXT", help="Text added to the name of each output in a folder.")
@click.option("--format", type=click.Choice(list(FORMATS)), help="Format of written images. Default: as the input.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--skip-existing", is_flag=True, help="Leave outputs that exist, and go on.")
@click.option("--recursive/--no-recursive", default=True, show_default=True, help="Whether to look into subfolders.")
@click.option(
    "--frame-rate", callback=_frame_rate, metavar="RATE", help="Frames per second of a video from frames. Default: 25."
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=MAX_PIXELS,
    show_default=True,
    help="Largest image that is read; larger ones are refused before they are decoded.",
)
@click.option("--compare", is_flag=True, help="Write the input to the left of the output.")
@click.option("--keep-going", is_flag=True, help="After a file that failed, do the rest.")
@click.option("--json", is_flag=True, help="Print one JSON object per file on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Show errors only.")
@click.version_option(__version__, prog_name="uid-run")
@click.pass_context
def run(ctx: click.Context, /, blur_from: Path | None, **values: Any) -> None:
    """Sharpen blurred images and videos.

    INPUT is a file, several files, a glob, a folder, or - for one image from standard input. Images are PNG, JPEG,
    WebP, TIFF or BMP. OUT is a file when one file goes in and OUT has an image's or video's suffix, else a folder.

    `uid-run doctor` tells which backends work here, and what to install for the others.

    Exit status: 0 all done, 1 a file failed, 2 wrong usage or nothing can run, 130 interrupted.
    """
    try:
        options = Options(**{option.name: values.pop(option.name) for option in fields(Options)})
        extra = {} if blur_from is None else {"blur_image": blur_from}
        settings = RunSettings(options=options, extra_images=extra, **values)
        jobs = plan(settings.inputs, settings.output, settings.naming, keep=list(settings.extra_images.values()))
        _refuse_unused_options(settings, jobs)
        ctx.exit(_done(settings, jobs))
    except UIDError as error:
        raise click.UsageError(with_flag(error, FLAGS)) from error
    except KeyboardInterrupt:
        click.echo("interrupted: what was written is whole, no partial file is left", err=True)
        ctx.exit(INTERRUPTED)


def _refuse_unused_options(settings: RunSettings, jobs: Sequence[Job]) -> None:
    """Raise ``UsageError`` for options that have no effect on these inputs."""
    if settings.frame_rate and not any(job.video and job.source and job.source.is_dir() for job in jobs):
        raise click.UsageError("--frame-rate is for a folder of frames that becomes a video; leave it out here")
    if settings.output == "-" and sys.stdout.isatty():
        raise click.UsageError("standard output is a terminal; send it to a file or a program, or name one with -o")


def _done(settings: RunSettings, jobs: Sequence[Job]) -> int:
    """The exit status after doing ``jobs``."""
    # JSON lines and bars on one terminal would garble each other.
    bars = sys.stderr.isatty() and not (settings.json and sys.stdout.isatty())
    shown = reporter(len(jobs), quiet=settings.quiet, bars=bars)
    runner = JobRunner(settings, shown)
    try:
        with shown:
            runner.run(jobs)
    except UIDError as error:  # nothing is wrong with the usage's form, so its summary would only distract
        click.echo(f"error: {with_flag(error, FLAGS)}", err=True)
        return CANNOT_RUN
    if not runner.failures:
        return 0
    if settings.keep_going:
        click.echo("\n  ".join([f"{len(runner.failures)} of {len(jobs)} files failed:", *runner.failures]), err=True)
    elif (left := len(jobs) - runner.done - 1) > 0:
        click.echo(f"stopped with {left} files left to do; --keep-going does them in spite of an error", err=True)
    return 1


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def doctor() -> None:
    """Tell which backends work here and, for each that does not, what to install."""
    # The engines' libraries take seconds to import, which `uid-run --help` should not.
    from uid import engines
    from uid.bundles.declarations import built_in
    from uid.bundles.manifest import read_bundle

    click.echo(f"uid-runtime {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for backend in engines.report():
        _tell(f"backend {backend.name}", backend.available, backend.detail)
    try:
        video = importlib.import_module("av")
        _tell("video", True, f"PyAV {video.__version__}")
    except ImportError as error:
        _tell("video", False, f"{error}; pip install 'uid-runtime[video]'")
    try:
        bundle = read_bundle(built_in())
        _tell("built-in bundle", True, f"{bundle.name}, {'trained' if bundle.trained else 'random weights'}")
    except UIDError as error:
        _tell("built-in bundle", False, str(error))


def _tell(what: str, works: bool, detail: str) -> None:
    click.echo(f"{'works  ' if works else 'missing'}  {what}: {detail}")


def main() -> None:
    """``uid-run doctor``, or else ``uid-run INPUT...``; a file of that name is given as ``./doctor``."""
    from uid.__main__ import run as start

    start()


if __name__ == "__main__":
    main()
