"""The command line ``uid-serve``: a page and an HTTP service on one box."""

import ipaddress
from pathlib import Path
from typing import Any

import click

from uid import __version__
from uid.command import Command
from uid.errors import InputError
from uid.runtime.options import AUTO, Options
from uid.serve.settings import ServeSettings

DEFAULT = ServeSettings()
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EXAMPLE = """\b
Example:
  curl --data-binary @blurred.jpg http://127.0.0.1:7000/api/deblur -o sharp.jpg
"""  # \b: click keeps the lines as they are
WARM_UP = 64  # pixels a side of the image that loads all that the first request would wait for


@click.command(cls=Command, extra="serve", epilog=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-m", "--model", type=click.Path(path_type=Path), metavar="BUNDLE", help="Bundle to run. Default: the built-in one."
)
@click.option(
    "--backend", default=AUTO, show_default=True, metavar="NAME", help="What computes; `uid-run doctor` lists them."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the backend's choice.")
@click.option("--preset", metavar="NAME", help="For requests that name none. Default: the bundle's own.")
@click.option("--host", default=LOOPBACK[0], show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7000, show_default=True, help="Port to listen on; 0: a free one."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=DEFAULT.workers,
    show_default=True,
    help="Threads that decode and encode; with 2 or more this goes on beside the computing.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    default=DEFAULT.queue,
    show_default=True,
    help="Most requests at once, from upload to answer; more are refused with status 429.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=DEFAULT.max_pixels,
    show_default=True,
    help="Largest image that is read; larger ones are refused before they are decoded.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    default=DEFAULT.max_bytes,
    show_default=True,
    help="Largest request; larger ones are refused while they arrive.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT.timeout,
    show_default=True,
    metavar="SECONDS",
    help="Time for an image, from the end of its upload.",
)
@click.option(
    "--token",
    envvar="UID_SERVE_TOKEN",
    metavar="TEXT",
    help="Token that clients must send; $UID_SERVE_TOKEN keeps it out of the list of processes.",
)
@click.option("--no-auth", is_flag=True, help="Serve other machines without a token.")
@click.option(
    "--cluster",
    metavar="auto|local|ADDRESS",
    help="Serve from a Ray cluster: the one that runs here, one that is started for this, or one by its address.",
)
@click.option(
    "--replicas", type=click.IntRange(min=1), help="Most replicas on a cluster. Default: as many as have room."
)
@click.version_option(__version__, prog_name="uid-serve")
def main(port: int, cluster: str | None, replicas: int | None, **values: Any) -> None:
    """Serve a page and an HTTP service that sharpen photos.

    Open the address that is printed in a browser, or send a photo to it. Ctrl-C or SIGTERM
    ends it once the work in hand is done.
    """
    settings, host = settings_of(**values), values["host"]
    if cluster is not None:
        from uid.serve.cluster import host_on

        host_on(cluster, settings, replicas, host, port)
        return
    if replicas is not None:
        raise InputError("--replicas is the number of processes of a cluster; give --cluster too")
    serve(settings, host, port)


def settings_of(host: str, no_auth: bool, token: str | None, **values: Any) -> ServeSettings:
    """The settings that the command line asks for. Raises ``InputError``."""
    check_token(host, token or None, no_auth)
    hosts = (host.lower(), *LOOPBACK) if is_loopback(host) else None
    return ServeSettings(token=token or None, hosts=hosts, **values)


def serve(settings: ServeSettings, host: str, port: int) -> None:
    """Listen, load the model meanwhile, and serve until a signal ends it."""
    from uid.serve.app import application
    from uid.serve.hosting import address_of, host_app, listening
    from uid.serve.queue import Queue

    sock = listening(host, port)
    click.echo(f"{address_of(sock)} (Ctrl-C ends it)")
    queue = Queue(lambda: loaded(settings), places=settings.queue, workers=settings.workers)
    host_app(application(queue, settings), queue, sock)


def loaded(settings: ServeSettings) -> Any:
    """The pipeline, with all in place that its first image would wait for. Raises as ``runtime.load`` does."""
    import numpy as np

    from uid.runtime import pipeline

    one = pipeline.load(settings.model, backend=settings.backend, threads=settings.threads, report=_tell)
    mode = "deblur" if "deblur" in one.bundle.modes else next(iter(one.bundle.modes))
    options = Options(mode=mode, preset=settings.preset, transforms=1)
    if not one.bundle.modes[mode].extra_inputs:
        one(np.zeros((WARM_UP, WARM_UP, 3), np.uint8), options)
    if not one.bundle.trained:
        _tell(f"warning: the weights of bundle {one.bundle.name} are random: no output is a deblurred image")
    _tell(f"ready: {one.bundle.name} on {one.backend}")
    return one


def check_token(host: str, token: str | None, no_auth: bool) -> None:
    """Raise ``InputError`` where other machines could use the server, and nothing says that they may."""
    if token and no_auth:
        raise InputError("--token and --no-auth contradict each other; give one of them")
    if not (token or no_auth or is_loopback(host)):
        raise InputError(
            f"{host} lets other machines use this server; give a --token that they must send, or --no-auth"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _tell(line: str) -> None:
    click.echo(line, err=True)
