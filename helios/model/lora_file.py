"""Adapter files: PEFT's and diffusers' key names in, diffusers' out; what does not fit is refused.

A key is a prefix, a published layer name and ``lora_A.weight`` or ``lora_B.weight``; a key that is
just the published name of a parameter brings that whole tensor. The scale ``alpha / rank`` stands
in an ``.alpha`` tensor beside the factors, in the file's metadata (diffusers) or in
``adapter_config.json`` (PEFT); where nothing says otherwise it is 1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError
from helios.model.lora import Adapter, Factors, adapters_of, fits, layers_of
from helios.model.transformer import HeliosTransformer
from helios.model.weights import gain_to_ours, gain_to_published, published_name
from helios.storage import PICKLES, read_json, read_metadata, read_tensors, write_tensors

__all__ = ["load_adapter", "save_adapter"]

_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""PEFT's and diffusers' names for the file in a folder."""
_CONFIG = "adapter_config.json"
_METADATA = "lora_adapter_metadata"
_PREFIX = re.compile(r"(?:(?:base_model\.model|transformer|diffusion_model|module)\.)*")
_FACTOR = re.compile(r"(.+)\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(\.\w+)?\.weight")
_DOWN = ("lora_A", "lora_down", "lora.down")
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save\.\w+)(?=\.)")
_WAN = (
    (re.compile(r"\.self_attn\."), ".attn1."),
    (re.compile(r"\.cross_attn\."), ".attn2."),
    (re.compile(r"(?<=\.attn[12]\.)([qkv])$"), r"to_\1"),
    (re.compile(r"(?<=\.attn[12]\.)o$"), "to_out.0"),
    (re.compile(r"\.ffn\.0$"), ".ffn.net.0.proj"),
    (re.compile(r"\.ffn\.2$"), ".ffn.net.2"),
)
"""Names of layers in adapters made for the original Wan code, which ComfyUI uses."""
_SHOWN = 20


def load_adapter(path: Path, model: HeliosTransformer) -> Adapter:
    """The adapter in a file, in the model's precision and on its device; it is not attached yet.

    Args:
        path: a safetensors file, or the folder that PEFT or diffusers wrote it to.
        model: the network it is for; on the meta device, names and shapes are checked only.

    Raises:
        UnsafeCheckpointError: for a pickle; it is never opened.
        CheckpointCorruptError: if the file is damaged, or a value is not finite.
        CheckpointError: listing every key that is unknown, incomplete or of the wrong shape.
    """
    file = _find(path)
    found = _Found(file, read_tensors(file.parent, file.name), model)
    own = adapters_of(model).base_parameters()
    scaling = _Scaling.of(file)
    factors: dict[str, Factors] = {}
    tensors: dict[str, nn.Parameter] = {}
    for layer, (down, up) in found.factors.items():
        target = own[f"{layer}.weight"]
        gain = scaling.gain(_published_layer(layer), down.shape[0], found.alphas.get(layer))
        factors[layer] = Factors(_placed(file, down, target), _placed(file, up, target), gain)
    for name, tensor in found.tensors.items():
        value = gain_to_ours(name, tensor)
        tensors[name] = nn.Parameter(_placed(file, value, own[name]), requires_grad=False)
    return Adapter(factors, tensors).requires_grad_(False)


