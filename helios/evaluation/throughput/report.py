"""The figures of a throughput run as Markdown: speed, parts, errors and what was left out."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from helios.evaluation.throughput.clock import per_second
from helios.evaluation.throughput.timeline import timeline

__all__ = ["hardware", "report"]

_STAGES = ("1/4", "1/2", "full")


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine and the versions behind a figure, ready for JSON."""
    from helios import __version__

    facts: dict[str, Any] = {
        "helios": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def report(result: Mapping[str, Any]) -> str:
    """Markdown of what ``bench`` returned, with ``hardware`` under that key."""
    lines = ["# Throughput", "", _about(result), ""]
    for plan in result["protocol"]["plans"]:
        lines += _speed(result["arms"], ",".join(map(str, plan)))
    lines += [*_parts(result["arms"], result["floor"]), *_timelines(result)]
    lines += [*_errors(result["arms"])]
    if result["left_out"]:
        lines += ["Left out:", "", *(f"- {line}" for line in result["left_out"]), ""]
    return "\n".join(lines)


def _about(result: Mapping[str, Any]) -> str:
    subject, facts = result["subject"], result["hardware"]
    width, height = subject["size"]
    machine = facts.get("gpu") or f"CPU ({facts['cpu']}, {facts['threads']} threads)"
    versions = ", ".join(
        f"{name} {facts[name]}"
        for name in ("helios", "torch", "cuda", "diffusers")
        if facts.get(name)
    )
    return (
        f"{subject['name']}, {subject['parameters'] / 1e9:.3g} B parameters, {width}x{height}, "
        f"{subject['dtype']}, on {machine}; {versions}. A chunk is 33 frames, "
        "from the arrival of the chunk before it on the host to its own. First frame and first "
        "chunk count from the request in a warm process, its text encoded, the first chunk not "
        "amplified."
    )


def _speed(arms: Mapping[str, Any], plan: str) -> Iterator[str]:
    rows = {name: arm["plans"][plan] for name, arm in arms.items() if plan in arm["plans"]}
    if not rows:
        return
    baselines = [
        row["frames_per_second"] for name, row in rows.items() if arms[name]["kind"] == "baseline"
    ]
    best = max(baselines, default=None)
    yield f"## Steps ({plan})"
    yield ""
    yield (
        "| engine | kind | frames/s | against the best baseline | chunk ms: median | min | p90 | "
        "first frame ms | first chunk ms | MFU | peak GiB | latents against exact |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for name, row in rows.items():
        ratio = "" if best is None else f"{row['frames_per_second'] / best:.2f} x"
        mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
        peak = f"{row['peak_bytes'] / 2**30:.1f}" if row["peak_bytes"] else ""
        alone = row["first_frame_seconds"]
        first = "" if alone is None else f"{1e3 * alone:.0f}"
        apart = f"{row['latents']['relative_l2']:.1e}" if "latents" in row else ""
        yield (
            f"| {name} | {arms[name]['kind']} | {row['frames_per_second']:.2f} | {ratio} | "
            f"{row['median_ms']:.0f} | {row['min_ms']:.0f} | {row['p90_ms']:.0f} | "
            f"{first} | {1e3 * row['first_chunk_seconds']:.0f} | {mfu} | {peak} | {apart} |"
        )
    yield ""
    for name, row in rows.items():
        if row["steadiness"] is not None:
            steady = row["steadiness"]
            yield (
                f"{name} over {steady['chunks']} chunks: {steady['early_frames_per_second']:.2f} "
                f"frames/s in the first 20, {steady['late_frames_per_second']:.2f} in the last 20 "
                f"({steady['time_ratio']:.3f} times as long); memory "
                f"{steady['memory_bytes'] / 2**30:.2f} GiB at the first, "
                f"{steady['memory_growth_bytes'] / 2**20:.1f} MiB more at the most."
            )
            yield ""


def _parts(arms: Mapping[str, Any], floor: Mapping[str, Any]) -> Iterator[str]:
    """Where the time goes, above the least that the operations take at the peak of the device."""
    yield "## Parts (median ms)"
    yield ""
    yield "| engine | " + " | ".join(f"forward {s}" for s in _STAGES) + " | decode | start s |"
    yield "|---|" + "---|" * (len(_STAGES) + 2)
    for name, arm in arms.items():
        cells = [f"{part['median_ms']:.1f}" for part in (*arm["forward"], arm["decode"])]
        yield f"| {name} | {' | '.join(cells)} | {arm['start_seconds']:.1f} |"
    peak = floor["peak_flops_per_second"]
    if peak is not None:
        cells = [f"{1e3 * flops / peak:.1f}" for flops in floor["flops"]]
        yield f"| floor in bfloat16 at {per_second('FLOP', peak)} | {' | '.join(cells)} | |"
    yield ""


def _timelines(result: Mapping[str, Any]) -> Iterator[str]:
    """Every engine whose library calls are known, at the first plan."""
    plan, floor = result["protocol"]["plans"][0], result["floor"]
    name = ",".join(map(str, plan))
    ceiling = floor["ceiling"]
    narrow = ceiling["e4m3"]
    eight = "" if narrow is None else f", in e4m3 the {per_second('FLOP', narrow)}"
    for arm, figures in result["arms"].items():
        if not figures["library"] or name not in figures["plans"]:
            continue
        yield f"## Time line of a chunk at ({name}): {arm}"
        yield ""
        yield (
            f"Floor: operations at the {per_second('FLOP', ceiling['product'])}{eight} that one "
            "large product reached here in this run, bytes at the "
            f"{per_second('B', ceiling['copy'])} of a copy."
        )
        yield ""
        yield from timeline(figures, plan, floor)
        yield ""


def _errors(arms: Mapping[str, Any]) -> Iterator[str]:
    yield "## Error against float32 on the same weights"
    yield ""
    yield (
        "| engine | "
        + " | ".join(f"relative L2 {s}" for s in _STAGES)
        + " | least cosine | decoder relative L2 | decoder PSNR |"
    )
    yield "|---|" + "---|" * (len(_STAGES) + 3)
    for name, arm in arms.items():
        cells = [f"{part['relative_l2']:.2e}" for part in arm["error"]]
        cosine = min(part["cosine"] for part in arm["error"])
        decoder = arm["decode_error"]
        yield (
            f"| {name} | {' | '.join(cells)} | {cosine:.6f} | {decoder['relative_l2']:.2e} | "
            f"{decoder['psnr_db']:.1f} dB |"
        )
    yield ""
