"""Counters for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from uid.serve.queue import Queue
from uid.serve.work import Answer

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """What one application counts."""

    def __init__(self, queue: Queue) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter("uid_requests", "Requests by route and status.", ["route", "status"], registry=own)
        self.failures = Counter("uid_failures", "Requests without an image, by kind.", ["kind"], registry=own)
        self._pixels = Counter("uid_pixels", "Pixels of images that were sharpened.", registry=own)
        self._queued = Histogram("uid_queued_seconds", "From upload to start.", buckets=SECONDS, registry=own)
        self._computed = Histogram("uid_computed_seconds", "From start to image.", buckets=SECONDS, registry=own)
        Gauge("uid_queue_length", "Images that wait.", registry=own).set_function(lambda: queue.waiting)
        Gauge("uid_places_taken", "Requests in hand.", registry=own).set_function(lambda: queue.taken)
        Gauge("uid_ready", "1: the model is loaded, and work is taken.", registry=own).set_function(lambda: queue.ready)

    def observe(self, answer: Answer) -> None:
        """Count an image that was sharpened."""
        self._pixels.inc(answer.result.height * answer.result.width)
        self._queued.observe(answer.queued)
        self._computed.observe(answer.computed)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
