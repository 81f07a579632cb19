"""Which noise levels are visited, and which timestep tells the network so.

A schedule is computed once per chunk in float64 on the CPU (specification "model and sampling",
6.2, 6.3). ``sigma`` is local: it runs from about 1 to 0 in every stage. The timestep is global and
also says which stage it is, because the stages own separate bands of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

__all__ = [
    "Schedule",
    "ScheduleConfig",
    "ShiftKind",
    "ShiftLaw",
    "SolverName",
    "Stage",
    "draw_sigma",
    "flat_schedule",
    "solver_from_json",
    "stage_schedule",
    "stage_table",
]

SolverName: TypeAlias = Literal["unipc", "euler", "renoise"]
ShiftKind: TypeAlias = Literal["exponential", "linear"]

FIRST_SIGMA = 0.999
"""Local level at which every schedule begins: one grid step below pure noise."""


@dataclass(frozen=True, kw_only=True)
class ShiftLaw:
    """How the number of tokens moves the noise levels (6.2).

    Attributes:
        kind: ``"exponential"`` shifts by ``e^mu``, ``"linear"`` by ``mu`` itself.
        base_tokens, max_tokens: the two token counts between which ``mu`` is a straight line.
        base_shift, max_shift: ``mu`` at these two counts.
        max_mu: upper bound of ``mu``; training clamps the exponential law at ``ln 7``.
    """

    kind: ShiftKind = "exponential"
    base_tokens: int = 256
    max_tokens: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15
    max_mu: float = math.inf

    def __post_init__(self) -> None:
        """Refuse laws that are undefined."""
        if self.kind not in get_args(ShiftKind):
            raise ValueError(f"kind must be one of {get_args(ShiftKind)}, got {self.kind!r}")
        if not 0 < self.base_tokens < self.max_tokens:
            raise ValueError(
                f"base_tokens must lie between 0 and max_tokens, got {self.base_tokens} "
                f"and {self.max_tokens}"
            )
        if min(self.base_shift, self.max_shift, self.max_mu) <= 0:
            raise ValueError("base_shift, max_shift and max_mu must be positive")

    def mu(self, tokens: int) -> float:
        """The shift of ``tokens`` noisy tokens (frames x rows x columns of latents / 4)."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return min(tokens * slope + (self.base_shift - slope * self.base_tokens), self.max_mu)

    def factor(self, tokens: int) -> float:
        """The number that ``apply`` shifts by: ``e^mu`` or ``mu``."""
        mu = self.mu(tokens)
        return math.exp(mu) if self.kind == "exponential" else mu

    def apply(self, sigma: Tensor, tokens: int) -> Tensor:
        """Shifted noise levels; 0 stays 0 and 1 stays 1."""
        return _shifted(sigma, self.factor(tokens))


