"""What every command line does with errors."""

import click
import pytest
from click.testing import CliRunner

from uid.command import Command, Commands
from uid.errors import InputError

ERRORS = [
    (InputError("got 3; expected 1 to 2", option="steps"), "got 3; expected 1 to 2 (--steps)"),
    (RuntimeError("no \x1b[31m\n such  kernel"), "RuntimeError: no \\x1b[31m such kernel (unexpected; --debug shows"),
    (PermissionError(13, "Permission denied", "rows.jsonl"), "rows.jsonl: Permission denied"),
    (ModuleNotFoundError("", name="skimage"), "skimage is not installed: "),
]


@pytest.mark.parametrize(("error", "told"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_is_told_in_a_line_and_debug_shows_where(error: Exception, told: str) -> None:
    @click.command(cls=Command, extra="bench")
    @click.option("--steps")
    def failing(steps: str) -> None:
        raise error

    plain = CliRunner().invoke(failing)
    assert plain.exit_code == 1
    assert plain.stderr.startswith(f"Error: {told}")
    assert len(plain.stderr.splitlines()) == 1
    debugged = CliRunner().invoke(failing, ["--debug"])
    assert "Traceback" in debugged.stderr
    assert f"Error: {told}" in debugged.stderr


def test_interruptions_and_exits_pass() -> None:
    @click.command(cls=Command, extra="bench")
    @click.pass_context
    def ending(ctx: click.Context) -> None:
        ctx.exit(3)

    assert CliRunner().invoke(ending).exit_code == 3


def test_every_command_can_say_where() -> None:
    pytest.importorskip("torch", reason="the lean install has no commands that make or measure models")
    from uid.bench.cli import main as bench
    from uid.export.cli import main as export
    from uid.runtime.app.cli import run
    from uid.serve.cli import main as serve
    from uid.train.cli import main as train

    assert isinstance(export, Commands)
    assert isinstance(train, Commands)
    for command in (run, serve, *train.commands.values(), *bench.commands.values(), *export.commands.values()):
        assert "--debug" in {name for parameter in command.params for name in parameter.opts}, command.name


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_is_no_number_is_refused_by_every_option(value: str) -> None:
    @click.command(cls=Command, extra="bench")
    @click.option("--rate", type=click.FloatRange(0.0, min_open=True))
    def computing(rate: float) -> None:
        raise AssertionError(rate)

    told = CliRunner().invoke(computing, ["--rate", value])
    assert told.exit_code == 2
    assert "'--rate'" in told.stderr
