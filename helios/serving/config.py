"""What an operator decides: where, for whom, how much. Every limit has a default."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Limits", "ServeConfig"]

MIB = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the service (specification "reliability", 3.3 to 3.6); seconds and bytes.

    Attributes:
        queue: file jobs that wait, on all keys together.
        per_key: file jobs of one key that wait or run; without keys only ``queue`` counts.
        live: live sessions that one worker makes in turns.
        line: live sessions that wait for a place.
        body: of an ordinary request; uploads have their own.
        upload: of an uploaded picture or video, and of an imported session.
        header: of all headers of a request.
        connections, per_address: open at the same time.
        lifetime: of a live session, 0: none.
        idle: a live session that makes nothing and hears nothing.
        stall: a live client that takes nothing.
        start: until the first live message.
        watchdog: without a sign of progress from a worker that has work.
        spares: processes with everything loaded but a model, to replace a worker that dies.
        grace: for running jobs after SIGTERM.
        ttl: of results, uploads and sessions.
        quota: all of them together.
        free: below so much free space nothing new is accepted.
        borders: bytes of states in memory that a live session can go back to.
        gate_memory, gate_seconds: of the process that reads uploads.
    """

    queue: int = 64
    per_key: int = 4
    live: int = 2
    line: int = 8
    body: int = 65 * MIB
    upload: int = 64 * MIB
    header: int = 32 * 1024
    connections: int = 512
    per_address: int = 64
    lifetime: float = 600.0
    idle: float = 300.0
    stall: float = 30.0
    start: float = 10.0
    watchdog: float = 60.0
    spares: int = 1
    grace: float = 30.0
    ttl: float = 7 * 86_400.0
    quota: int = 20 << 30
    free: int = 2 << 30
    borders: int = 256 * MIB
    gate_memory: int = 1 << 30
    gate_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuse a limit that would stop everything."""
        for name, value in vars(self).items():
            low = 0 if name in ("lifetime", "free", "line", "queue", "spares") else 1e-3
            if isinstance(value, bool) or not isinstance(value, int | float) or value < low:
                raise ValueError(f"limit {name} must be a number from {low:g}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One server.

    Attributes:
        models: names or folders; each gets ``workers`` processes.
        dtype: as ``helios.load`` takes it, ``low_memory`` too.
        engine: fields of ``EngineConfig`` that are not the default.
        loras: adapters that may be asked for, by name.
        keys: name and key of everybody who may use it; empty: everybody who can reach it.
        data: folder of the journal, uploads, results and sessions.
        hosts: names the server is reached by, besides loopback ones and ``host``.
        origins: pages that may talk to it, besides its own.
        metrics_open: whether ``/metrics`` needs no key.
        faults: whether tests may inject faults; never on a real server.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    models: tuple[str, ...] = ("tiny",)
    workers: int = 1
    device: str = "auto"
    dtype: str = "auto"
    low_memory: bool = False
    engine: dict[str, Any] = field(default_factory=dict)
    loras: dict[str, Path] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    data: Path = field(default_factory=lambda: Path.home() / ".local/share/helios")
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    metrics_open: bool = False
    insecure: bool = False
    faults: bool = False

    @property
    def engine_json(self) -> dict[str, Any]:
        """``engine`` ready for JSON."""
        return {n: str(v) if isinstance(v, Path) else v for n, v in self.engine.items()}

    def __post_init__(self) -> None:
        """Refuse what would be unsafe or impossible."""
        if not self.models:
            raise ValueError("give at least one model")
        if not 1 <= self.workers <= 64:
            raise ValueError(f"workers must be from 1 to 64, got {self.workers}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, got {self.port}")
        if not self.loopback and not self.keys and not self.insecure:
            raise ValueError(
                f"host {self.host} can be reached from outside, so a key is needed: give "
                "--api-key-file FILE, or --insecure-no-auth if that is what you want"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in LOOPBACK or self.host.startswith("127.")
