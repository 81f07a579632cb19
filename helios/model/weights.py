"""Published tensor names and ours; reading, casting and writing a transformer.

One table relates the two, both ways. Files hold published names only
(specification "model and sampling", sections 1.1 to 1.4).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from helios.errors import CheckpointError
from helios.kernels import quantise_rows
from helios.model.config import TransformerConfig
from helios.model.lora import adapters_of
from helios.model.quantised import (
    Fp8Config,
    is_quantised,
    lay_out,
    make_room,
    target_names,
    tokens_in_e4m3,
)
from helios.model.streaming import Home, is_streamed, spread, stream_blocks
from helios.model.transformer import HeliosTransformer
from helios.storage import (
    SHARD_BYTES,
    TensorEntry,
    Weights,
    check_entries,
    open_weights,
    place,
    read_json,
    write_json,
    write_tensors,
)

__all__ = [
    "cast",
    "check_transformer",
    "empty_transformer",
    "fp32_names",
    "load_transformer",
    "published_name",
    "save_transformer",
]

_OUTSIDE = {
    "patches.noisy": "patch_embedding",
    "patches.short": "patch_short",
    "patches.mid": "patch_mid",
    "patches.long": "patch_long",
    "time.linear1": "condition_embedder.time_embedder.linear_1",
    "time.linear2": "condition_embedder.time_embedder.linear_2",
    "time.project": "condition_embedder.time_proj",
    "text.linear1": "condition_embedder.text_embedder.linear_1",
    "text.linear2": "condition_embedder.text_embedder.linear_2",
    "head.modulation": "norm_out.scale_shift_table",
    "head.project": "proj_out",
}
_INSIDE = {
    "modulation": "scale_shift_table",
    "self_attention.query": "attn1.to_q",
    "self_attention.key": "attn1.to_k",
    "self_attention.value": "attn1.to_v",
    "self_attention.out": "attn1.to_out.0",
    "self_attention.query_norm": "attn1.norm_q",
    "self_attention.key_norm": "attn1.norm_k",
    "self_attention.history_gain": "attn1.history_key_scale",
    "cross_attention.query": "attn2.to_q",
    "cross_attention.key": "attn2.to_k",
    "cross_attention.value": "attn2.to_v",
    "cross_attention.out": "attn2.to_out.0",
    "cross_attention.query_norm": "attn2.norm_q",
    "cross_attention.key_norm": "attn2.norm_k",
    "cross_norm": "norm2",
    "feed_forward.expand": "ffn.net.0.proj",
    "feed_forward.contract": "ffn.net.2",
}
_FP8_LEAVES = {"values": "weight", "scale": "weight_scale"}
"""Tensors of a layer in e4m3, and what they are called in a file."""
_FP8_ENTRY, _FP8_VERSION = "fp8", 1
"""The entry of a quantised transformer's ``config.json``, and its version."""
_KEPT_FP32 = (
    "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "history_key_scale",
)  # fmt: skip
_BLOCK = re.compile(r"(blocks\.\d+\.)(.*)")
_LAST_TABLE, _OLD_LAST_TABLE = "norm_out.scale_shift_table", "scale_shift_table"
"""Name of the last modulation table, and what old snapshots call it."""
_MAX_GAIN = 10.0
"""Published history gains lie between 1 and this."""


def published_name(name: str) -> str:
    """The published name of one of our parameters, such as ``head.project.weight``.

    Raises:
        KeyError: if the transformer has no such parameter.
    """
    block = _BLOCK.fullmatch(name)
    prefix, rest = block.groups() if block else ("", name)
    table = _INSIDE if block else _OUTSIDE
    module, _, leaf = rest.rpartition(".")
    leaf = _FP8_LEAVES.get(leaf, leaf)
    return prefix + (f"{table[module]}.{leaf}" if module in table else table[rest])


def fp32_names(model: HeliosTransformer) -> frozenset[str]:
    """Our names of the parameters that stay float32 in a half-precision model (section 1.4)."""
    names = (name for name, _ in model.named_parameters())
    return frozenset(n for n in names if any(kept in published_name(n) for kept in _KEPT_FP32))


def cast(model: HeliosTransformer, dtype: torch.dtype) -> HeliosTransformer:
    """Change the model's dtype in place, all but :func:`fp32_names`, and return it.

    The right form of ``model.to(dtype)``, which would narrow the float32 parameters as well.
    """
    kept = fp32_names(model)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if name in kept else dtype)
    return model


def load_transformer(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    fp8: Fp8Config | None = None,
    away: int = 0,
) -> HeliosTransformer:
    """Read a transformer from a folder in the published layout.

    Tensor by tensor in the dtype wanted: the model is never in host memory twice. One that was
    saved quantised comes back so.

    Args:
        folder: holds ``config.json`` and the weights, sharded or not.
        device: where the parameters are placed.
        dtype: of all parameters but :func:`fp32_names`.
        fp8: what becomes e4m3 as soon as it is read, so that the model is never on the device in
            full; of one that was saved quantised nothing more.
        away: blocks whose matrices stay in host memory and come for every pass.

    Raises:
        CheckpointError: if the folder is incomplete, damaged, or does not fit its configuration.
    """
    model, weights, names = _matched(folder)
    special = _special_dtypes(model)
    check_entries(model, weights, str(folder), rename=names)
    placed = place(
        weights,
        device=device,
        dtype=lambda name: special.get(name, dtype),
        rename=names,
        convert=gain_to_ours,
    )
    if fp8 is not None and not is_quantised(model):
        wanted = frozenset(target_names(model, fp8))
        make_room(model, fp8.attention_from, wanted)
        placed = _narrowed(placed, wanted)
    apart = spread(len(model.blocks), away)
    if apart:
        home = Home(device)
        placed = (
            (name, home.keep(tensor) if is_streamed(name, apart) else tensor)
            for name, tensor in placed
        )
    model.load_state_dict(dict(placed), strict=True, assign=True)
    # On a CPU weights may lie in the mapped file, which costs no memory of its own.
    if model.device.type == "cuda":
        lay_out(model, apart)
    if apart:
        stream_blocks(model, device, apart)
    return model.eval()


