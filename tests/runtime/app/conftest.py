"""Fixtures that call ``uid-run`` with a pipeline that inverts pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from inverting_cli import InvertingPipeline, load

from uid.runtime import pipeline
from uid.runtime.app import cli


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """One entry for each time that the pipeline is loaded."""
    calls: list[dict[str, Any]] = []

    def counted(*args: Any, **kwargs: Any) -> InvertingPipeline:
        calls.append(kwargs)
        return load(*args, **kwargs)

    monkeypatch.setattr(pipeline, "load", counted)
    return calls


@pytest.fixture
def uid_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[Any]) -> Callable[..., Result]:
    """Calls ``uid-run`` in ``tmp_path``; an exception that a user would see as a traceback fails the test."""
    monkeypatch.chdir(tmp_path)

    def invoke(*args: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli.run, args)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke
