"""What the command line ``uid-run`` asks for, checked before any work starts."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from uid.errors import InputError
from uid.runtime.app.jobs import STREAM, Naming
from uid.runtime.media.encode import Encoding
from uid.runtime.media.formats import MAX_PIXELS
from uid.runtime.media.selection import Selection
from uid.runtime.media.video_codecs import Wanted
from uid.runtime.options import AUTO, Options

_ONE = r"(cpu|cuda(:[0-9]{1,3})?)"
DEVICE = re.compile(f"{_ONE}(,{_ONE})*")


@dataclass(frozen=True)
class RunSettings:
    """Everything but the inputs' and outputs' names has a default.

    Raises ``InputError`` when two settings contradict each other.
    """

    inputs: tuple[str, ...]  # files, globs, folders, or - alone
    output: str  # a file, a folder or -
    options: Options = field(default_factory=Options)  # what the pipeline is given for each image
    model: Path | None = None  # a bundle; None: the built-in one
    backend: str = AUTO
    # "cpu", "cuda" or "cuda:N", on which "auto" looks for a backend; several with commas, for workers; None: on all
    device: str | None = None
    threads: int | None = None  # None: the backend's choice
    extra_images: Mapping[str, Path] = field(default_factory=dict)  # those that the mode reads too, by input name
    suffix: str = ""  # added to each output's stem
    format: str | None = None  # of written images; None: as the input
    overwrite: bool = False
    skip_existing: bool = False
    recursive: bool = True
    frame_rate: Fraction | None = None  # frames per second, of a video made from a folder of frames
    max_pixels: int = MAX_PIXELS
    salvage: bool = False  # use what can be read of a damaged file
    codec: str | None = None  # of a written video; None: one that fits
    crf: float | None = None
    pix_fmt: str | None = None
    start: Fraction = Fraction(0)  # seconds; of a video
    end: Fraction | None = None
    frames: int | None = None  # most that are taken of a video
    raw: str | None = None  # a key of RAW_FORMATS: standard input and output carry such frames
    raw_size: tuple[int, int] | None = None  # (width, height) of those from standard input
    jpeg_quality: int | None = None  # of written JPEGs; None: the input's own
    jpeg_subsampling: str | None = None
    preview: tuple[int, int, int, int] | None = None  # left, top, width, height: only this part is run
    compare: bool = False  # write the input to the left of the output
    keep_going: bool = False
    workers: int | None = (
        None  # processes that share the jobs; None: one for each device, or as many as a cluster holds
    )
    prefetch: int = 1  # threads that read images, and as many that write them, where there is one process
    cluster: str | None = None  # "auto", "local" or the address of a Ray cluster that computes; None: this machine does
    dry_run: bool = False  # only say what would be done
    steady: bool = True  # blend each frame of a video with the one before
    skip_sharp: bool = False  # leave images that are sharp already
    watch: bool = False  # go on with what is put into the input folders later
    report: Path | None = None  # file that tells what became of every input
    json: bool = False
    quiet: bool = False
    debug: bool = False  # show tracebacks

    def __post_init__(self) -> None:
        _ = self.selection  # which checks itself
        if self.overwrite and self.skip_existing:
            raise InputError("--overwrite and --skip-existing contradict each other; give one of them")
        self._check_streams()
        if self.device is not None and not DEVICE.fullmatch(self.device):
            raise InputError(
                f"device is {self.device!r}; expected cpu, cuda, cuda:N, or several like cuda:0,cuda:1", option="device"
            )
        if self.watch and (self.dry_run or not all(Path(name).is_dir() for name in self.inputs)):
            raise InputError("--watch waits for files in input folders; give folders alone, and no --dry-run")

    def _check_streams(self) -> None:
        """Raise ``InputError`` for contradictions about what goes through standard input and output."""
        if self.raw and STREAM not in (*self.inputs, self.output):
            raise InputError("--raw is for frames through standard input or output; name one of them with -")
        if self.raw_size and not self.raw:
            raise InputError("--raw-size is for raw frames; give their format with --raw")
        if self.json and self.output == STREAM:
            raise InputError("--json and -o - both write to standard output; name an output file")

    @property
    def selection(self) -> Selection:
        """The part of a video that is taken."""
        return Selection(self.start, self.end, self.frames)

    @property
    def wanted(self) -> Wanted:
        """How a video is encoded."""
        return Wanted(self.codec, self.crf, self.pix_fmt)

    @property
    def encoding(self) -> Encoding:
        """How written images are compressed."""
        return Encoding(self.jpeg_quality, self.jpeg_subsampling)

    @property
    def naming(self) -> Naming:
        """How outputs in a folder are named."""
        return Naming(self.suffix, self.format, self.recursive, self.raw is not None)


# Settings on which no output depends.
_NOT_OF_OUTPUTS = {"inputs", "output", "model", "extra_images", "threads", "suffix", "overwrite", "skip_existing"}
_NOT_OF_OUTPUTS |= {"recursive", "max_pixels", "keep_going", "workers", "prefetch", "dry_run", "watch", "report"}
_NOT_OF_OUTPUTS |= {"cluster", "skip_sharp", "json", "quiet", "debug"}


def options_digest(settings: RunSettings, bundle: str) -> str:
    """The sha256 of all that an output depends on but its input; ``bundle`` is the digest of the bundle's contents."""
    names = [one.name for one in dataclasses.fields(settings) if one.name not in _NOT_OF_OUTPUTS]
    images = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in settings.extra_images.items()}
    text = repr((bundle, sorted(images.items()), [(name, getattr(settings, name)) for name in sorted(names)]))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
