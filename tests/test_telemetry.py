"""No command, worker or import looks up a host, or keeps anything in the home folder but our own cache."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import PIPE

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None,
    reason="needs Linux and a C compiler, for a library that watches name look-ups",
)
Seen = tuple[list[str], list[str]]  # what was looked up or connected to; the files in the home folder
Popen = subprocess.Popen[bytes]
Run = Callable[..., Seen]
COMMANDS = {
    "uid-run": "from uid.runtime.app.cli import main; main()",
    "uid-export": "from uid.export.cli import main; main()",
    "uid-bench": "from uid.bench.cli import main; main()",
    "uid-serve": "from uid.serve.cli import main; main()",
    "import": "import uid.engines.ort.cpu, uid.export.bundle; import openvino, diffusers, transformers",
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run Python with an empty home; returns what was looked up or connected to, and the files that home then has."""
    library, log, home = tmp_path / "watch.so", tmp_path / "log", tmp_path / "home"
    source = Path(__file__).with_name("watch_network.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    home.mkdir()
    # Of our own settings, the tests' and CI's, none is to help.
    hidden = ("XDG_", "CI", "ORT_", "HF_", "UID_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    watched = {"HOME": str(home), "WATCH_LOG": str(log), "LD_PRELOAD": str(library)}

    def run(words: Sequence[str], meanwhile: Callable[[Popen], None] = lambda process: None) -> Seen:
        with subprocess.Popen([sys.executable, "-c", *words], env=kept | watched, cwd=tmp_path, stdout=PIPE) as process:
            meanwhile(process)
            process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, words)
        files = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
        return log.read_text().splitlines() if log.exists() else [], files

    return run


def test_the_watch_sees_a_look_up_and_a_file(run: Run) -> None:
    code = "import pathlib, socket; (pathlib.Path.home() / 'id').touch(); socket.getaddrinfo('example.invalid', 1)"
    with pytest.raises(subprocess.CalledProcessError):
        run([code])
    assert run(["pass"]) == (["getaddrinfo example.invalid"], ["id"])


@pytest.mark.parametrize(
    "words",
    [
        ["uid-run", "in.png", "-o", "out.png", "--backend", "onnxruntime"],
        ["uid-run", "in.png", "-o", "out.png", "--backend", "openvino"],
        ["uid-run", "doctor"],
        ["uid-export", "random", "tiny", "checkpoint"],
        ["uid-bench", "latency", "--size", "32", "--backend", "onnxruntime", "--repeats", "1", "--warm-up", "0"],
        ["import"],
    ],
    ids=" ".join,
)
def test_nothing_is_told_and_nothing_is_kept(run: Run, tmp_path: Path, words: list[str]) -> None:
    if words[-1] in ("openvino", "import"):
        pytest.importorskip("openvino")
    cv2.imwrite(str(tmp_path / "in.png"), np.full((32, 32, 3), 100, np.uint8))
    seen, files = run([COMMANDS[words[0]], *words[1:]])
    assert seen == []
    assert [file for file in files if not file.startswith(".cache/uid-runtime/")] == []


def test_a_server_asks_nobody(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    httpx = pytest.importorskip("httpx")
    cv2.imwrite(str(tmp_path / "in.png"), np.full((32, 32, 3), 100, np.uint8))

    def client(server: Popen) -> None:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().decode().split()[0].rstrip("/")
            for path, data in ((f"{address}/", None), (f"{address}/api/deblur", (tmp_path / "in.png").read_bytes())):
                answer = httpx.request("POST" if data else "GET", path, content=data, timeout=120.0)
                assert answer.status_code == 200
        finally:
            server.terminate()

    seen, files = run([COMMANDS["uid-serve"], "--port", "0"], client)
    assert seen == []
    assert [file for file in files if not file.startswith(".cache/uid-runtime/")] == []
