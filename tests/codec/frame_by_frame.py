"""The decoder one latent frame at a time, with the caches written out: slow, plain, for comparison.

Only names and shapes are shared with the package; every operation is spelt here again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from helios.codec import AutoencoderConfig, WanAutoencoder


class FrameByFrame:
    """Decodes successive latent frames; every convolution in time remembers what it saw."""

    def __init__(self, network: WanAutoencoder) -> None:
        self.config: AutoencoderConfig = network.config
        self.tensors = network.state_dict()
        self.memory: dict[str, Tensor] = {}
        self.begun = False

    def decode(self, latents: Tensor) -> Tensor:
        return torch.cat([self.step(frame) for frame in latents.split(1, dim=2)], dim=2)

    def step(self, z: Tensor) -> Tensor:
        """Pixel frames of the next latent frame ``[B, z, 1, h, w]``."""
        x = self.convolve("decoder.conv_in", self.convolve("post_quant_conv", z))
        x = self.block("decoder.mid_block.resnets.0", x)
        x = self.attention("decoder.mid_block.attentions.0", x)
        x = self.block("decoder.mid_block.resnets.1", x)
        for level, mult in enumerate(self.config.dim_mult[::-1]):
            x = self.level(f"decoder.up_blocks.{level}", level, mult, x)
        x = self.convolve("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)))
        self.begun = True
        patch = self.config.patch
        batch, _, frames, height, width = x.shape
        out = x.new_empty(
            batch, self.config.out_channels // patch**2, frames, height * patch, width * patch
        )
        for column in range(patch):
            for row in range(patch):
                out[..., row::patch, column::patch] = x[:, column * patch + row :: patch**2]
        return out

    def level(self, name: str, level: int, mult: int, x: Tensor) -> Tensor:
        start = x
        for index in range(self.config.num_res_blocks + 1):
            x = self.block(f"{name}.resnets.{index}", x)
        if level == len(self.config.dim_mult) - 1:
            return x
        time = self.config.temperal_downsample[::-1][level]
        upsampler = f"{name}.upsampler" + ("" if self.config.is_residual else "s.0")
        if time and self.begun:
            pairs = self.convolve(f"{upsampler}.time_conv", x)
            even, odd = pairs.chunk(2, dim=1)
            x = torch.stack((even, odd), dim=3).flatten(2, 3)
        x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        weight, bias = (self.tensors[f"{upsampler}.resample.1.{n}"] for n in ("weight", "bias"))
        x = torch.stack([F.conv2d(frame, weight, bias, padding=1) for frame in x.unbind(2)], 2)
        return x + self.shortcut(start, mult, time) if self.config.is_residual else x

    def shortcut(self, x: Tensor, mult: int, time: bool) -> Tensor:
        """Channel ``o`` at (frame f, row r, column c) of a cell is copy ``((o f) r) c`` of x."""
        outputs, span = self.config.decoder_width * mult, 2 if time else 1
        copies = x.repeat_interleave(outputs * span * 4 // x.shape[1], dim=1)
        batch, _, frames, height, width = x.shape
        out = x.new_empty(batch, outputs, frames * span, height * 2, width * 2)
        for f in range(span):
            for r in (0, 1):
                for c in (0, 1):
                    part = copies[:, (f * 2 + r) * 2 + c :: span * 4]
                    out[:, :, f::span, r::2, c::2] = part
        return out if self.begun else out[:, :, span - 1 :]

    def block(self, name: str, x: Tensor) -> Tensor:
        hidden = self.convolve(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        hidden = self.convolve(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", hidden)))
        if f"{name}.conv_shortcut.weight" in self.tensors:
            x = self.convolve(f"{name}.conv_shortcut", x)
        return x + hidden

    def attention(self, name: str, x: Tensor) -> Tensor:
        batch, channels, _, height, width = x.shape
        rows = self.norm(f"{name}.norm", x).flatten(2)
        weight, bias = (self.tensors[f"{name}.to_qkv.{n}"] for n in ("weight", "bias"))
        qkv = weight.flatten(1) @ rows + bias[:, None]
        query, key, value = qkv.chunk(3, dim=1)
        scores = (query.transpose(1, 2) @ key / channels**0.5).softmax(dim=-1)
        weight, bias = (self.tensors[f"{name}.proj.{n}"] for n in ("weight", "bias"))
        mixed = weight.flatten(1) @ (value @ scores.transpose(1, 2)) + bias[:, None]
        return x + mixed.view(batch, channels, 1, height, width)

    def norm(self, name: str, x: Tensor) -> Tensor:
        gamma = self.tensors[f"{name}.gamma"].view(1, -1, 1, 1, 1)
        return x / x.square().sum(dim=1, keepdim=True).sqrt() * x.shape[1] ** 0.5 * gamma

    def convolve(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        past = weight.shape[2] - 1
        if past:
            seen = self.memory.get(name, torch.zeros_like(x[:, :, :1]).repeat(1, 1, past, 1, 1))
            x = torch.cat((seen, x), dim=2)
            self.memory[name] = x[:, :, -past:]
        around = (0, weight.shape[3] // 2, weight.shape[4] // 2)
        return F.conv3d(x, weight, bias, padding=around)
