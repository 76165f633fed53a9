"""What a server counts, for Prometheus to fetch from `/metrics`. Nothing is sent anywhere."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from prompt_tune.services.batching import Pass
from prompt_tune.version import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGES = ("read", "decode", "queue", "graph", "encode")  # of a request, in this order
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ServeMetrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time and open files of this process
        here = {"registry": self.registry}
        self._requests = Counter("prompt_tune_requests", "Requests that were answered.", ["route", "status"], **here)
        self._seconds = Histogram(
            "prompt_tune_request_seconds", "Time from request to answer.", ["route"], buckets=_SECONDS, **here
        )
        self._stages = Histogram(
            "prompt_tune_stage_seconds", "Time of a request in each stage.", ["stage"], buckets=_SECONDS, **here
        )
        self._in_work = Gauge("prompt_tune_requests_in_work", "Requests that are accepted, but not answered.", **here)
        self._waiting = Gauge("prompt_tune_queue_images", "Images that wait for the graph.", **here)
        self._sizes = Counter("prompt_tune_batches", "Batches by size.", ["size"], **here)
        self._images = Counter("prompt_tune_images", "Images of requests that went through the graph.", **here)
        self._classes = Gauge("prompt_tune_vocabulary_classes", "Classes of each vocabulary.", ["vocabulary"], **here)
        self._info = Gauge("prompt_tune_info", "Version and device.", ["version", "device"], **here)
        for stage in STAGES:
            self._stages.labels(stage)  # so that each one is there from the start

    def started(self, device: str) -> None:
        """Say where the graph runs."""
        self._info.labels(__version__, device).set(1)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def stage(self, stage: str, seconds: float) -> None:
        """Count the time of a request in one of `STAGES`."""
        self._stages.labels(stage).observe(seconds)

    def passed(self, done: Pass) -> None:
        """Count a pass through the graph."""
        self._sizes.labels(str(done.size)).inc(done.batches)
        self._images.inc(done.images)
        for waited in done.waited:
            self.stage("queue", waited)
            self.stage("graph", done.took)

    def page(self, *, in_work: int, waiting: int, classes: Mapping[str, int]) -> bytes:
        """All of it as Prometheus' text.

        Args:
            in_work: Number of requests that are accepted, but not answered.
            waiting: Number of images that wait for the graph.
            classes: Number of classes of each vocabulary that is loaded.
        """
        self._in_work.set(in_work)
        self._waiting.set(waiting)
        self._classes.clear()
        for label, count in classes.items():
            self._classes.labels(label).set(count)
        return generate_latest(self.registry)