def _shifted(sigma: Tensor, factor: float) -> Tensor:
    # 1/0 is inf and factor/inf is 0, so the final level needs no case of its own.
    return factor / (factor + (1 / sigma - 1))


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Noise levels of a checkpoint: the content of ``scheduler_config.json``.

    Attributes:
        num_train_timesteps: length of the global timestep axis.
        shift: fixed shift of the levels; 1 is none. Excludes ``dynamic``.
        gamma: correlation of the noise added between stages (6.6).
        stage_range: borders of the stages as shares of the axis; unused with one stage.
        stages: 1 for the flat sampler, 3 for the published pyramid.
        dynamic: shift by the number of tokens, if any.
        lag: ``True`` computes the dynamic shift from the tokens of the previous, coarser stage, as
            the released pipelines do ("published"); ``False`` from the current stage, as training
            does ("consistent").
        fractional_timesteps: tell the network of a pyramid the timestep as it is, which is what
            training does; off: cut to a whole number, as published (training.md, F16).
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0
    gamma: float = 1 / 3
    stage_range: tuple[float, ...] = (0, 1 / 3, 2 / 3, 1)
    stages: int = 3
    dynamic: ShiftLaw | None = None
    lag: bool = False
    fractional_timesteps: bool = False

    def __post_init__(self) -> None:
        """Refuse configurations without a meaning."""
        if self.num_train_timesteps < 2:
            raise ValueError(
                f"num_train_timesteps must be at least 2, got {self.num_train_timesteps}"
            )
        if self.shift <= 0:
            raise ValueError(f"shift must be positive, got {self.shift}")
        if self.dynamic is not None and self.shift != 1.0:
            raise ValueError(f"shift must be 1 with a dynamic shift, got {self.shift}")
        if not 0 < self.gamma <= 1 / 3:
            # Beyond 1/3 the covariance of the block noise is no longer one.
            raise ValueError(f"gamma must be above 0 and at most 1/3, got {self.gamma}")
        if self.stages < 1:
            raise ValueError(f"stages must be at least 1, got {self.stages}")
        if self.stages == 1:
            return
        borders = self.stage_range
        rising = all(low < high for low, high in itertools.pairwise(borders))
        whole = len(borders) == self.stages + 1 and borders[0] == 0 and borders[-1] == 1
        if not (whole and rising):
            raise ValueError(
                f"stage_range must rise from 0 to 1 in {self.stages} parts, got {borders}"
            )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScheduleConfig:
        """Read a scheduler configuration as diffusers writes it.

        The kind of dynamic shift defaults by class: linear for ``HeliosDMDScheduler``,
        exponential for ``HeliosScheduler``. Without our ``shift_mode`` the shift is the published.

        Raises:
            ValueError: for a value that this package does not implement.
        """
        solver = solver_from_json(data)
        fixed = {
            "prediction_type": "flow_prediction",
            "solver_order": 2,
            "predict_x0": True,
            "lower_order_final": True,
            "thresholding": False,
            "use_flow_sigmas": True,
        }
        for name, value in fixed.items():
            if data.get(name, value) != value:
                raise ValueError(f"{name} must be {value!r}, got {data[name]!r}")
        if data.get("solver_type", "bh2") not in ("bh2", "midpoint", "heun", "logrho"):
            raise ValueError(f"solver_type must be 'bh2', got {data['solver_type']!r}")
        if data.get("disable_corrector") or data.get("solver_p"):
            raise ValueError("disable_corrector and solver_p must be empty")
        mode = data.get("shift_mode", "published")
        if mode not in ("published", "consistent"):
            raise ValueError(f"shift_mode must be 'published' or 'consistent', got {mode!r}")
        dynamic = None
        if data.get("use_dynamic_shifting", False):
            default = "linear" if solver == "renoise" else "exponential"
            dynamic = ShiftLaw(
                kind=data.get("time_shift_type", default),
                base_tokens=data.get("base_image_seq_len", 256),
                max_tokens=data.get("max_image_seq_len", 4096),
                base_shift=data.get("base_shift", 0.5),
                max_shift=data.get("max_shift", 1.15),
                max_mu=data.get("max_mu", math.inf),
            )
        return cls(
            num_train_timesteps=data.get("num_train_timesteps", 1000),
            shift=data.get("shift", 1.0),
            gamma=data.get("gamma", 1 / 3),
            stage_range=tuple(data.get("stage_range", (0, 1 / 3, 2 / 3, 1))),
            stages=data.get("stages", 3),
            dynamic=dynamic,
            lag=mode == "published",
            fractional_timesteps=bool(data.get("fractional_timesteps", False)),
        )

    def shifted(self, sigma: Tensor, tokens: int) -> Tensor:
        """Noise levels moved by the dynamic law at so many tokens, or else by the fixed shift."""
        if self.dynamic is not None:
            return self.dynamic.apply(sigma, tokens)
        return sigma if self.shift == 1.0 else _shifted(sigma, self.shift)

    def to_json(self, solver: SolverName = "unipc") -> dict[str, Any]:
        """The same in diffusers' field names, with the class that belongs to ``solver``."""
        data: dict[str, Any] = {
            "_class_name": "HeliosDMDScheduler" if solver == "renoise" else "HeliosScheduler",
            "num_train_timesteps": self.num_train_timesteps,
            "shift": self.shift,
            "gamma": self.gamma,
            "stage_range": list(self.stage_range),
            "stages": self.stages,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "use_dynamic_shifting": self.dynamic is not None,
            "time_shift_type": self.dynamic.kind if self.dynamic else "exponential",
        }
        if solver != "renoise":
            data |= {
                "thresholding": False,
                "solver_order": 2,
                "predict_x0": True,
                "solver_type": "bh2",
                "lower_order_final": True,
                "disable_corrector": [],
                "solver_p": None,
                "scheduler_type": solver,
            }
        if self.dynamic is not None:
            law = self.dynamic
            own = {
                "base_image_seq_len": (law.base_tokens, 256),
                "max_image_seq_len": (law.max_tokens, 4096),
                "base_shift": (law.base_shift, 0.5),
                "max_shift": (law.max_shift, 1.15),
                "max_mu": (law.max_mu, math.inf),
            }
            data |= {name: value for name, (value, usual) in own.items() if value != usual}
        if not self.lag:
            data["shift_mode"] = "consistent"
        if self.fractional_timesteps:
            data["fractional_timesteps"] = True
        return data


