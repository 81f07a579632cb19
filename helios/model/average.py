"""The mean of several trainings of one network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["average_weights"]


@torch.no_grad()
def average_weights(network: nn.Module, others: Sequence[nn.Module]) -> None:
    """Set every parameter of ``network`` to the mean over it and ``others``.

    Trainings that went on from each other lie in one basin, where the mean is usually at least as
    good as the better one ("model soups", arXiv 2203.05482). Computed in float32, stored as it was.

    Raises:
        ValueError: if the networks have not the same parameters.
    """
    # Tied parameters are named once here; by ``state_dict`` they would be averaged twice.
    all_of_them = [dict(one.named_parameters()) for one in (network, *others)]
    shapes = [{name: value.shape for name, value in one.items()} for one in all_of_them]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("only models of the same network have a mean")
    for name, value in all_of_them[0].items():
        value.copy_(torch.stack([one[name].float() for one in all_of_them]).mean(0))
