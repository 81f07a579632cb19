"""Several machines or GPUs behind one address, on Ray Serve (``helios serve --ray``).

Every node is an actor with a whole server of its own (front process, worker, journal, data) that
knows the callers' keys and one secret one, and listens on its machine only, or within the cluster
where that has several. The gateway, a Ray Serve deployment, passes requests, streams and sockets
on; a caller always comes to the same node.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from helios.serving.cluster.gateway import Gateway
from helios.serving.config import LOOPBACK, ServeConfig

__all__ = ["Node", "node_keys", "node_options", "serve_on_ray"]


PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before a server that ended by itself is started again; the first after a life of some length."""
LIFE_SECONDS = 60.0


class Node:
    """A server on the machine of this actor, started again at the same address if it ends.

    Args:
        options: of its command line.
        data: folder for its results; the number of the node is added.
        number: of the node.
        keys: by name, those of the callers and the gateway's own.
        host: address to listen on; none: that of this machine in the cluster.
    """

    def __init__(
        self,
        options: list[str],
        data: str,
        number: int,
        keys: dict[str, str],
        host: str | None = LOOPBACK[0],
    ) -> None:
        self._folder = Path(data) / f"node-{number}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = self._folder / "server.log"
        self._keys = keys
        self._libc = ctypes.CDLL(None)
        self._stopping = threading.Event()
        self._options = [*options, "--host", _cluster_address() if host is None else host]
        self._port = 0
        self._start()

    def _start(self) -> None:
        handle, name = tempfile.mkstemp(prefix="keys-", dir=self._folder)
        with os.fdopen(handle, "w") as file:
            file.writelines(f"{name} {key}\n" for name, key in self._keys.items())
        self._key_file = Path(name)
        with self._log.open("ab") as log:
            self._begun = log.tell()
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "helios", "serve", "--port", str(self._port),
                    "--data", str(self._folder / "data"), "--api-key-file", name, *self._options,
                ],
                stderr=log,
                preexec_fn=self._end_with_parent,
            )  # fmt: skip

    def _end_with_parent(self) -> None:
        """No server outlives its actor, whatever kills that (Linux)."""
        with suppress(AttributeError):
            self._libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    def address(self, timeout: float = 600.0) -> str:
        """Where it listens, once its worker is ready.

        Raises:
            RuntimeError: if it ends before.
        """
        found = self._ready(timeout)
        self._port = int(found.rsplit(":", 1)[1])
        threading.Thread(target=self._watch, daemon=True).start()
        return found

    def _ready(self, timeout: float) -> str:
        until = time.monotonic() + timeout
        while time.monotonic() < until and not self._stopping.is_set():
            text = self._log.read_bytes()[self._begun :].decode("utf-8", "replace")
            if found := re.search(r"helios is ready at (\S+)", text):
                self._key_file.unlink(missing_ok=True)
                return found[1]
            if self._process.poll() is not None:
                self._key_file.unlink(missing_ok=True)
                raise RuntimeError(f"the node ended: {text[-1000:]}")
            time.sleep(0.1)
        raise RuntimeError("the node was not ready in time")

    def _watch(self) -> None:
        """Start it again whenever it ends by itself, at the address that the gateway knows."""
        failures = 0
        while True:
            began = time.monotonic()
            self._process.wait()
            failures = 0 if time.monotonic() - began > LIFE_SECONDS else failures
            if self._stopping.wait(PAUSES[min(failures, len(PAUSES) - 1)]):
                return
            failures += 1
            self._start()
            with suppress(RuntimeError):
                self._ready(600.0)

    def stop(self) -> None:
        """Let it drain."""
        self._stopping.set()
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        self._key_file.unlink(missing_ok=True)


def _cluster_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def node_options(config: ServeConfig) -> list[str]:
    """The command line of a node: models, device and limits are those of the gateway."""
    # To a node all connections come from one address, the gateway's.
    limits = vars(config.limits) | {"per_address": config.limits.connections}
    if not config.keys:  # whoever has none comes with the gateway's key
        limits |= {"per_key": config.limits.queue + config.workers * len(config.models)}
    options = ["--device", config.device, "--dtype", config.dtype, "--workers", str(config.workers)]
    options += ["--low-memory"] * config.low_memory
    options += [part for n, v in config.engine.items() for part in ("--engine", f"{n}={v}")]
    options += [part for model in config.models for part in ("--model", model)]
    options += [part for n, p in config.loras.items() for part in ("--lora", f"{n}={p}")]
    options += [part for n, v in limits.items() for part in ("--limit", f"{n}={v}")]
    return options


def node_keys(config: ServeConfig, key: str) -> dict[str, str]:
    """The keys that a node knows: those of the callers, by their names, and the gateway's own."""
    name = next(name for name in ("gateway", secrets.token_hex(8)) if name not in config.keys)
    return {**config.keys, name: key}


def serve_on_ray(config: ServeConfig, *, nodes: int, gpus: float, announce: Any = None) -> None:
    """Start ``nodes`` nodes and the gateway on Ray, and stay until a signal.

    Args:
        config: of the gateway; models, device and limits go to the nodes.
        nodes: how many, spread over the cluster.
        gpus: of each node; 0: CPU.
        announce: called with the address.

    Raises:
        ModuleNotFoundError: without the extra ``ray``.
    """
    import ray
    from ray import serve

    options = node_options(config)
    key = secrets.token_urlsafe(32)
    keys = node_keys(config, key)
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    # Processors are not counted: on a small machine the gateway would wait for one for ever.
    actor = ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy="SPREAD")(Node)
    alone = sum(1 for machine in ray.nodes() if machine["Alive"]) == 1
    host = LOOPBACK[0] if alone else None
    actors = [
        actor.remote(options, str(config.data), number, keys, host) for number in range(nodes)
    ]
    try:
        addresses = ray.get([node.address.remote() for node in actors])
        port = config.port or _free_port(config.host)
        serve.start(http_options={"host": config.host, "port": port})
        gateway = serve.ingress(Gateway(addresses, key, config))(_Ingress)
        ingress = serve.deployment(gateway, ray_actor_options={"num_cpus": 0})
        serve.run(ingress.bind(), route_prefix="/")
        if announce is not None:
            announce(f"http://{config.host}:{port}")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        ray.get([node.stop.remote() for node in actors])
        serve.shutdown()
        ray.shutdown()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class _Ingress:
    """The deployment that Ray Serve routes to; the gateway is its application."""
