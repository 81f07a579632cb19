"""The decoder of one chunk alone: plain and fast forms, its parts, and its convolutions apart.

    python benchmarks/bench_decoder.py [--config wan|tiny] [--size 640x384] [--out FILE]

Weights and latents are random. Prints a table of forms (milliseconds, error against float32), then
what every operation of the fast form takes within one decoding, then convolutions alone with their
achieved rate in the layouts that could be used. "trials" is how many
of cuDNN's algorithms were measured for each convolution. cuDNN keeps its choice, the first guess as
well, for the thread and the shape, so every row has a thread of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from helios.codec import (
    Codec,
    PreviewCodec,
    PreviewConfig,
    PreviewDecoder,
    WanAutoencoder,
    decode,
)
from helios.codec.decode import FastDecoder, PlainOps, fast_ops
from helios.evaluation import hardware, timed
from helios.evaluation.throughput.clock import Spread
from helios.geometry import CHUNK_LATENTS, latent_size
from helios.pipeline import decode_flops, pick_device
from helios.presets import models

T = TypeVar("T")
LEVELS = ((384, 9, 8), (384, 17, 4), (192, 33, 2), (96, 33, 1))
"""Channels, frames, and how many times smaller than the picture, of the 3x3x3 convolutions."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=("wan", "tiny"), default="wan")
    parser.add_argument("--size", default="640x384")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--no-convolutions", action="store_true")
    parser.add_argument("--no-parts", action="store_true")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for all figures")
    return parser.parse_args()


TRIALS = (0, 3, 10)
GROUPS = (3, 1)
"""Latent frames at a time."""


@contextmanager
def tuned(trials: int) -> Iterator[None]:
    with torch.backends.cudnn.flags(
        enabled=True,
        benchmark=trials > 0,
        benchmark_limit=trials,
        deterministic=False,
        allow_tf32=True,
    ):
        yield


def alone(call: Callable[[], T]) -> T:
    """``call()`` in a thread for which cuDNN has chosen nothing yet."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def forms(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds and error of every form of the decoder."""
    device = pick_device(options.device)
    width, height = (int(part) for part in options.size.split("x"))
    config = models.wan_autoencoder() if options.config == "wan" else models.tiny_autoencoder()
    torch.manual_seed(0)
    with device:
        network = WanAutoencoder(config).eval()
    latents = torch.randn(1, 16, CHUNK_LATENTS, *latent_size(height, width), device=device)
    codec = Codec(network)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        true = network.decode_patches(latents)
    rows: list[dict[str, Any]] = []

    def once(decode: Callable[[torch.Tensor], torch.Tensor], trials: int) -> dict[str, Any]:
        with torch.no_grad(), tuned(trials):
            began = time.perf_counter()
            found, error = decode(latents), None
            if found.dtype != torch.uint8:
                found = found if found.shape == true.shape else found.movedim(-1, 1)
                error = float((found.float() - true).norm() / true.norm())
            # Reading a number waits for the device.
            found.flatten()[0].item()
            first = time.perf_counter() - began
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            spread = timed(partial(decode, latents), device, options.repeat)
            peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0
        return {**spread.to_json(), "relative_l2": error, "bytes": peak, "first_seconds": first}

    def measure(name: str, decode: Callable[[torch.Tensor], torch.Tensor], trials: int) -> None:
        try:
            row = alone(partial(once, decode, trials))
        except (RuntimeError, torch.OutOfMemoryError) as error:
            print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
            return
        rows.append({"form": name, "trials": trials, **row})
        far = "" if row["relative_l2"] is None else f"error {row['relative_l2']:.2e}"
        print(
            f"{name:34s} trials {trials:2d} {row['median_ms']:8.2f} ms  first "
            f"{row['first_seconds']:5.1f} s  {far}  {row['bytes'] / 2**30:.1f} GiB",
            flush=True,
        )

    several = TRIALS if device.type == "cuda" else (0,)
    for trials in (several[0], several[-1]) if len(several) > 1 else several:
        measure("plain fp32", network.decode_patches, trials)
    codec.to(dtype=torch.bfloat16)
    ops = fast_ops(latents)
    for trials in several:
        measure("plain bf16", network.decode_patches, trials)
        measure("fast bf16, plain operations", FastDecoder(network, PlainOps()), trials)
        if ops is not None:
            fast = FastDecoder(network, ops)
            measure("fast bf16, kernels", fast, trials)
            measure("fast bf16, kernels, to bytes", fast.levels, trials)
            measure("first frame alone, to bytes", partial(_first, fast), trials)
            for group in GROUPS:
                parts = FastDecoder(network, ops, group=group).levels
                measure(f"fast bf16, to bytes, {group} at a time", parts, trials)
    shape = PreviewConfig(frames=config.temporal_ratio, pixels=config.spatial_ratio)
    preview = PreviewCodec(codec, PreviewDecoder(shape))
    measure("preview decoder, to bytes", preview.decode_uint8, 0)
    flops = decode_flops(config, *latent_size(height, width))
    for row in rows:
        row["tflops_per_second"] = flops / row["median_ms"] / 1e9
    return rows


