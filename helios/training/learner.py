"""One of those that learn in a run: its parameters, its optimizer and their average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from helios.distributed import World
from helios.training.optim import Ema, adamw, learning, learning_rate
from helios.training.stage import Player

__all__ = ["Learner"]


class Objective(nn.Module):
    """The loss of a player as a module, so that data parallelism can follow its gradients."""

    def __init__(self, player: Player) -> None:
        super().__init__()
        self.model = player.module
        self._loss = player.loss

    def forward(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss and scalars of ``batch``."""
        return self._loss(batch)


class Learner:
    """What the trainer keeps of a player.

    Args:
        player: what learns, on the device of ``world``.
        ema_decay: highest decay of the average.
        world: this rank among its peers.
        parked: keep the optimizer's moments in host memory between steps.
    """

    def __init__(
        self, player: Player, ema_decay: float, world: World, *, parked: bool = False
    ) -> None:
        self.config = player.optimizer
        self.objective: nn.Module = Objective(player)
        if world.size > 1:
            _leave_alone(self.objective)
            self.objective = nn.parallel.DistributedDataParallel(
                self.objective, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self.learning = learning(player.module)
        self.optimizer = adamw(player.module, player.optimizer)
        self.ema = Ema(player.module, ema_decay) if player.averaged else None
        self.updates = 0
        self.rate = 0.0
        self._parked = parked
        self._host: dict[tuple[Tensor, str], Tensor] = {}

    def clip(self) -> Tensor:
        """Shorten the gradient to its largest norm; the norm it had."""
        return nn.utils.clip_grad_norm_(self.learning.values(), self.config.clip)

    def step(self, progress: float, broken: Tensor) -> None:
        """One step of the optimizer and of the average; none where ``broken`` is 1."""
        self.rate = learning_rate(self.config, self.updates, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        # With this set the fused optimizer leaves everything as it is where the flag is 1, on the
        # device and without the host.
        self.optimizer.found_inf = broken  # type: ignore[attr-defined]
        if self._parked:
            self._fetch()
        self.optimizer.step()
        if self._parked:
            self._park()
        if self.ema is not None:
            self.ema.update(self.updates, 1.0 - broken)
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1

    def _fetch(self) -> None:
        """Bring the moments to their parameters."""
        for parameter, state in self.optimizer.state.items():
            for part, value in state.items():
                state[part] = value.to(parameter.device, non_blocking=True)

    def _park(self) -> None:
        """Take the moments to host memory, each to its own place there."""
        for parameter, state in self.optimizer.state.items():
            pinned = parameter.device.type == "cuda"
            for part, value in state.items():
                key = (parameter, part)
                if key not in self._host:
                    self._host[key] = torch.empty_like(value, device="cpu", pin_memory=pinned)
                state[part] = self._host[key].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is learnt, by name."""
        held: dict[str, Tensor] = {}
        for name, parameter in self.learning.items():
            held[f"model.{name}"] = parameter
            if self.ema is not None:
                held[f"ema.{name}"] = self.ema.weights[name]
            for part, value in self.optimizer.state.get(parameter, {}).items():
                held[f"optimizer.{part}.{name}"] = value
        return held

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for name, parameter in self.learning.items():
            parameter.copy_(tensors[f"model.{name}"])
            if self.ema is not None:
                self.ema.weights[name].copy_(tensors[f"ema.{name}"])
            if f"optimizer.step.{name}" in tensors:
                moments = {"step": tensors[f"optimizer.step.{name}"].to(parameter.device)}
                for part in ("exp_avg", "exp_avg_sq"):
                    # In the memory layout of the parameter, which the fused optimizer relies on.
                    moment = torch.empty_like(parameter)
                    moments[part] = moment.copy_(tensors[f"optimizer.{part}.{name}"])
                self.optimizer.state[parameter] = moments


def _leave_alone(module: nn.Module) -> None:
    """Keep data parallelism from what does not learn, wherever it is: every rank has the same."""
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    frozen += [name for name, _ in module.named_buffers()]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, frozen)
