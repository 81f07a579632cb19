"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Metrics:
    """Every figure of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.jobs_active = Gauge("jobs_active", "File jobs being made", registry=own)
        self.queue_depth = Gauge("queue_depth", "File jobs that wait", registry=own)
        self.sessions_active = Gauge("sessions_active", "Live sessions on a worker", registry=own)
        self.sessions_waiting = Gauge("sessions_waiting", "Live sessions in line", registry=own)
        self.chunks = Counter("chunks_generated", "Chunks made", registry=own)
        self.frames = Counter("frames_generated", "Frames made", registry=own)
        self.jobs = Counter("jobs", "Finished file jobs", ["status", "code"], registry=own)
        self.bad_samples = Counter("bad_samples", "Unreadable uploads", ["reason"], registry=own)
        self.nonfinite = Counter("nonfinite_steps", "Chunks with values not finite", registry=own)
        self.worker_restarts = Counter("worker_restarts", "Workers replaced", registry=own)
        self.dropped = Counter("ws_dropped", "Live sockets closed by us", ["reason"], registry=own)
        self.rss = Gauge("rss_bytes", "Resident memory", ["process"], registry=own)
        self.accelerator = Gauge(
            "accelerator_allocated_bytes", "Memory of the model's device", ["worker"], registry=own
        )
        self.first = Histogram(
            "ttff_seconds", "From the wish to the first fragment", buckets=SECONDS, registry=own
        )
        self.stage = Histogram(
            "chunk_seconds", "Time of a chunk by stage", ["stage"], buckets=SECONDS, registry=own
        )
        self.landing = Histogram(
            "prompt_apply_latency_seconds",
            "From a prompt to its chunk",
            buckets=SECONDS,
            registry=own,
        )
        self.real_time = Gauge(
            "realtime_factor", "Speed of the last chunk against playback", registry=own
        )
        self.requests = Counter("http_requests", "Answers", ["route", "status"], registry=own)

    def chunk(self, message: Mapping[str, Any]) -> None:
        """Count a chunk of a worker."""
        self.chunks.inc()
        self.frames.inc(message["frames"])
        timings = message["timings"]
        for stage in ("sample", "decode", "encode", "made"):
            if stage in timings:
                self.stage.labels(stage).observe(timings[stage])

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)
