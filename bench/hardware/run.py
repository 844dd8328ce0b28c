"""A call's commands, run one after another: each within its limit and all within the budget, and what came of each told
at once. What there is of it is packed into one file again and again, since the whole may be cut off.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import click

import uid
from uid.bench.hardware.calls import Call, Command
from uid.bundles.cache import try_lock

MODULES = {"uid-export": "uid.export.cli", "uid-bench": "uid.bench.cli", "uid-run": "uid.runtime.app.cli"}
PACK_SECONDS = 5.0  # between two packings while a command runs
LAST_LINES = 12  # of the output of a command that failed


@dataclass(frozen=True)
class Supervisor:
    """Runs calls; ``pack`` keeps what there is so far, ``coming`` tells whether a file is being made behind them."""

    results: Path  # folder for logs and a summary
    pack: Callable[[], None]
    coming: Callable[[Path], bool]

    def run(self, name: str, call: Call, seconds: float) -> bool:
        """Run the commands within ``seconds``; whether all that were started did what they should."""
        self.results.mkdir(parents=True, exist_ok=True)
        deadline, sound = time.monotonic() + seconds, True
        for number, command in enumerate(call.commands, 1):
            started = time.monotonic()
            said = self.left_out(command, deadline)
            problem = "" if said else self.outcome(command, self.results / f"{number}.log", deadline)
            sound &= not problem
            took = f"{time.monotonic() - started:.0f} s"
            self.tell(f"{name} {number}: {said or problem or 'ok'}, {took}: {' '.join(command.words)}")
            if not said and (shown := LAST_LINES if problem else command.shows):
                click.echo(last_lines(self.results / f"{number}.log", shown))
            self.pack()
        return sound

    def left_out(self, command: Command, deadline: float) -> str:
        """Why a command is not started, or ""; waits for what it needs while that is being made."""
        if command.makes is not None and command.makes.exists():
            return "made already"
        latest = deadline - command.least
        for path in command.needs:
            while not path.exists() and self.coming(path) and time.monotonic() < latest:
                time.sleep(0.5)
            if not path.exists():
                return f"left out, since {path} is {'not yet' if self.coming(path) else 'not'} there"
        left = max(0.0, deadline - time.monotonic())
        return f"left out, since it takes {command.least:g} s and {left:.0f} are left" if left < command.least else ""

    def outcome(self, command: Command, log: Path, deadline: float) -> str:
        """Run a command; what went wrong, or ""."""
        limit = min(command.limit, deadline - time.monotonic())
        with log.open("w", encoding="utf-8") as file:
            print(f"$ {' '.join(command.words)}", file=file, flush=True)
            try:
                process = start(command, file)
            except OSError as error:
                return f"did not start: {error.strerror}"
            try:
                code = self.wait(process, time.monotonic() + limit)
            finally:
                with contextlib.suppress(ProcessLookupError):  # its children too, which may hold the GPU's memory
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code is None:
            return f"took more than {limit:.0f} s"
        return f"exit status {code}" if code else ""

    def wait(self, process: "subprocess.Popen[bytes]", until: float) -> int | None:
        """The exit status; None when it still runs."""
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(min(left, PACK_SECONDS))
            self.pack()
        return None

    def tell(self, line: str) -> None:
        """Say a line, and keep it."""
        click.echo(line)
        with (self.results / "summary.txt").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def start(command: Command, log: IO[str]) -> "subprocess.Popen[bytes]":
    """A command of this project with this Python, or another as it is, in a process group of its own."""
    name, *rest = command.words
    words = [name, *rest]
    if name in MODULES:
        words = [sys.executable, "-c", f"from {MODULES[name]} import main; main()", *rest]
    return subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment()
    )


def environment() -> Mapping[str, str]:
    """The one here, with torch's CUDA libraries where the loader looks: ONNX Runtime looks beside itself only."""
    torch = find_spec("torch")
    site = Path(torch.origin).parents[1] if torch is not None and torch.origin else Path()
    folders = [str(path) for path in sorted(site.glob("nvidia/*/lib"))] if torch is not None else []
    known = os.environ.get("LD_LIBRARY_PATH")
    path = {"LD_LIBRARY_PATH": os.pathsep.join([*folders, *([known] if known else [])])} if folders else {}
    return {**os.environ, "PYTHONUNBUFFERED": "1", **path}


def last_lines(log: Path, count: int) -> str:
    """The end of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"    {line.rstrip()}" for line in lines[-count:])


def pack(folders: Sequence[Path], target: Path) -> None:
    """All files of some folders as one archive, which takes the place of the one before; or says why it cannot."""
    temporary = target.with_name("packing.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(temporary, "w:gz") as archive:
            for folder in folders:
                if folder.exists():
                    archive.add(folder, folder.name)
        temporary.replace(target)
    except OSError as error:  # what goes on behind may have changed a file meanwhile; the next packing has it
        click.echo(f"not packed: {error}")


# -- what goes on behind ----------------------------------------------------------------------------------------------


def in_background(words: Sequence[str], lock: Path) -> None:
    """Start a command that outlives this process and its session, unless one holds the lock, which it then does.

    It runs from a copy of this package in the lock's folder: the tree here may be replaced meanwhile.
    """
    work = lock.parent
    work.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file, lock.with_suffix(".log").open("a", encoding="utf-8") as output:
        if not try_lock(file.fileno()):
            return
        code = work / "code"
        shutil.rmtree(code, ignore_errors=True)
        shutil.copytree(Path(uid.__file__).parent, code / "uid", ignore=shutil.ignore_patterns("models", "__pycache__"))
        path = os.pathsep.join([str(code), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        subprocess.Popen(
            ["nohup", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=work,
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=[file.fileno()],
        )


def held(lock: Path) -> bool:
    """Whether the command that was started in the background still runs."""
    if not lock.exists():
        return False
    with lock.open("a") as file:
        return not try_lock(file.fileno())
