"""The few operations that decide the speed, each with its formula and its plain form."""

from helios.kernels.attention import attention
from helios.kernels.norm import gated_add, layer_norm, modulated_norm, rms_norm
from helios.kernels.rope import apply_rope
from helios.kernels.varlen import varlen_attention

__all__ = [
    "apply_rope",
    "attention",
    "gated_add",
    "layer_norm",
    "modulated_norm",
    "rms_norm",
    "varlen_attention",
]
