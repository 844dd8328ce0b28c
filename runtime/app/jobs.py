"""From the names that a user gave to a checked list of jobs, one input and one output each, before any work starts."""

import glob
import os
import stat
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uid.errors import InputError, OutputError
from uid.runtime.media.formats import (
    FORMATS,
    MUXERS,
    WRITTEN,
    format_of,
    is_foreign_path,
    is_image_path,
    is_video_path,
)

STREAM = "-"  # the name of standard input and standard output
FOLDER, VIDEO, IMAGE = "folder", "video", "image"  # kinds of inputs and outputs
RECORD_SUFFIX = ".uid-run.jsonl"  # of the file beside an output folder that tells what was done


@dataclass(frozen=True)
class Job:
    """One input and the one output made from it."""

    source: Path | None  # a file or a folder of frames; None: standard input
    destination: Path | None  # a file or a folder of frames; None: standard output
    video: bool = False  # frames in order rather than one image

    @property
    def input_name(self) -> str:
        """What to call the input in messages."""
        return STREAM if self.source is None else str(self.source)

    @property
    def output_name(self) -> str:
        """What to call the output in messages."""
        return STREAM if self.destination is None else str(self.destination)


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that was come across and is no input."""

    path: Path
    why: str


@dataclass(frozen=True)
class Plan:
    """What is to be done, and what was found beside it."""

    jobs: list[Job]
    folder: Path | None = None  # where all outputs go; None: the one output has a name of its own
    left_out: list[LeftOut] = field(default_factory=list)  # files of other kinds
    unreadable: list[LeftOut] = field(default_factory=list)  # folders that may hold inputs


@dataclass(frozen=True)
class Naming:
    """Which files of a folder are taken, and how the outputs are named."""

    suffix: str = ""  # added to the stem
    format: str | None = None  # a key of FORMATS, for images; None: each as its input
    recursive: bool = True  # look into subfolders too
    raw: bool = False  # standard input and output carry the raw frames of a video, not one image

    def renamed(self, path: Path) -> Path:
        """The output's path relative to the output folder, for an input at ``path`` relative to its own."""
        extension = path.suffix
        if is_video_path(path):
            extension = extension if extension.lower() in MUXERS else ".mkv"  # which carries any sound
        elif self.format or not is_image_path(path) or is_foreign_path(path):
            # An image of a suffix that is unknown or cannot be written: without loss.
            extension = FORMATS[self.format or "png"].suffixes[0]
        return path.with_name(path.stem + self.suffix + extension)


def plan(inputs: Sequence[str], output: str, naming: Naming, *, keep: Sequence[Path] = ()) -> Plan:
    """The jobs that turn ``inputs`` (files, globs, folders or ``-``) into ``output`` (a file, a folder or ``-``).

    Raises ``InputError`` when an input does not exist, cannot be looked at or nothing is left to do, and
    ``OutputError`` when the output does not fit the inputs, when two inputs would become one output, or when an output
    would replace an input or one of the files in ``keep``.
    """
    try:
        made = _planned(inputs, output, naming)
        _refuse_clashes(made.jobs, keep)
    except OSError as error:  # a name that is too long, a folder above that may not be looked into
        raise InputError(f"cannot look at {error.filename}: {error.strerror or error}") from error
    return made


def _planned(inputs: Sequence[str], output: str, naming: Naming) -> Plan:
    if STREAM in (*inputs, output):
        return Plan([_streamed(inputs, output, naming)])
    sources = [source for text in inputs for source in _expanded(text)]
    special = [LeftOut(path, why) for path in sources if (why := _special(path))]
    if len(special) == len(sources):
        raise InputError(f"{special[0].path} is {special[0].why}; expected a file or a folder")
    sources = [source for source in sources if not _special(source)]
    single = _single(sources[0], Path(output), naming) if len(sources) == 1 else None
    if single:
        return Plan([single], left_out=special)
    return _into_folder(sources, Path(output), naming, special)


def _special(path: Path) -> str:
    """What a path is that is neither a file nor a folder, or "": one that would be read for ever, or waited for.

    A shell's <(command) is a pipe too, and comes to its end.
    """
    mode = path.stat().st_mode
    if stat.S_ISFIFO(mode):
        return "" if path.is_relative_to("/dev/fd") or path.is_relative_to("/proc") else "a named pipe"
    kinds = {stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "")


