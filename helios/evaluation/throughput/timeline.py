"""Where a chunk's time goes, beside the least it could take on this device.

The rate of one large matrix product, measured in the same run, is what the device can sustain. A
part's floor is its operations at that rate, and for what passes between products and attention its
bytes at the rate of a large copy. The three are told apart by timing the library calls of a forward
pass alone, at its own shapes; what they leave of the pass is what lies between.
Source: specification "performance", sections 2 and 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from helios.evaluation.throughput.clock import KernelClock, per_second, timed
from helios.evaluation.throughput.subject import Lengths
from helios.kernels import (
    Scaled,
    attention,
    attention_e4m3,
    linear,
    machine_of,
    quantise_centred,
    quantise_heads,
    quantise_rows,
)
from helios.model import HeliosTransformer

__all__ = ["Ceiling", "Library", "measure_ceiling", "measure_library", "timeline"]

_STAGES = ("1/4", "1/2", "full")
_BUDGET = 100.0
"""Milliseconds for each library call."""


@dataclass(frozen=True)
class Ceiling:
    """What the device sustains, measured.

    Attributes:
        product: operations a second of one large product in the dtype of the model.
        e4m3: of e4m3 numbers; none where the device has no such products.
        copy: bytes a second of a large copy, read and written.
    """

    product: float
    e4m3: float | None
    copy: float


@dataclass(frozen=True)
class Library:
    """The library calls of one forward pass, alone.

    Attributes:
        products, attention: seconds.
        product_flops, attention_flops: operations.
        product_e4m3_flops, attention_e4m3_flops: those of them that are done on e4m3 numbers.
        moved: bytes that must pass between the calls of the whole forward pass.
    """

    products: float
    attention: float
    product_flops: float
    attention_flops: float
    product_e4m3_flops: float
    attention_e4m3_flops: float
    moved: float

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

    target = torch.empty_like(x)
    moved = 2 * x.nbytes / timed(partial(target.copy_, x), device, repeat).median

    def rate(call: Callable[[], object]) -> float:
        return 2.0 * size**3 / timed(call, device, repeat).median

    e4m3 = None
    if machine_of(device).runs_fp8 and dtype == torch.bfloat16 and device.type == "cuda":
        narrow = quantise_rows(x), quantise_rows(y)
        e4m3 = rate(partial(linear, *narrow))
    return Ceiling(rate(partial(linear, x, y)), e4m3, moved)


@torch.no_grad()
def measure_library(model: HeliosTransformer, lengths: Lengths) -> Library:
    """The products and attentions of a forward pass by themselves, summed over the blocks.

    Args:
        model: as it runs; in e4m3 what is quantised.
        lengths: of the pass.
    """
    # The last block's history is looked at but goes no further, on CUDA.
    short = model.device.type == "cuda"
    blocks = [(model.config.num_layers - 1, False), (1, short)]
    seconds: dict[bool, float] = {True: 0.0, False: 0.0}
    flops, narrow = dict(seconds), dict(seconds)
    moved, clock = 0.0, KernelClock(model.device, _BUDGET)
    for count, last in blocks:
        moved += count * _moved(model, lengths, last)
        for call in _calls(model, lengths, last):
            seconds[call.product] += count * 1e-6 * clock([call.run])
            flops[call.product] += count * call.flops
            narrow[call.product] += count * call.flops if call.e4m3 else 0.0
    return Library(
        products=seconds[True],
        attention=seconds[False],
        product_flops=flops[True],
        attention_flops=flops[False],
        product_e4m3_flops=narrow[True],
        attention_e4m3_flops=narrow[False],
        moved=moved,
    )


def _moved(model: HeliosTransformer, lengths: Lengths, last: bool) -> float:
    """Bytes that one block must read and write between its library calls, vectors not counted."""
    block = model.blocks[0]
    everyone = lengths.noisy + lengths.history
    lookers = lengths.noisy if last else everyone
    readers = lengths.noisy if model.config.guidance_cross_attn else lookers
    wide = model.dtype.itemsize

    def into(layer: str) -> int:
        """Bytes of a number that ``layer`` reads."""
        return 1 if isinstance(block.get_submodule(layer).weight, Scaled) else wide

    start = getattr(block.get_submodule("self_attention"), "e4m3_from", None)
    narrow = start is not None and everyone >= start
    turned = 1 if narrow else wide
    moved = everyone * (wide + into("self_attention.query"))
    moved += (everyone + lookers) * (wide + turned)
    if narrow:
        # The scale of a head needs all its values before the first is written.
        moved += everyone * (2 * wide + 1)
    for layer, rows in (("self_attention.out", lookers), ("cross_attention.out", readers)):
        if into(layer) == 1:
            moved += rows * (wide + 1)
    moved += readers * (2 * wide + into("cross_attention.query")) + readers * 2 * wide
    moved += lookers * (2 * wide + into("feed_forward.expand")) + readers * wide
    moved += 4 * lookers * wide + readers * wide
    between = 0
    if into("feed_forward.contract") == 1 or model.device.type != "cuda":
        between = lookers * (wide + into("feed_forward.contract")) * model.config.ffn_dim
    return float(moved * model.config.width + between)


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
        narrow = quantise_heads(q), quantise_heads(k), quantise_centred(v)[0]
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
    passes = [
        _Pass(count, Library(**values), part["median_ms"])
        for count, part, values in zip(plan, arm["forward"], arm["library"])
    ]
    yield "| part | floor ms | measured ms | above ms | what is above |"
    yield "|---|---|---|---|---|"
    floors = spent = 0.0
    for name, part in (("products", _products), ("attention", _looked), ("between", _between)):
        rows = [part(one, ceiling) for one in passes]
        least = sum(one.count * row.floor for one, row in zip(passes, rows))
        measured = sum(one.count * row.measured for one, row in zip(passes, rows))
        floors, spent = floors + least, spent + measured
        each = per_second(rows[0].unit, *(row.rate for row in rows))
        yield _row(name, least, measured, f"{each} by scale: {rows[0].why}")
    for stage, one in zip(_STAGES, passes):
        least = sum(part(one, ceiling).floor for part in (_products, _looked, _between))
        name = f"of these: forward {stage}" + (f", {one.count} times" if one.count > 1 else "")
        share = f"{least / one.measured:.0%} of the time is the floor"
        yield _row(name, one.count * least, one.count * one.measured, share)
    flops, measured = floor["flops"][-1], arm["decode"]["median_ms"]
    least = 1e3 * flops / ceiling.product
    rate = per_second("FLOP", 1e3 * flops / measured)
    why = f"{rate} with all that passes between convolutions"
    yield _row("decode", least, measured, why)
    floors, spent = floors + least, spent + measured
    rest = chunk - spent
    why = "noise, solver, copies; waiting for the host"
    if rest < 0:
        why = "decoding beside the next chunk hides as much"
    yield _row("all else", 0.0, rest, why)
    yield _row("chunk", floors, chunk, f"{floors / chunk:.0%} of the time is the floor")


@dataclass(frozen=True)
class _Pass:
    """A forward pass: how often a chunk makes it, its library calls, and milliseconds of it all."""

    count: int
    library: Library
    measured: float


@dataclass(frozen=True)
class _Part:
    """One part of a pass: milliseconds at the least and measured, units a second, and what else."""

    floor: float
    measured: float
    rate: float
    unit: str
    why: str


def _least(flops: float, narrow: float, ceiling: Ceiling) -> float:
    """Milliseconds of so many operations, ``narrow`` of them on e4m3 numbers."""
    fast = ceiling.e4m3 or ceiling.product
    return 1e3 * ((flops - narrow) / ceiling.product + narrow / fast)


def _products(one: _Pass, ceiling: Ceiling) -> _Part:
    library, milliseconds = one.library, 1e3 * one.library.products
    least = _least(library.product_flops, library.product_e4m3_flops, ceiling)
    rate = library.product_flops / library.products
    return _Part(least, milliseconds, rate, "FLOP", "last tiles half full, a falling clock")


def _looked(one: _Pass, ceiling: Ceiling) -> _Part:
    library, milliseconds = one.library, 1e3 * one.library.attention
    least = _least(library.attention_flops, library.attention_e4m3_flops, ceiling)
    rate = library.attention_flops / library.attention
    return _Part(least, milliseconds, rate, "FLOP", "exponentials between its products")


def _between(one: _Pass, ceiling: Ceiling) -> _Part:
    library = one.library
    least = 1e3 * library.moved / ceiling.copy
    milliseconds = one.measured - 1e3 * (library.products + library.attention)
    # Timed by themselves, library calls may take longer than within the pass.
    rate = 1e3 * library.moved / milliseconds if milliseconds > 0 else float("inf")
    return _Part(least, milliseconds, rate, "B", "norms, sums, rotation, GELU; launches of a graph")


def _row(name: str, least: float, measured: float, why: str) -> str:
    return f"| {name} | {least:.1f} | {measured:.1f} | {measured - least:+.1f} | {why} |"
