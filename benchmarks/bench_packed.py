"""Time and memory of a step of stage 2: scales packed in one sequence, or one pass each.

    python benchmarks/bench_packed.py                                # a GPU if there is one
    python benchmarks/bench_packed.py --device cpu --batch 1 --passes 1 --eager-only

A step is loss and gradients on the same random clips, in bfloat16 autocast on CUDA. "one call" is
PyTorch's variable-length attention, "by scale" one attention per scale. Prints one line an arm and
writes everything as JSON with ``--json``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from helios.data import Batch
from helios.distributed import World
from helios.kernels import varlen
from helios.presets import override, training_preset
from helios.training import Stage2

ARMS = {
    "packed, one call": (True, varlen.in_one_call),
    "packed, by scale": (True, varlen.by_segment),
    "one pass each": (False, None),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--eager-only", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def attention_by(form: Callable[..., torch.Tensor] | None) -> Iterator[None]:
    """Inside, segments attend by ``form``; none: by whichever is usual."""
    usual = varlen._pick
    if form is not None:
        varlen._pick = lambda query: form
    try:
        yield
    finally:
        varlen._pick = usual


def measure(
    device: torch.device, batch: int, passes: int, compiled: bool, arm: str
) -> dict[str, float | str]:
    """Milliseconds of a step (the median), its loss and the most memory it took."""
    packed, form = ARMS[arm]
    settings = [f"stage.packed={packed}", f"stage.batch={batch}"]
    config = override(training_preset("tiny-stage2"), settings).stage
    torch.compiler.reset()
    stage: Stage2 = config.build(World(device=device), seed=0, compiled=compiled)
    generator = torch.Generator(device).manual_seed(0)
    rows, columns = config.data.height // 8, config.data.width // 8
    shape = (batch, 16, 9 * config.sections, rows, columns)
    latents = torch.randn(shape, generator=generator, device=device)
    tokens = torch.full((batch, config.text.length), 5, device=device)
    narrow = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    seconds, loss = [], torch.zeros(())
    with attention_by(form):
        for _ in range(3 + passes):
            wait(device)
            begin = time.perf_counter()
            with narrow:
                loss, _ = stage.loss(Batch(latents=latents, tokens=tokens))
            loss.backward()
            stage.model.zero_grad(set_to_none=True)
            wait(device)
            seconds.append(time.perf_counter() - begin)
            if device.type == "cuda" and len(seconds) == 3:
                torch.cuda.reset_peak_memory_stats(device)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return {
        "arm": arm,
        "form": "compiled" if compiled else "eager",
        "ms": 1e3 * statistics.median(seconds[3:]),
        "loss": loss.item(),
        "peak_gib": peak,
    }


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    forms = [False] if options.eager_only or device.type != "cuda" else [False, True]
    rows = []
    for compiled in forms:
        for arm, (_, form) in ARMS.items():
            if form is varlen.in_one_call and device.type != "cuda":
                continue
            row = measure(device, options.batch, options.passes, compiled, arm)
            rows.append(row)
            print(
                f"{row['form']:9} {row['arm']:17} {row['ms']:8.1f} ms   "
                f"{row['peak_gib']:6.1f} GiB   loss {row['loss']:.4f}",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
