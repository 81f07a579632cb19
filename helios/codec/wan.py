"""The causal 3D autoencoder (published class ``AutoencoderKLWan``), in any width and depth.

Every convolution in time looks back only. The first frame is an image of its own: changes of the
frame rate skip it, and every further ``temporal_ratio`` frames make one latent frame. Both
directions are one pass over all frames; because nothing looks ahead and the skipped frame is the
only special case, this equals the published frame-by-frame form with its caches (specification
"model and sampling", section 8.1; "performance", design A).

Modules carry the published tensor names, so a published file fits as it is. Activations flow in
channels-last layout, which is what the convolutions are fast in on CPU and GPU alike.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios.codec.config import AutoencoderConfig
from helios.codec.norm import ChannelNorm

__all__ = ["Reconstruction", "WanAutoencoder"]

_LOGVAR_RANGE = (-30.0, 20.0)
_START_LOGVAR = -4.0
"""Log variance of the posterior before training."""
_SILU_GAIN = 1.68
"""Brings the mean square of SiLU of a unit normal, 0.356, back to 1."""


class CausalConv3d(nn.Conv3d):
    """A 3D convolution that sees ``kernel - 1`` zero frames before the first and none after.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: in time, rows, columns.
        stride: in time only; a strided one takes no padding, its caller keeps frame 0 apart.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (3, 3, 3), stride: int = 1
    ) -> None:
        around = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(inputs, outputs, kernel, stride=(stride, 1, 1), padding=around)
        self.past = kernel[0] - 1 if stride == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T, H, W]`` (``(T - 1) / 2`` frames if strided)."""
        return self.padded(F.pad(x, (0, 0, 0, 0, self.past, 0)) if self.past else x)

    def padded(self, x: Tensor) -> Tensor:
        """The same for an input that already starts with ``past`` zero frames."""
        if _is_onednn(x):
            ones = (1, 1, 1)
            return torch.ops.aten.mkldnn_convolution(
                x, self.weight, self.bias, self.padding, self.stride, ones, 1
            )
        return super().forward(x)


def _is_onednn(x: Tensor) -> bool:
    """Whether oneDNN is to be asked for by name.

    For small pictures of one clip, float32 on a CPU, PyTorch chooses a plain loop instead, which
    takes two to five times as long and was a third of the time of decoding.
    """
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
    return plain and torch.backends.mkldnn.is_available()


class ResidualBlock(nn.Module):
    """Two times norm, SiLU and convolution, around a shortcut."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(inputs)
        self.conv1 = CausalConv3d(inputs, outputs)
        self.norm2 = ChannelNorm(outputs)
        self.conv2 = CausalConv3d(outputs, outputs)
        self.dropout = dropout
        self.conv_shortcut = (
            CausalConv3d(inputs, outputs, (1, 1, 1)) if inputs != outputs else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T, H, W]``."""
        hidden = self.conv1.padded(self.norm1.silu(x, self.conv1.past))
        hidden = self.norm2.silu(hidden, self.conv2.past)
        if self.dropout and self.training:
            hidden = F.dropout(hidden, self.dropout)
        out = self.conv2.padded(hidden)
        out += self.conv_shortcut(x)
        return out


class AttentionBlock(nn.Module):
    """One head of self-attention among the pixels of each frame, around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, dims=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to the same shape."""
        batch, channels, frames, height, width = x.shape
        rows = self.norm(x).movedim(1, -1).reshape(batch * frames, 1, height * width, channels)
        qkv = F.linear(rows, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        query, key, value = qkv.chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out = F.linear(mixed, self.proj.weight.flatten(1), self.proj.bias)
        return x + out.view(batch, frames, height, width, channels).movedim(-1, 1)


class DoubleSize(nn.Conv2d):
    """Nearest-neighbour doubling and the 3x3 convolution after it, without the doubled picture.

    A doubled pixel and its neighbours are only two source pixels in each direction. So each of the
    four outputs of a source pixel is a 2x2 convolution of the source, with taps that are sums of
    the nine: 4/9 of the work, and the largest tensor never exists. Along one direction, with taps
    ``w`` and ``s`` the source,

        even: w0 s[i-1] + (w1 + w2) s[i],    odd: (w0 + w1) s[i] + w2 s[i+1].
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C', 2H, 2W]``."""
        count, _, height, width = x.shape
        bias = None if self.bias is None else self.bias.repeat(4)
        phases = F.conv2d(x, self.phases(), bias, padding=1)
        parts = phases.unflatten(1, (2, 2, self.out_channels))
        out = phases.new_empty(count, 2 * height, 2 * width, self.out_channels).movedim(-1, 1)
        for column in (0, 1):
            for row in (0, 1):
                part = parts[:, column, row, :, row : row + height, column : column + width]
                out[:, :, row::2, column::2] = part
        return out

    def phases(self) -> Tensor:
        """Taps of the four outputs of a pixel, ``[4 C', C, 2, 2]``, phase ``2 column + row``."""
        wide = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        folded = _pair_taps(_pair_taps(wide, -2), -1).flatten(0, 2).to(self.weight.dtype)
        return folded.contiguous(memory_format=torch.channels_last)


