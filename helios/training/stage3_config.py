"""The configuration of distribution matching; the stage itself is in stage3.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from helios.diffusion import CFG, Pyramid
from helios.distributed import World
from helios.geometry import check_size
from helios.history import CorruptionConfig
from helios.model import LoraConfig
from helios.training.adversarial import AdversarialConfig
from helios.training.dmd import DynamicRenoise
from helios.training.flow_stage import FlowConfig
from helios.training.optim import OptimizerConfig

if TYPE_CHECKING:
    from helios.training.stage3 import Stage3

__all__ = ["Stage3Config"]


@dataclass(frozen=True, kw_only=True)
class Stage3Config(FlowConfig):
    """How a student is distilled; ``initial`` is what it starts from.

    Attributes:
        teacher: model folder of the flat model whose frozen transformer is both scores.
        text_share: share of batches whose samples have no past, text to video; those of the others
            keep some of it, shortened as ``drop`` says. Only the former are made with an amplified
            plan.
        student_corruption: what the student's past suffers beyond ``corruption``, which the
            scores do not see; none: nothing.
        critic: what its adapter learns.
        critic_optimizer: of adapter and heads.
        student_every: steps of the critic for one of the student.
        student_after: steps of the critic before the first of the student. Until the critic knows
            what the student makes, the difference of the scores is guidance alone.
        guidance: scale of the real score, in the convention where 1 is none.
        renoise: at which levels the scores are asked; the critic learns at uniform ones.
        adversarial: the adversarial term; none: without.
        offload: keep the frozen weights of student and teacher in host memory and bring those to
            the device that are in use: two large models in the room of one.
    """

    teacher: Path | None = None
    text_share: float = 0.4
    student_corruption: CorruptionConfig | None = None
    critic: LoraConfig = field(default_factory=lambda: LoraConfig(rank=256))
    critic_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    student_every: int = 5
    student_after: int = 0
    guidance: float = 4.0
    renoise: DynamicRenoise = field(default_factory=DynamicRenoise)
    adversarial: AdversarialConfig | None = None
    offload: bool = False
    text_learns: bool = False
    caption_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        super().__post_init__()
        if self.student_every < 1:
            raise ValueError(f"student_every must be at least 1, got {self.student_every}")
        if self.student_after < 0:
            raise ValueError(f"student_after must not be negative, got {self.student_after}")
        if not 0 <= self.text_share <= 1:
            raise ValueError(f"text_share must be from 0 to 1, got {self.text_share}")
        if self.sections < 2:
            raise ValueError("sections must be at least 2: later ones have a past")
        if self.text_learns or self.caption_dropout:
            raise ValueError("text_learns must be false and caption_dropout 0 in stage 3")
        if self.offload and (self.adapter is None or not self.recompute):
            # In full the student is not frozen; and a graph would hold on to the weights.
            raise ValueError("offload needs stage.adapter and stage.recompute=true")
        CFG(self.guidance)
        plan = self.generation.plan
        if not isinstance(plan, Pyramid) or plan.solver != "renoise":
            raise ValueError(f"generation.plan must follow the few-step rule, got {plan}")
        if len(plan.steps) != self.schedule.stages or self.schedule.lag:
            raise ValueError("generation.plan and a consistent schedule must have the same stages")
        check_size(self.data.height, self.data.width, self.schedule.stages)

    @property
    def plan(self) -> Pyramid:
        """The few-step plan of the student."""
        assert isinstance(self.generation.plan, Pyramid)
        return self.generation.plan

    def build(self, world: World, *, seed: int, compiled: bool) -> Stage3:
        """The stage with the parameters of ``initial``, and a critic that is still the teacher.

        Raises:
            ValueError: if a folder is not named.
            CheckpointError: if a folder does not hold what it should.
        """
        from helios.training.stage3 import Stage3  # which needs this configuration

        return Stage3(self, world, seed=seed, compiled=compiled)
