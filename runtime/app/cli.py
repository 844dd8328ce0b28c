"""The command line ``uid-run``: sharpen images and videos, or say what works here."""

import sys
import traceback
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import click

from uid import __version__, stop
from uid.command import RenamedOptions, interval
from uid.errors import UIDError
from uid.runtime.app.border import explained
from uid.runtime.app.doctor import doctor
from uid.runtime.app.jobs import Plan, plan
from uid.runtime.app.session import Session
from uid.runtime.app.settings import DEVICE, RunSettings
from uid.runtime.media.formats import MAX_PIXELS, SUBSAMPLINGS, SUFFIXES, WRITTEN
from uid.runtime.media.raw_pipe import RAW_FORMATS
from uid.runtime.options import AUTO, Options
from uid.runtime.transforms import TRANSFORMS

__all__ = ["doctor", "main", "run"]
EXAMPLES = """\b
Examples:
  uid-run blurred.jpg -o sharp.png
  uid-run photos/ -o sharp/ --skip-existing --keep-going
  uid-run 'shoot/*.tif' -o sharp/ --suffix _sharp --format png
  uid-run clip.mp4 -o sharp.mp4
  uid-run clip.mp4 -o frames/
  uid-run frames/ -o sharp.mp4 --frame-rate 30000/1001
  uid-run - -o - --raw rgb24 --raw-size 1920x1080 <frames >sharp
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


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> Fraction | None:
    """An exact time from text such as 90, 1:30 or 0:01:30.5."""
    if value is None:
        return None
    parts = value.split(":")
    try:
        numbers = [Fraction(part) for part in parts]
    except (ValueError, ZeroDivisionError):
        numbers = []
    if not 1 <= len(numbers) <= 3 or min(numbers) < 0:
        raise click.BadParameter(f"{value!r} is not a time; expected seconds such as 12.5, or 1:30, or 0:01:30")
    seconds = Fraction(0)
    for number in numbers:
        seconds = 60 * seconds + number
    return seconds


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Width and height in pixels, from text such as 1920x1080."""
    if value is None:
        return None
    width, _, height = value.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise click.BadParameter(f"{value!r} is not a size; expected width and height such as 1920x1080")
    return int(width), int(height)


def _tile(ctx: click.Context, param: click.Parameter, value: str | None) -> int | Literal["auto"] | None:
    """A side in pixels, or "auto"."""
    if value is None:
        return None
    if value == "auto":
        return "auto"
    if not (value.isdecimal() and int(value) > 0):
        raise click.BadParameter(f"{value!r} is not a tile size; expected a number of pixels, or auto")
    return int(value)


