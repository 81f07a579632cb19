"""The decoder of one chunk alone: plain and fast forms, and the convolutions it is made of.

    python benchmarks/bench_decoder.py [--config wan|tiny] [--size 640x384] [--out FILE]

Weights and latents are random. Prints a table of forms (milliseconds, error against float32), then
one of convolutions with their achieved rate in the layouts that could be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from helios.codec import Codec, WanAutoencoder
from helios.codec.decode import FastDecoder, PlainOps, fast_ops
from helios.evaluation import hardware, timed
from helios.geometry import CHUNK_LATENTS, latent_size
from helios.pipeline import decode_flops, pick_device
from helios.presets import models

LEVELS = ((384, 9, 8), (384, 17, 4), (192, 33, 2), (96, 33, 1))
"""Channels, frames, and how many times smaller than the picture, of the 3x3x3 convolutions."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=("wan", "tiny"), default="wan")
    parser.add_argument("--size", default="640x384")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--no-convolutions", action="store_true")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for all figures")
    return parser.parse_args()


@contextmanager
def tuned(on: bool):
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=on, deterministic=False, allow_tf32=True
    ):
        yield


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

    def measure(name: str, decode: Callable[[torch.Tensor], torch.Tensor], tune: bool) -> None:
        try:
            with torch.no_grad(), tuned(tune):
                found = decode(latents).float()
                found = found if found.shape == true.shape else found.movedim(-1, 1)
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                spread = timed(partial(decode, latents), device, options.repeat)
                peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0
        except (RuntimeError, torch.OutOfMemoryError) as error:
            print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
            return
        error = float((found - true).norm() / true.norm())
        rows.append(
            {"form": name, "tuned": tune, **spread.to_json(), "relative_l2": error, "bytes": peak}
        )
        print(
            f"{name:34s} tuned {tune!s:5s} {1e3 * spread.median:8.2f} ms  "
            f"error {error:.2e}  {peak / 2**30:.1f} GiB",
            flush=True,
        )

    both = (False, True) if device.type == "cuda" else (False,)
    for tune in both:
        measure("plain fp32", network.decode_patches, tune)
    codec.to(dtype=torch.bfloat16)
    ops = fast_ops(latents)
    for tune in both:
        measure("plain bf16", network.decode_patches, tune)
        measure("fast bf16, plain operations", FastDecoder(network, PlainOps()), tune)
        if ops is not None:
            fast = FastDecoder(network, ops)
            measure("fast bf16, kernels", fast, tune)
            measure("fast bf16, kernels, to bytes", lambda z, f=fast: f.levels(z), tune)
            first = latents[:, :, :1]
            spread = timed(lambda f=fast, z=first: f.levels(z), device, options.repeat)
            print(f"first frame alone: {1e3 * spread.median:.2f} ms", flush=True)
            rows.append({"form": "first frame", "tuned": tune, **spread.to_json()})
    flops = decode_flops(config, *latent_size(height, width))
    for row in rows:
        row["tflops_per_second"] = flops / row["median_ms"] / 1e9
    return rows


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
        for tune in (False, True):
            try:
                with torch.no_grad(), tuned(tune):
                    spread = timed(call, device, repeat)
            except (RuntimeError, torch.OutOfMemoryError) as error:
                print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
                continue
            rate = flops / spread.median / 1e12
            rows.append({"layout": name, "tuned": tune, **spread.to_json(), "tflops": rate})
            print(
                f"{channels:4d} channels {frames:2d}x{h}x{w}  {name:22s} tuned {tune!s:5s} "
                f"{1e3 * spread.median:8.2f} ms  {rate:6.0f} TFLOP/s",
                flush=True,
            )
    return rows


def main() -> int:
    options = parse()
    result = {
        "hardware": hardware(pick_device(options.device)),
        "size": options.size,
        "config": options.config,
        "forms": forms(options),
        "convolutions": [] if options.no_convolutions else convolutions(options),
    }
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
