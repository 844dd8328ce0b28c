"""What a person sees while files are worked on: a bar on a terminal, plain lines elsewhere; all on standard error."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from uid.errors import printable

LINE_INTERVAL_S = 10.0  # between two lines about one image or video
SPEED_WINDOW_S = 600.0  # a diffusion step may take many seconds, so the speed is averaged over many


class Quiet:
    """Shows errors only. The other reporters add to it; each is entered before work and left after it."""

    def __init__(self, files: int) -> None:
        self.files = files

    def __enter__(self) -> None:
        """Begin to show."""

    def __exit__(self, *error: object) -> None:
        """Leave nothing half drawn."""

    def start(self, name: str) -> None:
        """Begin with the next file."""

    def on_step(self, done: int, total: int) -> None:
        """``done`` of ``total`` denoising steps of the current image are taken."""

    def on_frame(self, done: int, total: int | None) -> None:
        """``done`` of ``total`` frames of the current video are written; None: the container does not tell."""

    def finish(self, line: str) -> None:
        """The current file is done or skipped, as ``line`` says."""

    def note(self, line: str) -> None:
        """Something worth knowing about the whole run."""

    def error(self, line: str) -> None:
        """The current file failed, as ``line`` says."""
        self._print(f"error: {line}")

    def summary(self, text: str) -> None:
        """What failed, in the end."""
        self._print(text)

    def line(self, line: str) -> None:
        """What a worker tells."""
        self._print(line)

    def error_text(self, text: str) -> None:
        """More about an error, in many lines."""
        self._print(text.rstrip())

    def show(self, shown: Any) -> None:
        """What the whole run came to: a table of rich's."""

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a full disk or a closed stream must not end the work
            click.echo(printable(line), err=True)


class Lines(Quiet):
    """One line per file, and one every ``LINE_INTERVAL_S`` seconds of an image or a video."""

    def __init__(self, files: int) -> None:
        super().__init__(files)
        self._begun = self._finished = 0
        self._name = ""
        self._started = self._printed = time.monotonic()
        self._before = 0  # frames that an earlier run did

    def start(self, name: str) -> None:
        self._begun += 1
        self._name = name
        self._before = -1
        self._started = self._printed = time.monotonic()

    def on_step(self, done: int, total: int) -> None:
        self._tell("step", done, total, "steps/s")

    def on_frame(self, done: int, total: int | None) -> None:
        self._before = done - 1 if self._before < 0 else self._before
        self._tell("frame", done, total, "fps")

    def finish(self, line: str) -> None:
        self._finished += 1
        self._print(f"[{self._finished}/{self.files}] {line}")

    def error(self, line: str) -> None:
        self._finished += 1
        super().error(line)

    def note(self, line: str) -> None:
        self._print(line)

    def show(self, shown: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            Console(stderr=True, markup=False, highlight=False).print(shown)

    def _tell(self, what: str, done: int, total: int | None, unit: str) -> None:
        now = time.monotonic()
        if not done or now - self._printed < LINE_INTERVAL_S:
            return
        self._printed = now
        rate = max(done - max(self._before, 0), 1) / max(now - self._started, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if total is not None and total >= done else ""
        of_total = "" if total is None else f"/{total}"
        self._print(f"[{self._begun}/{self.files}] {self._name}: {what} {done}{of_total}, {rate:.2f} {unit}{left}")


class Piped(Lines):
    """What a worker shows: lines about one file after another, for its parent to print; ``quiet``: errors only."""

    def __init__(self, send: Callable[[str], None], quiet: bool) -> None:
        super().__init__(0)
        self._send, self._quiet = send, quiet

    def counted(self, number: int, files: int) -> None:
        """The next file is this one of so many."""
        self._begun, self.files = number - 1, files

    def note(self, line: str) -> None:
        if not self._quiet:
            super().note(line)

    def _tell(self, what: str, done: int, total: int | None, unit: str) -> None:
        if not self._quiet:
            super()._tell(what, done, total, unit)

    def _print(self, line: str) -> None:
        self._send(line)


class Bars(Lines):
    """The lines, above a bar for the current file and, when there are several, one for all files."""

    def __init__(self, files: int) -> None:
        super().__init__(files)
        # Standard output carries results, so rich must not take it over for the terminal.
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Count(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            speed_estimate_period=SPEED_WINDOW_S,
            transient=True,
            redirect_stdout=False,
        )
        self._all = self._bars.add_task("all", total=files, unit="files", visible=files > 1)
        self._current = self._bars.add_task("starting", total=None, unit="steps")

    def __enter__(self) -> None:
        self._bars.start()

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def start(self, name: str) -> None:
        super().start(name)
        self._bars.remove_task(self._current)  # a task's total cannot be made unknown again
        self._current = self._bars.add_task(printable(name), total=None, unit="steps")

    def on_step(self, done: int, total: int) -> None:
        self._advance(done, total, "steps")

    def on_frame(self, done: int, total: int | None) -> None:
        self._advance(done, total, "frames")

    def finish(self, line: str) -> None:
        super().finish(line)
        self._bars.update(self._all, completed=self._finished)

    def error(self, line: str) -> None:
        super().error(line)
        self._bars.update(self._all, completed=self._finished)

    def show(self, shown: Any) -> None:
        self._bars.console.print(shown)

    def _advance(self, done: int, total: int | None, unit: str) -> None:
        self._bars.update(self._current, completed=done, total=total, unit=unit)
        if total:
            self._bars.update(self._all, completed=self._finished + min(done / total, 1.0))

    def _print(self, line: str) -> None:
        self._bars.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


class _Count(ProgressColumn):
    """How many of how many, and for frames how many in a second."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        total = "?" if task.total is None else f"{task.total:.0f}"
        rate = f"  {task.speed:.2f} fps" if unit == "frames" and task.speed else ""
        return Text(f"{int(task.completed)}/{total} {unit}{rate}")


def reporter(files: int, *, quiet: bool, bars: bool) -> Quiet:
    """The reporter for ``files`` files: errors only when ``quiet``, else lines, with bars on a terminal."""
    return Quiet(files) if quiet else Bars(files) if bars else Lines(files)
