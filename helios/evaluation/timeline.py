"""Where a chunk's time goes, beside the least it could take on this device.

The rate of one large matrix product, measured in the same run, is what the device can sustain. A
part's floor is its operations at that rate. Between floor and measurement stand three things that
are told apart by timing the library calls of a forward pass alone, at its own shapes: products
slower than the large one, attention slower than a product, and what passes between them.
Source: specification "performance", sections 2 and 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from helios.evaluation.clock import timed
from helios.evaluation.subject import Lengths
from helios.kernels import (
    Scaled,
    attention,
    attention_e4m3,
    linear,
    machine_of,
    quantise_heads,
    quantise_rows,
)
from helios.model import HeliosTransformer

__all__ = ["Ceiling", "Library", "measure_ceiling", "measure_library", "timeline"]

_STAGES = ("1/4", "1/2", "full")


@dataclass(frozen=True)
class Ceiling:
    """Operations a second of one large product, measured.

    Attributes:
        product: in the dtype of the model.
        e4m3: of e4m3 numbers; none where the device has no such products.
    """

    product: float
    e4m3: float | None


@dataclass(frozen=True)
class Library:
    """The library calls of one forward pass, alone.

    Attributes:
        products, attention: seconds.
        product_flops, attention_flops: operations.
        e4m3_flops: those of both that are done on e4m3 numbers.
    """

    products: float
    attention: float
    product_flops: float
    attention_flops: float
    e4m3_flops: float

    def to_json(self) -> dict[str, float]:
        """Ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Call:
    """One library call: what to run, its operations, and whether on e4m3 numbers."""

    run: Callable[[], object]
    flops: float
    e4m3: bool
    product: bool


@torch.no_grad()
def measure_ceiling(device: torch.device, dtype: torch.dtype, repeat: int = 5) -> Ceiling:
    """What the device sustains; on random numbers, because power limits clocks on them."""
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    x, y = (torch.randn(size, size, generator=generator, device=device, dtype=dtype) for _ in "ab")

    def rate(call: Callable[[], object]) -> float:
        return 2.0 * size**3 / timed(call, device, repeat).median

    e4m3 = None
    if machine_of(device).runs_fp8 and dtype == torch.bfloat16 and device.type == "cuda":
        narrow = quantise_rows(x), quantise_rows(y)
        e4m3 = rate(partial(linear, *narrow))
    return Ceiling(rate(partial(linear, x, y)), e4m3)


@torch.no_grad()
def measure_library(model: HeliosTransformer, lengths: Lengths, repeat: int) -> Library:
    """The products and attentions of a forward pass by themselves, summed over the blocks.

    Args:
        model: as it runs; in e4m3 what is quantised.
        lengths: of the pass.
        repeat: how often each call is timed.
    """
    # The last block's history is looked at but goes no further, on CUDA.
    short = model.device.type == "cuda"
    blocks = [(model.config.num_layers - 1, False), (1, short)]
    totals = dict.fromkeys(("products", "attention", "product_flops", "attention_flops"), 0.0)
    e4m3 = 0.0
    for count, last in blocks:
        for call in _calls(model, lengths, last):
            seconds = timed(call.run, model.device, repeat).median
            kind = ("products", "product_flops") if call.product else ("attention", None)
            totals[kind[0]] += count * seconds
            totals[kind[1] or "attention_flops"] += count * call.flops
            e4m3 += count * call.flops if call.e4m3 else 0.0
    return Library(**totals, e4m3_flops=e4m3)


def _calls(model: HeliosTransformer, lengths: Lengths, last: bool) -> Iterator[_Call]:
    """The library calls of one block."""
    own, cross, forward = (
        model.blocks[0].get_submodule(name)
        for name in ("self_attention", "cross_attention", "feed_forward")
    )
    everyone = lengths.noisy + lengths.history
    lookers = lengths.noisy if last else everyone
    readers = lengths.noisy if model.config.guidance_cross_attn else lookers
    if last:
        yield _product(model, lookers, [own.get_submodule("query")])
        yield _product(model, everyone, [own.get_submodule(name) for name in ("key", "value")])
    else:
        names = ("query", "key", "value")
        yield _product(model, everyone, [own.get_submodule(name) for name in names])
    yield _product(model, lookers, [own.get_submodule("out")])
    yield _product(model, readers, [cross.get_submodule("query")])
    yield _product(model, readers, [cross.get_submodule("out")])
    yield _product(model, lookers, [forward.get_submodule("expand")])
    yield _product(model, lookers, [forward.get_submodule("contract")])
    start = getattr(own, "e4m3_from", None)
    yield _attention(model, lookers, everyone, start is not None and everyone >= start)
    yield _attention(model, readers, lengths.text, False)


