"""Several large models that share one device: only the one in use has its frozen weights there.

Frozen weights never change, so a copy of them stays in host memory (pinned, where there is a GPU)
and taking them off the device writes nothing back; what learns stays where it is. Stage 3 needs the
student and the teacher in turn, never at once (training specification, 7.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["Residence"]


class Residence:
    """Modules of which one at a time is on the device.

    A graph that was made while a module was here needs it back here for its backward pass.

    Args:
        modules: by name; those of their parameters that do not learn come and go.
        device: where they are used.
    """

    def __init__(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        self._device = device
        self._frozen = {
            name: [p for p in module.parameters() if not p.requires_grad]
            for name, module in modules.items()
        }
        self._host = {name: [_kept(p, device) for p in own] for name, own in self._frozen.items()}
        self._here: str | None = None
        for name in modules:
            self._leave(name)

    @property
    def here(self) -> str | None:
        """The module that is on the device."""
        return self._here

    def use(self, name: str) -> None:
        """Bring a module to the device, in place of the one that is there."""
        if self._here == name:
            return
        if self._here is not None:
            self._leave(self._here)
        for parameter, held in zip(self._frozen[name], self._host[name], strict=True):
            parameter.data = held.to(self._device, non_blocking=True, copy=True)
        self._here = name

    def _leave(self, name: str) -> None:
        for parameter in self._frozen[name]:
            parameter.data = parameter.data.new_empty(0)


def _kept(parameter: nn.Parameter, device: torch.device) -> Tensor:
    """A copy in host memory from which the device can read by itself."""
    copy = parameter.detach().to("cpu", copy=True)
    return copy.pin_memory() if device.type == "cuda" else copy