def _pair_taps(weight: Tensor, dim: int) -> Tensor:
    """Three taps along ``dim`` as two for the even outputs and two for the odd, stacked first."""
    first, middle, last = weight.unbind(dim)
    even = torch.stack((first, middle + last), dim)
    odd = torch.stack((first + middle, last), dim)
    return torch.stack((even, odd))


def _each_frame(layers: nn.Module, x: Tensor) -> Tensor:
    """``layers`` for images, applied to every frame of ``[B, C, T, H, W]``."""
    batch, frames = x.shape[0], x.shape[2]
    return layers(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)


class Downsample(nn.Module):
    """Half the rows and columns, and half the frame rate if ``time``."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        # The odd row and column of zeros are below and to the right only.
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
        )
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1), stride=2) if time else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, 1 + T, H, W]`` to ``[B, C, 1 + T/2, H/2, W/2]``."""
        x = _each_frame(self.resample, x)
        if self.time_conv is None or x.shape[2] == 1:
            return x
        return torch.cat((x[:, :, :1], self.time_conv(x)), dim=2)


class Upsample(nn.Module):
    """Twice the rows and columns, and twice the frame rate if ``time``."""

    def __init__(self, channels: int, outputs: int, time: bool) -> None:
        super().__init__()
        # The published name of the convolution is resample.1; there is nothing left for 0 to do.
        self.resample = nn.Sequential(nn.Identity(), DoubleSize(channels, outputs))
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if time else None

    @property
    def doubling(self) -> DoubleSize:
        """The convolution that doubles rows and columns."""
        layer = self.resample[1]
        assert isinstance(layer, DoubleSize)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, 1 + T, H, W]`` to ``[B, C', 1 + 2T, 2H, 2W]``."""
        if self.time_conv is not None and x.shape[2] > 1:
            # Frame 0 is left out of the convolution too: the frames after it start from zeros.
            pairs = self.time_conv(x[:, :, 1:]).movedim(1, -1).unflatten(-1, (2, -1))
            frames = pairs.movedim(-2, 2).flatten(1, 2)
            x = torch.cat((x[:, :, :1].movedim(1, -1), frames), dim=1).movedim(-1, 1)
        return _each_frame(self.resample, x)


def _copy_frames(convolution: CausalConv3d) -> None:
    """Let a convolution in time start near copying, plus a random part.

    Doubling starts near each frame twice; halving near the mean of the two frames it replaces.
    """
    outputs, inputs = convolution.weight.shape[:2]
    same = torch.eye(inputs, device=convolution.weight.device).repeat(outputs // inputs, 1)
    taps = (2,) if convolution.past else (1, 2)
    convolution.weight *= 0.3
    for tap in taps:
        convolution.weight[:, :, tap, 0, 0] += same / len(taps)


def _average_down(x: Tensor, outputs: int, time: int, space: int) -> Tensor:
    """The shortcut of a residual level down: fold pixels into channels, average groups of them.

    Frames are aligned to the last, with a zero frame before the first if time is halved.
    """
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))
    blocks = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))
    batch, _, frames, _, height, _, width, _ = blocks.shape
    folded = blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(
        batch, outputs, -1, frames, height, width
    )
    return folded.mean(dim=2)


