"""The part of a clip that is taken."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from uid.errors import InputError
from uid.runtime.media.frames import Clip, Frame, Load, Stamp


@dataclass(frozen=True)
class Selection:
    """From ``start`` up to ``end``, in seconds from the first frame, and ``frames`` at most."""

    start: Fraction = Fraction(0)
    end: Fraction | None = None  # None: to the last frame
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0:
            raise InputError(f"the start is {float(self.start):g} s; expected 0 or more", option="start")
        if self.end is not None and self.end <= self.start:
            raise InputError(f"the end, {float(self.end):g} s, is not after the start; expected more", option="end")
        if self.frames is not None and self.frames < 1:
            raise InputError(f"{self.frames} frames were asked for; expected 1 or more", option="frames")

    def total(self, clip: Clip) -> int | None:
        """How many frames that is of ``clip``, as far as its header tells."""
        total = clip.total
        if total is not None and (self.start or self.end is not None):
            last = total if self.end is None else min(total, round(self.end * clip.rate))
            total = max(last - round(self.start * clip.rate), 0)
        return min(total, self.frames) if total is not None and self.frames is not None else total or self.frames

    def place(self, stamp: Stamp, first: Stamp, time_base: Fraction) -> int:
        """-1 for a frame before the part, 0 within it, 1 after it."""
        time = (stamp.pts - first.pts) * time_base
        return -1 if time < self.start else int(self.end is not None and time >= self.end)


EVERYTHING = Selection()


@dataclass(frozen=True)
class Part:
    """Where in its source a selection lies, and how far it moves in time; all in seconds."""

    start: Fraction | None = None  # None: from the beginning
    end: Fraction | None = None
    shift: Fraction = Fraction(0)  # taken off all times

    def holds(self, time: Fraction) -> bool:
        """Whether what is shown or heard at ``time`` is taken."""
        return (self.start is None or time >= self.start) and (self.end is None or time < self.end)


class Selected:
    """The selected frames of a reader, moved to where its clip begins."""

    def __init__(self, reader: "Iterable[tuple[Stamp, Load]]", clip: Clip, selection: Selection) -> None:
        self._reader = reader
        self._clip = clip
        self._selection = selection
        self._bounds: tuple[Stamp, Stamp, Stamp] | None = None  # the clip's first frame, and the first and last taken

    def frames(self, skip: int) -> Iterator[Frame | Stamp]:
        """The frames in order; of the first ``skip`` only when they are shown."""
        first: Stamp | None = None
        begin: Stamp | None = None
        count = 0
        for stamp, load in self._reader:
            first = first or stamp
            where = self._selection.place(stamp, first, self._clip.time_base)
            if where > 0 or count == self._selection.frames:
                return
            if where == 0:
                begin = begin or stamp
                self._bounds = first, begin, stamp
                moved = Stamp(stamp.pts - begin.pts + first.pts, stamp.duration)
                yield moved if count < skip else Frame(load(), moved)
                count += 1

    @property
    def part(self) -> Part:
        """Where the frames so far lie."""
        if self._bounds is None or self._selection == EVERYTHING:
            return Part()
        first, begin, last = self._bounds
        base, frame = self._clip.time_base, max(last.duration, 1)
        start = None if begin == first else begin.pts * base  # sound may begin before the first frame
        return Part(start, (last.pts + frame) * base, (begin.pts - first.pts) * base)