def _expanded(text: str) -> list[Path]:
    """The path that ``text`` is, or else the images and videos that it matches as a glob."""
    if Path(text).exists():
        return [Path(text)]
    if not glob.has_magic(text):
        raise InputError(f"{text} does not exist; expected a file, a folder, a glob or - for standard input")
    matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207  (Path.glob refuses absolute patterns)
    found = [path for path in map(Path, matches) if path.is_file() and _is_media(path)]
    if not found:
        raise InputError(f"{text} matches no image and no video")
    return found


def _streamed(inputs: Sequence[str], output: str, naming: Naming) -> Job:
    """The job when standard input, standard output or both take part."""
    sources = [path for text in inputs for path in ([None] if text == STREAM else _expanded(text))]
    if len(sources) != 1:
        raise InputError(f"standard input and output carry one image, but {len(sources)} inputs were given")
    if naming.raw:
        return _raw(sources[0], None if output == STREAM else Path(output))
    return _image(sources[0], output, naming)


def _image(source: Path | None, output: str, naming: Naming) -> Job:
    """The job when an image comes or goes through a pipe."""
    if source is not None and _kind(source) in (FOLDER, VIDEO):
        raise OutputError(f"standard output carries one image, but {source} is not one; name a file or folder")
    if output == STREAM:
        if naming.suffix:
            raise OutputError("--suffix names files in a folder, but the output is standard output; leave it out")
        return Job(source, None)
    destination = Path(output)
    if not is_image_path(destination) or destination.is_dir():
        raise OutputError(f"an image from standard input needs an output file such as out.png, not {output}")
    _refuse_contrary_names(destination, naming)
    return Job(source, destination)


def _raw(source: Path | None, destination: Path | None) -> Job:
    """The job when raw frames come or go through a pipe."""
    if source is not None and _kind(source) not in (FOLDER, VIDEO):
        raise InputError(f"{source} is not a video, so that it has no frames; expected a video or a folder of frames")
    if destination is not None and destination.suffix and destination.suffix.lower() not in MUXERS:
        raise OutputError(f"cannot write frames to {destination}; expected one of {', '.join(MUXERS)}, or a folder")
    return Job(source, destination, video=True)


def _single(source: Path, output: Path, naming: Naming) -> Job | None:
    """The job when ``output`` is itself what is made from ``source``; None when it is a folder to put that into."""
    made = _kind(output)
    if made != FOLDER and is_foreign_path(output):
        raise OutputError(f"{output} cannot be written; expected one of {', '.join(WRITTEN)}, or a folder's name")
    if not _is_result(source, output):
        return None
    if made == VIDEO and output.suffix.lower() not in MUXERS:
        raise OutputError(f"cannot write {output}; expected one of {', '.join(MUXERS)}")
    _refuse_contrary_names(output, naming)
    return Job(source, output, video=made != IMAGE)


def _is_result(source: Path, output: Path) -> bool:
    """Whether ``output`` is itself what is made from ``source``; raises ``OutputError`` where it cannot be that."""
    given, made = _kind(source), _kind(output)
    if given == FOLDER:
        return made == VIDEO
    if given == VIDEO:
        if made not in (VIDEO, FOLDER) and output.suffix:
            raise OutputError(
                f"{source} is a video; expected the name of a video or of a folder for frames, not {output}"
            )
        return True
    if made == VIDEO:
        raise OutputError(f"{source} is an image; expected an image or a folder, not {output}")
    return made == IMAGE


