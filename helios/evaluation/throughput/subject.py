"""What engines are measured on: one set of weights and one set of inputs for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helios.codec import AutoencoderConfig, Codec, WanAutoencoder
from helios.diffusion import ScheduleConfig
from helios.geometry import CHUNK_LATENTS, LATENT_CHANNELS, latent_size
from helios.history import HISTORY_FRAMES, HistoryWindow
from helios.kernels import plain
from helios.model import HeliosTransformer, TransformerConfig, empty_transformer, fp32_names

__all__ = ["Lengths", "Subject", "random_codec", "random_transformer", "reference_velocity"]

_REAL_TOKENS = 140
"""Rows of a text embedding that are not padding."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of one forward pass.

    Attributes:
        noisy: of the chunk.
        history: of what came before.
        text: rows of the text.
    """

    noisy: int
    history: int
    text: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """Weights and inputs.

    Attributes:
        transformer: in the dtype to measure.
        codec: its decoder in the dtype to measure.
        schedule: noise levels of a few-step model with three scales.
        text: ``[1, L, text_dim]``, rows past the prompt zero.
        window: a full history.
        latents: one clean chunk ``[1, 16, 9, h, w]``.
        height, width: pixels.
        name: of the weights.
    """

    transformer: HeliosTransformer
    codec: Codec
    schedule: ScheduleConfig
    text: Tensor
    window: HistoryWindow
    latents: Tensor
    height: int
    width: int
    name: str

    @classmethod
    def make(
        cls,
        transformer: HeliosTransformer,
        codec: Codec,
        schedule: ScheduleConfig,
        *,
        height: int,
        width: int,
        tokens: int = 512,
        name: str = "",
        seed: int = 0,
    ) -> Subject:
        """Inputs of unit variance for ``transformer`` at one size, the same for the same seed."""
        device = transformer.device
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        rows, columns = latent_size(height, width)
        text = normal(1, tokens, transformer.config.text_dim)
        text[:, min(_REAL_TOKENS, tokens // 2) :] = 0
        frames = normal(1, LATENT_CHANNELS, HISTORY_FRAMES, rows, columns)
        present = torch.ones(1, HISTORY_FRAMES, dtype=torch.bool, device=device)
        return cls(
            transformer=transformer,
            codec=codec,
            schedule=schedule,
            text=text.to(transformer.dtype),
            window=HistoryWindow(frames, present),
            latents=normal(1, LATENT_CHANNELS, CHUNK_LATENTS, rows, columns),
            height=height,
            width=width,
            name=name,
        )

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer."""
        return self.transformer.dtype

    def noisy(self, halvings: int) -> Tensor:
        """Noisy latents after so many halvings of rows and columns."""
        shrink = 2**halvings
        return self.latents[..., ::shrink, ::shrink].contiguous()

    @torch.no_grad()
    def lengths(self, x: Tensor) -> Lengths:
        """Tokens of a forward pass over noisy latents ``x``."""
        model = self.transformer
        tokens, history = model.patches(x.to(self.dtype), model.remembered(self.window))
        return Lengths(tokens.shape[1] - history, history, self.text.shape[-2])

    def told(self, timestep: int) -> Tensor:
        """A timestep as the sampler tells it."""
        return torch.tensor([timestep], device=self.device)

    @torch.no_grad()
    def reference_frames(self) -> Tensor:
        """Frames of ``latents`` by the plain decoder in float32, the same weights widened."""
        network = WanAutoencoder(self.codec.config).to(self.device)
        network.load_state_dict(self.codec.network.state_dict())
        codec = Codec(network.float(), self.codec.config)
        with _exact_products():
            return codec.network.decode(codec.unscaled(self.latents)).clamp_(-1, 1)

    def describe(self) -> dict[str, Any]:
        """What it is, ready for JSON."""
        return {
            "name": self.name,
            "parameters": sum(p.numel() for p in self.transformer.parameters()),
            "size": [self.width, self.height],
            "text_rows": self.text.shape[-2],
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
        }


@torch.no_grad()
def random_transformer(
    config: TransformerConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> HeliosTransformer:
    """A network whose activations stay of order one, made on ``device`` in ``dtype`` directly.

    Matrices are ``N(0, 1 / fan-in)``, gains near one, biases small, modulation tables
    ``N(0, 1) / sqrt(D)``. Random data matter for time as well: on zeros a power-limited GPU clocks
    higher (specification "performance", section 5).
    """
    generator = torch.Generator(device).manual_seed(seed)
    model = empty_transformer(config)
    kept = fp32_names(model)
    for name, parameter in list(model.named_parameters()):
        wide = torch.float32 if name in kept else dtype
        value = torch.empty(parameter.shape, dtype=wide, device=device)
        value.normal_(generator=generator)
        if name.endswith("modulation"):
            value.mul_(config.width**-0.5)
        elif parameter.ndim > 1:
            value.mul_(parameter[0].numel() ** -0.5)
        elif name.endswith("weight"):
            value.mul_(0.02).add_(1)
        else:
            value.mul_(0.01)
        _put(model, name, value)
    model.head.project.weight.mul_(0.5)
    return model.eval()


def random_codec(
    config: AutoencoderConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Codec:
    """An autoencoder as training would start from, its decoder in ``dtype``."""
    torch.manual_seed(seed)
    with device:
        network = WanAutoencoder(config)
    return Codec(network).to(device, dtype)


@torch.no_grad()
def reference_velocity(subject: Subject, inputs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Velocities of ``(x, timestep)`` pairs in float32 arithmetic, on the CPU afterwards.

    The weights are those of the subject, widened. Blocks are widened one at a time, so that 14
    billion parameters need little memory beside their own.
    """
    source = subject.transformer
    parameters = dict(source.named_parameters())
    model = empty_transformer(source.config)
    for name, value in parameters.items():
        if not name.startswith("blocks."):
            _put(model, name, value.detach().float())

    def widen(block: nn.Module, *_: Any) -> None:
        prefix = names[block]
        for name, _old in list(block.named_parameters()):
            _put(block, name, parameters[prefix + name].detach().float())

    def drop(block: nn.Module, *_: Any) -> None:
        block.to("meta")

    names = {block: f"blocks.{i}." for i, block in enumerate(model.blocks)}
    for block in model.blocks:
        block.register_forward_pre_hook(widen)
        block.register_forward_hook(drop)
    text, window = subject.text.float(), subject.window
    with plain(), _exact_products():
        return [model(x.float(), t, text, window).cpu() for x, t in inputs]


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace the parameter ``name`` of ``module`` or of a module below it."""
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))


class _exact_products:  # noqa: N801 - reads as the block it guards
    """Matrix products and convolutions in true float32, no TF32, inside."""

    def __enter__(self) -> None:
        self.kept = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.kept
