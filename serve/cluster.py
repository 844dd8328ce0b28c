"""The application on Ray Serve: ``serve run uid.serve.cluster:app``, or ``uid-serve --cluster``.

Each replica is the whole of what runs on one box, with a queue and a pipeline of its own. Ray Serve takes requests in,
gives each to a replica that has little to do, and starts and ends replicas.
"""

import dataclasses
import logging
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

import click

from uid import stop
from uid.serve import ray_session
from uid.serve.actors import shared
from uid.serve.app import application
from uid.serve.hosting import SIGNALS, address_of, listening
from uid.serve.queue import Queue
from uid.serve.settings import ServeSettings

NAME = "uid"
BUSY = 2  # requests of a replica, on average, above which another one is started
POLL = 0.5  # seconds
NOT_SETTINGS = {"port", "cluster", "replicas", "debug"}  # options of ``uid-serve`` that say how it is hosted
RETRY_AFTER = 5  # seconds, where Ray Serve refuses a request before a replica could say better


def app(args: Mapping[str, Any]) -> Any:
    """What ``serve run`` and a configuration of Ray Serve are given; ``args`` are options of ``uid-serve`` by name.

    Raises ``click.UsageError`` for options that ``uid-serve`` does not have, or not with such values.
    """
    from uid.serve.cli import main, settings_of

    words = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in args.items()]
    values = main.make_context("uid-serve", words).params
    replicas = values["replicas"]
    return deployed(
        settings_of(**{name: value for name, value in values.items() if name not in NOT_SETTINGS}), replicas
    )


def deployed(settings: ServeSettings, replicas: int | None) -> Any:
    """The application for Ray Serve, with one replica or, under load, up to so many; None: as many as have room."""
    ray = ray_session.imported()
    from ray import serve
    from ray.serve.config import BackpressureConfig

    nodes = ray_session.nodes(ray) if ray.is_initialized() else []
    share = shared(nodes, settings.backend, None, settings.threads, replicas or (None if nodes else 1))
    own = dataclasses.replace(settings, threads=share.cpus)

    def replica() -> Any:
        from uid.serve.cli import loaded

        queue = Queue(lambda: loaded(own), places=own.queue, workers=own.workers)
        queue.wait()
        return application(queue, own)

    deployment = serve.deployment(
        serve.ingress(replica)(),
        name=NAME,
        # The queue of a replica refuses photos when it is full, and other requests pass. Ray Serve's own limits are the
        # wall behind it, against floods.
        max_ongoing_requests=2 * own.queue,
        max_queued_requests=2 * own.queue,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER),
        autoscaling_config={"min_replicas": 1, "max_replicas": share.actors, "target_ongoing_requests": BUSY},
        ray_actor_options={"num_cpus": share.cpus, "num_gpus": share.gpus},
        graceful_shutdown_timeout_s=own.timeout,
    )
    return deployment.bind()


def host_on(cluster: str, settings: ServeSettings, replicas: int | None, host: str, port: int) -> None:
    """Serve on a cluster until a signal ends it. Raises ``UIDError`` where that is not possible."""
    with listening(host, port) as sock:  # which tells what is wrong with the address, and finds a free port
        address, port = address_of(sock), sock.getsockname()[1]
    with ray_session.joined(cluster):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        ending = threading.Event()

        def end(number: int, frame: FrameType | None) -> None:
            if ending.is_set():
                stop.end_now(128 + number)
            ending.set()

        try:
            serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
            serve.run(deployed(settings, replicas), name=NAME, route_prefix="/")
            click.echo(f"{address} (Ctrl-C ends it)")
            before = {number: signal.signal(number, end) for number in SIGNALS}
            while not ending.wait(POLL):
                pass
            serve.delete(NAME)  # once it has answered what it has
            for number, handler in before.items():
                signal.signal(number, handler)
        finally:
            serve.shutdown()
