"""A full-size checkpoint in the published layout: written, loaded, run, and held against diffusers.

    python benchmarks/bench_full_size.py FOLDER [--report FILE] [--device cuda] [--cold] [--small]

Writes a random 14B checkpoint like Helios-Distilled into FOLDER (29.2 GB: bfloat16 shards of at
most 5 GB, the autoencoder of Wan 2.1, no text encoder), or takes the one that an earlier run left
there. Then, each in a process of its own: ``helios.load`` and two videos of 66 frames at 384x640
with the checkpoint's own steps (2, 2, 2); and each pyramid stage of ours and of diffusers, on the
same weights, noise, text and history, in bfloat16 and in float32.

Limits, exit code 1 if one is passed: host memory while loading (anonymous and shared, pages of
mapped files aside) 1.25 times the largest shard and 4 GiB; ours in bfloat16 at most 1.1 times as
far from float32 as diffusers is, in every stage; both the same in float32.

Needs 30 GB of disk, about 90 GB on the device, and diffusers for the last part. ``--cold`` drops
the files from the page cache before they are loaded. ``--small`` is the same with a small network,
in half a minute on a CPU. What a card of 24 GB would do with the checkpoint once it is there:

    python benchmarks/bench_full_size.py FOLDER --phase run --dtype fp8 --low-memory --memory 24
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from stage_errors import SCHEDULE, compare
from torch import Tensor

import helios
from helios.codec import AutoencoderConfig, Codec, WanAutoencoder, save_codec
from helios.kernels import gpu_number
from helios.model import (
    HeliosTransformer,
    TransformerConfig,
    cast,
    empty_transformer,
    save_transformer,
)
from helios.pipeline import find_machine, forecast, inspect_model, pick_device, pick_dtype
from helios.storage import SHARD_BYTES, write_json

PHASES = ("write", "run", "compare")
SEED = 7
HOST_SHARE, HOST_FIXED = 1.25, 4 * 2**30
ERROR_LIMIT = 1.1
SAME_LIMIT = 1e-3
"""Largest difference in float32, in units of the largest value: kernels differ, formulas do not."""
GB = 1e9
DISK = 30 * GB
CONTEXT = 0.7 * GB
"""What CUDA itself takes of a card, which no limit of PyTorch's counts."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is written and made."""

    transformer: TransformerConfig
    codec: AutoencoderConfig
    shard_bytes: int
    height: int
    width: int
    text_rows: int


FULL = Size(
    transformer=TransformerConfig(),
    codec=AutoencoderConfig(),
    shard_bytes=SHARD_BYTES,
    height=384,
    width=640,
    text_rows=512,
)
SMALL = replace(
    FULL,
    transformer=TransformerConfig(
        num_attention_heads=4,
        attention_head_dim=32,
        rope_dim=(12, 10, 10),
        text_dim=32,
        freq_dim=32,
        ffn_dim=256,
        num_layers=3,
    ),
    codec=AutoencoderConfig(base_dim=8, dim_mult=(1, 1, 1, 1), num_res_blocks=1),
    shard_bytes=1_100_000,
    height=128,
    width=192,
    text_rows=16,
)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class HostPeak:
    """Watches the process's anonymous and shared memory; pages of mapped files are not counted."""

    def __init__(self) -> None:
        self.start = self.peak = self.read()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @staticmethod
    def read() -> int:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        kinds = ("RssAnon:", "RssShmem:")
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.peak = max(self.peak, self.read())

    def __enter__(self) -> HostPeak:
        self._thread.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, self.read())


@torch.no_grad()
def randomise(model: HeliosTransformer, generator: torch.Generator) -> None:
    """Weights of variance 1 / fan-in; gains near 1, biases near 0, so that every term counts."""
    width = model.config.width
    for name, parameter in model.named_parameters():
        if name.endswith("modulation"):
            parameter.normal_(std=width**-0.5, generator=generator)
        elif parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.normal_(std=0.05, generator=generator)
            if name.endswith("norm.weight"):
                parameter.add_(1)


