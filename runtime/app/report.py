"""What became of every input: its record, the table at the end of a run, and the file of ``--report``."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uid.bundles.files import written_whole
from uid.errors import printable
from uid.runtime.app.border import Record
from uid.runtime.app.jobs import Plan

if TYPE_CHECKING:
    from rich.table import Table

    from uid.runtime.options import Options, Result

# Names of earlier versions, printed beside the new ones until 0.3.
OLD_KEYS = {"preset": "quality", "transforms": "views", "cache_interval": "reuse"}
SHOWN = 10  # names in a row of the table; the report has all of them


@dataclass(frozen=True)
class Outcomes:
    """What was planned, and the records of what was come to."""

    plan: Plan
    records: Sequence[Record]

    def groups(self) -> dict[str, list[str]]:
        """Names of inputs by what became of them; all of them, in this order."""
        reached = {record["input"] for record in self.records}
        return {
            "done": [r["input"] for r in self.records if r["ok"] and not r.get("skipped")],
            "skipped": [r["input"] for r in self.records if r.get("skipped")],
            "failed": [r["input"] for r in self.records if not r["ok"]],
            "not reached": [job.input_name for job in self.plan.jobs if job.input_name not in reached],
            "not readable": [f"{one.path} ({one.why})" for one in self.plan.unreadable],
            "left out": [f"{one.path} ({one.why})" for one in self.plan.left_out],
        }

    def table(self) -> "Table":
        """How many there are of each group, and which; of those that were done the number alone."""
        from rich.table import Table

        table = Table("files", "", "which", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        table.columns[2].overflow = "fold"
        for what, names in self.groups().items():
            if names:
                listed = [] if what == "done" else [*names[:SHOWN]]
                more = [f"and {len(names) - SHOWN} more"] if listed and len(names) > SHOWN else []
                table.add_row(what, str(len(names)), printable("\n".join(listed + more)))
        return table

    def write(self, path: Path) -> None:
        """Write all of it as one JSON object. Raises ``OutputError``."""
        groups = self.groups()
        missing: list[dict[str, Any]] = [
            {"input": name, "ok": False, "pending": True} for name in groups["not reached"]
        ]
        beside = [("left_out", self.plan.left_out), ("unreadable", self.plan.unreadable)]
        report = {"counts": {what.replace(" ", "_"): len(names) for what, names in groups.items()}}
        lists = {key: [{"path": str(one.path), "why": one.why} for one in found] for key, found in beside}
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(report | {"files": [*self.records, *missing]} | lists, indent=1) + "\n")


def is_report(path: Path) -> bool:
    """Whether a file may be replaced by a report: it is one, or has no content, or is not there."""
    beginning = b'{\n "counts"'
    try:
        with path.open("rb") as file:
            return file.read(len(beginning)) in (beginning, b"")
    except FileNotFoundError:
        return True
    except OSError:
        return False


def record_of(result: "Result") -> Record:
    """All of a result but its pixels."""
    fields = {
        f.name: getattr(result, f.name)
        for f in dataclasses.fields(result)
        if f.name not in ("image", "options", "source")
    }
    return options_record(result.options) | fields


def options_record(used: "Options") -> Record:
    """Options under their names, and under their old ones."""
    options = dataclasses.asdict(used)
    return options | {old: options[new] for new, old in OLD_KEYS.items()}


def summary(outcome: Record) -> str:
    """A record in words."""
    if outcome.get("skipped"):
        return f"{outcome['why']}, skipped"
    frames = f"{outcome['frames']} frames of " if "frames" in outcome else ""
    if "width" not in outcome:
        return f"{outcome['frames']} frames, all of them done by an earlier run"
    steps = "" if outcome["steps"] is None else f", {outcome['steps']} steps"
    size = f"{outcome['width']}x{outcome['height']}{steps}"
    return f"{frames}{size}, {sum(outcome['seconds'].values()):.1f} s on {outcome['backend']}"
