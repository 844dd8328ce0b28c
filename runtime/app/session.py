"""A whole call of ``uid-run``: the jobs, the record beside the output, and what is told in the end."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click

from uid import stop
from uid.bundles.files import check_replaceable
from uid.errors import InputError, OutputError, UIDError
from uid.runtime.app import record, watching
from uid.runtime.app.border import Record, explained
from uid.runtime.app.decision import DO, LEAVE, REFUSE, Decider
from uid.runtime.app.jobs import Job, Plan, identity
from uid.runtime.app.progress import Quiet, reporter
from uid.runtime.app.record import OutputRecord
from uid.runtime.app.report import Outcomes, is_report
from uid.runtime.app.runner import JobRunner
from uid.runtime.app.settings import RunSettings

CANNOT_RUN = 2  # as click does for wrong usage


@dataclass
class Session:
    """Does what settings and a plan ask for."""

    settings: RunSettings
    plan: Plan
    failures: list[str] = field(default_factory=list)  # a line each
    # Of all that was found until now, by the name of the input: there is more than one plan where folders are watched.
    asked: dict[str, Job] = field(default_factory=dict)
    reached: dict[str, Record] = field(default_factory=dict)

    def run(self, replan: "Callable[[RunSettings], Plan]") -> int:
        """The exit status after all is done; ``replan`` finds what has come into watched folders."""
        if self.plan.unreadable and not self.settings.keep_going:
            one = self.plan.unreadable[0]
            raise InputError(f"cannot list {one.path}: {one.why}; --keep-going does the rest")
        try:
            with self._record() as found:
                if self.settings.dry_run:
                    return self._told(found)
                self._run_jobs(self.plan, found)
                if self.settings.watch:
                    self._watch(replan, found)
        except UIDError as error:  # nothing is wrong with the usage's form, so its summary would only distract
            stop.check()  # a library whose loading a signal ended says that it does not load
            click.echo(f"error: {explained(error)}", err=True)
            return CANNOT_RUN
        return 1 if self.failures else 0

    def _check_report(self, plan: Plan) -> None:
        """Refuse a report in the place of something else, before any work is done."""
        report = self.settings.report
        if report is None:
            return
        check_replaceable(report)
        jobs = plan.jobs
        used = [path for job in jobs for path in (job.source, job.destination)]
        used += [*self.settings.extra_images.values(), plan.folder and record.path_of(plan.folder)]
        # Folders of frames, and a bundle, are used with all that lies in them.
        whole = [self.settings.model, *(path for job in jobs if job.video for path in (job.source, job.destination))]
        taken = {identity(path) for path in used if path is not None}
        inside = {identity(path) for path in whole if path is not None and not path.is_file()}
        if identity(report) in taken or inside & {identity(folder) for folder in report.absolute().parents}:
            raise OutputError(f"{report} is an input or an output of this run; choose another file for --report")
        if not (self.settings.overwrite or is_report(report)):
            raise OutputError(f"{report} exists, and is no report; choose another file, or give --overwrite")

    @contextmanager
    def _record(self) -> Iterator[OutputRecord | None]:
        """The record of the output folder, where all outputs go into one."""
        folder = self.plan.folder
        exists = folder is not None and record.path_of(folder).exists()
        if folder is None or (self.settings.dry_run and not exists):
            yield None
            return
        found = record.opened(folder, self._note)
        if found is None:
            yield None
            return
        with found:
            yield found

    def _run_jobs(self, plan: Plan, found: OutputRecord | None) -> None:
        """Do the jobs of a plan, and tell what became of them, also where it is interrupted."""
        self._check_report(plan)
        shown = self._reporter(len(plan.jobs))
        runner = JobRunner(self.settings, shown, found)
        if found is not None:
            found.expect([job.destination for job in plan.jobs if job.destination is not None])
        try:
            with shown:
                runner.run(plan.jobs)
        finally:
            self._tell(plan, runner, shown)
        self.failures += runner.failures + [f"{one.path}: {one.why}" for one in plan.unreadable]
        if runner.failures and self.settings.keep_going:
            lines = [f"{len(runner.failures)} of {len(plan.jobs)} files failed:", *runner.failures]
            shown.summary("\n  ".join(lines))
        elif runner.failures and (left := len(plan.jobs) - len(runner.records)) > 0:
            shown.summary(f"stopped with {left} files left to do; --keep-going does them in spite of an error")

    def _tell(self, plan: Plan, runner: JobRunner, shown: Quiet) -> None:
        outcomes = Outcomes(plan, runner.records)
        self.reached |= {one["input"]: one for one in runner.records}
        self.asked |= {job.input_name: job for job in plan.jobs}
        if len(plan.jobs) > 1 or plan.left_out or plan.unreadable:
            shown.show(outcomes.table())
        if self.settings.report is not None:
            whole = Plan([*self.asked.values()], plan.folder, plan.left_out, plan.unreadable)
            Outcomes(whole, [*self.reached.values()]).write(self.settings.report)

    def _told(self, found: OutputRecord | None) -> int:
        """Say what would be done; the exit status."""
        decider, refused = Decider(self.settings, found), 0
        for job in self.plan.jobs:
            decision = decider.decide(job)
            refused += decision.what == REFUSE
            words = {DO: "would be done", LEAVE: f"would be skipped: {decision.why}", REFUSE: f"error: {decision.why}"}
            if self.settings.json:
                told = {"input": job.input_name, "output": job.output_name, "would": decision.what, "why": decision.why}
                click.echo(json.dumps(told))
            else:
                would = words.get(decision.what, f"would be replaced: {decision.why}")
                click.echo(f"{job.input_name} -> {job.output_name}: {would}")
        if self.plan.left_out or self.plan.unreadable:
            self._reporter(0).show(Outcomes(Plan([], None, self.plan.left_out, self.plan.unreadable), []).table())
        return 1 if refused else 0

    def _watch(self, replan: "Callable[[RunSettings], Plan]", found: OutputRecord | None) -> None:
        """Do what is put into the input folders, until a signal ends it."""
        self._note("watching for more; Ctrl-C ends it")
        for _ in watching.changes([Path(name) for name in self.settings.inputs]):
            try:
                plan = replan(self.settings)
            except InputError as error:  # such as a folder that is empty again
                self._note(str(error))
                continue
            decider = Decider(self.settings, found)
            new = [job for job in plan.jobs if self._is_new(job, decider)]
            if new:
                self._run_jobs(Plan(new, plan.folder), found)

    def _is_new(self, job: Job, decider: Decider) -> bool:
        """Whether a job has not been done, or tried in vain, before."""
        try:
            return decider.decide(job).what not in (LEAVE, REFUSE) and not decider.failed_as_before(job)
        except OSError:  # gone again
            return False

    def _reporter(self, files: int) -> Quiet:
        # JSON lines and bars on one terminal would garble each other.
        bars = sys.stderr.isatty() and not (self.settings.json and sys.stdout.isatty())
        return reporter(files, quiet=self.settings.quiet, bars=bars and files > 0)

    def _note(self, line: str) -> None:
        self._reporter(0).note(line)
