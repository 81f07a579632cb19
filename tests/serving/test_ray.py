"""Two nodes behind a gateway: the classes that Ray runs, here without Ray (see ``on_ray.py``)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import httpx
import openai
import pytest
import uvicorn
from websockets.exceptions import InvalidStatus

from helios.cli.main import run
from helios.serving import Limits, ServeConfig
from helios.serving.cluster.gateway import COOKIE, Gateway, node_of
from helios.serving.cluster.ray_app import Node, node_keys, node_options

from .harness import QUICK, Server, finished, make, wait_for
from .two_nodes import callers, check_border, check_cookies, check_two_nodes

KEY = "g" * 40
Opened: TypeAlias = Callable[[dict[str, str]], Server]
# The client says at every call that the service it was made for closes.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


def test_callers_are_spread_evenly_and_always_the_same() -> None:
    nodes = [node_of(f"caller {n}", 4) for n in range(4000)]
    assert nodes == [node_of(f"caller {n}", 4) for n in range(4000)]
    assert all(900 < nodes.count(node) < 1100 for node in range(4))


def test_without_the_extra_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["serve", "--ray", "2", "--data", str(tmp_path)]) == 2
    assert "helios-video[serve,ray]" in capfd.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def nodes() -> list[Node]:
    """Those behind every gateway of this file."""
    return []


@pytest.fixture(scope="module")
def opened(
    nodes: list[Node], tiny_random: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
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
    nodes += [Node(options, str(data), number, keys) for number in range(2)]
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


def test_programs_without_key_or_cookie_stay_at_one_node(opened: Opened) -> None:
    """Each request from a client of its own, as ``curl`` sends it."""
    gateway = opened({})
    with gateway.client() as first:
        mine = make(first)["id"]
        assert COOKIE not in first.cookies
    for _ in range(8):
        with gateway.client() as client:
            assert client.get(f"/v1/videos/{mine}").status_code == 200
    # The official client has a word to be known by, whether anybody asks for it or not.
    for word in ("a", "b", "c"):
        with openai.OpenAI(base_url=f"{gateway.address}/v1", api_key=word, max_retries=0) as api:
            video = api.videos.create(prompt="a red ball", extra_body=QUICK | {"num_frames": 33})
            video = api.videos.poll(video.id, poll_interval_ms=50)
            assert video.status == "completed"
            part = api.videos.with_raw_response.download_content(
                video.id, extra_headers={"Range": "bytes=0-99"}
            )
            assert (part.http_response.status_code, len(part.content)) == (206, 100)
            assert api.videos.delete(video.id).deleted


def test_bodies_are_bounded_at_the_gateway(opened: Opened) -> None:
    """A node would close the connection on the gateway, which has no answer then."""

    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 20)

    with opened(callers()).client(callers()["one"]) as client:
        for content in (bytes(40 << 20), pieces()):
            headers = {"Content-Type": "application/json"}
            refused(client.post("/v1/videos", content=content, headers=headers), 413)
        assert client.get("/v1/videos").status_code == 200


def refused(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_who_leaves_the_gateway_leaves_the_node(opened: Opened) -> None:
    """Otherwise the node goes on with what nobody waits for."""
    gateway = opened(callers())
    long = QUICK | {"num_frames": 1452, "steps": 8}
    with gateway.client(callers()["one"]) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/videos/sync", json=long, timeout=1)

        def busy() -> bool:
            videos = client.get("/v1/videos").json()["data"]
            return any(video["status"] in ("queued", "in_progress") for video in videos)

        wait_for(lambda: not busy(), 30, "the cancellation")


def test_a_node_may_have_as_many_connections_as_the_gateway(tmp_path: Path) -> None:
    limits = Limits(connections=300, per_address=3, live=1)
    options = node_options(ServeConfig(data=tmp_path, workers=2, limits=limits))
    for part in ("per_address=300", "connections=300", "live=1"):
        assert part in options
    assert options[options.index("--workers") + 1] == "2"


def test_a_node_that_dies_is_missed_and_comes_back(opened: Opened, nodes: list[Node]) -> None:
    gateway, keys = opened(callers()), callers()
    number = node_of(keys["one"], 2)
    with gateway.client(keys["one"]) as lost, gateway.client(keys["other"]) as other:
        kept = make(lost)["id"]
        assert finished(lost, kept)["status"] == "completed"
        nodes[number]._process.kill()
        wait_for(lambda: lost.get("/v1/videos").status_code == 503, 20, "the refusal")
        refused(lost.get("/v1/videos"), 503)
        with pytest.raises(InvalidStatus):
            gateway.live(keys["one"])
        assert other.get("/v1/videos").status_code == 200
        wait_for(lambda: lost.get("/health/ready").status_code == 200, 120, "the node")
        assert lost.get(f"/v1/videos/{kept}").json()["status"] == "completed"
        left = nodes[number]._folder.glob
        wait_for(lambda: not list(left("keys-*")), 10, "the end of the file with the keys")
