"""What an engine is built for: the image sizes of its optimisation profiles, and the GPUs it is to run on."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from uid.bundles.tensors import BATCH, HEIGHT, WIDTH, TensorSpec, resolve
from uid.engines.contract import GPU_BATCH
from uid.errors import BackendError, InputError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """The sizes in pixels that one side of an image may have, and the one to be fastest at."""

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise InputError(f"a profile ranges over {self}; expected 1 <= minimum <= optimum <= maximum")

    def __str__(self) -> str:
        if self.minimum == self.maximum:
            return str(self.minimum)
        return f"{self.minimum} to {self.maximum}, best at {self.optimum}"

    def __contains__(self, size: int) -> bool:
        return self.minimum <= size <= self.maximum

    def rounded(self, multiple: int) -> "Range":
        """The range in multiples of ``multiple``, rounded up, as images are padded."""
        return Range(*(-(-size // multiple) * multiple for size in (self.minimum, self.optimum, self.maximum)))

    def widened(self, maximum: int) -> "Range":
        """The range, up to ``maximum`` at least; one that holds a single size stays as it is."""
        if self.minimum == self.maximum:
            return self
        return replace(self, maximum=max(self.maximum, maximum))

    def lowered(self) -> "Range":
        """The same range, best at its minimum."""
        return replace(self, optimum=self.minimum)

    def single(self) -> "Range":
        """The optimum alone."""
        return Range(self.optimum, self.optimum, self.optimum)


WIDER = (2, 4)  # by what the smallest maximum is multiplied where a range does not build
# Images that a mode reads beside the main one are never padded and are read once per image: any size costs little.
EXTRA_SIDE = Range(16, 512, 4096)


@dataclass(frozen=True)
class Profile:
    """One optimisation profile, as a resolution class: a bundle's components all take their shapes from it."""

    name: str
    height: Range
    width: Range
    extra: Range = EXTRA_SIDE  # either side of an image that a mode reads beside the main one
    batch: Range = Range(1, 1, 1)  # images that run together, of a bundle with a batch axis

    def __str__(self) -> str:
        together = f"; images {self.batch}" if self.batch.maximum > 1 else ""
        return f"{self.name}: height {self.height}; width {self.width}{together}"

    @classmethod
    def from_record(cls, data: Mapping[str, Any]) -> "Profile":
        """A profile as ``record`` wrote it."""
        height, width, extra, batch = (Range(**data[side]) for side in ("height", "width", "blur", "batch"))
        return cls(data["name"], height, width, extra, batch)

    def record(self) -> dict[str, Any]:
        """The profile as JSON can hold it; engine files are named after it, so that its keys never change."""
        sides = {"height": self.height, "width": self.width, "blur": self.extra, "batch": self.batch}
        return {"name": self.name, **{key: asdict(side) for key, side in sides.items()}}

    def rounded(self, multiple: int) -> "Profile":
        """The profile in multiples of a bundle's size multiple, rounded up, as images are padded."""
        return replace(self, height=self.height.rounded(multiple), width=self.width.rounded(multiple))

    def with_batch(self, tile: int) -> "Profile":
        """The profile for as many images together as the runtime takes: those that have room in a full tile."""
        room = tile**2 // (self.height.maximum * self.width.maximum)
        return replace(self, batch=Range(1, 1, max(1, min(room, GPU_BATCH))))

    def check_multiple(self, multiple: int) -> None:
        """Raise ``BackendError`` if the height or width is not in multiples of ``multiple``."""
        for side, sizes in (("height", self.height), ("width", self.width)):
            if sizes != sizes.rounded(multiple):
                raise BackendError(
                    f"profile {self.name!r} has {side} {sizes}; expected multiples of {multiple}, "
                    f"such as {sizes.rounded(multiple)} (Profile.rounded({multiple}))"
                )

    def widened(self, maximum: int) -> "Profile":
        """The profile with sides up to ``maximum`` at least, but for those of a single size."""
        return self.changed(f"{self.name} widened to {maximum}", lambda side: side.widened(maximum))

    def lowered(self) -> "Profile":
        """The same profile, best at its minimum."""
        return self.changed(f"{self.name}, best at its minimum", Range.lowered)

    def single(self) -> "Profile":
        """The profile's optimum alone, of one image."""
        alone = self.changed(f"optimum of {self.name}", Range.single)
        return alone if alone is self else replace(alone, batch=Range(1, 1, 1))

    def changed(self, name: str, change: Callable[[Range], Range]) -> "Profile":
        """The profile with both sides changed, under another name; or itself where nothing changes."""
        height, width = change(self.height), change(self.width)
        if (height, width) == (self.height, self.width):
            return self
        return replace(self, name=name, height=height, width=width)

    def covers(self, height: int, width: int) -> bool:
        """Whether a padded image of this size fits."""
        return height in self.height and width in self.width


