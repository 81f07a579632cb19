"""The fast decoder: a whole chunk in one pass, channels-last, with everything between the
convolutions fused into one read and one write of the picture.

Equal to ``WanAutoencoder.decode_patches`` up to rounding, of which there is less: biases, residuals
and norms meet in float32 and are rounded once. Between two convolutions there is one operation:

- ``y = silu(norm(h + bias))``: into the zero-padded input of the next convolution;
- ``x = h + bias + skip`` and ``y = silu(norm(x))`` at the end of a residual block, where the next
  block starts;
- the same with ``x`` gathered from the four phases of a doubling convolution, so that neither the
  nearest-neighbour picture nor the interleaved one is made on its own.

The plain forms are here and run anywhere; ``decode_triton`` holds the same as kernels for CUDA.
Source: specification "performance", design A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios.codec.norm import CPU_ROWS, ChannelNorm, root_norm
from helios.codec.wan import (
    AttentionBlock,
    CausalConv3d,
    PlainUp,
    ResidualBlock,
    Upsample,
    WanAutoencoder,
)
from helios.kernels import machine_of

__all__ = ["FastDecoder", "PlainOps", "fast_ops"]

_FULL = 8
"""Channels in a multiple of which cuDNN's matrix units write bfloat16."""
_Part: TypeAlias = ResidualBlock | AttentionBlock | Upsample


class Ops(Protocol):
    """What happens between convolutions. Pictures are ``[B, T, H, W, C]``, contiguous.

    ``gamma`` are the gains of the norm; ``past`` zero frames are put before the first.
    """

    def norm(self, h: Tensor, bias: Tensor, gamma: Tensor, past: int) -> Tensor:
        """``silu(norm(h + bias))`` with ``past`` frames in front."""

    def add_norm(
        self, h: Tensor, bias: Tensor, skip: Tensor, gamma: Tensor | None, past: int
    ) -> tuple[Tensor, Tensor | None]:
        """``x = h + bias + skip``, and ``silu(norm(x))`` padded unless ``gamma`` is none."""

    def double_norm(
        self, phases: Tensor, bias: Tensor, gamma: Tensor | None, past: int
    ) -> tuple[Tensor, Tensor | None]:
        """Likewise with ``x`` put together from the phases ``[B, T, H+1, W+1, 4 C]`` of a doubling.

        Phase ``2 column + row`` of the output pixels ``(2 i + row, 2 j + column)`` stands at
        ``(i + row, j + column)``.
        """

    def levels(self, h: Tensor, bias: Tensor) -> Tensor:
        """``h + bias`` in [-1, 1] as bytes from 0 to 255, rounded to the nearest.

        ``h`` may be the first channels of more.
        """


class PlainOps:
    """The formulas as they stand, in float32 with one rounding.

    They go through the picture in pieces that stay in a processor's cache, so that the wide
    intermediates never travel to memory.
    """

    def norm(self, h: Tensor, bias: Tensor, gamma: Tensor, past: int) -> Tensor:
        """See ``Ops``."""
        out, wide = _padded(h.shape, past, h), _wide(bias)
        for some, place in _pieces((h, out[:, past:])):
            place.copy_(F.silu(root_norm(_wide(some) + wide, gamma), inplace=True))
        return out

    def add_norm(
        self, h: Tensor, bias: Tensor, skip: Tensor, gamma: Tensor | None, past: int
    ) -> tuple[Tensor, Tensor | None]:
        """See ``Ops``."""
        total, wide = torch.empty_like(h), _wide(bias)
        out = None if gamma is None else _padded(h.shape, past, h)
        after = total if out is None else out[:, past:]
        for some, added, sums, place in _pieces((h, skip, total, after)):
            sums.copy_((_wide(some) + wide).add_(added))
            if gamma is not None:
                place.copy_(F.silu(root_norm(_wide(sums), gamma), inplace=True))
        return total, out

    def double_norm(
        self, phases: Tensor, bias: Tensor, gamma: Tensor | None, past: int
    ) -> tuple[Tensor, Tensor | None]:
        """See ``Ops``."""
        batch, frames, height, width, channels = phases.shape
        rows, columns, outputs = height - 1, width - 1, channels // 4
        parts = phases.unflatten(-1, (2, 2, outputs))
        picture = phases.new_empty(batch, frames, 2 * rows, 2 * columns, outputs)
        for column in (0, 1):
            for row in (0, 1):
                part = parts[:, :, row : row + rows, column : column + columns, column, row]
                picture[:, :, row::2, column::2] = (_wide(part) + _wide(bias)).to(phases.dtype)
        if gamma is None:
            return picture, None
        out = _padded(picture.shape, past, picture)
        for some, place in _pieces((picture, out[:, past:])):
            place.copy_(F.silu(root_norm(_wide(some), gamma), inplace=True))
        return picture, out

    def levels(self, h: Tensor, bias: Tensor) -> Tensor:
        """See ``Ops``."""
        wide = _wide(h) + _wide(bias)
        return wide.mul_(127.5).add_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def _padded(shape: torch.Size, past: int, like: Tensor) -> Tensor:
    """Room for pictures of ``shape`` after ``past`` frames of zeros."""
    batch, frames, *rest = shape
    out = like.new_empty(batch, past + frames, *rest)
    out[:, :past] = 0
    return out


