"""``helios doctor``: what is installed, what this machine can do, what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Annotated, Any

import typer

__all__ = ["doctor", "examine"]

_PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "av",
    "pillow",
    "numpy",
    "tensorboard",
)


def doctor(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON.")
    ] = False,
) -> None:
    """Say what is installed and usable here, and what to do about the rest."""
    findings = examine()
    if json_output:
        typer.echo(json.dumps(findings, indent=2))
        return
    for title, lines in _report(findings):
        typer.echo(f"{title}:")
        for line in lines:
            typer.echo(f"  {line}")


def examine() -> dict[str, Any]:
    """All findings, ready for JSON."""
    findings: dict[str, Any] = {
        "versions": _versions(),
        "cpu": _cpu(),
        "cuda": _cuda(),
        "kernels": _kernels(),
        "video": _video(),
        "models": _models(),
    }
    findings["auto"] = _auto()
    findings["advice"] = _advice(findings)
    return findings


def _versions() -> dict[str, str | None]:
    from helios import __version__

    versions: dict[str, str | None] = {"helios": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _cpu() -> dict[str, Any]:
    import torch

    from helios.pipeline import available_memory, cpu_bfloat16

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "name": capabilities.get("cpu_name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": cpu_bfloat16(),
        "memory_free": available_memory(),
    }


def _cuda() -> list[dict[str, Any]]:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory": total,
                "memory_free": free,
                "bfloat16": (properties.major, properties.minor) >= (8, 0),
                "fp8": (properties.major, properties.minor) >= (8, 9),
            }
        )
    return found


def _kernels() -> list[dict[str, str]]:
    """Which form of every operation the device of choice gets, and why."""
    from helios.kernels import paths
    from helios.pipeline import pick_device, stream_paths

    device = pick_device("auto")
    return [vars(path) for path in (*paths(device), *stream_paths(device))]


def _video() -> dict[str, bool]:
    """Whether H.264 can be written and the accepted codecs read."""
    import av

    def has(name: str, mode: str) -> bool:
        try:
            av.codec.Codec(name, mode)
        except Exception:  # the class of "unknown codec" moved between releases
            return False
        return True

    return {
        "write h264": has("libx264", "w"),
        **{f"read {name}": has(name, "r") for name in ("h264", "hevc", "vp9", "av1")},
    }


def _models() -> dict[str, str]:
    from helios.errors import CheckpointError
    from helios.pipeline import BUNDLED, inspect_model

    state = {}
    for name in BUNDLED:
        try:
            folder = inspect_model(name).folder
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            state[name] = f"present, {size / 2**20:.1f} MiB"
        except CheckpointError as error:
            state[name] = f"missing: {error}"
    return state


def _auto() -> dict[str, str]:
    from helios.pipeline import pick_device, pick_dtype

    device = pick_device("auto")
    return {
        "device": str(device),
        "dtype": str(pick_dtype("auto", device)).removeprefix("torch."),
    }


def _advice(findings: dict[str, Any]) -> list[str]:
    advice = []
    if not findings["cuda"]:
        advice.append(
            "no CUDA device: the tiny model is fast on a CPU, the published models are not; "
            "if there is an NVIDIA GPU, check nvidia-smi and install a CUDA build of torch"
        )
    elif findings["versions"]["triton"] is None:
        advice.append("Triton is missing: pip install 'helios-video[cuda]' for faster kernels")
    if not findings["cuda"] and not findings["cpu"]["bfloat16"]:
        advice.append(
            "this CPU does not multiply bfloat16: float32 is used, at about twice the time"
        )
    if findings["cpu"]["threads"] < (findings["cpu"]["cores"] or 1) // 2:
        advice.append(
            f"PyTorch uses {findings['cpu']['threads']} of {findings['cpu']['cores']} cores: "
            "unset OMP_NUM_THREADS to use all"
        )
    if not findings["video"]["write h264"]:
        advice.append("H.264 cannot be written: reinstall PyAV from its wheel (pip install av)")
    if any(state.startswith("missing") for state in findings["models"].values()):
        advice.append("a bundled model is missing: install helios-video again")
    if findings["versions"]["tensorboard"] is None:
        advice.append("training curves need TensorBoard: pip install 'helios-video[train]'")
    return advice or ["nothing: everything this version uses is here"]


def _report(findings: dict[str, Any]) -> list[tuple[str, list[str]]]:
    cpu, auto = findings["cpu"], findings["auto"]
    memory = cpu["memory_free"]
    devices = [
        f"CPU {cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads, {cpu['vectors']}, "
        f"bfloat16 in hardware: {_yes(cpu['bfloat16'])}"
        + ("" if memory is None else f", {memory / 2**30:.1f} GiB free")
    ]
    devices += [
        f"CUDA {gpu['name']}, capability {gpu['capability']}, "
        f"{gpu['memory_free'] / 2**30:.1f} of {gpu['memory'] / 2**30:.1f} GiB free, "
        f"bfloat16: {_yes(gpu['bfloat16'])}, fp8: {_yes(gpu['fp8'])}"
        for gpu in findings["cuda"]
    ]
    return [
        ("versions", [f"{k} {v or 'not installed'}" for k, v in findings["versions"].items()]),
        ("devices", devices),
        ("used when not told otherwise", [f"{auto['device']}, {auto['dtype']}"]),
        ("kernels and streams", [_path(path) for path in findings["kernels"]]),
        ("video", [f"{k}: {_yes(v)}" for k, v in findings["video"].items()]),
        ("models", [f"{k}: {v}" for k, v in findings["models"].items()]),
        ("advice", findings["advice"]),
    ]


def _path(path: dict[str, str]) -> str:
    return f"{path['operation']}: {path['form']} ({path['why']})"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