def solver_from_json(data: Mapping[str, Any]) -> SolverName:
    """The solver a scheduler configuration asks for.

    The class decides for the few-step rule; only then is ``scheduler_type`` read.

    Raises:
        ValueError: for a class or a type that is not one of the published.
    """
    name = data.get("_class_name", "HeliosScheduler")
    if name == "HeliosDMDScheduler":
        return "renoise"
    if name != "HeliosScheduler":
        raise ValueError(
            f"_class_name must be 'HeliosScheduler' or 'HeliosDMDScheduler', got {name!r}"
        )
    kinds: dict[str, SolverName] = {"unipc": "unipc", "euler": "euler", "dmd": "renoise"}
    kind = data.get("scheduler_type", "unipc")
    if kind not in kinds:
        raise ValueError(f"scheduler_type must be one of {sorted(kinds)}, got {kind!r}")
    return kinds[kind]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The levels of one loop, float64 on the CPU.

    Attributes:
        timesteps: ``[K]`` what the network is told at each step.
        sigmas: ``[K + 1]`` local noise levels, falling, the last one 0.
        last_timestep: the timestep that belongs to the final level 0.
    """

    timesteps: Tensor
    sigmas: Tensor
    last_timestep: float = 0.0

    def __len__(self) -> int:
        return self.timesteps.numel()

    def cut(self, steps: int) -> Schedule:
        """The first ``steps`` steps, of which the last one goes to level 0."""
        sigmas = torch.cat((self.sigmas[:steps], self.sigmas[-1:]))
        return Schedule(self.timesteps[:steps], sigmas, self.last_timestep)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Constants of one pyramid stage, in global noise levels (6.3).

    Attributes:
        original: level at which the stage begins on the plain path.
        start: level of the stage's start point, corrected for the noise of the transition.
        end: level of the stage's end point.
        timestep_max, timestep_min: band of timesteps that belongs to the stage, inclusive.
    """

    original: float
    start: float
    end: float
    timestep_max: float
    timestep_min: float


def _linspace(first: float, last: float, count: int) -> Tensor:
    """``count`` equidistant float64 values; numpy's rounding, which the published tables have."""
    if count == 1:
        return torch.tensor([first], dtype=torch.float64)
    values = torch.arange(count, dtype=torch.float64) * ((last - first) / (count - 1)) + first
    values[-1] = last
    return values


@lru_cache(maxsize=32)
def stage_table(config: ScheduleConfig) -> tuple[Stage, ...]:
    """Constants of every stage, coarsest first."""
    total = config.num_train_timesteps
    grid = 1.0 - _linspace(1.0, 1 / total, total + 1)
    grid = config.shift * grid / (1 + (config.shift - 1) * grid)
    levels: list[float] = grid.flip(0)[:-1].tolist()
    root = math.sqrt(1 + 1 / config.gamma)

    points: list[tuple[float, float, float]] = []
    borders = (0.0, 1.0) if config.stages == 1 else config.stage_range
    for stage in range(config.stages):
        original = levels[int(borders[stage] * total)]
        last = int(borders[stage + 1] * total)
        end = levels[last] if last < total else 0.0
        signal = 1 - original
        corrected = signal / (root * original + signal)
        points.append((original, 1 - corrected if stage else original, end))

    distances = [start - end for _, start, end in points]
    whole = sum(distances)
    shares = [sum(distances[:stage]) / whole for stage in range(config.stages)]
    shares.append(0.9999999999999999)  # as published, so that the last index stays on the grid
    table = []
    for stage, (original, start, end) in enumerate(points):
        high = min(levels[int(shares[stage] * total)] * total, 999.0)
        low = levels[min(int(shares[stage + 1] * total), total - 1)] * total
        # The band is half open: its last point belongs to the next stage.
        lowest = _linspace(high, low, total + 1)[-2].item()
        table.append(
            Stage(original=original, start=start, end=end, timestep_max=high, timestep_min=lowest)
        )
    return tuple(table)


