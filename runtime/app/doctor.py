"""``uid-run doctor``: which backends work here and, for each that does not, what to install."""

import importlib
import json as json_text
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import click

from uid import __version__
from uid.errors import UIDError
from uid.install import how_to_install


@dataclass(frozen=True)
class Finding:
    """One thing that may work."""

    what: str
    works: bool
    detail: str  # its version, or what it lacks and how to mend that


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", is_flag=True, help="Print one JSON object.")
def doctor(json: bool) -> None:
    """Tell which backends work here and, for each that does not, what to install."""
    system = {"uid": __version__, "python": platform.python_version(), "platform": platform.platform()}
    if json:
        found = [asdict(finding) for finding in findings()]
        click.echo(json_text.dumps(system | {"executable": sys.executable, "findings": found}, indent=1))
        return
    click.echo(f"uid-runtime {__version__}, Python {system['python']}, {system['platform']}")
    for finding in findings():
        click.echo(f"{'works  ' if finding.works else 'missing'}  {finding.what}: {finding.detail}")


def findings() -> Iterator[Finding]:
    """Everything that may work, one after another."""
    # The engines' libraries take seconds to import, which `uid-run --help` should not.
    from uid import engines
    from uid.bundles.declarations import built_in
    from uid.bundles.manifest import read_bundle

    for backend in engines.report():
        yield Finding(f"backend {backend.name}", backend.available, backend.detail)
    yield library("video", "av", "PyAV")
    yield library("watch", "watchfiles", "watchfiles")
    try:
        bundle = read_bundle(built_in())
        yield Finding("built-in bundle", True, f"{bundle.name}, {'trained' if bundle.trained else 'random weights'}")
    except UIDError as error:
        yield Finding("built-in bundle", False, str(error))


def library(extra: str, module: str, name: str) -> Finding:
    """A library that an extra brings."""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return Finding(extra, False, f"{error}; {how_to_install(extra)}")
    return Finding(extra, True, f"{name} {found.__version__}")