class Marked:
    """The operations of a decoder, each between two marks in the device's queue."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, float, float, Any, Any]] = []

    def __call__(self, name: str, call: Callable[[], T], flops: float, given: float) -> T:
        """``call()``; operations and bytes of its inputs are noted, those of its results added."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        made = call()
        end.record()
        outs = made if isinstance(made, tuple) else (made,)
        moved = given + sum(t.nbytes for t in outs if isinstance(t, torch.Tensor))
        self.marks.append((name, flops, moved, begin, end))
        return made

    def rows(self) -> list[dict[str, Any]]:
        """Sums by name, the longest first."""
        found: dict[str, list[float]] = {}
        for name, flops, moved, begin, end in self.marks:
            one = found.setdefault(name, [0.0, 0.0, 0.0, 0.0])
            for i, value in enumerate((1, begin.elapsed_time(end), flops, moved)):
                one[i] += value
        keys = ("calls", "ms", "flops", "bytes")
        rows = [{"part": name, **dict(zip(keys, sums))} for name, sums in found.items()]
        return sorted(rows, key=lambda row: -row["ms"])


class MarkedOps:
    """What runs between convolutions, marked."""

    def __init__(self, ops: Any, marked: Marked) -> None:
        self.ops, self.marked = ops, marked

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            given = [a for a in args if isinstance(a, torch.Tensor) and a.dim() == 5]
            shape = "x".join(map(str, given[0].shape[1:]))
            moved = float(sum(t.nbytes for t in given))
            return self.marked(f"{name} {shape}", partial(getattr(self.ops, name), *args), 0, moved)

        return call