def _format(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A format by its name or by a suffix of its files."""
    if value is None:
        return None
    name = value.lower().removeprefix(".")
    found = name if name in WRITTEN else SUFFIXES.get(f".{name}")
    if found not in WRITTEN:
        raise click.BadParameter(f"{value!r} is no format; expected one of {', '.join(WRITTEN)} (-y replaces outputs)")
    return found


def _device(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """cpu, cuda or a GPU by its number, or several."""
    if value is not None and not DEVICE.fullmatch(value):
        known = "cpu, cuda, a GPU by its number such as cuda:1, or several like cuda:0,cuda:1"
        raise click.BadParameter(f"{value!r} is no device; expected {known}")
    return value


def _preview(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Left, top, width and height."""
    if value is None:
        return None
    numbers = value.split(",")
    if len(numbers) != 4 or not all(number.strip().isdecimal() for number in numbers):
        raise click.BadParameter(f"{value!r} is no part of an image; expected left,top,width,height in pixels")
    return tuple(int(number) for number in numbers)


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
    "--device",
    callback=_device,
    metavar="cpu|cuda[:N],...",
    help="Where to compute: --backend auto takes the first that works there. Several: a worker on each.",
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
@click.option(
    "-f",
    "--format",
    callback=_format,
    metavar="NAME",
    help=f"Format of written images: {', '.join(WRITTEN)}, or a suffix such as jpg. Default: as the input.",
)
@click.option("-y", "--overwrite", is_flag=True, help="Replace outputs that exist.")
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
@click.option("--salvage", is_flag=True, help="Use what can be read of a damaged file, with a warning.")
@click.option(
    "--codec",
    metavar="NAME",
    help="h264, hevc, av1, vp9, prores, ffv1, or an encoder of FFmpeg. Default: fits the video.",
)
@click.option("--crf", type=click.FloatRange(min=0), help="Quality of a video; less is better. Default: the codec's.")
@click.option("--pix-fmt", metavar="NAME", help="Pixel format of a video, such as yuv422p10le. Default: as the input.")
@click.option("--start", callback=_seconds, default="0", metavar="TIME", help="Where a video begins: 12.5 or 1:30.")
@click.option("--end", callback=_seconds, metavar="TIME", help="Where a video ends. Default: its end.")
@click.option("--frames", type=click.IntRange(min=1), help="Most frames that are taken of a video.")
@click.option("--raw", type=click.Choice(list(RAW_FORMATS)), help="- carries raw frames of a video in this format.")
@click.option("--raw-size", callback=_size, metavar="WxH", help="Size of the raw frames from standard input.")
@click.option(
    "--jpeg-quality", type=click.IntRange(1, 100), help="Quality of written JPEGs. Default: the input's own, else 95."
)
@click.option(
    "--jpeg-subsampling",
    type=click.Choice(SUBSAMPLINGS),
    help="Colour resolution of written JPEGs. Default: the input's own, else 4:4:4.",
)
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Part of the output in the blend with the input, in linear light; 0: the input.",
)
@click.option(
    "--steady/--no-steady",
    default=True,
    show_default=True,
    help="Blend each frame of a video with the one before, where both show the same.",
)
@click.option("--skip-sharp", is_flag=True, help="Leave images that are sharp already; nothing is written for them.")
@click.option("--preview", callback=_preview, metavar="X,Y,W,H", help="Run only this part of each image, in pixels.")
@click.option("--compare", is_flag=True, help="Write the input to the left of the output.")
@click.option("--keep-going", is_flag=True, help="After a file that failed, do the rest.")
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Processes that share the files, and the cores or GPUs. Default: 1; one a --device; what a --cluster holds.",
)
@click.option(
    "--prefetch",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Threads that read the next images, and as many that write the last ones, where one process computes.",
)
@click.option(
    "--cluster",
    metavar="auto|local|ADDRESS",
    help="Compute on a Ray cluster: the one that runs here, one that is started for this run, or one by its address.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--watch", is_flag=True, help="Go on with what is put into the input folders, until Ctrl-C.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="JSON file to write in the end: what became of every input.",
)
@click.option("--json", is_flag=True, help="Print one JSON object per file on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Show errors only.")
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
@click.version_option(__version__, prog_name="uid-run")
@click.pass_context
def run(ctx: click.Context, /, blur_from: Path | None, **values: Any) -> None:
    """Sharpen blurred images and videos.

    INPUT is a file, several files, a glob, a folder, or - for one image from standard input. Images are PNG, JPEG,
    WebP, TIFF, BMP or AVIF, and HEIC or JPEG XL where their plug-ins are installed. OUT is a file when one file goes in
    and OUT has an image's or video's suffix, else a folder.

    `uid-run doctor` tells which backends work here, and what to install for the others.

    Beside an output folder, a record tells what was done: the same command does the rest, what has changed, and what
    failed.

    Exit status: 0 all done, 1 a file failed, 2 wrong usage or nothing can run; 129, 130, 143 ended by a signal.
    """
    try:
        options = Options(**{option.name: values.pop(option.name) for option in fields(Options)})
        extra = {} if blur_from is None else {"blur_image": blur_from}
        settings = RunSettings(options=options, extra_images=extra, **values)
        planned = _planned(settings)
        _refuse_unused_options(settings, planned)
        ctx.exit(Session(settings, planned).run(_planned))
    except UIDError as error:
        raise click.UsageError(explained(error)) from error
    except (click.exceptions.Exit, click.ClickException, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        ctx.exit(stop.status())  # where commands start, a line says that a signal ended it
    except Exception as error:  # of no file in particular, and of no kind that was thought of
        if values.get("debug"):
            traceback.print_exc()
        raise click.ClickException(explained(error)) from error


def _planned(settings: RunSettings) -> Plan:
    """The jobs that the settings ask for."""
    keep = list(settings.extra_images.values())
    return plan(settings.inputs, settings.output, settings.naming, keep=keep)


def _refuse_unused_options(settings: RunSettings, planned: Plan) -> None:
    """Raise ``UsageError`` for options that have no effect on these inputs."""
    if settings.frame_rate and not any(job.video and (not job.source or job.source.is_dir()) for job in planned.jobs):
        raise click.UsageError("--frame-rate is for frames from a folder or a pipe; leave it out here")
    if settings.skip_sharp and all(job.video for job in planned.jobs):
        raise click.UsageError("--skip-sharp is for images; leave it out here")
    if settings.skip_sharp and settings.extra_images:
        raise click.UsageError("--skip-sharp is for sharpening, but --blur-from blurs; leave one out")
    if settings.output == "-" and sys.stdout.isatty():
        raise click.UsageError("standard output is a terminal; send it to a file or a program, or name one with -o")


def main() -> None:
    """``uid-run doctor``, or else ``uid-run INPUT...``; a file of that name is given as ``./doctor``."""
    from uid.__main__ import run as start

    start()


if __name__ == "__main__":
    main()