def _pieces(pictures: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Pictures ``[B, T, H, W, C]`` side by side, a few pixels at a time, ``[N, C]`` each."""
    for clips in zip(*pictures, strict=True):
        rows = [clip.reshape(-1, clip.shape[-1]) for clip in clips]
        size = CPU_ROWS if rows[0].device.type == "cpu" else len(rows[0])
        yield from zip(*(part.split(size) for part in rows), strict=True)


def fast_ops(x: Tensor) -> Ops | None:
    """The kernels that make the fast decoder worth while on the device of ``x``, if there are."""
    if x.device.type != "cuda" or not machine_of(x.device).runs_triton:
        return None
    from helios.codec.decode_triton import TritonOps

    return TritonOps()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class _Convolution:
    """Weights ready to use, and the bias that the next operation adds."""

    weight: Tensor
    bias: Tensor
    around: tuple[int, int, int]

    @classmethod
    def of(cls, layer: CausalConv3d) -> _Convolution:
        kernel = layer.weight.shape[2:]
        return cls(_channels_last(layer.weight), _bias(layer), (0, kernel[1] // 2, kernel[2] // 2))

    def with_outputs(self, multiple: int) -> _Convolution:
        """With channels of zeros at the end, so that their number is such a multiple; no bias."""
        spare = -len(self.weight) % multiple
        weight = F.pad(self.weight, (*(0,) * 2 * (self.weight.ndim - 1), 0, spare))
        return replace(self, weight=_channels_last(weight))

    def __call__(self, rows: Tensor, *, biased: bool = False) -> Tensor:
        """``[B, past + T, H, W, C]`` to ``[B, T, H, W, C']``, with the bias only if asked."""
        bias = self.bias if biased else None
        if self.weight[0, 0].numel() == 1:
            return F.linear(rows, self.weight.flatten(1), bias)
        out = F.conv3d(rows.movedim(-1, 1), self.weight, bias, padding=self.around)
        return out.movedim(1, -1).contiguous()


def _channels_last(weight: Tensor) -> Tensor:
    layout = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
    return weight.detach().contiguous(memory_format=layout)


def _bias(layer: nn.Conv2d | nn.Conv3d) -> Tensor:
    if layer.bias is None:
        return layer.weight.detach().new_zeros(layer.out_channels)
    return layer.bias.detach()


@dataclass(frozen=True)
class _Block:
    """A residual block."""

    first: Tensor
    conv1: _Convolution
    second: Tensor
    conv2: _Convolution
    shortcut: _Convolution | None
    bias: Tensor
    """Of the second convolution and the shortcut together."""

    @classmethod
    def of(cls, block: ResidualBlock) -> _Block:
        conv2 = _Convolution.of(block.conv2)
        shortcut, bias = None, conv2.bias
        if isinstance(block.conv_shortcut, CausalConv3d):
            shortcut = _Convolution.of(block.conv_shortcut)
            bias = _wide(bias) + _wide(shortcut.bias)
        return cls(
            _gains(block.norm1),
            _Convolution.of(block.conv1),
            _gains(block.norm2),
            conv2,
            shortcut,
            bias,
        )


class _Past:
    """What the convolutions of one decoding look back at: the last two frames of each one's input.

    Args:
        kept: whether frames are carried from group to group; with a single group none are.
    """

    def __init__(self, *, kept: bool) -> None:
        self._kept = kept
        self._frames: dict[tuple[int, int], Tensor] = {}
        self.begun = False

    def carried(self, place: tuple[int, int], rows: Tensor) -> Tensor:
        """``rows [B, 2 + T, ...]`` with what stood before them in place of the first two frames."""
        if self._kept:
            before = self._frames.get(place)
            if before is None:
                self._frames[place] = rows[:, -2:].clone()
            else:
                rows[:, :2] = before
                before.copy_(rows[:, -2:])
        return rows


@dataclass(frozen=True)
class _Doubling:
    """Twice the size, and twice the frame rate if there is a convolution in time."""

    time: _Convolution | None
    weight: Tensor
    """Of the four phases, ``[4 C', C, 2, 2]``."""
    bias: Tensor

    @classmethod
    def of(cls, layer: Upsample) -> _Doubling:
        time = None if layer.time_conv is None else _Convolution.of(layer.time_conv)
        return cls(time, _channels_last(layer.doubling.phases()), _bias(layer.doubling))

    def __call__(self, x: Tensor, past: _Past, place: int) -> Tensor:
        """``[B, T, H, W, C]`` to phases ``[B, T', H + 1, W + 1, 4 C']``, without the bias."""
        if self.time is not None and (past.begun or x.shape[1] > 1):
            x = self._faster(self.time, x, past, place)
        images = x.flatten(0, 1).movedim(-1, 1)
        phases = F.conv2d(images, self.weight, padding=1).movedim(1, -1).contiguous()
        return phases.unflatten(0, x.shape[:2])

    def _faster(self, time: _Convolution, x: Tensor, past: _Past, place: int) -> Tensor:
        """Two frames for every frame but the very first, which goes past the convolution."""
        batch, frames, height, width, channels = x.shape
        alone = 0 if past.begun else 1
        padded = past.carried((place, 0), F.pad(x[:, alone:], (0, 0, 0, 0, 0, 0, 2, 0)))
        pairs = time(padded, biased=True).unflatten(-1, (2, channels))
        out = x.new_empty(batch, 2 * frames - alone, height, width, channels)
        out[:, :alone] = x[:, :alone]
        out[:, alone:].unflatten(1, (frames - alone, 2)).copy_(pairs.movedim(-2, 2))
        return out


def _gains(norm: ChannelNorm) -> Tensor:
    return norm.gamma.detach().flatten()


class FastDecoder:
    """A decoder's weights rearranged once, to decode chunks without gradients.

    It holds references to the network's weights where the arrangement is the same; make a new one
    after they change, or after they move.

    Args:
        network: in the plain form (not ``is_residual``), on its device and in its dtype.
        ops: what runs between the convolutions.
        trials: of cuDNN's algorithms for every convolution, at the first chunk of a size. cuDNN
            remembers its choice for the thread and the shape, the first guess as well, so this
            counts for shapes that the thread has not decoded before.
        group: latent frames decoded at a time, 0 for all at once. Fewer need less memory and give
            the same frames, up to the rounding of convolutions of other sizes.

    Raises:
        ValueError: for the residual form, or a negative group.
    """

    def __init__(
        self, network: WanAutoencoder, ops: Ops | None = None, *, trials: int = 0, group: int = 0
    ) -> None:
        if network.config.is_residual:
            raise ValueError("the fast decoder knows the plain form only, not is_residual")
        if group < 0:
            raise ValueError(f"group must be a number of latent frames, or 0 for all, got {group}")
        decoder = network.decoder
        self.ops = ops or PlainOps()
        self._trials, self._group = trials, group
        self._tuned: set[torch.Size] = set()
        self._enter = _Convolution.of(network.post_quant_conv)
        self._start = _Convolution.of(decoder.conv_in)
        self._parts = [_prepared(part) for part in _flat(network)]
        self._end_norm = _gains(decoder.norm_out)
        self._end = _Convolution.of(decoder.conv_out)
        self._channels = decoder.conv_out.out_channels
        if not isinstance(self.ops, PlainOps):
            self._end = self._end.with_outputs(_FULL)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Latents as the network makes them to patched frames.

        Args:
            latents: ``[B, z_dim, t, h, w]``.

        Returns:
            ``[B, T, H, W, out_channels]``, channels last, not clamped, in at least float32.
        """
        return self._decoded(latents, lambda h: _wide(h) + _wide(self._end.bias))

    @torch.no_grad()
    def levels(self, latents: Tensor) -> Tensor:
        """The same as bytes, rounded to the nearest of 256 levels."""
        return self._decoded(latents, lambda h: self.ops.levels(h, self._end.bias))

    def _decoded(self, latents: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``finish`` makes of the last convolution's output, which has no bias yet."""
        groups = latents.split(self._group or latents.shape[2], dim=2)
        past = _Past(kept=len(groups) > 1)
        made = []
        with self._tuning(latents):
            for group in groups:
                made.append(finish(self._through(group, past)[..., : self._channels]))
                past.begun = True
        return made[0] if len(made) == 1 else torch.cat(made, dim=1)

    @contextmanager
    def _tuning(self, latents: Tensor) -> Iterator[None]:
        """Inside, cuDNN measures its algorithms if it should and has not for this size."""
        # One frame alone is asked for when somebody waits for it.
        if not self._trials or latents.shape[2] == 1 or latents.shape in self._tuned:
            yield
            return
        self._tuned.add(latents.shape)
        if latents.is_cuda:
            # What else runs on the device would be measured too.
            torch.cuda.synchronize(latents.device)
        cudnn = torch.backends.cudnn
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=True,
            benchmark_limit=self._trials,
            deterministic=cudnn.deterministic,
            allow_tf32=cudnn.allow_tf32,
        ):
            yield

    def _through(self, latents: Tensor, past: _Past) -> Tensor:
        """All convolutions and what stands between them."""
        z = latents.to(self._enter.weight.dtype).movedim(1, -1).contiguous()
        z = F.pad(self._enter(z, biased=True), (0, 0, 0, 0, 0, 0, 2, 0))
        x = self._start(past.carried((-1, 0), z), biased=True)
        ready: Tensor | None = None
        for place, (part, after) in enumerate(pairwise((*self._parts, None))):
            gamma = self._end_norm if after is None else _first_norm(after)
            if isinstance(part, _Block):
                # Here and not in a function, whose caller would keep what is no longer needed.
                if ready is None:
                    ready = self.ops.norm(x, torch.zeros_like(part.first), part.first, 2)
                wide = part.conv1(past.carried((place, 0), ready))
                ready = self.ops.norm(wide, part.conv1.bias, part.second, 2)
                wide = part.conv2(past.carried((place, 1), ready))
                ready = None
                skip = x if part.shortcut is None else part.shortcut(x)
                x, ready = self.ops.add_norm(wide, part.bias, skip, gamma, 2)
                del wide, skip
            elif isinstance(part, _Doubling):
                x, ready = self.ops.double_norm(part(x, past, place), part.bias, gamma, 2)
            elif part is not None:
                x, ready = part(x.movedim(-1, 1)).movedim(1, -1).contiguous(), None
        if ready is None:
            raise ValueError("a decoder ends in a residual block or a doubling")
        return self._end(past.carried((len(self._parts), 0), ready))


def _flat(network: WanAutoencoder) -> Iterator[_Part]:
    """Everything between the first and the last convolution, in order."""
    middle = network.decoder.mid_block
    yield from _known((middle.resnets[0], middle.attentions[0], middle.resnets[1]))
    for level in network.decoder.up_blocks:
        if not isinstance(level, PlainUp):
            raise TypeError(f"unexpected {type(level).__name__} in a decoder")
        yield from _known((*level.resnets, *level.upsamplers))


def _known(layers: Sequence[nn.Module]) -> Iterator[_Part]:
    for layer in layers:
        if not isinstance(layer, ResidualBlock | AttentionBlock | Upsample):
            raise TypeError(f"unexpected {type(layer).__name__} in a decoder")
        yield layer


def _prepared(part: _Part) -> _Block | AttentionBlock | _Doubling:
    if isinstance(part, ResidualBlock):
        return _Block.of(part)
    return _Doubling.of(part) if isinstance(part, Upsample) else part


def _first_norm(part: _Block | AttentionBlock | _Doubling) -> Tensor | None:
    """The norm a part starts with and wants done for it."""
    return part.first if isinstance(part, _Block) else None
