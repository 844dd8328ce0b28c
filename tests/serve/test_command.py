"""``uid-serve`` as a program: what it refuses, and the built-in model from start to SIGTERM."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from serving import WAIT

from uid.errors import InputError
from uid.runtime.app.cli import run as uid_run
from uid.serve.cli import main
from uid.serve.hosting import listening
from uid.serve.settings import ServeSettings

PHOTO = Path(__file__).parents[2] / "examples" / "astronaut_blurred.jpg"
PART = "100,100,96,64"


@contextmanager
def started(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program, and the address that it prints."""
    command = [sys.executable, "-m", "uid", "serve", "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[0]
        finally:
            process.kill()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to end a program with")
def test_the_built_in_model_from_start_to_sigterm(tmp_path: Path) -> None:
    with started() as (process, url), httpx.Client(base_url=url, timeout=WAIT) as http:
        sharp = http.post("/api/deblur", content=PHOTO.read_bytes(), params={"preview": PART, "preset": "fast"})
        assert (sharp.status_code, sharp.headers["uid-backend"]) == (200, "onnxruntime")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
        assert process.stderr is not None
        assert process.stderr.read() == "ready: edge on onnxruntime\n"
    words = [str(PHOTO), "-o", str(tmp_path / "sharp.jpg"), "--preview", PART, "--preset", "fast"]
    assert CliRunner().invoke(uid_run, words).exit_code == 0
    assert sharp.content == (tmp_path / "sharp.jpg").read_bytes()


@pytest.mark.parametrize(
    "settings", [{"token": " abc "}, {"token": "s\u00e9cret"}, {"token": "a\udcff"}, {"timeout": math.nan}]
)
def test_settings_that_no_client_could_meet_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"the (token|timeout) is"):
        ServeSettings(**settings)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "192.0.2.1"], "give a --token that they must send, or --no-auth"),
        (["--host", "example.com"], "give a --token that they must send, or --no-auth"),
        (["--token", "word", "--no-auth"], "contradict each other"),
        (["--model", "nowhere"], "nowhere"),
        (["--preset", "best"], "bundle 'edge' has no preset 'best'; it has full, balanced, fast (--preset)"),
        (["--backend", "none"], "none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_told_in_a_line(words: list[str], told: str) -> None:
    result = CliRunner().invoke(main, ["--port", "0", *words])
    assert result.exit_code == 1
    assert told in result.stderr
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_port_in_use_is_told() -> None:
    with listening("127.0.0.1", 0) as sock:
        result = CliRunner().invoke(main, ["--port", str(sock.getsockname()[1])])
    assert "cannot listen on 127.0.0.1, port" in result.stderr
