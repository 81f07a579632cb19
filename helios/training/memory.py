"""What stage 3 needs of a device, counted from the configuration before anything is loaded.

Weights, adapters and heads are counted exactly, on the meta device; activations by the formula of
the specification "model and sampling", 10.3, for blocks that are computed again ("training", 7.1
and 7.4). What the allocator wastes and a codec that encodes scenes come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from helios.geometry import CHUNK_LATENTS, latent_size, token_count
from helios.model import HeliosTransformer, TransformerConfig, cast, new_adapter
from helios.training.adversarial import AdversarialConfig, Discriminator
from helios.training.stage3_config import Stage3Config

__all__ = ["Stage3Memory", "stage3_memory"]

HALF = 2
"""Bytes of a bfloat16 number."""


@dataclass(frozen=True, kw_only=True)
class Stage3Memory:
    """Bytes on one device, at the most demanding moment of each turn.

    Attributes:
        student: frozen weights of the student.
        teacher: frozen weights of teacher and critic, which are one network.
        learning: adapters and heads.
        moments: the optimizers' two averages of each of them.
        parked: those of student and critic, if they wait in host memory until their optimizer
            steps.
        average: of the student's adapter.
        student_turn: gradients and activations while the student learns.
        critic_turn: likewise for the critic.
        offload: whether the frozen weights of only one network are there at a time.
    """

    student: int
    teacher: int
    learning: int
    moments: int
    parked: tuple[int, int] | None
    average: int
    student_turn: int
    critic_turn: int
    offload: bool

    @property
    def total(self) -> int:
        """The larger of both turns."""
        always = self.learning + self.average
        turns = [self.student_turn, self.critic_turn]
        if self.parked is None:
            always += self.moments
        else:
            # While an optimizer steps there are no activations, but gradients and its moments.
            turns += [moments + moments // 2 for moments in self.parked]
        # When one base leaves for the other, the student's graph waits for its own to come back.
        both = self.student + self.teacher
        return always + max(turns) + (max(self.student, self.teacher) if self.offload else both)


def stage3_memory(config: Stage3Config, *, moments_on_host: bool = False) -> Stage3Memory:
    """The forecast for ``config`` with adapters and blocks that are computed again.

    Args:
        config: what is trained.
        moments_on_host: as the trainer's setting.

    Raises:
        ValueError: if the student learns in full, or activations are kept: then memory is not what
            limits it, or not what is counted here.
    """
    if config.adapter is None or not config.recompute:
        raise ValueError("the forecast is for stage.adapter and stage.recompute=true")
    with torch.device("meta"):
        network = cast(HeliosTransformer(config.transformer), torch.bfloat16)
        student = _bytes(new_adapter(network, config.adapter))
        critic = _bytes(new_adapter(network, config.critic))
        heads = 0
        if config.adversarial is not None:
            shape = (config.transformer.width, config.transformer.out_channels)
            heads = _bytes(Discriminator(config.adversarial, *shape))
    base, batch = _bytes(network), config.batch
    history, grids = _tokens(config)
    rollout = sum(history + tokens for tokens in grids)
    whole = history + grids[-1]
    judged = 3 * (history + _cropped(grids[-1], config.adversarial))
    return Stage3Memory(
        student=base,
        teacher=base,
        learning=student + critic + heads,
        moments=2 * (student + critic + heads),
        parked=(2 * student, 2 * (critic + heads)) if moments_on_host else None,
        average=student,
        student_turn=student + batch * _kept(config.transformer, rollout, whole),
        # Both terms of the critic are one graph.
        critic_turn=critic + heads + batch * _kept(config.transformer, whole + judged, judged),
        offload=config.offload,
    )


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _tokens(config: Stage3Config) -> tuple[int, list[int]]:
    """Tokens of the history, and of a chunk in each stage, coarsest first."""
    rows, columns = latent_size(config.data.height, config.data.width)
    scales = [2**k for k in reversed(range(config.schedule.stages))]
    grids = [token_count(CHUNK_LATENTS, rows // s, columns // s) for s in scales]
    short = token_count(2, rows, columns)
    mid = -(-rows // 4) * -(-columns // 4)
    long = 4 * -(-rows // 8) * -(-columns // 8)
    return short + mid + long, grids


def _cropped(tokens: int, config: AdversarialConfig | None) -> int:
    return 0 if config is None else round(tokens * config.crop**2)


def _kept(config: TransformerConfig, tokens: int, largest: int) -> int:
    """Bytes: every block's input for ``tokens``, and the insides of one block for ``largest``."""
    inputs = config.num_layers * tokens * config.width
    insides = largest * (26 * config.width + 2 * config.ffn_dim)
    return HALF * (inputs + insides)
