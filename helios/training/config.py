"""What no single component owns: how long, how precise, how often; and configurations as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from helios.training.optim import OptimizerConfig

__all__ = ["RunConfig", "TrainingConfig", "to_json"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a stage is trained.

    Attributes:
        seed: of the parameters, the data and the noise; each rank draws its own data and noise.
        steps: optimizer steps; the exactly repeatable measure of length.
        max_seconds: length by the clock instead: the run, with what it prepares, ends after this
            many seconds and the learning rate is spread over them; ``steps`` is then not read.
        accumulate: batches per optimizer step.
        precision: "bf16" computes under autocast; parameters and optimizer stay float32.
        compile: compile what is worth it, on CUDA; elsewhere nothing is compiled.
        optimizer: AdamW, its learning rate and clipping.
        moments_on_host: keep the optimizer's moments in host memory between steps: slower, and
            two numbers per learnt parameter less on the device.
        ema_decay: highest decay of the averaged parameters, which are the result.
        log_every: steps between lines of the log.
        checkpoint_every: steps between checkpoints; 0: only at the end.
        keep_checkpoints: complete checkpoints that stay; older ones are removed.
        final_checkpoint: whether the end of the run is a checkpoint too.
        sample_every: steps between sample videos; 0: none while training.
    """

    seed: int = 0
    steps: int = 1000
    max_seconds: float | None = None
    accumulate: int = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = True
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    moments_on_host: bool = False
    ema_decay: float = 0.999
    log_every: int = 50
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    final_checkpoint: bool = True
    sample_every: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name in ("steps", "accumulate", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "checkpoint_every", "sample_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.max_seconds is not None and not 0 < self.max_seconds < float("inf"):
            raise ValueError(f"max_seconds must be positive, got {self.max_seconds}")
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be bf16 or fp32, got {self.precision!r}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be from 0 to below 1, got {self.ema_decay}")


FREE_TO_CHANGE = frozenset(
    {
        "trainer.steps",
        "trainer.max_seconds",
        "trainer.compile",
        "trainer.log_every",
        "trainer.moments_on_host",
        "trainer.checkpoint_every",
        "trainer.keep_checkpoints",
        "trainer.final_checkpoint",
        "trainer.sample_every",
        "stage.codec",
    }
)
"""Settings a resumed run may change; any other would make it a different run."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a training run is made of.

    Attributes:
        stage: the configuration of what is learnt: its type says which stage.
        trainer: how it is trained.
    """

    stage: Any
    trainer: TrainingConfig


def to_json(value: Any) -> Any:
    """``value`` as JSON writes it; a dataclass becomes its fields and the name of its type."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
        return {"type": type(value).__name__, **own}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted paths where two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if old == new else [path]
