"""``helios serve`` and ``helios studio``: the API, the live protocol and the page."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from helios.cli.chosen import Device, Dtype, EngineSet, LowMemory, parse_engine
from helios.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from helios.serving import Limits, ServeConfig

__all__ = ["serve", "studio"]

Models = Annotated[
    list[str] | None, typer.Option("--model", help="tiny, a hub id or a folder (repeatable).")
]
Data = Annotated[
    Path | None, typer.Option("--data", help="Folder of results, sessions and the journal.")
]
Loras = Annotated[
    list[str] | None, typer.Option("--lora", help="Adapter NAME=FILE to offer (repeatable).")
]
LimitsSet = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        help="A limit as NAME=VALUE (repeatable), such as lifetime=3600; a wrong name lists all.",
    ),
]


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    model: Models = None,
    workers: Annotated[int, typer.Option(help="Processes per model; each takes the next GPU.")] = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    low_memory: LowMemory = False,
    engine: EngineSet = None,
    lora: Loras = None,
    data: Data = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Keys, one per line: KEY or NAME KEY; or in HELIOS_API_KEYS."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name the server is reached by (repeatable).")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Page that may use it (repeatable).")
    ] = None,
    limit: LimitsSet = None,
    open_metrics: Annotated[bool, typer.Option(help="/metrics without a key.")] = False,
    insecure_no_auth: Annotated[
        bool, typer.Option(help="Listen on a public address without a key.")
    ] = False,
    ray: Annotated[
        int, typer.Option(help="Serve from so many nodes on Ray instead; needs the extra ray.")
    ] = 0,
    ray_gpus: Annotated[float, typer.Option(help="GPUs of each node on Ray.")] = 0.0,
    test_faults: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Serve videos: OpenAI's video API, live streams, and the studio page."""
    values = _common(model, device, dtype, lora, data)
    values |= {"low_memory": low_memory, "engine": parse_engine(engine or [])}
    config = _config(
        **values,
        host=host,
        port=port,
        workers=workers,
        keys=_keys(api_key_file),
        hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
        limits=_limits(limit or []),
        metrics_open=open_metrics,
        insecure=insecure_no_auth,
        faults=test_faults,
    )
    if ray:
        _run_on_ray(config, ray, ray_gpus)
    else:
        _run(config, open_browser=False)


def _run_on_ray(config: ServeConfig, nodes: int, gpus: float) -> None:
    from importlib.util import find_spec

    from helios.serving.cluster.ray_app import serve_on_ray

    if find_spec("ray") is None:
        raise ValueError("--ray needs Ray: pip install 'helios-video[serve,ray]'")
    serve_on_ray(config, nodes=nodes, gpus=gpus, announce=_say_ready)


def _say_ready(address: str) -> None:
    print(f"helios is ready at {address}", file=sys.stderr, flush=True)


def studio(
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 0,
    model: Models = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    low_memory: LowMemory = False,
    engine: EngineSet = None,
    lora: Loras = None,
    data: Data = None,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
) -> None:
    """Open the studio: watch a video being made, and steer it while it plays."""
    values = _common(model, device, dtype, lora, data)
    values |= {"low_memory": low_memory, "engine": parse_engine(engine or [])}
    config = _config(**values, port=port, limits=_limits(["lifetime=0", "idle=86400"]))
    _run(config, open_browser=browser)


def _run(config: ServeConfig, *, open_browser: bool) -> None:
    from helios.serving import BrokenModelError
    from helios.serving import serve as run

    def announce(address: str) -> None:
        _say_ready(address)
        if open_browser:
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    print(f"loading {', '.join(config.models)} …", file=sys.stderr, flush=True)
    try:
        run(config, announce=announce)
    except BrokenModelError as error:
        raise _as_local(error.kind)(str(error)) from None


def _as_local(kind: str) -> type[Exception]:
    """The class that gives a worker's failure its exit code."""
    known: dict[str, type[Exception]] = {
        "MemoryError": MemoryError,
        "ValueError": ValueError,
        "InputError": InputError,
    }
    if kind in known:
        return known[kind]
    return CheckpointError if kind.startswith(("Checkpoint", "Unsafe")) else RuntimeError


def _common(
    model: list[str] | None, device: str, dtype: str, lora: list[str] | None, data: Path | None
) -> dict[str, Any]:
    loras: dict[str, Path] = {}
    for text in lora or []:
        name, equals, file = text.partition("=")
        if not equals or not name or not file:
            raise ValueError(f"--lora must be NAME=FILE, got {text!r}")
        if not Path(file).is_file():
            raise InputError(f"lora {file} does not exist")
        loras[name] = Path(file)
    values: dict[str, Any] = {"device": device, "dtype": dtype, "loras": loras}
    if model:
        values["models"] = tuple(model)
    if data is not None:
        values["data"] = data
    return values


def _config(**values: Any) -> ServeConfig:
    from helios.serving import ServeConfig

    return ServeConfig(**values)


def _keys(path: Path | None) -> dict[str, str]:
    import os

    from helios.serving import read_keys

    text = os.environ.get("HELIOS_API_KEYS", "")
    if path is not None:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            raise InputError(f"the key file {path} cannot be read") from None
    if path is None and not text:
        return {}
    keys = read_keys(text)
    for name, key in keys.items():
        if len(key) < 32:
            print(
                f"warning: key {name} has {len(key)} characters; use 32 random ones",
                file=sys.stderr,
            )
    return keys


def _limits(settings: list[str]) -> Limits:
    from helios.serving import Limits

    kinds = {name: type(value) for name, value in vars(Limits()).items()}
    values: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or name not in kinds:
            raise ValueError(f"--limit must be NAME=VALUE with one of {', '.join(kinds)}: {text!r}")
        try:
            values[name] = kinds[name](value)
        except ValueError:
            raise ValueError(f"--limit {name} must be a number, got {value!r}") from None
    return Limits(**values)
