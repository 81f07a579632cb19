"""Projections, query-key norm, rotation; the attention itself is a kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from helios.kernels import (
    Heads8,
    Rows,
    Scaled,
    attention,
    attention_e4m3,
    bound_factor,
    linear,
    norm_rope,
    norm_rope_e4m3,
    quantise_centred,
    quantise_heads,
    quantise_rows,
    rms_norm,
    side_by_side,
)
from helios.model.config import TransformerConfig
from helios.model.fp8 import Fp8Linear, Projection, is_bare

__all__ = ["CrossAttention", "KeyValue", "Rotation", "SelfAttention", "lay_side_by_side"]

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of every token, ``[L, head_dim / 2]`` each."""

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of a text in one block, ``[B, M, H, d]`` each."""

_ALIGNMENT = 64
"""Bytes between neighbours: products of tensors that start elsewhere round differently on a CPU."""


class HeadsNorm(nn.Module):
    """Root-mean-square norm over all heads together, with one gain per channel."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self._bound: tuple[object, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, D]`` to the same shape and dtype."""
        return rms_norm(x, self.weight, self.eps)

    def bound(self, heads: int) -> tuple[Tensor, Tensor]:
        """`bound_factor` of the gains and its reciprocal, ``[H]`` each; kept while gains stay."""
        version = 0 if self.weight.is_inference() else self.weight._version
        state = (self.weight.data_ptr(), version, heads)
        if self._bound is None or self._bound[0] != state:
            factor = bound_factor(self.weight, heads)
            self._bound = (state, factor, factor.reciprocal())
        return self._bound[1:]


