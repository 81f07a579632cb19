"""The transformer: tensors in, tensors out."""

from helios.model.config import TransformerConfig
from helios.model.initial import init_memory_patches, reset_parameters
from helios.model.transformer import HeliosTransformer
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
    "HeliosTransformer",
    "TransformerConfig",
    "cast",
    "check_transformer",
    "empty_transformer",
    "fp32_names",
    "init_memory_patches",
    "load_transformer",
    "published_name",
    "reset_parameters",
    "save_transformer",
]
