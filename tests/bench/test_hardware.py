"""The calls for machines with a GPU: their commands exist, keep to their budgets, and leave what they found behind."""

import importlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import psutil
import pytest
from click.testing import CliRunner

from uid.bench.hardware import proof, rehearsal
from uid.bench.hardware.calls import EXPORT, GPU, REHEARSAL, Call, CallPlan, Command, Scale
from uid.bench.hardware.portable import write_portable
from uid.bench.hardware.run import MODULES, Supervisor, held, pack
from uid.bench.speed.flops import picture_flops
from uid.bench.speed.host import IdleBackend
from uid.bench.speed.lineup import PYTORCH, REFERENCES
from uid.bundles.manifest import read_bundle
from uid.engines import BACKENDS, create
from uid.errors import InputError

ROOT = Path(__file__).parents[2]
FOR_EVER = "import time; time.sleep(600)"


def python(code: str, limit: float = 60.0, least: float = 0.0, needs: tuple[Path, ...] = ()) -> Command:
    return Command((sys.executable, "-c", code), limit, least, needs)


def supervisor(folder: Path, coming: Callable[[Path], bool] = lambda path: False) -> Supervisor:
    results = folder / "results"
    return Supervisor(results, lambda: pack([results], folder / "out" / "call.tar.gz"), coming)


def told(folder: Path) -> list[str]:
    lines = (folder / "results" / "summary.txt").read_text().splitlines()
    return [line.rsplit(" s: ", 1)[0].rsplit(",", 1)[0] for line in lines]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("scale", [GPU, REHEARSAL])
def test_every_command_exists_and_no_runner_shares_a_process(tmp_path: Path, scale: Scale) -> None:
    (tmp_path / "checkpoint").mkdir()
    runners = set()
    for call in CallPlan(tmp_path, scale).calls().values():
        for name, *words in (command.words for command in call.commands):
            if name in ("uid-export", "uid-bench"):
                group: click.Group = importlib.import_module(MODULES[name]).main
                given = group.commands[words[0]].make_context(name, words[1:]).params
                assert len(given.get("backends", "-")) == 1
                runners.update(given.get("backends", ()))
            elif name == sys.executable:
                assert words[0] == "-m"
                assert importlib.util.find_spec(words[1])
                files = [ROOT / word for word in words if word.startswith("tests/")]
                assert all("@pytest.mark.gpu" in file.read_text() for file in files)
    assert runners <= {*BACKENDS, *REFERENCES} - {PYTORCH}
    assert {scale.rtx, scale.ort, "pytorch-fp16-channels-last"} <= runners


def test_the_default_calls_fit_into_a_quarter_of_an_hour(tmp_path: Path) -> None:
    calls = CallPlan(tmp_path, GPU).calls()
    sure = [call for name, call in calls.items() if name not in ("pytorch", EXPORT)]
    assert sum(call.seconds for call in sure) <= 11 * 60
    for call in calls.values():
        assert sum(command.least for command in call.commands) <= call.seconds


def test_what_fails_or_hangs_is_told_and_leaves_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [
        replace(python("print('so far'); print('and then')"), shows=1),
        python("import sys; sys.exit('no more')"),
        python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {FOR_EVER!r}])", limit=2),
        Command(("no-such-program-here",), 1, 0),
        python("print('done')"),
    ]
    assert not supervisor(tmp_path).run("it", Call(60, commands), 60)
    wanted = ["ok", "exit status 1", "took more than 2 s", "did not start: No such file or directory", "ok"]
    assert told(tmp_path) == [f"it {number}: {said}" for number, said in enumerate(wanted, 1)]
    printed = capsys.readouterr().out.splitlines()
    assert {"    no more", "    and then"} <= set(printed)
    assert not {"    so far", "    done"} & set(printed)
    assert "so far" in (tmp_path / "results" / "1.log").read_text()
    assert not [child for child in psutil.Process().children(recursive=True) if FOR_EVER in child.cmdline()]


def test_a_call_keeps_to_its_budget_and_says_what_it_left_out(tmp_path: Path) -> None:
    commands = [python(FOR_EVER, least=1), python("", least=30), python("")]
    started = time.monotonic()
    assert not supervisor(tmp_path).run("it", Call(600, commands), 2)
    assert time.monotonic() - started < 30
    assert told(tmp_path)[:2] == ["it 1: took more than 2 s", "it 2: left out, since it takes 30 s and 0 are left"]