class _Projections(nn.Module):
    """What both attentions have: four projections and the query-key norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.num_attention_heads
        self.query: Projection = nn.Linear(width, width)
        self.key: Projection = nn.Linear(width, width)
        self.value: Projection = nn.Linear(width, width)
        self.out: Projection = nn.Linear(width, width)
        self.query_norm = HeadsNorm(width, config.eps)
        self.key_norm = HeadsNorm(width, config.eps)

    @property
    def fp8(self) -> bool:
        """Whether the query is projected in e4m3, and so the input wanted in it."""
        return isinstance(self.query, Fp8Linear)

    def split_heads(self, x: Tensor) -> Tensor:
        """``[B, L, H * d]`` to ``[B, L, H, d]``."""
        return x.unflatten(-1, (self.heads, -1))


class SelfAttention(_Projections):
    """Attention among history and noisy tokens (section 3.2, steps 3 to 8).

    With ``restrict_self_attn`` history looks at history only; else everything at everything.
    With ``is_amplify_history`` history keys are scaled by ``exp(history_gain)``, which starts at
    1; the published parameter is another function of the same factor (see weights.py).

    Attributes:
        e4m3_from: tokens from which queries, keys and values are multiplied in e4m3; none: never.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.restricted = config.restrict_self_attn
        self.e4m3_from: int | None = None
        self.history_gain: nn.Parameter | None = None
        if config.is_amplify_history:
            factors = 1 if config.history_scale_mode == "scalar" else self.heads
            self.history_gain = nn.Parameter(torch.zeros(factors))

    def forward(
        self, x: Rows, rotation: Rotation, split: int, *, keep_history: bool = True
    ) -> Tensor:
        """``[B, L, D]`` to the same shape; the first ``split`` tokens are history.

        Without ``keep_history`` history is looked at but does not look: ``[B, L - split, D]``.
        """
        first = 0 if keep_history else split
        if self._in_e4m3(x.shape[1]):
            return self.out(self._mix_e4m3(x, rotation, first))
        mixed = self.mix(*self.project(x, rotation, first), split, keep_history=keep_history)
        return self.out(mixed.flatten(2))

    def project(self, x: Rows, rotation: Rotation, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, of ``[B, L, D]`` tokens: ``[B, L, H, d]`` each.

        Queries only of the tokens from ``first`` on.
        """
        query, key, value = self._products(x, first)
        late = (rotation[0][..., first:, :], rotation[1][..., first:, :])
        query = norm_rope(query, self.query_norm.weight, *late, self.query_norm.eps)
        key = norm_rope(key, self.key_norm.weight, *rotation, self.key_norm.eps)
        return query, key, self.split_heads(value)

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, split: int, *, keep_history: bool = True
    ) -> Tensor:
        """What every token takes from the others of its sequence, ``[B, L, H, d]``.

        Without ``keep_history`` the queries are those of the noisy tokens alone.
        """
        if self.history_gain is not None:
            # The gain is float32 and would widen the keys beyond what attention accepts.
            louder = key[:, :split] * self.history_gain.float().exp()[:, None]
            key = torch.cat((louder.to(key.dtype), key[:, split:]), dim=1)
        if self.restricted and keep_history:
            past = attention(query[:, :split], key[:, :split], value[:, :split])
            return torch.cat((past, attention(query[:, split:], key, value)), dim=1)
        if self._in_e4m3(key.shape[1]):
            heads = (quantise_heads(query), quantise_heads(key), *quantise_centred(value))
            return attention_e4m3(*heads).to(value.dtype)
        return attention(query, key, value)

    def _products(self, x: Rows, first: int) -> list[Tensor]:
        """Queries of the tokens from ``first`` on, keys and values of all, ``[B, L, D]`` each."""
        if first == 0:
            return project(x, (self.query, self.key, self.value))
        late = x.tokens(first) if isinstance(x, Scaled) else x[:, first:]
        return [*project(late, (self.query,)), *project(x, (self.key, self.value))]

    def _in_e4m3(self, keys: int) -> bool:
        """Whether so many keys are attended to in e4m3."""
        if self.e4m3_from is None or keys < self.e4m3_from or torch.is_grad_enabled():
            return False
        return self.history_gain is None and not self.restricted

    def _mix_e4m3(self, x: Rows, rotation: Rotation, first: int) -> Rows:
        """`project` and `mix` with queries, keys and values in e4m3, as `out` reads it."""
        query, key, value = self._products(x, first)
        late = (rotation[0][..., first:, :], rotation[1][..., first:, :])
        queries = self._turn_e4m3(query, self.query_norm, late)
        keys = self._turn_e4m3(key, self.key_norm, rotation)
        values, mean = quantise_centred(self.split_heads(value))
        if isinstance(self.out, Fp8Linear):
            # The mean returns in the pass that quantises, so it costs none of its own.
            mixed = attention_e4m3(queries, keys, values)
            return quantise_rows(mixed.flatten(2), mean.flatten(1))
        return attention_e4m3(queries, keys, values, mean).to(value.dtype).flatten(2)

    def _turn_e4m3(self, x: Tensor, norm: HeadsNorm, tables: Rotation) -> Heads8:
        factor, scale = norm.bound(self.heads)
        turned = norm_rope_e4m3(x, norm.weight, *tables, norm.eps, factor)
        return turned, scale.expand(len(x), -1)


class CrossAttention(_Projections):
    """Attention from tokens to the text (section 3.2, steps 12 and 13)."""

    def forward(self, x: Rows, text: Tensor | KeyValue) -> Tensor:
        """``[B, N, D]`` tokens and ``[B, M, D]`` projected text to ``[B, N, D]``.

        What :meth:`read` made of the text serves as well as the text.
        """
        key, value = self.read(text) if isinstance(text, Tensor) else text
        query = self.split_heads(self.query_norm(self.query(x)))
        return self.out(attention(query, key, value).flatten(2))

    def read(self, text: Tensor) -> KeyValue:
        """Keys and values of a projected text ``[B, M, D]``: the same at every step."""
        key, value = project(text, (self.key, self.value))
        # As a part of one product the values would keep its keys in memory too.
        return self.split_heads(self.key_norm(key)), self.split_heads(value.contiguous())


def project(x: Rows, layers: Sequence[Projection]) -> list[Tensor]:
    """``x`` through each layer; in one product where their weights lie side by side in memory."""
    joined = None if torch.compiler.is_compiling() else _joined(layers)
    if joined is None:
        return [layer(x) for layer in layers]
    out = linear(x, *joined)
    return list(out.split([layer.out_features for layer in layers], dim=-1))


def _joined(layers: Sequence[Projection]) -> tuple[Rows, Tensor] | None:
    """The weights and biases of ``layers`` as those of one, if nothing stands against it."""
    parts = [part for layer in layers for part in layer.parameters(recurse=False)]
    # The joined view belongs to no layer: gradients, adapters and hooks would miss it.
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        return None
    kind = type(layers[0])
    if not all(type(layer) is kind and is_bare(layer) for layer in layers):
        return None
    weight = _join([layer.weight for layer in layers])
    bias = side_by_side([layer.bias for layer in layers])
    return None if weight is None or bias is None else (weight, bias)


def _join(weights: Sequence[Rows]) -> Rows | None:
    dense = [weight for weight in weights if isinstance(weight, Tensor)]
    if dense:
        return side_by_side(dense)
    scaled = [weight for weight in weights if isinstance(weight, Scaled)]
    values = side_by_side([weight.values for weight in scaled])
    scale = side_by_side([weight.scale for weight in scaled])
    return None if values is None or scale is None else Scaled(values, scale)


@torch.no_grad()
def lay_side_by_side(attention: _Projections, names: Sequence[str]) -> None:
    """Give the projections ``names`` neighbouring memory, so that one product serves them all.

    Values, names and shapes stay as they are. What takes a parameter elsewhere later (another
    dtype or device, an adapter) only separates the products again.
    """
    layers = [getattr(attention, name) for name in names]
    for leaf in [name for name, _ in (*layers[0].named_parameters(), *layers[0].named_buffers())]:
        tensors = [getattr(layer, leaf) for layer in layers]
        # Bytes, because not every device can put numbers of eight bits side by side.
        parts = [tensor.data.contiguous().view(torch.uint8) for tensor in tensors]
        if any(part.numel() % _ALIGNMENT for part in parts) or side_by_side(parts) is not None:
            continue
        pieces = torch.cat(parts).split([len(part) for part in parts])
        for layer, tensor, piece in zip(layers, tensors, pieces, strict=True):
            if isinstance(tensor, nn.Parameter):
                tensor.data = piece.view(tensor.dtype)
            else:
                # A buffer may be a view, which would keep the memory of what it was a view of.
                setattr(layer, leaf, piece.view(tensor.dtype))
