"""What a run needs of a device, counted from its configuration before anything is loaded.

Weights, adapters and heads are counted exactly, on the meta device; activations by the formula of
the specification "model and sampling", 10.3, for blocks that are computed again ("training", 7.1
and 7.4). What the allocator wastes and a codec that encodes scenes come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from helios.geometry import CHUNK_LATENTS, latent_size, token_count
from helios.model import HeliosTransformer, TransformerConfig, cast, new_adapter
from helios.training.adversarial import Discriminator
from helios.training.config import RunConfig
from helios.training.model_stage import ModelConfig
from helios.training.ode import OdeConfig
from helios.training.stage1 import Stage1Config
from helios.training.stage2 import Stage2Config
from helios.training.stage3_config import Stage3Config

__all__ = ["TrainingMemory", "training_memory"]

HALF = 2
"""Bytes of a bfloat16 number."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes on one device and in the memory of its host.

    Attributes:
        frozen: weights that do not learn and are on the device at the same time.
        learning: adapters, layers that learn in full, and heads.
        average: of what the result is made of.
        moments: the optimizers' two numbers for each learnt one, while they are on the device.
        turns: gradients and activations of each that learns; an optimizer's step that needs its
            moments back is a turn too. Only one of them is there at a time.
        host: frozen weights and moments that wait in host memory.
    """

    frozen: int
    learning: int
    average: int
    moments: int
    turns: Mapping[str, int]
    host: int

    @property
    def total(self) -> int:
        """At the most demanding moment of a step."""
        always = self.frozen + self.learning + self.average + self.moments
        return always + max(self.turns.values())

    @property
    def writing(self) -> int:
        """While samples and results are made: the averages are put into a copy of what learns."""
        return self.frozen + self.learning + 2 * self.average + self.moments

    def to_json(self) -> dict[str, object]:
        """Everything, in bytes."""
        parts = {name: getattr(self, name) for name in ("frozen", "learning", "average", "moments")}
        sums = {"host": self.host, "writing": self.writing, "total": self.total}
        return {**parts, "turns": dict(self.turns), **sums}


@dataclass(frozen=True)
class _Player:
    """One that learns: what it learns, and what is kept for its backward pass."""

    learning: int
    activations: int

    def turns(self, name: str, *, parked: bool, average: int) -> dict[str, int]:
        """Gradients are as many as the learnt numbers, moments twice as many."""
        found = {name: self.learning + self.activations}
        # The average moves by a difference that is computed for all of it at once.
        found[f"{name}, its step"] = self.learning + max(2 * self.learning * parked, average)
        return found


def training_memory(config: RunConfig) -> TrainingMemory:
    """The forecast for a run with an adapter and blocks that are computed again.

    Args:
        config: stage 1, 2 or 3, or the warm-up on trajectories.

    Raises:
        ValueError: if all of the network learns, or activations are kept: then memory is not what
            limits it, or not what is counted here.
    """
    stage, parked = config.stage, config.trainer.moments_on_host
    if not isinstance(stage, ModelConfig) or stage.adapter is None or not stage.recompute:
        raise ValueError("the forecast is for stage.adapter and stage.recompute=true")
    with torch.device("meta"):
        network = cast(HeliosTransformer(stage.transformer), torch.bfloat16)
        adapter = _bytes(new_adapter(network, stage.adapter))
    base, away = _bytes(network), 0
    players = {"student": _Player(adapter, _activations(stage))}
    if isinstance(stage, Stage3Config):
        players["critic"] = _Player(_critic(stage, network), _critic_activations(stage))
        # When one base leaves for the other, the student's graph waits for its own to come back.
        away = 2 * base if stage.offload else 0
        base = base if stage.offload else 2 * base
    turns: dict[str, int] = {}
    for name, player in players.items():
        average = adapter if name == "student" else 0
        turns |= player.turns(name, parked=parked, average=average)
    learning = sum(player.learning for player in players.values())
    return TrainingMemory(
        frozen=base,
        learning=learning,
        average=adapter,
        moments=0 if parked else 2 * learning,
        turns=turns,
        host=away + (2 * learning if parked else 0),
    )


def _critic(config: Stage3Config, network: HeliosTransformer) -> int:
    """Bytes of the critic's adapter and heads."""
    with torch.device("meta"):
        total = _bytes(new_adapter(network, config.critic))
        if config.adversarial is not None:
            shape = (config.transformer.width, config.transformer.out_channels)
            total += _bytes(Discriminator(config.adversarial, *shape))
    return total


def _activations(config: ModelConfig) -> int:
    """What is kept while a loss of the student is computed, for all of the batch."""
    if isinstance(config, OdeConfig):
        height, width = config.generation.height, config.generation.width
        history, grids = _tokens(height, width, config.schedule.stages)
        # All sections and stages are one graph.
        tokens = config.sections * sum(history + grid for grid in grids)
        return config.batch * _kept(config.transformer, tokens, history + grids[-1])
    if not isinstance(config, Stage1Config | Stage2Config | Stage3Config):
        raise ValueError(f"there is no forecast for {type(config).__name__}")
    data, stages = config.data, config.schedule.stages
    history, grids = _tokens(data.height, data.width, stages)
    if isinstance(config, Stage2Config):
        tokens = sum(n * (history + grid) for n, grid in zip(config.scales, grids, strict=True))
        largest = tokens if config.packed else history + grids[-1]
    elif isinstance(config, Stage3Config):
        # One step of each stage has a gradient.
        tokens, largest = sum(history + grid for grid in grids), history + grids[-1]
    else:
        tokens = largest = history + grids[-1]
    return config.batch * _kept(config.transformer, tokens, largest)


def _critic_activations(config: Stage3Config) -> int:
    """Likewise for the critic: both of its terms are one graph."""
    history, grids = _tokens(config.data.height, config.data.width, config.schedule.stages)
    whole, judged = history + grids[-1], 0
    if config.adversarial is not None:
        judged = 3 * (history + round(grids[-1] * config.adversarial.crop**2))
    kept = _kept(config.transformer, whole + judged, max(whole, judged))
    return config.batch * kept


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _tokens(height: int, width: int, stages: int) -> tuple[int, list[int]]:
    """Tokens of the history, and of a chunk in each stage, coarsest first."""
    rows, columns = latent_size(height, width)
    scales = [2**k for k in reversed(range(stages))]
    grids = [token_count(CHUNK_LATENTS, rows // s, columns // s) for s in scales]
    short = token_count(2, rows, columns)
    mid = -(-rows // 4) * -(-columns // 4)
    long = 4 * -(-rows // 8) * -(-columns // 8)
    return short + mid + long, grids


def _kept(config: TransformerConfig, tokens: int, largest: int) -> int:
    """Bytes: every block's input for ``tokens``, and the insides of one block for ``largest``."""
    inputs = config.num_layers * tokens * config.width
    insides = largest * (26 * config.width + 2 * config.ffn_dim)
    return HALF * (inputs + insides)