def parts(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What each operation takes within one decoding of the fast form, on CUDA."""
    device = pick_device(options.device)
    config = models.wan_autoencoder() if options.config == "wan" else models.tiny_autoencoder()
    width, height = (int(part) for part in options.size.split("x"))
    torch.manual_seed(0)
    with device:
        network = WanAutoencoder(config).eval()
    codec = Codec(network).to(dtype=torch.bfloat16)
    latents = torch.randn(1, 16, CHUNK_LATENTS, *latent_size(height, width), device=device)
    marked = Marked()
    ops = fast_ops(latents)
    if ops is None:
        return []
    FastDecoder(codec.network, ops).levels(latents)
    marked.marks.clear()
    with marked_convolutions(marked):
        decoder = FastDecoder(codec.network, MarkedOps(ops, marked))
        decoder.levels(latents)
        marked.marks.clear()
        decoder.levels(latents)
        torch.cuda.synchronize()
    rows = marked.rows()
    total = sum(row["ms"] for row in rows)
    for row in rows:
        rate = row["flops"] / row["ms"] / 1e9
        speed = f"{rate:6.0f} TFLOP/s" if row["flops"] else ""
        print(
            f"{row['part']:52s} {row['calls']:3.0f} x {row['ms']:8.2f} ms {speed:15s} "
            f"{row['bytes'] / row['ms'] / 1e9:6.2f} TB/s",
            flush=True,
        )
    print(f"{'all parts':52s}       {total:8.2f} ms", flush=True)
    return rows


@contextmanager
def marked_convolutions(marked: Marked) -> Iterator[None]:
    """Inside, every convolution, doubling and attention of a fast decoder is marked."""
    kinds = (decode._Convolution, decode._Doubling, decode.AttentionBlock)
    before: dict[Any, Any] = {kind: kind.__call__ for kind in kinds}

    def convolve(self: Any, rows: torch.Tensor, *, biased: bool = False) -> torch.Tensor:
        outs, ins, *kernel = self.weight.shape
        pixels = (rows.shape[1] - kernel[0] + 1) * rows.shape[2] * rows.shape[3]
        flops = 2.0 * ins * outs * kernel[0] * kernel[1] * kernel[2] * pixels * len(rows)
        name = f"convolution {ins}-{outs} {kernel} {'x'.join(map(str, rows.shape[1:4]))}"
        call = partial(before[decode._Convolution], self, rows, biased=biased)
        return marked(name, call, flops, float(rows.nbytes))

    def double(self: Any, x: torch.Tensor, *told: Any) -> torch.Tensor:
        outs, ins = self.weight.shape[:2]
        frames = x.shape[1] if self.time is None else 2 * x.shape[1] - 1
        flops = 8.0 * ins * outs * frames * (x.shape[2] + 1) * (x.shape[3] + 1)
        name = f"doubling {ins}-{outs} {'x'.join(map(str, x.shape[1:4]))}, time within"
        call = partial(before[decode._Doubling], self, x, *told)
        return marked(name, call, flops, float(x.nbytes))

    def look(self: Any, x: torch.Tensor) -> torch.Tensor:
        batch, channels, frames, height, width = x.shape
        pixels = float(height * width)
        flops = batch * frames * (4 * pixels**2 * channels + 8 * pixels * channels**2)
        call = partial(before[decode.AttentionBlock], self, x)
        return marked(f"attention {channels} {frames}x{height}x{width}", call, flops, x.nbytes)

    for kind, call in zip(kinds, (convolve, double, look)):
        kind.__call__ = call  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for kind, call in before.items():
            kind.__call__ = call


def convolutions(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rate of one 3x3x3 convolution per level, in bfloat16, in several layouts."""
    device = pick_device(options.device)
    width, height = (int(part) for part in options.size.split("x"))
    rows = []
    for channels, frames, shrink in LEVELS:
        h, w = height // shrink, width // shrink
        flops = 2 * 27 * channels**2 * frames * h * w
        rows += [
            {"channels": channels, "frames": frames, "height": h, "width": w, **row}
            for row in _layouts(channels, frames, h, w, flops, device, options.repeat)
        ]
    return rows


def _layouts(
    channels: int, frames: int, h: int, w: int, flops: float, device: torch.device, repeat: int
) -> list[dict[str, Any]]:
    half = torch.bfloat16
    volume = torch.randn(1, frames + 2, h, w, channels, device=device, dtype=half)
    weight = torch.randn(channels, channels, 3, 3, 3, device=device, dtype=half)
    deep = weight.contiguous(memory_format=torch.channels_last_3d)
    flat = [t.contiguous(memory_format=torch.channels_last) for t in weight.unbind(2)]
    images = volume[0].movedim(-1, 1)

    def taps() -> list[torch.Tensor]:
        return [F.conv2d(images[i : i + frames], flat[i], padding=1) for i in range(3)]

    calls: dict[str, Callable[[], object]] = {
        "volume": lambda: F.conv3d(volume.movedim(-1, 1), deep, padding=(0, 1, 1)),
        "three taps, not added": taps,
    }
    if channels < 384:
        stacked = torch.randn(frames, h, w, 3 * channels, device=device, dtype=half)
        wide = torch.cat(flat, dim=1).contiguous(memory_format=torch.channels_last)
        calls["stacked frames"] = lambda: F.conv2d(stacked.movedim(-1, 1), wide, padding=1)
    rows = []
    for name, call in calls.items():
        for trials in TRIALS if device.type == "cuda" else (0,):
            try:
                spread = alone(partial(_timed, call, device, repeat, trials))
            except (RuntimeError, torch.OutOfMemoryError) as error:
                print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
                continue
            rate = flops / spread.median / 1e12
            rows.append({"layout": name, "trials": trials, **spread.to_json(), "tflops": rate})
            print(
                f"{channels:4d} channels {frames:2d}x{h}x{w}  {name:22s} trials {trials:2d} "
                f"{1e3 * spread.median:8.2f} ms  {rate:6.0f} TFLOP/s",
                flush=True,
            )
    return rows


def _first(decoder: FastDecoder, latents: torch.Tensor) -> torch.Tensor:
    return decoder.levels(latents[:, :, :1])


def _timed(call: Callable[[], object], device: torch.device, repeat: int, trials: int) -> Spread:
    with torch.no_grad(), tuned(trials):
        return timed(call, device, repeat)


def main() -> int:
    options = parse()
    result = {
        "hardware": hardware(pick_device(options.device)),
        "size": options.size,
        "config": options.config,
        "forms": forms(options),
        "parts": [] if options.no_parts else parts(options),
        "convolutions": [] if options.no_convolutions else convolutions(options),
    }
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
