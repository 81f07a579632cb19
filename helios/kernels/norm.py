"""Normalisation and modulation, alone and together with the residual addition before them.

The transformer modulates every token with one of only two sets of vectors per sample: one for the
history tokens, which come first, and one for the noisy tokens. The functions here take the two
sets as ``[B, 2, D]`` and the place where the sequence changes hands, so that a table with one row
per token is never made. All arithmetic is float32 with one rounding to the dtype of ``x``
(specification "model and sampling", sections 3.2 and 3.5).

With ``fp8`` the normalised tokens come in e4m3 with a scale per token, ready for a matrix product;
they are then not rounded to the dtype of ``x`` in between, and have no gradient.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from helios.kernels.dispatch import run, uses_triton
from helios.kernels.scaled import Rows, Scaled, plain_quantise_rows

__all__ = [
    "gated_add",
    "gated_add_layer_norm",
    "gated_add_modulated_norm",
    "layer_norm",
    "modulated_norm",
    "rms_norm",
    "text_add_modulated_norm",
]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis: ``x / sqrt(mean(x²) + eps) * weight``.

    Args:
        x: ``[..., D]``, any float dtype; the result has the same.
        weight: ``[D]`` gains.
        eps: added to the mean square.
    """
    if uses_triton(x):
        from helios.kernels import norm_triton

        return run(norm_triton.rms_norm, plain_rms_norm, x, weight, eps)
    return plain_rms_norm(x, weight, eps)


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The formula of :func:`rms_norm`."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last axis: ``(x - mean) / sqrt(var + eps) * weight + bias``.

    Args:
        x: ``[..., D]``, any float dtype; the result has the same.
        weight: ``[D]`` gains.
        bias: ``[D]`` offsets.
        eps: added to the (biased) variance.
    """
    if uses_triton(x):
        from helios.kernels import norm_triton

        return run(norm_triton.layer_norm, plain_layer_norm, x, weight, bias, eps)
    return plain_layer_norm(x, weight, bias, eps)


def plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The formula of :func:`layer_norm`."""
    return _wide_layer_norm(x, weight, bias, eps).to(x.dtype)


def _wide_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)


@overload
def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, split: int, eps: float, *, fp8: Literal[False] = ...
) -> Tensor: ...


@overload
def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, split: int, eps: float, *, fp8: bool
) -> Rows: ...


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, split: int, eps: float, *, fp8: bool = False
) -> Rows:
    """Layer norm without gains, then ``n * (1 + scale) + shift`` with the row of each token.

    Args:
        x: ``[B, L, D]``; the result has its shape and dtype.
        shift: ``[B, 2, D]`` float32; row 0 is for tokens before ``split``, row 1 for the rest.
        scale: ``[B, 2, D]`` float32, likewise.
        split: number of history tokens.
        eps: added to the (biased) variance.
        fp8: give e4m3 with a scale per token instead.
    """
    if uses_triton(x):
        from helios.kernels import norm_triton

        if fp8:
            return Scaled(*norm_triton.modulated_norm_e4m3(x, shift, scale, split, eps))
        return run(norm_triton.modulated_norm, plain_modulated_norm, x, shift, scale, split, eps)
    if fp8:
        return plain_quantise_rows(_wide_modulated_norm(x, shift, scale, split, eps))
    return plain_modulated_norm(x, shift, scale, split, eps)


def plain_modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, split: int, eps: float) -> Tensor:
    """The formula of :func:`modulated_norm`."""
    return torch.cat(
        [row.to(x.dtype) for row in _modulated_parts(x, shift, scale, split, eps)], dim=1
    )


def _wide_modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, split: int, eps: float) -> Tensor:
    return torch.cat(_modulated_parts(x, shift, scale, split, eps), dim=1)


def _modulated_parts(
    x: Tensor, shift: Tensor, scale: Tensor, split: int, eps: float
) -> list[Tensor]:
    normal = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    parts = (normal[:, :split], normal[:, split:])
    return [part * (1 + scale[:, i, None]) + shift[:, i, None] for i, part in enumerate(parts)]


def gated_add(x: Tensor, update: Tensor, gate: Tensor, split: int) -> Tensor:
    """Residual addition ``x + update * gate`` with the row of each token.

    Args:
        x: ``[B, L, D]``; the result has its shape and dtype.
        update: ``[B, L, D]``.
        gate: ``[B, 2, D]`` float32; row 0 is for tokens before ``split``, row 1 for the rest.
        split: number of history tokens.
    """
    if uses_triton(x):
        from helios.kernels import norm_triton

        return run(norm_triton.gated_add, plain_gated_add, x, update, gate, split)
    return plain_gated_add(x, update, gate, split)


def plain_gated_add(x: Tensor, update: Tensor, gate: Tensor, split: int) -> Tensor:
    """The formula of :func:`gated_add`."""
    pairs = ((x[:, :split], update[:, :split]), (x[:, split:], update[:, split:]))
    sums = (a.float() + b.float() * gate[:, i, None] for i, (a, b) in enumerate(pairs))
    return torch.cat([total.to(x.dtype) for total in sums], dim=1)


