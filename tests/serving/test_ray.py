"""Two nodes behind a gateway: the classes that Ray runs, here without Ray (see ``on_ray.py``)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
import uvicorn

from helios.cli.main import run
from helios.serving import Limits, ServeConfig
from helios.serving.ray_app import Gateway, Node, node_keys, node_of, node_options

from .harness import Server, wait_for
from .two_nodes import callers, check_border, check_cookies, check_two_nodes

KEY = "g" * 40
Opened: TypeAlias = Callable[[dict[str, str]], Server]


def test_callers_are_spread_evenly_and_always_the_same() -> None:
    nodes = [node_of(f"caller {n}", 4) for n in range(4000)]
    assert nodes == [node_of(f"caller {n}", 4) for n in range(4000)]
    assert all(900 < nodes.count(node) < 1100 for node in range(4))


def test_without_the_extra_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["serve", "--ray", "2", "--data", str(tmp_path)]) == 2
    assert "helios-video[ray]" in capfd.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def opened(tiny_random: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """Gateways to the same two nodes, each with its own keys."""
    data = tmp_path_factory.mktemp("nodes")
    config = ServeConfig(
        data=data,
        keys=callers(),
        models=(str(tiny_random),),
        device="cpu",
        dtype="float32",
        limits=Limits(free=0, spares=0),
    )
    options, keys = node_options(config), node_keys(config, KEY)
    nodes = [Node(options, str(data), number, keys) for number in range(2)]
    with ExitStack() as gateways:
        try:
            addresses = [node.address(120) for node in nodes]

            def open_one(keys: dict[str, str]) -> Server:
                gateway = Server(tiny_random, data)
                app = Gateway(addresses, KEY, replace(config, keys=keys))
                gateway.address = gateways.enter_context(served(app))
                return gateway

            yield open_one
        finally:
            for node in nodes:
                node.stop()


@contextmanager
def served(app: Gateway) -> Iterator[str]:
    """The address of a gateway that runs in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started, 20, "the gateway")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


def test_two_nodes_keep_their_callers(opened: Opened) -> None:
    check_two_nodes(opened(callers()))


def test_the_gateway_decides_who_comes_in(opened: Opened) -> None:
    check_border(opened(callers()))


def test_a_caller_may_have_the_name_of_the_gateway(tmp_path: Path) -> None:
    config = ServeConfig(data=tmp_path, keys={"gateway": "x" * 40})
    keys = node_keys(config, KEY)
    assert keys["gateway"] == "x" * 40
    assert sorted(keys.values()) == sorted([KEY, "x" * 40])


def test_callers_without_a_key_are_known_by_a_cookie(opened: Opened) -> None:
    check_cookies(opened({}))
