"""Stage 1: flow matching on windows with a damaged past (training.md 1.2, 2, 3; tiny.md 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from helios.data import Batch
from helios.diffusion import draw_sigma, mix, velocity
from helios.distributed import World
from helios.training.flow_stage import FlowConfig, FlowStage
from helios.training.networks import parts_of

__all__ = ["Emphasis", "NoiseLaw", "Stage1", "Stage1Config"]

TIMESTEPS = 1000.0


@dataclass(frozen=True, kw_only=True)
class NoiseLaw:
    """How noise levels are drawn: ``sigmoid(std * N + mean)``, some of them uniform instead.

    Attributes:
        mean, std: of the normal number in the sigmoid.
        uniform_share: share of levels that are uniform between 0 and 1.
    """

    mean: float = 0.5
    std: float = 1.1
    uniform_share: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what is no distribution."""
        if not self.std > 0 or not math.isfinite(self.mean):
            raise ValueError(f"mean must be finite and std positive, got {self.mean}, {self.std}")
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share must be from 0 to 1, got {self.uniform_share}")


@dataclass(frozen=True, kw_only=True)
class Emphasis:
    """How much more some errors count; the weights of a batch have mean 1. Off as it stands.

    A weight may depend on the noise level as it likes. One that depends on the clean latents moves
    the optimum wherever the model still guesses, so that of what moves fades in with the share of
    the clean latents, ``1 - sigma``: once the model can see what moves, little is moved.

    Attributes:
        moving: a latent at rest counts 1, one that moves up to this much.
        threshold: a latent moves if, in the mean over channels, its distance from its mean over
            the section is more than this many deviations.
        snr_limit: weight ``min(snr, limit) / limit`` with ``snr = ((1 - sigma) / sigma)^2``, which
            takes weight from high noise; None: every noise level counts the same.
    """

    moving: float = 1.0
    threshold: float = 0.5
    snr_limit: float | None = None

    def __post_init__(self) -> None:
        """Refuse what would reward errors."""
        if not 1 <= self.moving < math.inf:
            raise ValueError(f"moving must be at least 1, got {self.moving}")
        if not 0 <= self.threshold < math.inf:
            raise ValueError(f"threshold must not be negative, got {self.threshold}")
        if self.snr_limit is not None and not 0 < self.snr_limit < math.inf:
            raise ValueError(f"snr_limit must be positive, got {self.snr_limit}")

    @property
    def off(self) -> bool:
        """Whether every error counts the same."""
        return self.moving == 1 and self.snr_limit is None

    def weights(self, clean: Tensor, sigma: Tensor) -> Tensor:
        """Weights of the errors, mean 1, ``[B, 1, T, h, w]``.

        Args:
            clean: ``[B, C, T, h, w]`` normalised latents.
            sigma: ``[B]`` noise levels.
        """
        level = sigma.view(-1, 1, 1, 1, 1)
        weight = torch.ones_like(clean[:, :1])
        if self.moving > 1:
            distance = (clean - clean.mean(dim=2, keepdim=True)).square().mean(1, keepdim=True)
            moves = (distance > self.threshold**2).to(clean.dtype)
            weight = weight + (self.moving - 1) * (1 - level) * moves
        if self.snr_limit is not None:
            snr = ((1 - level) / level.clamp_min(1e-4)).square()
            weight = weight * (snr.clamp_max(self.snr_limit) / self.snr_limit)
        return weight / weight.mean().clamp_min(1e-6)


@dataclass(frozen=True, kw_only=True)
class Stage1Config(FlowConfig):
    """How a transformer and its text encoder learn from scenes, at full resolution.

    Attributes:
        noise: how noise levels are drawn.
        emphasis: how much more some errors count.
    """

    noise: NoiseLaw = field(default_factory=NoiseLaw)
    emphasis: Emphasis = field(default_factory=Emphasis)

    def build(self, world: World, *, seed: int, compiled: bool) -> Stage1:
        """The stage with fresh or given parameters.

        Raises:
            ValueError: if no codec is named.
            CheckpointError: if a folder does not hold what it should.
        """
        return Stage1(self, world, seed=seed, compiled=compiled)


class Stage1(FlowStage):
    """Learns the velocity of a section, given its past and its caption; see `FlowStage`."""

    config: Stage1Config

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean squared error of the velocity, over windows cut from the batch."""
        error, clean, sigma, first = self._errors(self.model, batch, self.noise)
        each = error.mean(dim=(1, 2, 3, 4))
        scalars = {"loss_first": (each * first).sum() / first.sum().clamp_min(1)}
        if self.config.emphasis.off:
            return each.mean(), scalars
        scalars["loss_plain"] = each.mean()
        return (self.config.emphasis.weights(clean, sigma) * error).mean(), scalars

    def losses(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """The mean squared error of each sample."""
        return {"loss": self._errors(model, batch, generator)[0].mean(dim=(1, 2, 3, 4))}

    def _errors(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Squared errors ``[B, C, T, h, w]``, the clean latents likewise, and per sample the noise
        level and whether it is a first section, 1 or 0.
        """
        example = self.example(batch, generator)
        clean, law = example.clean, self.config.noise
        sigma = draw_sigma(
            len(batch),
            mean=law.mean,
            std=law.std,
            uniform_share=law.uniform_share,
            generator=generator,
            device=self.device,
        )
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        text = self.read(model, batch, generator)
        transformer = parts_of(model)[0]
        made = transformer(mix(clean, noise, sigma), TIMESTEPS * sigma, text, example.window)
        error = (made.float() - velocity(clean, noise)).square()
        return error, clean, sigma, (example.section == 0).float()
