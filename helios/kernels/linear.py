"""Matrix products: in the dtype of their input, or in e4m3 with scales per row, by one name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from helios.kernels.dispatch import is_fast, machine_of, say_once
from helios.kernels.gelu import gelu
from helios.kernels.scaled import Rows, Scaled, quantise_rows

__all__ = ["linear", "linear_gelu", "product_error", "side_by_side"]


def linear(
    x: Rows, weight: Rows, bias: Tensor | None = None, *, fast_accumulate: bool = True
) -> Tensor:
    """``x weightᵀ + bias``.

    With a weight in e4m3 the product is one of e4m3 numbers, accumulated in float32 and scaled by
    the row of ``x`` and the row of ``weight``; ``x`` is quantised first if it is not yet. Where the
    device has no such products, the same numbers are multiplied in a wider type.

    Args:
        x: ``[..., K]``.
        weight: ``[N, K]``.
        bias: ``[N]``, in the dtype of the result.
        fast_accumulate: let Hopper keep 14 bits of partial sums of e4m3 products, as is fastest.

    Returns:
        ``[..., N]``: of the dtype of ``x``, or bfloat16 if that is in e4m3 already and there is no
        bias to say otherwise.

    Raises:
        ValueError: if a gradient is asked for through an e4m3 product.
    """
    if isinstance(weight, Tensor):
        return F.linear(x if isinstance(x, Tensor) else x.dense(weight.dtype), weight, bias)
    dtype = x.dtype if isinstance(x, Tensor) else (bias.dtype if bias is not None else None)
    if isinstance(x, Tensor):
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("products in e4m3 have no gradient: use torch.no_grad()")
        x = quantise_rows(x)
    dtype = dtype or torch.bfloat16
    if dtype == torch.bfloat16 and _in_hardware(x, weight):
        return _scaled_product(x, weight, bias, fast_accumulate)
    return plain_product(x, weight, bias, dtype)


def _in_hardware(x: Scaled, weight: Scaled) -> bool:
    """Whether this product of e4m3 numbers is one instruction of the device."""
    if not is_fast(x.values):
        return False
    if not machine_of(x.values.device).runs_fp8:
        say_once("no fp8 products before capability 8.9: e4m3 weights are widened for each product")
        return False
    return all(size % 16 == 0 for size in weight.shape)


def _scaled_product(x: Scaled, weight: Scaled, bias: Tensor | None, fast: bool) -> Tensor:
    rows = x.values.reshape(-1, x.shape[-1])
    out = torch._scaled_mm(
        rows,
        weight.values.t(),
        scale_a=x.scale.reshape(-1, 1),
        scale_b=weight.scale.reshape(1, -1),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=fast,
    )
    return out.view(*x.shape[:-1], -1)


def plain_product(x: Scaled, weight: Scaled, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The same numbers multiplied in a type that holds them exactly."""
    # Every e4m3 number is one of bfloat16: on a GPU its matrix units may do the work.
    wide = torch.bfloat16 if x.values.is_cuda else torch.float32
    product = F.linear(x.values.to(wide), weight.values.to(wide)).float()
    product = product * x.scale * weight.scale.reshape(-1)
    if bias is not None:
        product = product + bias.float()
    return product.to(dtype)


def linear_gelu(x: Rows, weight: Rows, bias: Tensor, *, fp8: bool = False) -> Rows:
    """``gelu(x weightᵀ + bias)``, the first half of the feed-forward network.

    In bfloat16 on CUDA without gradients the activation is applied to the accumulator, with one
    rounding less than written here.

    Args:
        x: ``[..., K]``.
        weight: ``[N, K]``.
        bias: ``[N]``.
        fp8: give e4m3 with a scale per row.
    """
    if not fp8 and isinstance(x, Tensor) and isinstance(weight, Tensor) and _epilogue(x, weight):
        rows = x.reshape(-1, x.shape[-1])
        out = torch._addmm_activation(bias, rows, weight.t(), use_gelu=True)
        return out.view(*x.shape[:-1], -1)
    return gelu(linear(x, weight, bias), fp8=fp8)


def _epilogue(x: Tensor, weight: Tensor) -> bool:
    """Whether cuBLAS applies the activation while it writes the product."""
    if not is_fast(x) or x.dtype != torch.bfloat16 or torch.is_autocast_enabled(x.device.type):
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))


def side_by_side(parts: Sequence[Tensor]) -> Tensor | None:
    """One matrix whose rows are those of ``parts``, if they lie so in memory; else none.

    Args:
        parts: of one dtype; all but the first dimension equal.
    """
    first, *others = parts
    end = first.storage_offset() + first.numel()
    for part in parts:
        if not part.is_contiguous() or part.shape[1:] != first.shape[1:]:
            return None
    home = first.untyped_storage().data_ptr()
    for part in others:
        same = part.untyped_storage().data_ptr() == home and part.dtype == first.dtype
        if not same or part.storage_offset() != end:
            return None
        end += part.numel()
    rows = sum(part.shape[0] for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


@torch.no_grad()
def product_error(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> float:
    """Relative error ``|e4m3 - exact| / |exact|`` of one product, both against float32."""
    exact = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    ours = linear(x, quantise_rows(weight), bias)
    return float((ours.float() - exact).norm() / exact.norm())