def gated_add_layer_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor,
    split: int,
    weight: Tensor,
    bias: Tensor,
    start: int,
    eps: float,
    *,
    fp8: bool = False,
) -> tuple[Tensor, Rows]:
    """:func:`gated_add`, and the :func:`layer_norm` of the sum's tokens from ``start`` on.

    Args:
        x: ``[B, L, D]``.
        update: ``[B, L, D]``.
        gate: ``[B, 2, D]`` float32; row 0 is for tokens before ``split``, row 1 for the rest.
        split: number of history tokens.
        weight: ``[D]`` gains.
        bias: ``[D]`` offsets.
        start: first token that is normalised.
        eps: added to the (biased) variance.
        fp8: give the normalised tokens in e4m3 with a scale per token.

    Returns:
        The sum ``[B, L, D]`` and its normalised tokens ``[B, L - start, D]``.
    """
    args = (x, update, gate, split, weight, bias, start, eps)
    if uses_triton(x):
        from helios.kernels import norm_triton

        if fp8:
            total, values, scale = norm_triton.gated_add_layer_norm_e4m3(*args)
            return total, Scaled(values, scale)
        return run(norm_triton.gated_add_layer_norm, plain_gated_add_layer_norm, *args)
    if fp8:
        total = plain_gated_add(x, update, gate, split)
        return total, plain_quantise_rows(_wide_layer_norm(total[:, start:], weight, bias, eps))
    return plain_gated_add_layer_norm(*args)


def plain_gated_add_layer_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor,
    split: int,
    weight: Tensor,
    bias: Tensor,
    start: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The formula of :func:`gated_add_layer_norm`."""
    total = plain_gated_add(x, update, gate, split)
    return total, plain_layer_norm(total[:, start:], weight, bias, eps)


def gated_add_modulated_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    split: int,
    eps: float,
    *,
    fp8: bool = False,
) -> tuple[Tensor, Rows]:
    """:func:`gated_add`, and the :func:`modulated_norm` of the sum: from one block into the next.

    Args:
        x: ``[B, L, D]``.
        update: ``[B, L, D]``.
        gate: ``[B, 2, D]`` float32; row 0 is for tokens before ``split``, row 1 for the rest.
        shift: ``[B, 2, D]`` float32, likewise.
        scale: ``[B, 2, D]`` float32, likewise.
        split: number of history tokens.
        eps: added to the (biased) variance.
        fp8: give the normalised tokens in e4m3 with a scale per token.

    Returns:
        The sum and its modulated norm, both ``[B, L, D]``.
    """
    args = (x, update, gate, shift, scale, split, eps)
    if uses_triton(x):
        from helios.kernels import norm_triton

        if fp8:
            total, values, row_scale = norm_triton.gated_add_modulated_norm_e4m3(*args)
            return total, Scaled(values, row_scale)
        return run(norm_triton.gated_add_modulated_norm, plain_gated_add_modulated_norm, *args)
    if fp8:
        total = plain_gated_add(x, update, gate, split)
        return total, plain_quantise_rows(_wide_modulated_norm(total, shift, scale, split, eps))
    return plain_gated_add_modulated_norm(*args)


def plain_gated_add_modulated_norm(
    x: Tensor, update: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, split: int, eps: float
) -> tuple[Tensor, Tensor]:
    """The formula of :func:`gated_add_modulated_norm`."""
    total = plain_gated_add(x, update, gate, split)
    return total, plain_modulated_norm(total, shift, scale, split, eps)


def text_add_modulated_norm(
    x: Tensor,
    update: Tensor,
    start: int,
    shift: Tensor,
    scale: Tensor,
    split: int,
    eps: float,
    *,
    fp8: bool = False,
) -> tuple[Tensor, Rows]:
    """Add to the tokens from ``start`` on what they read in the text, then modulate all.

    ``x`` is given up: without gradients its memory may hold the sum.

    Args:
        x: ``[B, L, D]``.
        update: ``[B, L - start, D]``, added without a gate.
        start: first token that reads the text.
        shift: ``[B, 2, D]`` float32; row 0 is for tokens before ``split``, row 1 for the rest.
        scale: ``[B, 2, D]`` float32, likewise.
        split: number of history tokens.
        eps: added to the (biased) variance.
        fp8: give the normalised tokens in e4m3 with a scale per token.

    Returns:
        The sum and its modulated norm, both ``[B, L, D]``.
    """
    args = (x, update, start, shift, scale, split, eps)
    if uses_triton(x):
        from helios.kernels import norm_triton

        if fp8:
            total, values, row_scale = norm_triton.text_add_modulated_norm_e4m3(*args)
            return total, Scaled(values, row_scale)
        if torch.is_grad_enabled() and (x.requires_grad or update.requires_grad):
            return run(norm_triton.text_add_modulated_norm, plain_text_add_modulated_norm, *args)
        total, out = norm_triton.text_add_modulated_norm(*args, in_place=True)
        return total, out
    if fp8:
        total = _text_add(x, update, start)
        return total, plain_quantise_rows(_wide_modulated_norm(total, shift, scale, split, eps))
    return plain_text_add_modulated_norm(*args)


def plain_text_add_modulated_norm(
    x: Tensor, update: Tensor, start: int, shift: Tensor, scale: Tensor, split: int, eps: float
) -> tuple[Tensor, Tensor]:
    """The formula of :func:`text_add_modulated_norm`."""
    total = _text_add(x, update, start)
    return total, plain_modulated_norm(total, shift, scale, split, eps)


def _text_add(x: Tensor, update: Tensor, start: int) -> Tensor:
    if start == 0:
        return x + update
    return torch.cat((x[:, :start], x[:, start:] + update), dim=1)
