"""The codec: pixels to the latents a transformer works in, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from helios.codec.config import AutoencoderConfig
from helios.codec.decode import FastDecoder, fast_ops
from helios.codec.wan import WanAutoencoder, unfold_patches
from helios.errors import CheckpointError
from helios.storage import (
    check_entries,
    fill,
    open_weights,
    read_json,
    write_json,
    write_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Codec", "check_codec", "load_codec", "save_codec"]

_DECODER = ("decoder.", "post_quant_conv.")
"""What may compute in a narrow dtype."""


class Codec:
    """An autoencoder with normalised latents: ``x = (z - mean) * (1 / std)`` per channel.

    The decoder may run in a narrow dtype; the encoder stays in float32 unless told otherwise,
    because its rounding would be carried on by everything generated from it. Latents and frames
    cross the border in float32.

    Args:
        network: the autoencoder; put into evaluation mode.
        config: the network's own with other statistics; None takes the network's.

    Attributes:
        trials: of cuDNN's algorithms for every convolution, when the fast decoder first decodes a
            whole chunk of some size; 0: cuDNN's first guess is taken.
        group: latent frames that the fast decoder decodes at a time, 0 for all at once: fewer need
            less memory. The plain decoder, as on a CPU, always takes all.

    Source: specification "model and sampling", section 8.1.
    """

    trials: int = 0
    group: int = 0

    def __init__(self, network: WanAutoencoder, config: AutoencoderConfig | None = None) -> None:
        self.network = network.eval()
        self.config = config or network.config
        self._fast: tuple[object, FastDecoder] | None = None
        self._place()

    def _place(self) -> None:
        """Put the statistics beside the weights."""
        # The reciprocal is taken once: it is part of the published arithmetic, to the last bit.
        config, shape = self.config, (1, -1, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean, device=self.device).view(shape)
        self._scale = 1.0 / torch.tensor(config.latents_std, device=self.device).view(shape)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.post_quant_conv.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in."""
        return self.network.post_quant_conv.weight.dtype

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        encoder_dtype: torch.dtype | None = None,
    ) -> Codec:
        """Move in place and return itself.

        Args:
            device: for everything.
            dtype: for the decoder.
            encoder_dtype: for the encoder, which otherwise keeps its own.
        """
        network = self.network
        network.decoder.to(device=device, dtype=dtype)
        network.post_quant_conv.to(device=device, dtype=dtype)
        network.encoder.to(device=device, dtype=encoder_dtype)
        network.quant_conv.to(device=device, dtype=encoder_dtype)
        self._place()
        return self

    def with_statistics(self, mean: Sequence[float], std: Sequence[float]) -> Codec:
        """A codec of the same network (shared, not copied) with other latent statistics.

        Args:
            mean: per channel, of ``z`` before normalisation.
            std: likewise, positive.

        Raises:
            ValueError: for a wrong number of values, or a std that is not positive.
        """
        config = replace(
            self.config,
            latents_mean=tuple(float(value) for value in mean),
            latents_std=tuple(float(value) for value in std),
        )
        return Codec(self.network, config)

    @torch.no_grad()
    def encode(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Normalised latents of one window, which starts afresh.

        Args:
            frames: ``[B, 3, T, H, W]`` in [-1, 1], T = 1 + a multiple of 4 (one image: T = 1).
            generator: samples the posterior, drawing on the generator's own device; without it
                the mean is taken.

        Returns:
            ``[B, 16, 1 + (T - 1) / 4, H / 8, W / 8]`` float32 (ratios of the published model).

        Raises:
            ValueError: for a shape that does not fold into whole latents.
        """
        mean, logvar = self.network.posterior(frames.to(self.device))
        z = mean
        if generator is not None:
            noise = torch.randn(
                mean.shape, generator=generator, device=generator.device, dtype=mean.dtype
            )
            z = mean + (0.5 * logvar).exp() * noise.to(mean.device)
        return ((z.float() - self._mean) * self._scale).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Frames of normalised latents, in one pass and without memory of earlier calls.

        Args:
            latents: ``[B, 16, t, h, w]``.

        Returns:
            ``[B, 3, 1 + 4 (t - 1), 8h, 8w]`` float32 in [-1, 1].

        Raises:
            ValueError: for a shape that is not latents of this autoencoder.
        """
        z = self.unscaled(latents)
        fast = self._fast_decoder(z)
        patches = self.network.decode_patches(z) if fast is None else fast(z).movedim(-1, 1)
        return unfold_patches(patches.float().clamp_(-1, 1), self.config.patch)

    @torch.no_grad()
    def decode_uint8(self, latents: Tensor) -> Tensor:
        """Like :meth:`decode`, as bytes ``[B, T, H, W, 3]`` rounded to the nearest level."""
        z = self.unscaled(latents)
        fast = self._fast_decoder(z)
        if fast is not None:
            levels = fast.levels(z)
            if self.config.patch == 1:
                return levels
            levels = levels.movedim(-1, 1)
        else:
            patches = self.network.decode_patches(z).float()
            levels = patches.mul_(127.5).add_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        return unfold_patches(levels, self.config.patch).movedim(1, -1).contiguous()

    def unscaled(self, latents: Tensor) -> Tensor:
        """Normalised latents ``[B, 16, t, h, w]`` as the network makes them.

        Raises:
            ValueError: for a shape that is not latents of this autoencoder.
        """
        if latents.ndim != 5 or latents.shape[1] != self.config.z_dim or 0 in latents.shape:
            raise ValueError(
                f"latents must be [B, {self.config.z_dim}, t, h, w], got {tuple(latents.shape)}"
            )
        return latents.to(device=self.device, dtype=torch.float32) / self._scale + self._mean

    def _fast_decoder(self, z: Tensor) -> FastDecoder | None:
        """The fast decoder where its kernels run; made again when a weight has changed."""
        ops = None if self.config.is_residual else fast_ops(z)
        if ops is None:
            return None
        weights = (*self.network.decoder.parameters(), *self.network.post_quant_conv.parameters())
        options = {"trials": self.trials, "group": self.group}
        state = options, tuple((weight.data_ptr(), weight._version) for weight in weights)
        if self._fast is None or self._fast[0] != state:
            self._fast = (state, FastDecoder(self.network, ops, **options))
        return self._fast[1]


def load_codec(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    encoder_dtype: torch.dtype = torch.float32,
) -> Codec:
    """The codec in ``folder`` (``config.json`` and ``diffusion_pytorch_model.safetensors``).

    Args:
        folder: such as ``model/vae``.
        device: where it runs.
        dtype: what the decoder computes in, whatever the file stores.
        encoder_dtype: what the encoder computes in.

    Raises:
        CheckpointError: if it is missing, does not fit its configuration, is damaged or a pickle.
    """
    network = _empty(folder)
    fill(
        network,
        open_weights(folder),
        str(folder),
        device=device,
        dtype=lambda name: dtype if name.startswith(_DECODER) else encoder_dtype,
    )
    network.channels_last()
    return Codec(network)


def check_codec(folder: Path) -> None:
    """Check by configuration and headers alone that ``load_codec`` would succeed.

    Raises:
        CheckpointError: as there.
    """
    check_entries(_empty(folder), open_weights(folder), str(folder))


def _empty(folder: Path) -> WanAutoencoder:
    """The network that ``folder/config.json`` describes, on the meta device."""
    config = AutoencoderConfig.from_json(read_json(folder / "config.json"))
    try:
        with torch.device("meta"):
            return WanAutoencoder(config)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is not usable: {error}") from None


def save_codec(codec: Codec, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``codec`` to ``folder`` in the published layout and names.

    Args:
        codec: what to write.
        folder: made if missing.
        dtype: to store the tensors in, such as float16; None keeps each tensor's own.
    """
    write_tensors(folder, codec.network.state_dict(), dtype=dtype)
    write_json(folder / "config.json", codec.config.to_json())
