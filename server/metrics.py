"""What Prometheus reads at /metrics."""

import functools
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server.logs import dropped_lines

STAGE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
WAITING_BUCKETS = (0.1, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 21_600, 86_400)
GROUP_BUCKETS = (1, 2, 3, 4, 6, 8)
REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)


class Metrics:
    """The meters of one server: of jobs, of the engine, of requests."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        counter = functools.partial(Counter, registry=registry)
        gauge = functools.partial(Gauge, registry=registry)
        histogram = functools.partial(Histogram, registry=registry)

        self.ready = gauge("wan_tpu_ready", "Whether /readyz answers 200")
        words = "1 for each kind of thing that /readyz says is missing"
        self.missing = gauge("wan_tpu_missing", words, ("what",))
        self.database_available = gauge("wan_tpu_database_available", "Whether jobs can be written")
        self.queue_length = gauge("wan_tpu_queue_length", "Jobs that wait")
        words = "Age of the oldest job that waits; 0 if none does"
        self.oldest_waiting_seconds = gauge("wan_tpu_oldest_waiting_seconds", words)
        words = "Seconds from a job's acceptance to its first start"
        self.waiting_seconds = histogram("wan_tpu_waiting_seconds", words, buckets=WAITING_BUCKETS)
        words = "Jobs in each piece of work that the engine was given"
        self.made_together = histogram("wan_tpu_jobs_made_together", words, buckets=GROUP_BUCKETS)
        words = "Jobs that ended, by what became of them: completed, deleted or the error's code"
        self.jobs = counter("wan_tpu_jobs", words, ("outcome",))
        words = "Failures of the service around the engine"
        self.worker_failures = counter("wan_tpu_worker_failures", words)

        words = "Times that the engine's process was started after the first"
        self.engine_restarts = counter("wan_tpu_engine_restarts", words)
        words = "Failures of the engine itself, with and without a job"
        self.engine_failures = counter("wan_tpu_engine_failures", words)
        self.steps = counter("wan_tpu_denoising_steps", "Denoising steps done")
        words = "Seconds of each stage of finished jobs"
        self.stage_seconds = histogram(
            "wan_tpu_stage_seconds", words, ("stage",), buckets=STAGE_BUCKETS
        )
        usage = tpu_usage()
        if usage is not None:
            registry.register(TpuCollector(usage))

        words = "Seconds until a response began"
        self.request_seconds = histogram(
            "wan_tpu_http_request_seconds",
            words,
            ("method", "status", "route"),
            buckets=REQUEST_BUCKETS,
        )
        words = "Responses that failed after they had begun"
        self.broken_answers = counter("wan_tpu_http_broken_answers", words)
        words = "Lines of the log that nobody read in time"
        gauge("wan_tpu_log_lines_dropped", words).set_function(dropped_lines)


class TpuCollector(Collector):
    """Memory and duty cycle of each chip, asked of libtpu at every scrape."""

    def __init__(self, usage: Callable[[], Iterable[tuple[int, int, int, float]]]):
        self._usage = usage

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """See `Collector.collect`."""
        used = GaugeMetricFamily("wan_tpu_hbm_used_bytes", "HBM in use", labels=("device",))
        total = GaugeMetricFamily("wan_tpu_hbm_total_bytes", "HBM there is", labels=("device",))
        duty = GaugeMetricFamily(
            "wan_tpu_duty_cycle_percent", "Share of time the chip worked", labels=("device",)
        )
        for device, memory_usage, total_memory, duty_cycle in self._usage():
            used.add_metric((str(device),), memory_usage)
            total.add_metric((str(device),), total_memory)
            duty.add_metric((str(device),), duty_cycle)
        return (used, total, duty)


def tpu_usage() -> Callable[[], Iterable[tuple[int, int, int, float]]] | None:
    """Asks this machine's TPUs through tpu-info; None where there are none or it is not there."""
    try:
        from tpu_info import device, metrics  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    chip, count = device.get_local_chips()
    if chip is None or not count:
        return None
    import grpc

    def usage() -> Iterable[tuple[int, int, int, float]]:
        try:
            return metrics.get_chip_usage(chip)
        except (grpc.RpcError, AssertionError):  # nobody uses the chips: nothing to report
            return ()

    return usage
