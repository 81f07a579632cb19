"""Where the published training began: the bidirectional text-to-video transformer of Wan 2.1.

It has the blocks of Helios and no memory. Its weights are taken as they are, and the memory
patchers start as "average the latents, then the noisy patcher", copied after the weights are there
(training.md, 0.4 and F1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from helios.errors import CheckpointError
from helios.model.config import CLASS_NAME, TransformerConfig
from helios.model.initial import init_memory_patches
from helios.model.patch import Patch
from helios.model.transformer import HeliosTransformer
from helios.model.weights import empty_transformer, published_name
from helios.storage import fill, open_weights, read_json

__all__ = ["WAN_CLASS", "load_wan"]

WAN_CLASS = "WanTransformer3DModel"
"""How files of the bidirectional network call it."""
_OLD_TABLE, _TABLE = "scale_shift_table", "norm_out.scale_shift_table"
_MEMORY = ("short", "mid", "long")
_OWN_FIELDS = ("image_dim", "rope_max_seq_len", "pos_embed_seq_len")


def load_wan(folder: Path, *, device: torch.device | str = "cpu") -> HeliosTransformer:
    """A Helios transformer with the weights of ``folder``, float32.

    Args:
        folder: holds ``config.json`` and the weights of a `WAN_CLASS` for text to video.
        device: where the parameters are placed.

    Raises:
        CheckpointError: if the folder is incomplete, damaged, or holds another network.
    """
    config = _config(read_json(folder / "config.json"), folder)
    model = empty_transformer(config)
    kernels = {name: getattr(model.patches, name).kernel for name in _MEMORY}
    for name in _MEMORY:  # what no file holds is not asked for
        setattr(model.patches, name, None)
    weights = open_weights(folder)
    names = {published_name(name): name for name, _ in model.named_parameters()}
    if _TABLE not in weights.entries:
        names[_OLD_TABLE] = names[_TABLE]
    fill(model, weights, str(folder), device=device, dtype=lambda _: torch.float32, rename=names)
    for name, kernel in kernels.items():
        patch = Patch(config.in_channels, config.width, kernel).to(device)
        setattr(model.patches, name, patch)
    init_memory_patches(model)
    return model.eval()


def _config(values: dict[str, Any], folder: Path) -> TransformerConfig:
    if values.get("_class_name") != WAN_CLASS:
        raise CheckpointError(f"{folder} holds a {values.get('_class_name')}, not a {WAN_CLASS}")
    if values.get("image_dim") is not None:
        raise CheckpointError(f"{folder} reads images as well: give the text-to-video network")
    own = {key: value for key, value in values.items() if key not in _OWN_FIELDS}
    head = values.get("attention_head_dim", 128)
    side = 2 * (head // 6)
    rope = [head - 2 * side, side, side]
    return TransformerConfig.from_json({**own, "_class_name": CLASS_NAME, "rope_dim": rope})
