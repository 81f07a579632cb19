"""The transformer: tensors in, tensors out."""

from helios.model.average import average_weights
from helios.model.config import TransformerConfig
from helios.model.denoiser import bind
from helios.model.graphs import Graphs
from helios.model.initial import init_memory_patches, reset_parameters
from helios.model.lora import Adapter, Adapters, LoraConfig, adapters_of, new_adapter
from helios.model.lora_file import load_adapter, save_adapter
from helios.model.packed import PackedBlock, packed_block, packed_forward, recomputed
from helios.model.quantised import (
    Difference,
    Fp8Config,
    fp8_errors,
    is_quantised,
    lay_out,
    quantise,
    quantised,
    target_names,
)
from helios.model.recompute import recompute_blocks
from helios.model.reuse import HistoryMemory, forward_noisy, forward_recorded
from helios.model.streaming import Guest, is_streamed
from helios.model.transformer import HeliosTransformer, StepRows, TextMemory
from helios.model.wan import WAN_CLASS, load_wan
from helios.model.weights import (
    cast,
    check_transformer,
    empty_transformer,
    fp32_names,
    load_transformer,
    published_name,
    save_transformer,
)

__all__ = [
    "WAN_CLASS",
    "Adapter",
    "Adapters",
    "Difference",
    "Fp8Config",
    "Graphs",
    "Guest",
    "HeliosTransformer",
    "HistoryMemory",
    "LoraConfig",
    "PackedBlock",
    "StepRows",
    "TextMemory",
    "TransformerConfig",
    "adapters_of",
    "average_weights",
    "bind",
    "cast",
    "check_transformer",
    "empty_transformer",
    "forward_noisy",
    "forward_recorded",
    "fp8_errors",
    "fp32_names",
    "init_memory_patches",
    "is_quantised",
    "is_streamed",
    "lay_out",
    "load_adapter",
    "load_transformer",
    "load_wan",
    "new_adapter",
    "packed_block",
    "packed_forward",
    "published_name",
    "quantise",
    "quantised",
    "recompute_blocks",
    "recomputed",
    "reset_parameters",
    "save_adapter",
    "save_transformer",
    "target_names",
]
