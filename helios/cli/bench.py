"""``helios bench``: how fast this machine makes video, alone or against another engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from helios.cli.folders import output_folder

if TYPE_CHECKING:
    from helios.evaluation import Arm

__all__ = ["bench"]

_RIVALS = ("diffusers",)


def bench(
    model: Annotated[
        str, typer.Argument(help="tiny, a model folder, or random-tiny or random-14b.")
    ] = "tiny",
    against: Annotated[
        str | None, typer.Option(help="Another engine on the same weights: diffusers.")
    ] = None,
    steps: Annotated[
        list[str] | None, typer.Option(help="Steps per scale, such as 1,1,1; may be repeated.")
    ] = None,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks timed at every visit.")] = 5,
    warm: Annotated[int, typer.Option(min=1, help="Chunks before the clock starts.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Visits to every engine, in turn.")] = 2,
    forwards: Annotated[int, typer.Option(min=1, help="Forward passes timed alone.")] = 5,
    budget: Annotated[
        float, typer.Option(min=0, help="Begin nothing after so many seconds.")
    ] = 3600.0,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Leave this engine out, such as eager; may be repeated."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Measure this engine alone, such as helios; may be repeated."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Fewer blocks (random weights).")
    ] = None,
    starts: Annotated[
        bool, typer.Option("--starts", help="Measure two starts of a process before all else.")
    ] = False,
    tune_decoder: Annotated[
        int, typer.Option(min=0, help="Of cuDNN's algorithms tried for the decoder; 0: none.")
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of weights, noise and inputs.")] = 7,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json and bench.md.")] = None,
) -> None:
    """Measure frames a second, the parts of a chunk, and the error against float32.

    A chunk is 33 frames, decoder and copy to the host included. With --against, both engines run
    on the same tensors in one process, taking turns.
    """
    from helios.cli.starts import measure_starts, starts_markdown
    from helios.cli.subjects import subject_of
    from helios.evaluation import BenchConfig, hardware, own_arms, report
    from helios.evaluation import bench as run
    from helios.pipeline import pick_device, pick_dtype
    from helios.storage import write_json

    rival = None if against is None else _rival(against)
    plans = tuple(_plan(text) for text in steps or ("1,1,1", "2,2,2"))
    config = BenchConfig(
        plans=plans,
        warm=warm,
        chunks=chunks,
        rounds=rounds,
        forwards=forwards,
        budget=budget,
        seed=seed,
    )
    # Before the minutes of work, not after them.
    with output_folder(out):
        place = pick_device(device)
        begun = None
        if starts:
            asked = {"model": model, "device": device, "dtype": dtype, "tune_decoder": tune_decoder}
            begun = measure_starts({**asked, "size": size, "layers": layers, "seed": seed})
        subject = subject_of(model, place, pick_dtype(dtype, place), size, layers, seed)
        makers: list[Callable[[], Arm]] = own_arms(subject, tune_decoder)
        if rival is not None:
            makers += rival.arms(subject)
        makers = _chosen(makers, skip or (), only or ())
        result = run(subject, makers, config, lambda line: print(line, file=sys.stderr, flush=True))
        result["hardware"] = hardware(place)
        if against is not None:
            result["hardware"][against] = importlib.metadata.version(against)
        text = report(result)
        if begun is not None:
            result["starts"] = begun
            text += "\n" + starts_markdown(begun)
        typer.echo(text)
        if out is not None:
            write_json(out / "bench.json", result)
            (out / "bench.md").write_text(text, "utf-8")


def _chosen(
    makers: list[Callable[[], Arm]], skip: Sequence[str], only: Sequence[str]
) -> list[Callable[[], Arm]]:
    """The makers named in ``only``, or all, but for those in ``skip``."""
    known = {maker.__name__: maker for maker in makers}
    for option, names in (("skip", skip), ("only", only)):
        for name in names:
            if name not in known:
                raise ValueError(f"{option} must be one of {', '.join(known)}, got {name!r}")
    wanted = [name for name in only or known if name not in skip]
    if not wanted:
        raise ValueError("skip and only leave no engine to measure")
    return [known[name] for name in wanted]


def _plan(text: str) -> tuple[int, ...]:
    try:
        plan = tuple(int(part) for part in text.split(","))
    except ValueError:
        plan = ()
    if len(plan) != 3 or min(plan) < 1:
        raise ValueError(f"steps must be three numbers from 1, such as 1,1,1, got {text!r}")
    return plan


def _rival(name: str) -> ModuleType:
    """The module of another engine's arms, which lies in ``benchmarks`` of a checkout."""
    if name not in _RIVALS:
        raise ValueError(f"against must be one of {', '.join(_RIVALS)}, got {name!r}")
    file = Path(__file__).resolve().parents[2] / "benchmarks" / f"{name}_arms.py"
    if not file.is_file():
        raise ValueError(
            f"the comparison with {name} is part of the source repository, not of the package: "
            "run helios bench from a checkout"
        )
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"{name} is not installed: pip install 'helios-video[parity]'")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