def _repeat_up(x: Tensor, outputs: int, time: int) -> Tensor:
    """The shortcut of a residual level up: repeat channels, unfold them into pixels and frames.

    Of the frames made from the first, only the last is kept.
    """
    batch, channels, frames, height, width = x.shape
    repeats = outputs * time * 4 // channels
    folded = x.repeat_interleave(repeats, dim=1).view(
        batch, outputs, time, 2, 2, frames, height, width
    )
    unfolded = folded.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(
        batch, outputs, frames * time, 2 * height, 2 * width
    )
    return unfolded[:, :, time - 1 :]


class ResidualDown(nn.Module):
    """A level of the residual encoder: blocks, halving, and an averaging shortcut around both."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, dropout: float, halve: bool, time: bool
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.factors = (2 if time else 1, 2 if halve else 1)
        if inputs * self.factors[0] * self.factors[1] ** 2 % outputs:
            raise ValueError(
                f"is_residual cannot average {inputs} channels into {outputs}: the widths of "
                "neighbouring levels must divide"
            )
        self.resnets = nn.ModuleList(_residual_blocks(inputs, outputs, blocks, dropout))
        self.downsampler = Downsample(outputs, time) if halve else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to the next level's shape."""
        shortcut = _average_down(x, self.outputs, *self.factors)
        for block in self.resnets:
            x = block(x)
        if self.downsampler is not None:
            x = self.downsampler(x)
        return x + shortcut


class ResidualUp(nn.Module):
    """A level of the residual decoder: blocks, doubling, and a repeating shortcut around both."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, dropout: float, double: bool, time: bool
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.time = 2 if time else 1
        if double and outputs * self.time * 4 % inputs:
            raise ValueError(
                f"is_residual cannot repeat {inputs} channels into {outputs}: the widths of "
                "neighbouring levels must divide"
            )
        self.resnets = nn.ModuleList(_residual_blocks(inputs, outputs, blocks, dropout))
        self.upsampler = Upsample(outputs, outputs, time) if double else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to the next level's shape."""
        start = x
        for block in self.resnets:
            x = block(x)
        if self.upsampler is None:
            return x
        return self.upsampler(x) + _repeat_up(start, self.outputs, self.time)


class PlainUp(nn.Module):
    """A level of the plain decoder: blocks, then doubling with half the channels."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, dropout: float, double: bool, time: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_residual_blocks(inputs, outputs, blocks, dropout))
        doubling = [Upsample(outputs, outputs // 2, time)] if double else []
        self.upsamplers = nn.ModuleList(doubling)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to the next level's shape."""
        for block in self.resnets:
            x = block(x)
        for upsampler in self.upsamplers:
            x = upsampler(x)
        return x


def _residual_blocks(inputs: int, outputs: int, count: int, dropout: float) -> list[ResidualBlock]:
    """``count`` blocks, the first of which changes the width."""
    return [ResidualBlock(inputs if i == 0 else outputs, outputs, dropout) for i in range(count)]


class MiddleBlock(nn.Module):
    """Two residual blocks with attention between them, at the smallest size."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(channels)])
        self.resnets = nn.ModuleList(_residual_blocks(channels, channels, 2, dropout))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to the same shape."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


def _encoder_levels(config: AutoencoderConfig) -> list[nn.Module]:
    """Everything between the encoder's first convolution and its middle block, in order."""
    widths = [config.base_dim * m for m in (1, *config.dim_mult)]
    layers: list[nn.Module] = []
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        halve = level < len(config.temperal_downsample)
        time = halve and config.temperal_downsample[level]
        blocks = config.num_res_blocks
        if config.is_residual:
            layers.append(ResidualDown(inputs, outputs, blocks, config.dropout, halve, time))
            continue
        for block in _residual_blocks(inputs, outputs, blocks, config.dropout):
            layers.append(block)
            if 0.5**level in config.attn_scales:
                layers.append(AttentionBlock(outputs))
        if halve:
            layers.append(Downsample(outputs, time))
    return layers


