"""The record beside an output folder: which outputs were made of which inputs, so that a rerun goes on.

It is JSON Lines, one object a line, and only ever appended to: a line that a kill cut off is no line, and the last one
about an output counts. Its lock tells a second run on the same folder that the first is still at work.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from uid.bundles.cache import open_no_link, try_lock
from uid.bundles.reading import sha256
from uid.errors import OutputError
from uid.runtime.app.jobs import RECORD_SUFFIX

DONE, FAILED, PENDING, SHARP = "done", "failed", "pending", "sharp"
HEADER = {"record": "uid-run", "version": 1}
Entry = Mapping[str, Any]


class OutputRecord:
    """The record of an output folder, held for one run; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Open and lock it. Raises ``OutputError`` where another run holds it, or the file is something else."""
        self.folder, self.path = folder.resolve(), path_of(folder)
        self._writing = threading.Lock()
        self._file = self._opened()
        try:
            self._entries = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "OutputRecord":
        return self

    def __exit__(self, *_: object) -> None:
        """Free it; without a single entry it goes away."""
        with contextlib.suppress(OSError):
            if not self._entries:
                self.path.unlink()
        self._file.close()

    def entry(self, output: Path) -> Entry | None:
        """What is known of an output; None: nothing."""
        return self._entries.get(self._name(output))

    def done_as_before(self, output: Path) -> Entry | None:
        """The entry of an output that a run made, if it is still what that run wrote."""
        entry = self.entry(output)
        if entry is None or entry.get("state") != DONE or not output.is_file():
            return None
        status = output.stat()
        same = (entry.get("size"), entry.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)
        return entry if same or entry.get("sha256") == sha256(output) else None

    def expect(self, outputs: Sequence[Path]) -> None:
        """Note outputs that are to be made, those of which nothing is known yet."""
        self._append([{"output": self._name(one), "state": PENDING} for one in outputs if self.entry(one) is None])

    def done(self, output: Path, source: str, options: str, file: Path | None = None) -> None:
        """Note an output that was made; ``source`` and ``options`` are digests of what it was made from.

        ``file`` is the output under another name, before it is put in place: noted then, a kill in between loses
        nothing, since an output that is not there is made anew.
        """
        entry: dict[str, Any] = {"output": self._name(output), "state": DONE, "source": source, "options": options}
        file = file or output
        if file.is_file():
            status = file.stat()
            entry |= {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256(file)}
        self._append([entry])

    def sharp(self, output: Path, source: str, options: str) -> None:
        """Note an image that was left since it is sharp."""
        self._append([{"output": self._name(output), "state": SHARP, "source": source, "options": options}])

    def failed(self, output: Path, source: str, options: str, error: str) -> None:
        """Note an output that could not be made, and why."""
        entry = {"output": self._name(output), "state": FAILED, "source": source, "options": options, "error": error}
        self._append([entry])

    def _opened(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(self.path, "a+b", buffering=0, opener=open_no_link)  # noqa: SIM115  (closed by __exit__)
            try:
                if not try_lock(file.fileno()):
                    raise OutputError(
                        f"another run is writing to {self.folder} ({self.path.name} is locked); wait for it, or choose "
                        "another output"
                    )
                if os.fstat(file.fileno()).st_nlink:  # else its last holder has removed it since
                    return file
            except BaseException:
                file.close()
                raise
            file.close()

    def _read(self) -> dict[str, Entry]:
        self._file.seek(0)
        data = self._file.read()
        if not data:
            self._write(HEADER)
            return {}
        lines = data.split(b"\n")
        if _object(lines[0]) != HEADER:
            raise OutputError(f"{self.path} is no record of this version of uid-run; move it away")
        if lines[-1]:  # cut off by a kill: the next line begins anew
            self._file.write(b"\n")
        entries = [entry for line in lines[1:] if (entry := _object(line)) is not None]
        return {str(entry["output"]): entry for entry in entries if "output" in entry}

    def _append(self, entries: Sequence[Entry]) -> None:
        with self._writing:
            self._write(*entries)
            self._entries.update({str(entry["output"]): entry for entry in entries})

    def _write(self, *entries: Entry) -> None:
        data = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _name(self, output: Path) -> str:
        return Path(os.path.relpath(output.parent.resolve() / output.name, self.folder)).as_posix()


def path_of(folder: Path) -> Path:
    """Where the record of an output folder lies."""
    folder = folder.resolve()
    return folder.with_name((folder.name or "root") + RECORD_SUFFIX)


def opened(folder: Path, report: Callable[[str], None]) -> OutputRecord | None:
    """The record of an output folder; None, and a line that says so, where none can be written beside it."""
    try:
        return OutputRecord(folder)
    except OSError as error:
        report(f"note: no record is kept beside {folder} ({error.strerror or error}): a rerun cannot go on by itself")
        return None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