def save_adapter(adapter: Adapter, path: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write an adapter as one file that PEFT and diffusers read, whole or not at all.

    diffusers refuses files that bring whole tensors, rather than load a part of them.

    Args:
        adapter: stays as it is.
        path: must end in ``.safetensors``; its folder is made if missing.
        dtype: of every stored tensor; by default each keeps its own.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"an adapter file must end in .safetensors, got {path.name}")
    stored: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for layer, factors in adapter.factors.items():
        published = _published_layer(layer)
        stored[f"transformer.{published}.lora_A.weight"] = factors.down
        stored[f"transformer.{published}.lora_B.weight"] = factors.up
        ranks[published], alphas[published] = factors.rank, factors.gain * factors.rank
    for name, tensor in adapter.tensors.items():
        value = gain_to_published(name, tensor.detach())
        stored[f"transformer.{published_name(name)}"] = value
    metadata = {}
    if ranks:
        # diffusers hands these to PEFT's configuration word for word.
        rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
        config = {
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": sorted(ranks),
            "rank_pattern": {f"^{n}": r for n, r in ranks.items() if r != rank},
            "alpha_pattern": {f"^{n}": a for n, a in alphas.items() if a != alpha},
        }
        prefixed = {f"transformer.{key}": value for key, value in config.items()}
        metadata[_METADATA] = json.dumps(prefixed, sort_keys=True)
    size = sum(tensor.numel() * 8 for tensor in stored.values())
    write_tensors(path.parent, stored, path.name, dtype=dtype, shard_bytes=size, metadata=metadata)


def _published_layer(layer: str) -> str:
    return published_name(f"{layer}.weight").removesuffix(".weight")