def square(side: int) -> Profile:
    """The class of tiles and images whose sides are from half of ``side`` to ``side``, best at ``side``."""
    sides = Range(max(1, side // 2), side, side)
    return Profile(str(side), sides, sides)


NAMED = {
    "720p": Profile("720p", Range(360, 720, 720), Range(640, 1280, 1280)),
    "1080p": Profile("1080p", Range(540, 1080, 1080), Range(960, 1920, 1920)),
}


def parse_profile(text: str) -> Profile:
    """A profile by name: "720p", "1080p", a side such as "512" (see ``square``), or one size such as "480x640".

    One size is height x width. Raises ``InputError`` for anything else.
    """
    if text in NAMED:
        return NAMED[text]
    if match := re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text):
        height, width = (int(side) for side in match.groups())
        return Profile(text, Range(height, height, height), Range(width, width, width))
    if re.fullmatch(r"[1-9]\d{0,4}", text):
        return square(int(text))
    raise InputError(
        f"unknown profile {text!r}; expected {', '.join(NAMED)}, the side of a square such as 512, "
        "or height x width such as 480x640"
    )


def fallbacks(profiles: Sequence[Profile]) -> list[tuple[Profile, ...]]:
    """What to build where a library fails at ``profiles``, in the order to try; nothing where each is a single size.

    First ranges that hold every size too: wider ones, up to twice, then four times, the smallest maximum; then the one
    asked for, and these, best at their minima. Then every profile's optimum alone. Size multiples are kept. The names
    are none that ``parse_profile`` gives: an engine built instead of another is told from one that was asked for.
    """
    sides = [side for profile in profiles for side in (profile.height, profile.width)]
    ends = [side.maximum for side in sides if side.minimum < side.maximum]
    if not ends:
        return []
    wider = [tuple(profile.widened(factor * min(ends)) for profile in profiles) for factor in WIDER]
    lower = [tuple(profile.lowered() for profile in each) for each in (profiles, *wider)]
    return [*wider, *lower, tuple(profile.single() for profile in profiles)]


def nearest(limits: Sequence[tuple[Shape, Shape, Shape]], sizes: Shape) -> tuple[int, float] | None:
    """Of the profiles that hold ``sizes``, the index of the one with the nearest optimum, and how far that is.

    ``limits`` are each profile's minimum, optimum and maximum. None where no profile holds the sizes.
    """
    distances = [
        (distance(sizes, optimum), index)
        for index, (minimum, optimum, maximum) in enumerate(limits)
        if all(low <= size <= high for low, size, high in zip(minimum, sizes, maximum, strict=True))
    ]
    if not distances:
        return None
    far, index = min(distances)
    return index, far


def distance(sizes: Shape, optimum: Shape) -> float:
    """How far sizes are from a profile's optimum; 0 at the optimum."""
    return sum(abs(math.log(size / best)) for size, best in zip(sizes, optimum, strict=True) if size != best)


def profile_shapes(inputs: Sequence[TensorSpec], profile: Profile) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Minimum, optimum and maximum shape of every input with a symbolic dimension, by name."""

    def shape(spec: TensorSpec, end: str) -> Shape:
        return resolve(spec.shape, {name: getattr(side, end) for name, side in ranges(profile, spec.symbols).items()})

    return {
        spec.name: (shape(spec, "minimum"), shape(spec, "optimum"), shape(spec, "maximum"))
        for spec in inputs
        if spec.symbols
    }


def ranges(profile: Profile, symbols: Iterable[str]) -> dict[str, Range]:
    """A profile's range of each of the manifest's symbols; those that are not the image's are an extra image's."""
    own = {BATCH: profile.batch, HEIGHT: profile.height, WIDTH: profile.width}
    return {symbol: own.get(symbol, profile.extra) for symbol in symbols}


@dataclass(frozen=True)
class Target:
    """What an engine is to run on: the GPU it is built on, or any of some compute capabilities, ahead of time."""

    gpu: str = ""  # name, as the driver gives it
    compute_capability: str = ""  # "8.9"
    driver: str = ""  # the newest CUDA version that the driver supports, "13.2": another in every driver branch
    ahead_of_time: tuple[str, ...] | None = None  # None: built on ``gpu``; (): for all that the library does by default

    @classmethod
    def ahead(cls, compute_capabilities: Iterable[str] = ()) -> "Target":
        """Any GPU of these compute capabilities, in any order; of none: the library's default, 8.0 and later."""
        return cls(ahead_of_time=tuple(sorted(set(compute_capabilities), key=lambda text: (len(text), text))))

    def __post_init__(self) -> None:
        for text in (self.compute_capability,) if self.ahead_of_time is None else self.ahead_of_time:
            if not re.fullmatch(r"\d+\.\d+", text):
                raise InputError(f"compute capability is {text!r}; expected a version such as 8.9")

    def admits(self, wanted: "Target") -> bool:
        """Whether an engine built for this target may run where ``wanted`` is: the same, or named ahead of time.

        An engine built ahead of time with no name is for compute capability 8.0 and later.
        """
        if self == wanted:
            return True
        if self.ahead_of_time is None or wanted.ahead_of_time is not None:
            return False
        if self.ahead_of_time:
            return wanted.compute_capability in self.ahead_of_time
        return tuple(int(part) for part in wanted.compute_capability.split(".")) >= (8, 0)

    def __str__(self) -> str:
        if self.ahead_of_time is None:
            return f"{self.gpu} (compute capability {self.compute_capability}, driver for CUDA {self.driver})"
        return "ahead of time, " + (", ".join(self.ahead_of_time) or "the library's default GPUs")