def write(folder: Path, size: Size, device: torch.device) -> dict[str, Any]:
    """The checkpoint; on the device the transformer exists once, in host memory a shard of it."""
    began = time.perf_counter()
    with HostPeak() as host:
        model = cast(empty_transformer(size.transformer), torch.bfloat16).to_empty(device=device)
        randomise(model, torch.Generator(device).manual_seed(SEED))
        synchronize(device)
        say(f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion random weights made")
        save_transformer(model, folder / "transformer", shard_bytes=size.shard_bytes)
        torch.manual_seed(SEED)
        save_codec(Codec(WanAutoencoder(size.codec)), folder / "vae")
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler = SCHEDULE.to_json("renoise")
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index: dict[str, Any] = {
        "_class_name": "HeliosPyramidPipeline",
        "_diffusers_version": "0.36.0",
        "is_cfg_zero_star": False,
        "is_distilled": True,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "transformer": ["diffusers", "HeliosTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    # Written last: a folder that has it is complete.
    write_json(folder / "model_index.json", index)
    return {"seconds": time.perf_counter() - began, "host_peak": host.peak}


def known(folder: Path) -> bool:
    """Whether an earlier run has written a whole checkpoint there."""
    return (folder / "model_index.json").is_file()


def forget(folder: Path) -> None:
    """Drop the files of ``folder`` from the page cache."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def random_text(size: Size) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(size.text_rows, size.transformer.text_dim, generator=generator)


def run(
    folder: Path,
    size: Size,
    device: torch.device,
    dtype: str = "bfloat16",
    *,
    low_memory: bool = False,
) -> dict[str, Any]:
    """Load in this fresh process and make the same video twice."""
    shards = [path.stat().st_size for path in (folder / "transformer").glob("*.safetensors")]
    model = inspect_model(folder)
    predicted = forecast(
        model,
        find_machine(device),
        pick_dtype(dtype, device, fp8=True),
        height=size.height,
        width=size.width,
        low_memory=low_memory,
    )
    with HostPeak() as host:
        began = time.perf_counter()
        pipe = helios.load(folder, device=device, dtype=dtype, low_memory=low_memory)
        synchronize(device)
        seconds = time.perf_counter() - began
    result: dict[str, Any] = {
        "load_seconds": seconds,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*.safetensors")),
        "shards": len(shards),
        "largest_shard": max(shards),
        "host_start": host.start,
        "host_peak": host.peak,
        "host_limit": int(HOST_SHARE * max(shards) + HOST_FIXED),
        "device_after_load": allocated(device),
        "device_peak_load": peak(device),
        "plan": predicted.to_json(),
        "defaults": str(pipe.defaults.plan),
    }
    say(f"loaded in {seconds:.1f} s, host peak {host.peak / GB:.2f} GB")
    request = helios.Request(
        prompt_embeds=random_text(size),
        height=size.height,
        width=size.width,
        num_frames=66,
        seed=SEED,
    )
    takes, videos = [], []
    for take in ("first", "again"):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        chunks = list(pipe.stream(request))
        takes.append([chunk.timings for chunk in chunks])
        videos.append(torch.cat([chunk.latents for chunk in chunks], dim=1))
        times = ", ".join(f"{chunk.timings['total']:.2f} s" for chunk in chunks)
        say(f"{sum(len(chunk.frames) for chunk in chunks)} frames, {take}: {times}")
    result |= {
        "device_peak_generate": peak(device),
        "device_reserved": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0,
        "chunks": takes,
        "frames_per_second": len(chunks[-1].frames) / takes[-1][-1]["total"],
        "largest_latent": videos[0].abs().max().item(),
        "repeats": torch.equal(videos[0], videos[1]),
    }
    say(
        f"device {result['device_after_load'] / GB:.2f} GB loaded, "
        f"{result['device_peak_load'] / GB:.2f} at most while loading, "
        f"{result['device_peak_generate'] / GB:.2f} while generating, "
        f"{result['device_reserved'] / GB:.2f} reserved; plan {predicted.device / GB:.2f}"
    )
    return result


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def failures(report: dict[str, Any]) -> list[str]:
    """The limits that were passed, and the parts that did not run."""
    wrong = [f"{phase} did not finish" for phase in PHASES if phase not in report]
    if "run" in report:
        run_ = report["run"]
        if run_["host_peak"] > run_["host_limit"]:
            wrong.append("host memory while loading")
        if not run_["repeats"]:
            wrong.append("the same request gave other latents")
    for stage in report.get("compare", {}).get("stages", ()):
        for what in ("velocity", "end"):
            if not stage[what]["ratio"] <= ERROR_LIMIT:
                wrong.append(f"{what} of stage {stage['stage']} in bfloat16")
            if not stage[what]["float32, largest"] <= SAME_LIMIT:
                wrong.append(f"{what} of stage {stage['stage']} in float32")
    return wrong


def table(report: dict[str, Any]) -> list[str]:
    """All that matters, short."""
    lines = [f"machine      {report['machine']['device']}, torch {report['machine']['torch']}"]
    if "write" in report:
        part = report["write"]
        lines.append(f"written      {part['seconds']:.1f} s, host {part['host_peak'] / GB:.2f} GB")
    if "run" in report:
        part = report["run"]
        last = part["chunks"][-1]
        lines += [
            f"load         {part['load_seconds']:.1f} s for {part['bytes'] / GB:.2f} GB "
            f"({part['shards']} shards, largest {part['largest_shard'] / GB:.2f} GB)",
            f"host peak    {part['host_peak'] / GB:.2f} GB of {part['host_limit'] / GB:.2f} GB "
            f"allowed ({part['host_start'] / GB:.2f} GB before)",
            f"device       {part['device_after_load'] / GB:.2f} GB loaded, peak "
            f"{part['device_peak_load'] / GB:.2f} loading, {part['device_peak_generate'] / GB:.2f} "
            f"generating, {part['device_reserved'] / GB:.2f} reserved "
            f"(plan: {part['plan']['device'] / GB:.2f})",
            "chunks       "
            + ", ".join(f"{t['total']:.2f} s ({t['decode']:.2f} decode)" for t in last)
            + f": {part['frames_per_second']:.2f} frames/s"
            + (
                f" (plan: {part['plan']['frames_per_second']:.2f})"
                if part["plan"]["frames_per_second"]
                else ""
            ),
        ]
    for stage in report.get("compare", {}).get("stages", ()):
        for what in ("velocity", "end"):
            far = stage[what]
            rows, columns = stage["size"]
            lines.append(
                f"{rows:>3}x{columns:<3} {what:8} ours {far['ours bfloat16']:.3e}, diffusers "
                f"{far['diffusers bfloat16']:.3e}, ratio {far['ratio']:.3f}; "
                f"float32 {far['float32, largest']:.1e}"
            )
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--report", type=Path, default=None, help="JSON file for all figures")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cold", action="store_true", help="load from disk, not from its cache")
    parser.add_argument("--small", action="store_true", help="a small network instead")
    parser.add_argument("--phase", choices=PHASES, default=None, help="only this one, here")
    parser.add_argument("--dtype", default="bfloat16", help="phase run: bfloat16 or fp8")
    parser.add_argument("--low-memory", action="store_true", help="phase run: see helios.load")
    parser.add_argument("--memory", type=float, default=None, help="GB of the device, no more")
    return parser.parse_args()


def one_phase(options: argparse.Namespace) -> dict[str, Any]:
    size, device = SMALL if options.small else FULL, pick_device(options.device)
    if options.phase == "write":
        return write(options.folder, size, device)
    if options.memory is not None and device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        allowed = (options.memory * GB - CONTEXT) / whole
        torch.cuda.set_per_process_memory_fraction(allowed, gpu_number(device))
    if options.phase == "run":
        return run(options.folder, size, device, options.dtype, low_memory=options.low_memory)
    stages = compare(options.folder, random_text(size), size.height, size.width, device)
    return {"stages": stages, "device_peak": peak(device)}


def all_phases(options: argparse.Namespace) -> dict[str, Any]:
    """Each in a fresh process; one that fails does not stop the next."""
    device = pick_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    report: dict[str, Any] = {
        "machine": {
            "device": name,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "size": asdict(SMALL if options.small else FULL),
    }
    for phase in PHASES:
        if phase == "write" and known(options.folder):
            report["write"] = {"seconds": 0.0, "host_peak": 0}
            say(f"{options.folder} is there")
            continue
        if phase == "run" and options.cold:
            forget(options.folder)
        say(f"== {phase}")
        with tempfile.TemporaryDirectory() as scratch:
            part = Path(scratch) / "part.json"
            own = ["--phase", phase, "--report", str(part), "--device", options.device]
            small = ["--small"] if options.small else []
            command = [sys.executable, __file__, str(options.folder), *own, *small]
            began = time.perf_counter()
            code = subprocess.run(command, check=False).returncode
            say(f"== {phase}: {time.perf_counter() - began:.1f} s, exit {code}")
            if code == 0:
                report[phase] = json.loads(part.read_text("utf-8"))
    return report


def main() -> int:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.phase is not None:
        result = one_phase(options)
        if options.report is not None:
            options.report.write_text(json.dumps(result), "utf-8")
        return 0
    if any(options.folder.iterdir()) and not known(options.folder):
        print(f"error: 6: {options.folder} is not empty; give a new folder", file=sys.stderr)
        return 6
    if not known(options.folder) and not options.small:
        free = shutil.disk_usage(options.folder).free
        if free < DISK:
            print(
                f"error: 6: {DISK / GB:.0f} GB are needed in {options.folder}, "
                f"{free / GB:.1f} GB are free",
                file=sys.stderr,
            )
            return 6
    report = all_phases(options)
    wrong = failures(report)
    report |= {"passed": not wrong, "failed": wrong}
    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print("\n".join(["", *table(report)]))
    print("passed" if not wrong else "FAILED: " + "; ".join(wrong))
    return 0 if not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
