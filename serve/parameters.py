"""The options of ``uid-run`` as a request names them."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import click

from uid.runtime.app.cli import run as uid_run
from uid.runtime.options import Options
from uid.serve.work import BadOptionError

# Options of ``uid-run`` that a request may have, by the names of its parameters: how an image is made, and its file.
MADE = tuple(one.name for one in fields(Options))
NAMES = {*MADE, "format", "salvage", "jpeg_quality", "jpeg_subsampling", "preview"}
PARAMETERS = {one.name: one for one in uid_run.params if one.name in NAMES and isinstance(one, click.Option)}
_COMMAND = click.Command("request", params=list(PARAMETERS.values()), add_help_option=False)


def chosen(
    given: Iterable[tuple[str, str]], preset: str | None = None, names: Iterable[str] = PARAMETERS
) -> dict[str, Any]:
    """The values of ``uid-run``'s options by parameter name, read as ``uid-run`` reads them; ``preset`` is the default.

    Raises click's ``UsageError`` with its text, and ``BadOptionError`` for what is none of ``names``.
    """
    words: list[str] = []
    for name, value in given:
        option = parameter(name)
        if option is None or option.name not in names:
            known = ", ".join(sorted(PARAMETERS[one].opts[-1].removeprefix("--") for one in names))
            raise BadOptionError(f"there is no option {name[:100]!r}; expected one of {known}", option=name[:100])
        flag = option.opts[-1]
        if not option.is_flag:
            words.append(f"{flag}={value}")
        elif value.lower() not in ("", "0", "false", "no", "off"):
            words.append(flag)
    values = dict(_COMMAND.make_context("request", words).params)
    values["preset"] = values["preset"] or preset
    return values


def parameter(name: str) -> click.Option | None:
    """The option of a name, whose parts "-" or "_" joins; None where there is none."""
    return PARAMETERS.get(name.replace("-", "_"))


def options_of(values: Mapping[str, Any]) -> Options:
    """The options among ``chosen`` values. Raises ``InputError``."""
    return Options(**{name: values[name] for name in MADE})