def _random(model: HeliosTransformer, *shape: int) -> Tensor:
    return torch.randn(shape, device=model.device, dtype=model.dtype)


def _product(model: HeliosTransformer, rows: int, layers: Sequence[nn.Module]) -> _Call:
    """One product that serves ``layers``, whose weights are put side by side for it."""
    weights: list[Any] = [layer.weight for layer in layers]
    biases: list[Any] = [layer.bias for layer in layers]
    inputs = weights[0].shape[1]
    outputs = sum(weight.shape[0] for weight in weights)
    x = _random(model, 1, rows, inputs)
    flops = 2.0 * rows * inputs * outputs
    bias = torch.cat(biases)
    if not all(isinstance(weight, Scaled) for weight in weights):
        return _Call(partial(linear, x, torch.cat(weights), bias), flops, False, True)
    # Bytes, because not every device can put numbers of eight bits side by side.
    values = torch.cat([weight.values.view(torch.uint8) for weight in weights])
    scale = torch.cat([weight.scale for weight in weights])
    joined = Scaled(values.view(weights[0].values.dtype), scale)
    return _Call(partial(linear, quantise_rows(x), joined, bias), flops, True, True)


def _attention(model: HeliosTransformer, queries: int, keys: int, e4m3: bool) -> _Call:
    """Attention of all heads."""
    heads, width = model.config.num_attention_heads, model.config.attention_head_dim
    q = _random(model, 1, queries, heads, width)
    k, v = (_random(model, 1, keys, heads, width) for _ in "kv")
    flops = 4.0 * queries * keys * heads * width
    if e4m3:
        narrow = [quantise_heads(x) for x in (q, k, v)]
        return _Call(partial(attention_e4m3, *narrow), flops, True, False)
    return _Call(partial(attention, q, k, v), flops, False, False)


def timeline(
    arm: Mapping[str, Any], plan: Sequence[int], floor: Mapping[str, Any]
) -> Iterator[str]:
    """One engine's chunk as a table: floor, measured, gap and what the gap is made of.

    Args:
        arm: its figures, with ``library`` per scale.
        plan: steps per scale; the figures hold its chunk.
        floor: ``flops`` of the decoder last, and the measured ``ceiling``.
    """
    ceiling = Ceiling(**floor["ceiling"])
    chunk = arm["plans"][",".join(map(str, plan))]["median_ms"]
    yield "| part | floor ms | measured ms | above ms | what is above |"
    yield "|---|---|---|---|---|"
    floors = spent = 0.0
    for stage, count, part, values in zip(_STAGES, plan, arm["forward"], arm["library"]):
        library, measured = Library(**values), part["median_ms"]
        least, why = _forward(library, measured, ceiling)
        floors, spent = floors + count * least, spent + count * measured
        name = f"forward {stage}" + (f", {count} times" if count > 1 else "")
        yield _row(name, count * least, count * measured, why)
    flops, measured = floor["flops"][-1], arm["decode"]["median_ms"]
    least = 1e3 * flops / ceiling.product
    why = f"{flops / measured / 1e9:.3g} TFLOP/s with all that passes between convolutions"
    yield _row("decode", least, measured, why)
    floors, spent = floors + least, spent + measured
    rest = chunk - spent
    why = "noise, solver, copies; waiting for the host"
    if rest < 0:
        why = "decoding beside the next chunk hides as much"
    yield _row("all else", 0.0, rest, why)
    yield _row("chunk", floors, chunk, f"{floors / chunk:.0%} of the time is the floor")


def _forward(library: Library, measured: float, ceiling: Ceiling) -> tuple[float, str]:
    """Milliseconds at the least, and what the rest of ``measured`` milliseconds is made of."""
    total = library.product_flops + library.attention_flops
    # Attention in e4m3 is counted last: what is left of the e4m3 operations after the products.
    narrow = min(library.e4m3_flops, total)
    fast = ceiling.e4m3 or ceiling.product
    least = 1e3 * ((total - narrow) / ceiling.product + narrow / fast)
    products, looked = 1e3 * library.products, 1e3 * library.attention
    rates = (
        f"products {products:.1f} at {library.product_flops / products / 1e9:.3g} TFLOP/s, "
        f"attention {looked:.1f} at {library.attention_flops / looked / 1e9:.3g}"
    )
    return least, f"{rates}, between them {measured - products - looked:.1f}"


def _row(name: str, least: float, measured: float, why: str) -> str:
    return f"| {name} | {least:.1f} | {measured:.1f} | {measured - least:+.1f} | {why} |"