def _into_folder(sources: Sequence[Path], output: Path, naming: Naming, special: Sequence[LeftOut] = ()) -> Plan:
    """A job for each image and video named or found, into the folder ``output``; subfolders are kept."""
    if (_is_media(output) or is_foreign_path(output) or output.exists()) and not output.is_dir():
        raise OutputError(f"these inputs need a folder for their outputs, but {output} is a file's name")
    jobs: dict[Job, None] = {}  # an ordered set: naming a folder and a file in it is no conflict
    made = Plan([], output, list(special))
    for source in sources:
        names = _found(source, output, naming, made) if source.is_dir() else [source.name]
        root = source if source.is_dir() else source.parent
        jobs.update({_named(root, Path(name), output, naming): None for name in names})
    if not jobs:
        others = f"; {len(made.left_out)} files of other kinds" if made.left_out else ""
        unreadable = "".join(f"; cannot list {one.path}: {one.why}" for one in made.unreadable)
        raise InputError(f"no image and no video in {', '.join(map(str, sources))}{others}{unreadable}")
    made.jobs.extend(jobs)
    return made


def _named(root: Path, name: Path, output: Path, naming: Naming) -> Job:
    return Job(root / name, output / naming.renamed(name), video=is_video_path(name))


def _found(folder: Path, output: Path, naming: Naming, made: Plan) -> list[Path]:
    """Images and videos in ``folder``, relative to it, without hidden files and without the outputs of an earlier run.

    Where the output folder is the input folder, only a suffix distinguishes an earlier output from an input: without
    one, a file that is another's output is taken as the input it may be, and the clash is refused.
    """
    names = [path.relative_to(folder) for path in _walked(folder, output, naming.recursive, made)]
    if not naming.suffix:
        return names
    written = {identity(output / naming.renamed(name)) for name in names}
    return [name for name in names if identity(folder / name) not in written]


def _walked(folder: Path, output: Path, recursive: bool, made: Plan) -> Iterator[Path]:
    """The images and videos below a folder; what else is there is noted in the plan."""
    skipped = identity(output)  # an output folder inside the input folder

    def note(error: OSError) -> None:
        made.unreadable.append(LeftOut(Path(error.filename), error.strerror or str(error)))

    for root, folders, names in os.walk(folder, onerror=note):
        at = Path(root)
        below = [at / name for name in sorted(folders) if recursive and not name.startswith(".")]
        folders[:] = [path.name for path in below if identity(path) != skipped]
        for path in (at / name for name in sorted(names) if not name.startswith(".")):
            why = _no_input(path)
            if not why:
                yield path
            elif not path.name.endswith(RECORD_SUFFIX):
                made.left_out.append(LeftOut(path, why))


def _no_input(path: Path) -> str:
    """Why a file in a folder is not taken, or ""."""
    try:
        why = _special(path)
    except OSError as error:  # such as a link that leads nowhere
        return error.strerror or str(error)
    return why or ("" if _is_media(path) else f"no image or video by its suffix {path.suffix}".rstrip())


def _refuse_contrary_names(output: Path, naming: Naming) -> None:
    """Naming options that say something else than the one output's own name."""
    if naming.suffix:
        raise OutputError(f"--suffix names files in a folder, but the output is {output} itself; leave --suffix out")
    if naming.format and (not is_image_path(output) or format_of(output) != naming.format):
        raise OutputError(f"--format {naming.format} contradicts the output's name {output}; leave one out")


def identity(path: Path) -> Hashable:
    """Equal for two names of one file: through links, and in other case where the file system ignores case."""
    try:
        status = path.stat()
    except OSError:
        return os.path.normcase(os.path.realpath(path))
    return status.st_dev, status.st_ino


def _refuse_clashes(jobs: Sequence[Job], keep: Sequence[Path]) -> None:
    read = {identity(path) for path in (*(job.source for job in jobs), *keep) if path is not None}
    made: dict[Hashable, Job] = {}
    for job in jobs:
        if job.destination is None:
            continue
        key = identity(job.destination)
        if key in read:
            raise OutputError(f"{job.destination} is an input, which would be lost; choose another output or --suffix")
        other = made.setdefault(key, job)
        if other is not job:
            raise OutputError(f"{other.source} and {job.source} would both become {job.destination}; run them apart")


def _kind(path: Path) -> str:
    """Whether a path is a folder, or else what its suffix names; "": neither."""
    if path.is_dir():
        return FOLDER
    if is_video_path(path):
        return VIDEO
    return IMAGE if is_image_path(path) else ""


def _is_media(path: Path) -> bool:
    return is_image_path(path) or is_video_path(path)
