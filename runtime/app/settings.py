"""What the command line ``uid-run`` asks for, checked before any work starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from uid.errors import InputError
from uid.runtime.app.jobs import Naming
from uid.runtime.media.formats import MAX_PIXELS
from uid.runtime.options import AUTO, Options


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
    threads: int | None = None  # None: the backend's choice
    extra_images: Mapping[str, Path] = field(default_factory=dict)  # those that the mode reads too, by input name
    suffix: str = ""  # added to each output's stem
    format: str | None = None  # of written images; None: as the input
    overwrite: bool = False
    skip_existing: bool = False
    recursive: bool = True
    frame_rate: Fraction | None = None  # frames per second, of a video made from a folder of frames
    max_pixels: int = MAX_PIXELS
    compare: bool = False  # write the input to the left of the output
    keep_going: bool = False
    json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.overwrite and self.skip_existing:
            raise InputError("--overwrite and --skip-existing contradict each other; give one of them")
        if self.json and self.output == "-":
            raise InputError("--json and -o - both write to standard output; name an output file")

    @property
    def naming(self) -> Naming:
        """How outputs in a folder are named."""
        return Naming(self.suffix, self.format, self.recursive)