def test_what_is_being_made_is_waited_for_and_what_is_not_is_told(tmp_path: Path) -> None:
    made, missing = tmp_path / "made", tmp_path / "missing"
    maker = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(1); open({str(made)!r}, 'w')"])
    commands = [python("", needs=(made,)), python("", needs=(missing,)), Command(("nothing",), 1, 0, makes=made)]
    assert supervisor(tmp_path, lambda path: maker.poll() is None).run("it", Call(60, commands), 60)
    assert told(tmp_path) == [
        "it 1: ok",
        f"it 2: left out, since {missing} is not there",
        "it 3: made already",
    ]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_rows_of_a_call_that_is_cut_off_are_packed(tmp_path: Path, how: signal.Signals) -> None:
    """In one file for all of the call, of which a lent machine gives back eight."""
    row = tmp_path / "results" / "rows.jsonl"
    code = f"import os; open({str(row)!r}, 'w').write('a row'); print(os.getpid(), flush=True); {FOR_EVER}"
    script = f"""
import sys, signal
from pathlib import Path
from uid.bench.hardware import run
from uid.bench.hardware.calls import Call, Command
run.PACK_SECONDS = 0.1
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
results = Path({str(tmp_path)!r}) / "results"
pack = lambda: run.pack([results], Path({str(tmp_path)!r}) / "out" / "call.tar.gz")
command = Command((sys.executable, "-c", {code!r}), 600)
run.Supervisor(results, pack, lambda path: False).run("it", Call(600, [command]), 600)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    archive = tmp_path / "out" / "call.tar.gz"

    def packed() -> dict[str, int]:
        with tarfile.open(archive) as stored:
            return {member.name: member.size for member in stored.getmembers()}

    wait_until(lambda: archive.exists() and packed().get("results/rows.jsonl") == len("a row"))
    process.send_signal(how)
    process.wait()
    log = (tmp_path / "results" / "1.log").read_text()
    left = int(log.splitlines()[-1])
    if how == signal.SIGTERM:
        assert not psutil.pid_exists(left)
    else:
        os.kill(left, signal.SIGKILL)
    assert packed()["results/rows.jsonl"] == len("a row")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"call.tar.gz", "packing.tmp"}


def test_what_goes_on_behind_is_started_once_and_outlives_the_call(tmp_path: Path) -> None:
    lock, pids = tmp_path / "work" / "export.lock", tmp_path / "pids"
    code = f"import os, time, uid; print(os.getpid(), os.getsid(0), uid.__file__, file=open({str(pids)!r}, 'a')); "
    words = [sys.executable, "-c", code + FOR_EVER]
    caller = f"from uid.bench.hardware import run; run.in_background({words!r}, {lock!r})"
    caller = f"from pathlib import PosixPath; {caller}"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", caller], check=True)
    wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"))
    (line,) = pids.read_text().splitlines()
    pid, session, package = line.split()
    assert int(session) != os.getsid(0)
    assert Path(package).is_relative_to(tmp_path / "work" / "code")
    assert held(lock)
    os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: not held(lock))


def test_a_portable_copy_has_the_same_graphs_without_their_variants(tiny_bundle: Path, tmp_path: Path) -> None:
    left_out = write_portable(tiny_bundle, tmp_path / "copy")
    bundle, copy = read_bundle(tiny_bundle), read_bundle(tmp_path / "copy")
    assert left_out["step"] == ["onnxruntime"]
    assert bundle.components["step"].variants
    assert not any(component.variants for component in copy.components.values())
    assert (copy.name, copy.components.keys()) == ("tiny-plain", bundle.components.keys())
    assert picture_flops(copy, 16, 16, 1) == picture_flops(bundle, 16, 16, 1)  # which reads graphs and weights
    assert not (copy.folder / "step.onnxruntime.onnx").exists()


def test_a_proof_tells_a_right_backend_from_a_wrong_one(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"onnxruntime": lambda: create("onnxruntime", threads=1), "idle": IdleBackend}
    monkeypatch.setattr(proof, "create", lambda name, **_: made[name]())
    right, wrong = (CliRunner().invoke(proof.main, [str(tiny_bundle), name, "32x48"]) for name in made)
    found = json.loads(right.output)
    assert (right.exit_code, found["psnr"], found["same_launch_by_launch"]) == (0, 100.0, True)
    assert wrong.exit_code == 1
    assert json.loads(wrong.output)["psnr"] < 20.0


def test_what_travels_is_what_git_has_and_what_is_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("code.py", "kit/part", "kit/deep/er", "left", ".gitignore"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("kit\nleft\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    names = {str(name) for name in rehearsal.travels(tmp_path, ["kit"])}
    assert names == {"code.py", ".gitignore", "kit/part", "kit/deep/er"}
    first, *others = rehearsal.transfers({"first": "kit", "ort": "kit"}, "model", 100)
    assert [one.name for one in others] == ["rtx", "ort", "pytorch"]
    assert first.line.startswith("bash kit/part-01/unpack.sh kit && ")
    assert rehearsal.check(first, tmp_path).startswith("first: 0.0 MiB travel")
    with pytest.raises(InputError, match="model is to be carried and is not there"):
        rehearsal.check(others[0], tmp_path)
    monkeypatch.setattr(rehearsal, "LARGEST", 0)
    with pytest.raises(InputError, match="at most 0 MiB and 2000 characters may"):
        rehearsal.check(first, tmp_path)