def _find(path: Path) -> Path:
    """The file itself, if ``path`` is the folder around it."""
    if path.is_dir():
        files = [path / name for name in _NAMES if (path / name).is_file()]
        files = files or sorted(path.glob("*.safetensors"))
        if len(files) == 1:
            return files[0]
        if len(files) > 1:
            raise CheckpointError(f"{path} holds several adapters; name one of its files")
        pickles = sorted(p for p in path.iterdir() if p.suffix in PICKLES)
        if not pickles:
            raise CheckpointError(f"{path} holds no adapter (.safetensors)")
        path = pickles[0]
    if path.suffix in PICKLES:
        raise UnsafeCheckpointError(
            f"{path} is a pickle, which can run code when opened; convert it to safetensors"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    return path


class _Found:
    """The tensors of a file under our names, every one of them accounted for.

    Raises:
        CheckpointError: listing all that do not fit.
    """

    def __init__(self, file: Path, stored: Mapping[str, Tensor], model: HeliosTransformer) -> None:
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.tensors: dict[str, Tensor] = {}
        self.alphas: dict[str, float] = {}
        self._own = adapters_of(model).base_parameters()
        self._ours = {published_name(name): name for name in self._own}
        self._layers = layers_of(model)
        self._halves: dict[str, dict[str, Tensor]] = {}
        self._problems: list[str] = []
        for key, tensor in stored.items():
            self._sort(key, tensor)
        self._pair()
        if self._problems:
            shown = "; ".join(self._problems[:_SHOWN])
            more = len(self._problems) - _SHOWN
            tail = f"; and {more} more" if more > 0 else ""
            raise CheckpointError(f"{file} does not fit this model: {shown}{tail}")
        if not self.factors and not self.tensors:
            raise CheckpointError(f"{file} holds no adapter")

    def _sort(self, key: str, tensor: Tensor) -> None:
        name = key[_PREFIX.match(key).end() :]  # type: ignore[union-attr]
        factor = _FACTOR.fullmatch(name)
        if not tensor.is_floating_point():
            self._problems.append(f"{key} is {tensor.dtype}, expected floating point")
        elif factor:
            half = "down" if factor[2] in _DOWN else "up"
            layer = self._layer(factor[1])
            if layer is None:
                self._problems.append(f"unknown {key}")
            elif half in self._halves.setdefault(layer, {}):
                self._problems.append(f"{key} is there twice")
            else:
                self._halves[layer][half] = tensor
        elif name.endswith(".alpha") and (layer := self._layer(name.removesuffix(".alpha"))):
            if tensor.numel() == 1 and math.isfinite(float(tensor)):
                self.alphas[layer] = float(tensor)
            else:
                self._problems.append(f"{key} is not one finite number")
        else:
            self._whole(key, _WRAPPED.sub("", name), tensor)

    def _layer(self, published: str) -> str | None:
        """Our name of a layer that can have factors; none if there is no such layer."""
        for pattern, name in _WAN:
            published = pattern.sub(name, published)
        ours = self._ours.get(f"{published}.weight", "").removesuffix(".weight")
        return ours if ours in self._layers else None

    def _whole(self, key: str, published: str, tensor: Tensor) -> None:
        name = self._ours.get(published)
        if name is None:
            self._problems.append(f"unknown {key}")
        elif name in self.tensors:
            self._problems.append(f"{key} is there twice")
        elif tensor.shape != self._own[name].shape:
            expected = list(self._own[name].shape)
            self._problems.append(f"{key} is {list(tensor.shape)}, expected {expected}")
        else:
            self.tensors[name] = tensor

    def _pair(self) -> None:
        for layer, halves in self._halves.items():
            published, weight = _published_layer(layer), self._own[f"{layer}.weight"]
            if len(halves) == 1:
                absent = "lora_B" if "down" in halves else "lora_A"
                self._problems.append(f"missing {published}.{absent}.weight")
            elif fits(halves["down"], halves["up"], weight):
                self.factors[layer] = (halves["down"], halves["up"])
            else:
                shapes = f"{list(halves['down'].shape)} and {list(halves['up'].shape)}"
                self._problems.append(f"{published} has factors {shapes} for {list(weight.shape)}")
        lost = sorted(self.alphas.keys() - self._halves.keys())
        self._problems += [f"{_published_layer(layer)}.alpha has no factors" for layer in lost]


class _Scaling:
    """The part of PEFT's configuration that says how much the factors count."""

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        if config.get("use_dora"):
            raise CheckpointError(f"{source} describes a DoRA adapter; only plain LoRA is known")
        self._alpha = config.get("lora_alpha")
        self._patterns = config.get("alpha_pattern") or {}
        self._root = bool(config.get("use_rslora"))
        values: list[Any] = (
            [*self._patterns.values()] if isinstance(self._patterns, dict) else [None]
        )
        values += [] if self._alpha is None else [self._alpha]
        if not all(type(v) in (int, float) and math.isfinite(v) for v in values):
            raise CheckpointCorruptError(f"{source} does not give alpha as numbers")

    @classmethod
    def of(cls, file: Path) -> _Scaling:
        """From the file's metadata, else from the configuration beside a file named as PEFT's."""
        text = read_metadata(file).get(_METADATA)
        if text is not None:
            try:
                config = json.loads(text)
            except (ValueError, RecursionError):
                config = None
            if not isinstance(config, dict):
                raise CheckpointCorruptError(f"{file} has adapter metadata that is not JSON")
            return cls({k.removeprefix("transformer."): v for k, v in config.items()}, str(file))
        beside = file.parent / _CONFIG
        if file.name == _NAMES[0] and beside.is_file():
            return cls(read_json(beside), str(beside))
        return cls({}, str(file))

    def gain(self, layer: str, rank: int, alpha: float | None) -> float:
        """``alpha / rank`` of a layer; an alpha that stands beside its factors comes first."""
        if alpha is None:
            alpha = next((v for key, v in self._patterns.items() if _matches(key, layer)), None)
        if alpha is None:
            alpha = self._alpha
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self._root else rank)


def _matches(pattern: str, layer: str) -> bool:
    """Whether a pattern means a layer: the layer's name or the end of it, as PEFT reads it."""
    # Taken literally: a regular expression from a file could run for ever.
    if pattern.startswith("^"):
        return layer == pattern.removeprefix("^")
    return layer == pattern or layer.endswith(f".{pattern}")


def _placed(file: Path, tensor: Tensor, target: Tensor) -> Tensor:
    if target.device.type != "meta" and not bool(torch.isfinite(tensor).all()):
        raise CheckpointCorruptError(f"{file} holds values that are not finite")
    return tensor.to(target.device, target.dtype, copy=True)
