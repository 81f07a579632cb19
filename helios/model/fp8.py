"""A linear layer whose weight is e4m3 with a scale per output channel."""

from __future__ import annotations

from torch import Tensor, nn

from helios.kernels import Rows, Scaled, linear, quantise_rows

__all__ = ["Fp8Linear", "Projection", "is_bare"]


class Fp8Linear(nn.Module):
    """``x Wᵀ + b`` as a product of e4m3 numbers; for inference (performance, section 3b).

    Args:
        weight: ``[N, K]``, quantised here once, or already.
        bias: ``[N]``, kept as it is.
    """

    values: Tensor
    scale: Tensor

    def __init__(self, weight: Rows, bias: Tensor) -> None:
        super().__init__()
        held = weight if isinstance(weight, Scaled) else quantise_rows(weight.detach())
        self.register_buffer("values", held.values)
        self.register_buffer("scale", held.scale)
        self.bias = nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Scaled:
        """The weight ``[N, K]`` with its scales."""
        return Scaled(self.values, self.scale)

    @property
    def out_features(self) -> int:
        """Number of output channels."""
        return self.values.shape[0]

    @property
    def in_features(self) -> int:
        """Number of input channels."""
        return self.values.shape[1]

    def forward(self, x: Rows) -> Tensor:
        """``[..., K]`` to ``[..., N]``, in the dtype of ``x``, or of the bias if ``x`` is e4m3."""
        return linear(x, self.weight, self.bias)


Projection = nn.Linear | Fp8Linear


def is_bare(layer: nn.Module) -> bool:
    """Whether a linear layer is its weight and bias and nothing more: no adapter, no hook."""
    if type(layer) not in (nn.Linear, Fp8Linear):
        return False
    return not (layer._forward_hooks or layer._forward_pre_hooks)