def _decoder_levels(config: AutoencoderConfig) -> list[nn.Module]:
    """Everything between the decoder's middle block and its last norm, in order."""
    widths = [config.decoder_width * m for m in (config.dim_mult[-1], *config.dim_mult[::-1])]
    doublings = config.temperal_downsample[::-1]
    Level: TypeAlias = type[ResidualUp] | type[PlainUp]
    kind: Level = ResidualUp if config.is_residual else PlainUp
    layers: list[nn.Module] = []
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        double = level < len(doublings)
        time = double and doublings[level]
        start = inputs if config.is_residual or level == 0 else inputs // 2
        layers.append(kind(start, outputs, config.num_res_blocks + 1, config.dropout, double, time))
    return layers


class Encoder(nn.Module):
    """Patched frames to the posterior's moments."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        top = config.base_dim * config.dim_mult[-1]
        self.conv_in = CausalConv3d(config.in_channels, config.base_dim)
        self.down_blocks = nn.ModuleList(_encoder_levels(config))
        self.mid_block = MiddleBlock(top, config.dropout)
        self.norm_out = ChannelNorm(top)
        self.conv_out = CausalConv3d(top, 2 * config.z_dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, T, H, W]`` to ``[B, 2 z_dim, t, h, w]``."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out.padded(self.norm_out.silu(x, self.conv_out.past))


class Decoder(nn.Module):
    """Latents to patched frames."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        top, last = (config.decoder_width * config.dim_mult[i] for i in (-1, 0))
        self.conv_in = CausalConv3d(config.z_dim, top)
        self.mid_block = MiddleBlock(top, config.dropout)
        self.up_blocks = nn.ModuleList(_decoder_levels(config))
        self.norm_out = ChannelNorm(last)
        self.conv_out = CausalConv3d(last, config.out_channels)

    def forward(self, z: Tensor) -> Tensor:
        """``[B, z_dim, t, h, w]`` to ``[B, out_channels, T, H, W]``."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out.padded(self.norm_out.silu(x, self.conv_out.past))


class Reconstruction(NamedTuple):
    """What one training step needs.

    Attributes:
        frames: ``[B, colours, T, H, W]``, not clamped.
        mean: of the posterior, ``[B, z_dim, t, h, w]``.
        logvar: log variance of the posterior, likewise.
    """

    frames: Tensor
    mean: Tensor
    logvar: Tensor


class WanAutoencoder(nn.Module):
    """Frames to latents and back; latents as the network makes them, not normalised.

    Args:
        config: widths, depths and ratios.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)
        self.reset_parameters()
        self.channels_last()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random weights to train from.

        Weights have variance 1 / fan-in. Convolutions in time start close to copying frames,
        because the first frame of a window goes past them, and the posterior starts narrow, so
        the decoder sees a picture from the first step on.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.02)
            if isinstance(module, ChannelNorm):
                nn.init.ones_(module.gamma)
        for module in self.modules():
            if isinstance(module, Upsample | Downsample) and module.time_conv is not None:
                _copy_frames(module.time_conv)
        for convolution in (self.quant_conv, self.post_quant_conv):
            nn.init.dirac_(convolution.weight)
        head, channels = self.encoder.conv_out, self.config.z_dim
        head.weight *= _SILU_GAIN
        head.weight[channels:] = 0
        if head.bias is not None:
            head.bias[channels:] = _START_LOGVAR

    def channels_last(self) -> WanAutoencoder:
        """Lay the convolution weights out channels-last, in place; values do not change."""
        for parameter in self.parameters():
            # One tap has no layout to choose; its strides stay those its gradient will have.
            if parameter.ndim in (4, 5) and parameter[0, 0].numel() > 1:
                layout = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
                parameter.data = parameter.data.contiguous(memory_format=layout)
        return self

    def compile_norms(self, compiled: bool = True) -> WanAutoencoder:
        """Use generated kernels for RMS norm with SiLU (worth it for training on a GPU)."""
        for module in self.modules():
            if isinstance(module, ChannelNorm):
                module.compiled = compiled
        return self

    def posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents of ``frames``.

        Args:
            frames: ``[B, colours, 1 + n * temporal_ratio, H, W]`` in [-1, 1]; one window, which
                starts afresh.

        Returns:
            Two tensors ``[B, z_dim, 1 + n, h, w]``; the log variance lies in [-30, 20].

        Raises:
            ValueError: for a shape that does not fold into whole latents.
        """
        self._check_frames(frames)
        weight = self.encoder.conv_in.weight
        x = fold_patches(frames.to(weight.dtype), self.config.patch)
        moments = self.quant_conv(self.encoder(x))
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(*_LOGVAR_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames of ``latents``, all in one pass, not clamped.

        Args:
            latents: ``[B, z_dim, t, h, w]``, as :meth:`posterior` gives them.

        Returns:
            ``[B, colours, 1 + (t - 1) * temporal_ratio, H, W]``, about in [-1, 1].

        Raises:
            ValueError: for a shape that is not latents of this autoencoder.
        """
        return unfold_patches(self.decode_patches(latents), self.config.patch)

    def decode_patches(self, latents: Tensor) -> Tensor:
        """Like :meth:`decode`, with the patches still folded into channels."""
        if latents.ndim != 5 or latents.shape[1] != self.config.z_dim or 0 in latents.shape:
            raise ValueError(
                f"latents must be [B, {self.config.z_dim}, t, h, w], got {tuple(latents.shape)}"
            )
        layout = torch.channels_last_3d
        z = latents.to(self.post_quant_conv.weight.dtype).contiguous(memory_format=layout)
        return self.decoder(self.post_quant_conv(z))

    def forward(self, frames: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Encode, add ``exp(logvar / 2) * noise`` if given, and decode: one training step.

        Args:
            frames: as for :meth:`posterior`.
            noise: standard normal, of the latents' shape.
        """
        mean, logvar = self.posterior(frames)
        z = mean if noise is None else mean + (0.5 * logvar).exp() * noise
        return Reconstruction(self.decode(z), mean, logvar)

    def _check_frames(self, frames: Tensor) -> None:
        colours, ratio = self.config.colours, self.config.spatial_ratio
        if frames.ndim != 5 or frames.shape[1] != colours or 0 in frames.shape:
            raise ValueError(f"frames must be [B, {colours}, T, H, W], got {tuple(frames.shape)}")
        count, height, width = frames.shape[2:]
        if (count - 1) % self.config.temporal_ratio:
            raise ValueError(
                f"the number of frames must be 1 + a multiple of {self.config.temporal_ratio}, "
                f"got {count}"
            )
        if height % ratio or width % ratio:
            raise ValueError(
                f"height and width must be multiples of {ratio}, got {height} and {width}"
            )


def fold_patches(frames: Tensor, patch: int) -> Tensor:
    """Fold ``patch`` x ``patch`` pixels into channels (colour, column, row), channels-last."""
    rows = frames.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
    # B, colour, T, h, row, w, column -> B, T, h, w, colour, column, row
    return rows.permute(0, 2, 3, 5, 1, 6, 4).flatten(4).movedim(-1, 1)


def unfold_patches(x: Tensor, patch: int) -> Tensor:
    """The reverse of :func:`fold_patches`: ``[B, colours, T, H, W]``."""
    parts = x.unflatten(1, (-1, patch, patch))
    # B, colour, column, row, T, h, w -> B, colour, T, h, row, w, column
    return parts.permute(0, 1, 4, 5, 3, 6, 2).flatten(5).flatten(3, 4)
