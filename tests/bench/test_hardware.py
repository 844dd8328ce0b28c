"""The run for machines with a GPU: its commands are ones that exist, and what fails is told and leaves the rest."""

import importlib
import sys
from pathlib import Path

import click
import psutil
import pytest
from click.testing import CliRunner

from uid.bench import hardware
from uid.bench.hardware import MODULES, ON_A_GPU, Command, ask_rtx, main, phases, run, working
from uid.engines import BACKENDS, probe


def test_every_command_has_options_that_exist(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    named = set()
    for commands in phases(tmp_path / "out", tmp_path, "sd15", ON_A_GPU).values():
        for name, *words in (command.words for command in commands):
            if name in ("uid-export", "uid-bench"):
                group: click.Group = importlib.import_module(MODULES[name]).main
                given = group.commands[words[0]].make_context(name, words[1:])
                named.update(given.params.get("backends", ()))
    assert named == set(ON_A_GPU) <= set(BACKENDS)


def test_what_was_made_is_not_made_again(tmp_path: Path) -> None:
    def exported() -> list[str]:
        return [command.words[1] for command in phases(tmp_path / "out", tmp_path, "tiny", [])["export"]]

    assert exported() == ["random", "bundle"]
    for file, left in (("checkpoint/model_index.json", ["bundle"]), ("bundle/manifest.json", [])):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
        assert exported() == left


def test_a_phase_ends_at_what_fails_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def python(code: str, limit: int = 60) -> Command:
        return Command((sys.executable, "-c", code), limit)

    made = {
        "fails": [python("print('so far')"), python("import sys; sys.exit('no more')"), python("print('never')")],
        "slow": [python("import time; time.sleep(60)", limit=1)],
        "missing": [Command(("no-such-program-here",), 1)],
        "sound": [python("print('done')")],
    }
    monkeypatch.setattr(hardware, "phases", lambda *arguments: made)
    result = CliRunner().invoke(main, [str(tmp_path), "--work", str(tmp_path / "work"), "--backend", "none"])
    assert result.exit_code == 0, result.output
    told = [line.split(",")[0] for line in (tmp_path / "summary.txt").read_text().splitlines()]
    assert told == [
        "fails 1: ok",
        "fails 2: exit status 1",
        "slow 1: took more than 1 s",
        "missing 1: did not start: No such file or directory",
        "sound 1: ok",
    ]
    assert "no more" in result.output
    assert "so far" in (tmp_path / "fails" / "1.log").read_text()
    refused = CliRunner().invoke(main, [str(tmp_path), "swift", "--backend", "none"])
    assert "unknown phase 'swift'; expected some of fails, slow, missing, sound" in refused.output


def test_a_command_that_takes_too_long_takes_its_children_with_it(tmp_path: Path) -> None:
    child = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    run("slow", [Command((sys.executable, "-c", parent), 3)], tmp_path)
    pid = int((tmp_path / "slow" / "1.log").read_text().splitlines()[-1])
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    assert not psutil.pid_exists(pid)


def test_a_backend_that_crashes_when_it_is_tried_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "ON_A_GPU", ("onnxruntime", "no-such-backend", "onnxruntime-cuda"))
    expected = [name for name in hardware.ON_A_GPU if probe(name).available]
    assert working() == expected
    assert "onnxruntime" in expected
    monkeypatch.setattr(hardware, "ASK_BACKEND", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert working() == []


def test_without_a_backend_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Command((sys.executable, "-c", ""), 60)
    made = {name: [nothing] for name in phases(tmp_path, tmp_path, "sd15", [])}
    monkeypatch.setattr(hardware, "phases", lambda *arguments: made)
    monkeypatch.setattr(hardware, "working", list)
    result = CliRunner().invoke(main, [str(tmp_path), "--work", str(tmp_path / "work")])
    assert "none works on a GPU here" in result.output
    told = [line.split()[0] for line in (tmp_path / "summary.txt").read_text().splitlines()]
    assert told == ["device", "tests"]


def test_logs_of_one_phase_stay_apart(tmp_path: Path) -> None:
    run("two", [Command((sys.executable, "-c", f"print({i})"), 60) for i in (1, 2)], tmp_path)
    assert [(tmp_path / "two" / f"{i}.log").read_text().splitlines()[-1] for i in (1, 2)] == ["1", "2"]


def test_what_tensorrt_rtx_can_build_for_is_asked_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds engines without a GPU")
    ask_rtx()
    told = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert {"default", "CURRENT", "SM80", "SM89", "SM120"} <= told.keys()
    for name in ("default", "SM80", "SM89", "SM120"):
        assert "EngineValidity." in told[name]
        assert "load" in told[name]
