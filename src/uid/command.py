"""What the command lines share."""

import logging
import math
import os
import re
import traceback
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any

import click

from uid.errors import UIDError, printable
from uid.install import how_to_install


def interval(text: str) -> tuple[float, float]:
    """Start and end as parts of a whole, 0 <= start < end <= 1, from text such as 0.2:0.8; a click type."""
    number = r"(\d+\.?\d*|\.\d+)"
    match = re.fullmatch(f"{number}:{number}", text)
    start, end = (float(match[1]), float(match[2])) if match else (1.0, 0.0)
    if not 0.0 <= start < end <= 1.0:
        raise click.BadParameter(f"{text!r} is not an interval; expected START:END, a part of 0:1 such as 0.2:0.8")
    return start, end


def with_flag(error: UIDError, flags: Mapping[str, str] | None = None) -> str:
    """The error's text, with the flag that mends it if the running command has one.

    ``flags`` has those that are not named like the argument.
    """
    flag = f"--{(flags or {}).get(error.option, error.option).replace('_', '-')}"
    context = click.get_current_context(silent=True)
    known = {name for parameter in context.command.params for name in parameter.opts} if context else set()
    return f"{error} ({flag})" if error.option and flag in known else str(error)


def explained(error: BaseException, flags: Mapping[str, str] | None = None) -> str:
    """An error in a line: what a user can mend as it says itself, anything else by its kind and text."""
    if isinstance(error, UIDError):
        return with_flag(error, flags)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    text = " ".join(str(error).split())
    return printable(f"{type(error).__name__}{': ' if text else ''}{text} (unexpected; --debug shows where)")


class RenamedOptions(click.Command):
    """A command whose options had other names; the old ones still work, with a note on standard error."""

    renamed: Mapping[str, str] = {
        "--views": "--transforms",
        "--quality": "--preset",
        "--preset": "--config",
        "--reuse": "--cache-interval",
        "--pictures": "--images",
        "--no-ceilings": "--no-peaks",
    }

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments under their new names; values of options, and what follows "--", stay as they are."""
        end = args.index("--") if "--" in args else len(args)
        left = super().parse_args(ctx, [*self.new_names(args[:end]), *args[end:]])
        for parameter in self.params:
            value = ctx.params.get(parameter.name or "")
            if isinstance(value, float) and not math.isfinite(value):  # which click takes for any range
                raise click.BadParameter(f"{value} is not a number that can be used.", ctx, parameter)
        return left

    def new_names(self, args: Sequence[str]) -> list[str]:
        """The arguments, with new names of the options in place of old ones."""
        options = [parameter for parameter in self.params if isinstance(parameter, click.Option)]
        own = {name for option in options for name in option.opts}
        with_value = {name for option in options if not option.is_flag for name in option.opts}
        words: list[str] = []
        before, last = "", ""
        for word in args:
            is_value = last in with_value and before not in with_value  # unless the last is itself a value
            before, last = last, word if is_value else self.new_name(word, own)
            words.append(last)
        return words

    def new_name(self, word: str, own: Container[str]) -> str:
        """An argument, with the option's new name if it is an old one that this command had."""
        old, equals, value = word.partition("=")
        new = self.renamed.get(old)
        if new is None or new not in own or old in own:
            return word
        click.echo(f"note: {old} is now called {new}; the old name will go in version 0.3", err=True)
        return f"{new}{equals}{value}"


class Command(RenamedOptions):
    """A command that tells errors in a line; ``--debug`` shows where they come from.

    ``extra`` is the one of pyproject.toml whose libraries the command needs, or the parameter that names it.
    """

    def __init__(self, *words: Any, extra: str, **settings: Any) -> None:
        super().__init__(*words, **settings)
        self.extra = extra
        self.params.append(click.Option(["--debug"], is_flag=True, help="Show where an error comes from."))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises ``ClickException`` for every error but an interruption and a reader that has left."""
        debug = ctx.params.pop("debug")
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            raise click.ClickException(self._told(error, ctx)) from error

    def _told(self, error: Exception, ctx: click.Context) -> str:
        if isinstance(error, ModuleNotFoundError):
            return f"{error.name} is not installed: {how_to_install(ctx.params.get(self.extra, self.extra))}"
        return explained(error)


class Commands(click.Group):
    """A group of such commands."""

    command_class = Command


def quieten_libraries() -> None:
    """Keep the progress bars and notes of torch, diffusers and transformers off the terminal; errors still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch")