def flat_schedule(steps: int, config: ScheduleConfig, tokens: int) -> Schedule:
    """Levels of ``steps`` steps without a pyramid; ``timestep = 1000 sigma`` (6.9, Base).

    Args:
        steps: number of steps, at least 1.
        config: its ``dynamic`` law or else its fixed ``shift`` is applied.
        tokens: noisy tokens of the chunk.
    """
    _check_steps(steps)
    sigmas = _linspace(FIRST_SIGMA, 0.0, steps + 1)
    sigmas = config.shifted(sigmas, tokens)
    return Schedule(sigmas[:-1] * config.num_train_timesteps, sigmas)


def stage_schedule(
    steps: int,
    stage: int,
    config: ScheduleConfig,
    tokens: int,
    *,
    renoise: bool = False,
    visit: int = 0,
) -> Schedule:
    """Levels of ``steps`` steps within one pyramid stage (6.3).

    Args:
        steps: number of steps, at least 1.
        stage: 0 is the coarsest.
        config: constants and dynamic law.
        tokens: noisy tokens from which the dynamic shift is computed; the caller decides whether
            these are of this stage or of the one before (``config.lag``).
        renoise: leave out the node near 0, as the few-step rule does.
        visit: also stand at the nodes of the few-step rule with this many steps, merged in before
            the shift ("training", 5.1); 0: at none.
    """
    _check_steps(steps)
    if not 0 <= stage < config.stages:
        raise ValueError(f"stage must be from 0 to {config.stages - 1}, got {stage}")
    band = stage_table(config)[stage]
    nodes = steps + 1 if renoise else steps
    lowest = _linspace(FIRST_SIGMA, 0.0, config.num_train_timesteps + 1)[-2].item()
    sigmas = _linspace(FIRST_SIGMA, lowest, nodes)[:steps]
    timesteps = _linspace(band.timestep_max, band.timestep_min, nodes)[:steps]
    if visit:
        sigmas = _merged(sigmas, _linspace(FIRST_SIGMA, lowest, visit + 1)[:visit])
        timesteps = _merged(
            timesteps, _linspace(band.timestep_max, band.timestep_min, visit + 1)[:visit]
        )
    sigmas = torch.cat((sigmas, sigmas.new_zeros(1)))
    if config.dynamic is not None:
        sigmas = config.dynamic.apply(sigmas, tokens)
        timesteps = band.timestep_min + sigmas[:-1] * (band.timestep_max - band.timestep_min)
    return Schedule(timesteps, sigmas, band.timestep_min)


def _merged(nodes: Tensor, others: Tensor) -> Tensor:
    """Both, falling; a node of ``others`` that is there already up to rounding is not repeated."""
    near = (others[:, None] - nodes).abs().amin(dim=1) < 1e-9 * nodes[0]
    return torch.cat((nodes, others[~near])).sort(descending=True).values


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")


def draw_sigma(
    n: int,
    *,
    law: Literal["logit_normal", "uniform"] = "logit_normal",
    mean: float = 0.0,
    std: float = 1.0,
    uniform_share: float = 0.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Noise levels to train on: ``[n]`` float32 in (0, 1] (training specification, 1.2).

    Args:
        n: how many, one per sample.
        law: ``sigmoid(mean + std * N(0, 1))`` or uniform.
        mean: of the normal draw before the sigmoid.
        std: of the same.
        uniform_share: share of the samples drawn uniformly whatever the law.
        generator: on ``device``.
        device: where the result lives.
    """
    if law not in ("logit_normal", "uniform"):
        raise ValueError(f"law must be 'logit_normal' or 'uniform', got {law!r}")
    if not 0 <= uniform_share <= 1:
        raise ValueError(f"uniform_share must be from 0 to 1, got {uniform_share}")
    even = 1 - torch.rand(n, generator=generator, device=device)
    if law == "uniform" or uniform_share == 1:
        return even
    normal = torch.randn(n, generator=generator, device=device)
    # A level of exactly 0 has no velocity; the bound is far below the last training timestep.
    bell = torch.sigmoid(mean + std * normal).clamp_min(1e-6)
    if uniform_share == 0:
        return bell
    chosen = torch.rand(n, generator=generator, device=device) < uniform_share
    return torch.where(chosen, even, bell)
