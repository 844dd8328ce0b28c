"""What to do about a job: by what lies at its output, and by what the record tells of it."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from uid.bundles.declarations import built_in
from uid.bundles.files import not_a_file
from uid.bundles.manifest import read_bundle
from uid.bundles.reading import sha256
from uid.errors import OutputError
from uid.runtime.app.border import Record, failed
from uid.runtime.app.jobs import Job
from uid.runtime.app.record import FAILED, SHARP, OutputRecord
from uid.runtime.app.settings import RunSettings, options_digest

DO, REDO, LEAVE, REFUSE = "do", "redo", "leave", "refuse"


@dataclass(frozen=True)
class Decision:
    """What to do about a job, and why where it is not simply done."""

    what: str  # DO, REDO (the output is replaced), LEAVE or REFUSE
    why: str = ""
    source: str = ""  # sha256 of the input, where a record is kept

    def ended(self) -> Record | None:
        """The record of a job that is not done; None: it is."""
        if self.what == LEAVE:
            return {"ok": True, "skipped": True, "why": self.why}
        return failed(OutputError(self.why)) if self.what == REFUSE else None


@dataclass
class Decider:
    """Decides for the jobs of a run; ``record`` is that of the output folder, None where there is none."""

    settings: RunSettings
    record: OutputRecord | None

    def decide(self, job: Job) -> Decision:
        """What to do about a job. Raises ``OSError`` where its input cannot be read."""
        kind = None if job.destination is None else not_a_file(job.destination)
        if kind not in (None, "a folder"):
            return Decision(REFUSE, f"{job.output_name} is {kind}, not a file; choose another output")
        source = self._source(job)
        if self.settings.overwrite:
            return Decision(REDO, "--overwrite", source)
        if not _is_present(job.destination):
            if self.settings.skip_sharp and self._is_as_before(job, SHARP, source):
                return Decision(LEAVE, "sharp already, as before", source)
            return Decision(DO, source=source)
        if self.settings.skip_existing:
            return Decision(LEAVE, "exists", source)
        entry = self.record.done_as_before(job.destination) if self.record and job.destination else None
        if entry is not None:
            if (entry.get("source"), entry.get("options")) == (source, self.options):
                return Decision(LEAVE, "done before", source)
            return Decision(REDO, "its input or the options have changed", source)
        # A folder may hold what the user never meant to lose, so that --overwrite does not empty one.
        is_folder = job.destination is not None and job.destination.is_dir()
        remedy = "choose a new or empty folder" if is_folder else "give --overwrite to replace it"
        return Decision(REFUSE, f"{job.output_name} exists; {remedy}, or --skip-existing to leave it")

    @cached_property
    def options(self) -> str:
        """The digest of all that an output depends on but its input."""
        return options_digest(self.settings, read_bundle(self.settings.model or built_in()).digest)

    def failed_as_before(self, job: Job) -> bool:
        """Whether the last run failed at this very input with these options."""
        return self._is_as_before(job, FAILED, self._source(job))

    def _is_as_before(self, job: Job, state: str, source: str) -> bool:
        """Whether this state of an output is on record, of this very input and these options."""
        entry = self.record.entry(job.destination) if self.record and job.destination else None
        if entry is None or entry.get("state") != state:
            return False
        return (entry.get("source"), entry.get("options")) == (source, self.options)

    def _source(self, job: Job) -> str:
        return sha256(job.source) if self.record and job.source and job.source.is_file() else ""


def _is_present(destination: Path | None) -> bool:
    """Whether something is there that would be replaced; an empty folder for frames is nothing."""
    if destination is None:
        return False
    return any(destination.iterdir()) if destination.is_dir() else os.path.lexists(destination)
