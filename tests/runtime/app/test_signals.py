"""Ctrl-C, SIGTERM and SIGHUP, once and twice, while a command starts, computes or ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import inverting_cli
import pytest
from inverting_cli import draw, tree

from uid import stop

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")


def start(folder: Path, *words: str, program: list[str] | None = None) -> "subprocess.Popen[str]":
    program = program or [sys.executable, inverting_cli.__file__]
    return subprocess.Popen([*program, *words], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_a_run_with_its_own_status(tmp_path: Path, name: str, times: int) -> None:
    draw(tmp_path / "in.png")
    process = start(tmp_path, "in.png", "-o", "out/out.png", "--steps", "100000")
    assert process.stderr is not None
    assert "random" in process.stderr.readline()  # it computes
    for _ in range(times):
        process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=100)
    assert process.returncode == 128 + getattr(signal, name), err
    assert set(err.splitlines()) == {stop.MESSAGE}
    assert tree(tmp_path) == ["in.png"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_during_the_start_is_one_too(tmp_path: Path, name: str) -> None:
    """At whatever moment it comes once signals are taken over, which takes 50 ms: importing the rest takes a second."""
    draw(tmp_path / "in.png")
    ready = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from uid import stop; "
    ready += "own = stop.install; stop.install = lambda: (own(), print('ready', flush=True)); "
    tell = "from uid.__main__ import start; start('uid-run', sys.argv[1:])"
    for delay in (0.02, 0.1, 0.25, 0.5):
        words = ["in.png", "-o", "out.png", "--backend", "onnxruntime", "-q"]
        process = start(tmp_path, *words, program=[sys.executable, "-c", f"import sys; {ready}{tell}"])
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=100)
        (tmp_path / "out.png").unlink(missing_ok=True)
        if process.returncode:  # else it was faster
            assert process.returncode == 128 + getattr(signal, name), err
            assert err.removeprefix("\n") == f"{stop.MESSAGE}\n", "a line end closes a terminal's ^C"


SWALLOWED = """
import os, signal, sys
from uid import stop
from uid.__main__ import start
from uid.errors import BackendError
from uid.runtime import pipeline

def load(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        raise BackendError("backend onnxruntime does not load: initialization failed")

pipeline.load = load
start("uid-run", sys.argv[1:])
"""


def test_a_library_that_a_signal_kept_from_loading_is_not_to_blame(tmp_path: Path) -> None:
    draw(tmp_path / "in.png")
    process = start(tmp_path, "in.png", "-o", "out.png", "-q", program=[sys.executable, "-c", SWALLOWED])
    _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (128 + signal.SIGTERM, f"{stop.MESSAGE}\n")


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    draw(tmp_path / "in.png")
    program = ["nohup", sys.executable, inverting_cli.__file__]
    process = start(tmp_path, "in.png", "-o", "out.png", "--steps", "1500", program=program)
    assert process.stderr is not None
    while "random" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=100)
    assert process.returncode == 0
    assert (tmp_path / "out.png").is_file()


def test_a_signal_that_a_library_swallows_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "_received", [])
    stop.check()
    with pytest.raises(stop.Stopped):
        stop._on_signal(signal.SIGTERM, None)
    assert stop.received()
    assert stop.status() == 143
    with pytest.raises(KeyboardInterrupt):
        stop.check()


def test_a_process_that_was_forked_ends_as_it_always_does() -> None:
    """Such as the workers of a pool, which ``terminate`` ends."""
    code = """
import os, signal, time
from uid import stop
stop.install()
child = os.fork()
if not child:
    time.sleep(60)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == f"{-signal.SIGTERM}\n"
    assert done.stderr == ""
