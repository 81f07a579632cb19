"""The few operations that decide the speed, each with its formula and its plain form."""

from helios.kernels.attention import (
    Backend,
    Heads8,
    attention,
    attention_e4m3,
    choose,
    quantise_centred,
    quantise_heads,
)
from helios.kernels.dispatch import Machine, gpu_number, machine_of, plain, simulated
from helios.kernels.e4m3 import E4M3
from helios.kernels.gelu import gelu
from helios.kernels.linear import linear, linear_gelu, product_error, side_by_side
from helios.kernels.norm import (
    gated_add,
    gated_add_layer_norm,
    gated_add_modulated_norm,
    layer_norm,
    modulated_norm,
    rms_norm,
    text_add_modulated_norm,
)
from helios.kernels.paths import Path, paths
from helios.kernels.rope import apply_rope, bound_factor, norm_rope, norm_rope_e4m3
from helios.kernels.scaled import Rows, Scaled, quantise_rows
from helios.kernels.stream import Stream, rounds_late
from helios.kernels.varlen import varlen_attention

__all__ = [
    "E4M3",
    "Backend",
    "Heads8",
    "Machine",
    "Path",
    "Rows",
    "Scaled",
    "Stream",
    "apply_rope",
    "attention",
    "attention_e4m3",
    "bound_factor",
    "choose",
    "gated_add",
    "gated_add_layer_norm",
    "gated_add_modulated_norm",
    "gelu",
    "gpu_number",
    "layer_norm",
    "linear",
    "linear_gelu",
    "machine_of",
    "modulated_norm",
    "norm_rope",
    "norm_rope_e4m3",
    "paths",
    "plain",
    "product_error",
    "quantise_centred",
    "quantise_heads",
    "quantise_rows",
    "rms_norm",
    "rounds_late",
    "side_by_side",
    "simulated",
    "text_add_modulated_norm",
    "varlen_attention",
]
