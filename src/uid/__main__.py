"""Where every command line starts: ``uid-run`` and the others, and ``python -m uid``.

Nothing heavy is imported before signals are taken over, so that Ctrl-C ends the start-up as it ends everything else.
"""

import contextlib
import errno
import importlib
import os
import sys
from typing import Any, NoReturn

from uid import stop

RUN, SERVE, EXPORT, TRAIN, BENCH = "uid-run", "uid-serve", "uid-export", "uid-train", "uid-bench"
MODULES = {
    RUN: "uid.runtime.app.cli",
    SERVE: "uid.serve.cli",
    EXPORT: "uid.export.cli",
    TRAIN: "uid.train.cli",
    BENCH: "uid.bench.cli",
}


def run() -> NoReturn:
    """``uid-run``."""
    start(RUN, sys.argv[1:])


def serve() -> NoReturn:
    """``uid-serve``."""
    start(SERVE, sys.argv[1:])


def export() -> NoReturn:
    """``uid-export``."""
    start(EXPORT, sys.argv[1:])


def train() -> NoReturn:
    """``uid-train``."""
    start(TRAIN, sys.argv[1:])


def bench() -> NoReturn:
    """``uid-bench``."""
    start(BENCH, sys.argv[1:])


def main() -> NoReturn:
    """``python -m uid``: ``uid-run``, or with a first word run, serve, export, train or bench the command of that name.

    A file of such a name is given as ``./run``.
    """
    name = f"uid-{sys.argv[1]}" if len(sys.argv) > 1 else ""
    if name in MODULES:
        start(name, sys.argv[2:])
    start(RUN, sys.argv[1:])


def start(name: str, args: list[str]) -> NoReturn:
    """Run a command of this name, and end with its exit status."""
    code = _stopped_or(name, args)
    stop.no_more_waiting()
    sys.exit(_flushed(code))


def _stopped_or(name: str, args: list[str]) -> int:
    """The exit status of a command, or of the signal that ended it, whatever became of its exception on the way."""
    try:
        stop.install()
        _open_streams()
        code = _status(name, args)
    except BaseException:
        if not stop.received():
            raise
    else:
        if not stop.received():
            return code
    with contextlib.suppress(OSError, ValueError):
        print(stop.MESSAGE, file=sys.stderr)
    return stop.status()


def _status(name: str, args: list[str]) -> int:
    """The exit status of a command."""
    import click

    command, args, name = _command(name, args)
    try:
        code = command.main(args, prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        if not stop.received():
            error.show()
        return error.exit_code
    except OSError as error:
        if error.filename is not None or error.errno == errno.EPIPE:
            raise
        return _not_written(error)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return code if isinstance(code, int) else 0


def _command(name: str, args: list[str]) -> tuple[Any, list[str], str]:
    """The click command, its arguments and its whole name; ``uid-run doctor`` is a command of its own."""
    module = importlib.import_module(MODULES[name])
    if name != RUN:
        return module.main, args, name
    if args[:1] == ["doctor"]:
        return module.doctor, args[1:], f"{name} doctor"
    return module.run, args, name


def _open_streams() -> None:
    """Make good for standard streams that are closed, and give messages a descriptor of their own.

    A closed descriptor would be given to the next file that is opened, and a library's message would go into it.
    Standard input and output are opened the wrong way round: who reads or writes them gets an error, as before.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  (for the life of the process)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  (for the life of the process)
    # Images are decoded on other threads with descriptor 2 muted, since libraries write there.
    encoding, errors = getattr(sys.stderr, "encoding", "utf-8"), getattr(sys.stderr, "errors", "backslashreplace")
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=encoding, errors=errors)


def _flushed(code: int) -> int:
    """The exit status once the streams are written out: 1 where standard output fails and all else was done."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        code = code or _not_written(error)
        _abandon(1)
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        _abandon(sys.stderr.fileno())
    return code


def _not_written(error: Exception) -> int:
    """The exit status where standard output does not take what is written; who has stopped to read knows why."""
    with contextlib.suppress(OSError, ValueError):
        if getattr(error, "errno", None) not in (errno.EPIPE, errno.EBADF):
            print(f"error: cannot write to standard output: {getattr(error, 'strerror', error)}", file=sys.stderr)
    return 1


def _abandon(descriptor: int) -> None:
    """Let what could not be written go nowhere: Python tries again when it ends, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


if __name__ == "__main__":
    main()