def check_transformer(folder: Path) -> None:
    """Check by configuration and headers alone that ``load_transformer`` would succeed.

    Raises:
        CheckpointError: as there.
    """
    model, weights, names = _matched(folder)
    check_entries(model, weights, str(folder), rename=names)


def empty_transformer(config: TransformerConfig) -> HeliosTransformer:
    """A transformer on the meta device: every shape, no memory."""
    with torch.device("meta"):
        return HeliosTransformer(config)


def _matched(folder: Path) -> tuple[HeliosTransformer, Weights, dict[str, str]]:
    """The empty model, what is stored for it, and our names of stored ones."""
    settings = read_json(folder / "config.json")
    model = empty_transformer(TransformerConfig.from_json(settings))
    stored = open_weights(folder).entries
    if _FP8_ENTRY in settings:
        make_room(model, _read_fp8(folder, settings[_FP8_ENTRY]), _stored_in_e4m3(model, stored))
    weights = Weights({key: entry for key, entry in stored.items() if "norm_added_q" not in key})
    names = {published_name(name): name for name in model.state_dict()}
    if _LAST_TABLE not in stored and _OLD_LAST_TABLE in stored:
        names[_OLD_LAST_TABLE] = names[_LAST_TABLE]
    return model, weights, names


def _narrowed(
    tensors: Iterable[tuple[str, Tensor]], layers: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """The same with the weights of ``layers`` in e4m3, their scales beside them."""
    for name, tensor in tensors:
        layer, _, leaf = name.rpartition(".")
        if leaf != "weight" or layer not in layers:
            yield name, tensor
            continue
        held = quantise_rows(tensor)
        yield f"{layer}.values", held.values
        yield f"{layer}.scale", held.scale


def _special_dtypes(model: HeliosTransformer) -> dict[str, torch.dtype]:
    """Our names of what has a dtype of its own, whatever that of the model."""
    special = dict.fromkeys(fp32_names(model), torch.float32)
    return special | {name: buffer.dtype for name, buffer in model.named_buffers()}


def _read_fp8(folder: Path, entry: object) -> int | None:
    """The length from which attention is in e4m3, of a quantised transformer's settings."""
    tokens = entry.get("attention_from", 0) if isinstance(entry, dict) else 0
    known = isinstance(entry, dict) and entry.get("version") == _FP8_VERSION
    if not known or not (tokens is None or (type(tokens) is int and tokens > 0)):
        raise CheckpointError(f"{folder}: its fp8 settings cannot be used: {entry!r}")
    return tokens


def _stored_in_e4m3(model: HeliosTransformer, stored: Mapping[str, TensorEntry]) -> set[str]:
    """Our names of the layers whose weights are stored in e4m3."""
    own = {published_name(name): name for name, _ in model.named_parameters()}
    eight = (own.get(name) for name, entry in stored.items() if entry.dtype == "F8_E4M3")
    return {name.removesuffix(".weight") for name in eight if name is not None}


def save_transformer(
    model: HeliosTransformer,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a transformer in the published layout; diffusers reads it too, unless it is quantised:
    then weights are e4m3 with a ``weight_scale`` beside each.

    Args:
        model: stays as it is; adapters on it are no part of it until they are merged.
        folder: made if missing; ``config.json`` and the weights in it are replaced.
        dtype: of every stored tensor; by default each keeps its own.
        shard_bytes: more than this goes into several files with an index.

    Raises:
        CheckpointError: if a history gain has left the range the published form can hold.
        ValueError: if another dtype is wanted of a quantised transformer.
    """
    tensors = {
        published_name(name): gain_to_published(name, parameter.detach())
        for name, parameter in adapters_of(model).base_parameters().items()
    }
    settings = model.config.to_json()
    if is_quantised(model):
        if dtype is not None:
            raise ValueError(f"a quantised transformer is stored as it is, not as {dtype}")
        tensors |= {published_name(name): buffer for name, buffer in model.named_buffers()}
        entry = {"version": _FP8_VERSION, "attention_from": tokens_in_e4m3(model)}
        settings |= {_FP8_ENTRY: entry}
    write_tensors(folder, tensors, dtype=dtype, shard_bytes=shard_bytes)
    write_json(folder / "config.json", settings)


def gain_to_ours(name: str, value: Tensor) -> Tensor:
    """Published ``1 + 9 sigmoid(q)`` as our ``exp(p)`` (training.md, 0.2); others unchanged."""
    if not name.endswith("history_gain"):
        return value
    return torch.log1p((_MAX_GAIN - 1) * value.double().sigmoid()).to(value.dtype)


def gain_to_published(name: str, value: Tensor) -> Tensor:
    """The inverse; a gain of exactly 1 becomes minus infinity, which reads back as 1."""
    if not name.endswith("history_gain"):
        return value
    share = torch.expm1(value.double()) / (_MAX_GAIN - 1)
    if not bool(((share >= 0) & (share < 1)).all()):
        raise CheckpointError(
            f"{name} gives gains from {value.exp().min():.3f} to {value.exp().max():.3f}; "
            f"the published form holds 1 to {_MAX_GAIN:.0f}"
        )
    return torch.logit(share).to(value.dtype)
