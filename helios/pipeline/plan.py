"""What a model will need, from its JSON alone: device memory, host memory, disk and speed.

Parameters are counted on the meta device, so those figures are exact. Activations follow from what
is alive at the widest point of a forward pass, measured once for this implementation. Speed is a
roofline (specification "model and sampling", section 10) at a stated share of the peak.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helios.codec import AutoencoderConfig, WanAutoencoder
from helios.diffusion import Pyramid
from helios.errors import CheckpointError
from helios.geometry import CHUNK_FRAMES, CHUNK_LATENTS, latent_size, token_count
from helios.history import LONG_POSITIONS, MID_POSITIONS, SHORT_POSITIONS
from helios.kernels import E4M3
from helios.model import (
    Fp8Config,
    TransformerConfig,
    empty_transformer,
    fp32_names,
    is_streamed,
    target_names,
)
from helios.pipeline.machines import Machine, find_machine
from helios.storage import read_json

if TYPE_CHECKING:
    from helios.diffusion import Plan
    from helios.model import HeliosTransformer
    from helios.pipeline.build import ModelFolder

__all__ = [
    "LEAN_GROUP",
    "Forecast",
    "Sizes",
    "arithmetic",
    "blocks_away",
    "check_chunk_fits",
    "check_fits",
    "chunk_memory",
    "decode_flops",
    "dtype_name",
    "forecast",
    "forward_flops",
    "transformer_activations",
]

EFFICIENCY = 0.55
"""Share of the peak that whole forward passes are expected to reach; an H200 reached 0.58."""
_LAUNCH = 1e-4
"""Seconds that a block takes at least, however small."""
_ACTIVATIONS = 10
"""Tensors of ``[L, D]`` alive in self-attention, the widest point unless the hidden width is."""
_DECODER_MAPS = 4.3
"""Feature maps at full resolution alive while a chunk is decoded."""
_KEPT_MAPS = 32
"""Maps of one frame that a group keeps of the one before, at every convolution, and its surplus."""
LEAN_GROUP = 1
"""Latent frames that are decoded at a time where memory is short."""
_SLOTS = 2
"""Blocks from host memory that have room on the device: the one that runs, and the next."""
_GAPS = 0.03
"""Of what is used of a GPU's memory, what the allocator holds beside it and cannot use."""
_BUS = 2e10
"""Bytes a second from host memory to a device."""
_GRAPHS = 3
"""Forward passes' memory that the graphs of all scales keep, text and workspaces counted in."""
_RUNTIME = {"cpu": 0.5 * 2**30, "cuda": 1.0 * 2**30}
"""Bytes on the device beside tensors: the process, or CUDA's context and allocator."""
_HOST_OF_CUDA = 3.0 * 2**30
"""Host bytes of a process that works on a CUDA device."""
_TEXT_BUCKETS = 32
_TEXT_ROWS = 512
"""Of a text embedding, whose keys and values every block keeps."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of a model's parameters in one dtype.

    Attributes:
        parts: by component.
        largest: of its largest tensor: what passes through host memory on the way to a device.
        blocks: of the transformer.
        block: bytes of the matrices of one, which may stay in host memory.
        away: components that do.
    """

    parts: dict[str, int]
    largest: int
    blocks: int
    block: int
    away: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        """Bytes of all parameters that are on the device."""
        return sum(size for part, size in self.parts.items() if part not in self.away)

    @property
    def host(self) -> int:
        """Bytes of those that stay in host memory."""
        return sum(self.parts[part] for part in self.away)

    @property
    def least(self) -> int:
        """Bytes on the device with every block's matrices in host memory: two have room to come."""
        return self.total - max(0, self.blocks - _SLOTS) * self.block

    def streamed(self, spare: float) -> int:
        """Blocks whose matrices have to stay in host memory for the rest to fit.

        Args:
            spare: bytes of the device that are left with all of them on it; negative if too few.
        """
        if spare >= 0:
            return 0
        return min(self.blocks, ceil(-spare / self.block) + _SLOTS)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one model needs on one machine; all sizes in bytes.

    Attributes:
        machine: where.
        weights: parameters by component.
        away: components that stay in host memory.
        streamed: blocks of the transformer whose matrices do.
        activations: at the peak of generating one chunk.
        device: needed on the device in all.
        host: needed in host memory in all.
        disk: of all files.
        download: of the files that are not here yet.
        disk_free: where they go.
        flops: of one chunk after the first.
        fps: frames a second after the first chunk, None where the machine's peak is not known.
    """

    machine: Machine
    weights: dict[str, int]
    away: frozenset[str]
    streamed: int
    activations: int
    device: int
    host: int
    disk: int
    download: int
    disk_free: int
    flops: float
    fps: float | None

    def problems(self) -> dict[str, str]:
        """What does not fit, by ``"memory"`` and ``"disk"``; empty if everything does."""
        found = {}
        machine = self.machine
        if machine.memory is not None and self.device > machine.memory:
            found["memory"] = f"{machine.name}: {_needs(self.device, machine.memory)}"
        elif machine.kind == "cuda" and machine.host is not None and self.host > machine.host:
            found["memory"] = f"host memory: {_needs(self.host, machine.host)}"
        if self.download > self.disk_free:
            found["disk"] = f"disk: {_needs(self.download, self.disk_free)}"
        return found

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "machine": self.machine.name,
            "weights": self.weights,
            "in_host_memory": sorted(self.away),
            "blocks_in_host_memory": self.streamed,
            "activations": self.activations,
            "device": self.device,
            "device_free": self.machine.memory,
            "host": self.host,
            "host_free": self.machine.host,
            "disk": self.disk,
            "download": self.download,
            "disk_free": self.disk_free,
            "flops_per_chunk": self.flops,
            "frames_per_second": self.fps,
            "problems": self.problems(),
        }


def forecast(
    model: ModelFolder,
    machine: Machine,
    dtype: torch.dtype,
    *,
    height: int | None = None,
    width: int | None = None,
    low_memory: bool = False,
) -> Forecast:
    """Predict what generating with ``model`` needs; no weight is read.

    Args:
        model: its small files.
        machine: where it is to run.
        dtype: of transformer, text encoder and decoder; of ``pick_dtype``.
        height: of the video in pixels; the model's own if not given.
        width: likewise.
        low_memory: as ``load_inspected`` does it; nothing on a CPU.

    Raises:
        CheckpointError: if a configuration cannot be used.
        ValueError: for a size this model cannot make.
    """
    from helios.pipeline.request import Request

    asked = Request.make(prompt="a", height=height, width=width)
    resolved = model.defaults.resolve(asked, model.schedule)
    transformer, autoencoder = _configs(model)
    lean = low_memory and machine.kind == "cuda"
    sizes = measure(model, dtype, low_memory=lean)
    rows, columns = latent_size(resolved.height, resolved.width)
    activations = chunk_memory(
        transformer,
        autoencoder,
        resolved.height,
        resolved.width,
        dtype,
        overlapped=machine.kind == "cuda",
        low_memory=lean,
    )
    forwards = _forwards(resolved.plan, 1 if resolved.guidance is None else 2)
    counts = [
        (count, forward_flops(transformer, rows, columns, scale=scale)) for count, scale in forwards
    ]
    decode = decode_flops(autoencoder, rows, columns)
    on_device = sizes.total + activations + int(_RUNTIME[machine.kind])
    streamed = away = 0
    if lean:
        if machine.memory is not None:
            streamed = sizes.streamed(machine.memory / (1 + _GAPS) - on_device)
        away = streamed * sizes.block
        on_device -= away - min(streamed, _SLOTS) * sizes.block
        on_device = int(on_device * (1 + _GAPS))
    fps = None
    if machine.flops and machine.bandwidth:
        peak = machine.flops * EFFICIENCY * (1 if dtype.itemsize <= 2 else 0.5)
        reading = sizes.parts["transformer"] / machine.bandwidth
        least = max(reading, transformer.num_layers * _LAUNCH, away / _BUS)
        seconds = sum(count * max(flops / peak, least) for count, flops in counts)
        fps = CHUNK_FRAMES / (seconds + decode / peak)
    on_host = on_device
    if machine.kind != "cpu":
        on_host = int(_HOST_OF_CUDA) + sizes.largest + sizes.host + away
    disk = sum(file.stat().st_size for file in model.folder.rglob("*") if file.is_file())
    download = 0
    if model.hub is not None and model.hub.files is not None:
        disk, download = sum(file.size for file in model.hub.files), model.hub.download_bytes
    return Forecast(
        machine=machine,
        weights=sizes.parts,
        away=sizes.away,
        streamed=streamed,
        activations=activations,
        device=on_device,
        host=on_host,
        disk=disk,
        download=download,
        disk_free=shutil.disk_usage(model.folder).free,
        flops=sum(count * flops for count, flops in counts) + decode,
        fps=fps,
    )


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What all but the matrix products of a model in ``dtype`` is computed in."""
    return torch.bfloat16 if dtype == E4M3 else dtype


def measure(model: ModelFolder, dtype: torch.dtype, *, low_memory: bool = False) -> Sizes:
    """Count a model's parameters, as loading in ``dtype`` will leave them.

    Raises:
        CheckpointError: if a configuration cannot be used.
    """
    transformer, autoencoder = _configs(model)
    network = empty_transformer(transformer)
    kept = fp32_names(network)
    narrow = _in_e4m3(network, model, dtype)
    width = arithmetic(dtype).itemsize

    def stored(name: str, parameter: nn.Parameter) -> int:
        if name in narrow:
            return parameter.numel() + 4 * len(parameter)
        return parameter.numel() * (4 if name in kept else width)

    own = {name: stored(name, parameter) for name, parameter in network.named_parameters()}
    tensors = {
        "transformer": list(own.values()),
        "vae": [
            p.numel() * (width if name.startswith(("decoder.", "post_quant_conv.")) else 4)
            for name, p in _empty_autoencoder(autoencoder).named_parameters()
        ],
    }
    if model.has_text_encoder:
        config = read_json(model.folder / "text_encoder" / "config.json")
        tensors["text_encoder"] = [count * width for count in _text_tensors(config)]
    return Sizes(
        parts={part: sum(sizes) for part, sizes in tensors.items()},
        largest=max(max(sizes) for sizes in tensors.values()),
        blocks=transformer.num_layers,
        block=sum(size for name, size in own.items() if is_streamed(name, (0,))),
        away=frozenset(tensors.keys() & {"text_encoder"}) if low_memory else frozenset(),
    )


def _in_e4m3(network: HeliosTransformer, model: ModelFolder, dtype: torch.dtype) -> frozenset[str]:
    """The weights that are e4m3 in ``dtype``, or in the files."""
    stored = "fp8" in read_json(model.folder / "transformer" / "config.json")
    if dtype != E4M3 and not stored:
        return frozenset()
    return frozenset(f"{layer}.weight" for layer in target_names(network, Fp8Config()))


def check_fits(
    model: ModelFolder, device: torch.device, dtype: torch.dtype, *, low_memory: bool = False
) -> None:
    """Refuse weights that cannot fit on ``device``, before any is read.

    Raises:
        MemoryError: saying how much is needed and how much is free.
        CheckpointError: if a configuration cannot be used.
    """
    free = find_machine(device).memory
    sizes = measure(model, dtype, low_memory=low_memory)
    need = sizes.least if low_memory else sizes.total
    if free is not None and need > free:
        hint = _thrift(device.type, dtype, low_memory)
        raise MemoryError(
            f"the weights of {model.name} on {device} in {dtype_name(dtype)}: "
            f"{_needs(need, free)}; {hint}"
        )


def check_chunk_fits(
    model: ModelFolder,
    machine: Machine,
    dtype: torch.dtype,
    height: int,
    width: int,
    *,
    low_memory: bool = False,
) -> None:
    """Refuse a size of which ``machine`` cannot hold one chunk beside the weights.

    Args:
        model: its small files.
        machine: as it was before the model was loaded.
        dtype: of the networks.
        height: in pixels.
        width: likewise.
        low_memory: as ``load_inspected`` does it; nothing on a CPU.

    Raises:
        MemoryError: saying how much is needed and how much is free.
        CheckpointError: if a configuration cannot be used.
    """
    overlapped = machine.kind == "cuda"
    lean = low_memory and overlapped
    chunk = chunk_memory(
        *_configs(model), height, width, dtype, overlapped=overlapped, low_memory=lean
    )
    sizes = measure(model, dtype, low_memory=lean)
    need = (sizes.least if lean else sizes.total) + chunk
    if machine.memory is not None and need > machine.memory:
        raise MemoryError(
            f"{width}x{height} by {model.name} on {machine.name}, weights included: "
            f"{_needs(need, machine.memory)}; {_thrift(machine.kind, dtype, lean)}"
        )


def blocks_away(model: ModelFolder, device: torch.device, dtype: torch.dtype) -> int:
    """Blocks whose matrices have to stay in host memory for one chunk to be made on ``device``.

    Args:
        model: its small files; of the size that it makes by default.
        device: CUDA, with what is free there now.
        dtype: of ``pick_dtype``.

    Raises:
        CheckpointError: if a configuration cannot be used.
    """
    return forecast(model, find_machine(device), dtype, low_memory=True).streamed


def dtype_name(dtype: torch.dtype) -> str:
    """As people write it: ``"bfloat16"``, ``"fp8"``."""
    return "fp8" if dtype == E4M3 else str(dtype).removeprefix("torch.")


def _thrift(kind: str, dtype: torch.dtype, low_memory: bool) -> str:
    """What to do about too little memory."""
    ways = ["--dtype fp8"] * (dtype != E4M3) + ["--low-memory"] * (not low_memory)
    if kind != "cuda" or not ways:
        return "see helios plan"
    return f"need less with {' '.join(ways)}; see helios plan"


def transformer_activations(
    config: TransformerConfig, rows: int, columns: int, dtype: torch.dtype
) -> int:
    """Bytes alive at the widest point of one forward pass on latents ``[9, rows, columns]``."""
    noisy, history = _tokens(rows, columns, 1)
    wide = max(_ACTIVATIONS * config.width, 3 * config.width + 2 * config.ffn_dim)
    return (noisy + history) * wide * dtype.itemsize


def chunk_memory(
    transformer: TransformerConfig,
    autoencoder: AutoencoderConfig,
    height: int,
    width: int,
    dtype: torch.dtype,
    *,
    overlapped: bool = False,
    low_memory: bool = False,
) -> int:
    """Bytes that making and decoding one chunk takes on the device, beside the weights.

    Args:
        transformer: its sizes.
        autoencoder: likewise.
        height: in pixels.
        width: likewise.
        dtype: of both networks.
        overlapped: as on CUDA, where a chunk is decoded beside the making of the next and the graph
            of each scale keeps its memory. At 14B and 384x640 that is 10.2 GB; an H200 held 8.2.
        low_memory: on CUDA one after the other, decoding in groups of latents.
    """
    rows, columns = latent_size(height, width)
    kind = arithmetic(dtype)
    decoder = _decoder_activations(
        autoencoder, height, width, kind, group=LEAN_GROUP if low_memory else None
    )
    forward = transformer_activations(transformer, rows, columns, kind)
    if overlapped:
        # There the decoder keeps its weights in another order as well.
        weights = _empty_autoencoder(autoencoder).decoder.parameters()
        decoder += sum(weight.numel() for weight in weights) * kind.itemsize
    if low_memory:
        words = 2 * transformer.num_layers * _TEXT_ROWS * transformer.width * kind.itemsize
        return words + max(forward, decoder)
    return decoder + _GRAPHS * forward if overlapped else max(forward, decoder)


def forward_flops(
    config: TransformerConfig, rows: int, columns: int, *, text: int = 512, scale: int = 1
) -> float:
    """Operations of one forward pass, two per multiplication (section 10.1).

    Args:
        config: the network.
        rows: of full-size latents, which the history has.
        columns: likewise.
        text: rows of the text embedding.
        scale: the noisy latents are this many times smaller on a side.
    """
    noisy, history = _tokens(rows, columns, scale)
    length, width, hidden = noisy + history, config.width, config.ffn_dim
    read = noisy if config.guidance_cross_attn else length
    block = (
        (8 * width**2 + 4 * width * hidden) * length
        + 4 * width * length**2
        + (4 * width**2 + 4 * width * text) * read
        + 4 * width**2 * text
    )
    # Every patcher reads 64 numbers a token for each token it merges; the head writes 64.
    short, mid, long = _history_tokens(rows, columns)
    patches = 2 * 4 * config.in_channels * width * (noisy + short + 8 * mid + 64 * long)
    head = 2 * 4 * config.out_channels * width * noisy
    text_in = 2 * text * width * (config.text_dim + width)
    return float(config.num_layers * block + patches + head + text_in)


def decode_flops(config: AutoencoderConfig, rows: int, columns: int) -> float:
    """Operations of decoding one chunk, counted on the meta device."""
    network = _empty_autoencoder(config)
    latents = torch.empty(1, config.z_dim, CHUNK_LATENTS, rows, columns, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.decode_patches(latents)
    return float(counter.get_total_flops())


def _decoder_activations(
    config: AutoencoderConfig, height: int, width: int, dtype: torch.dtype, group: int | None
) -> int:
    maps = _DECODER_MAPS * CHUNK_FRAMES
    if group is not None:
        maps = min(maps, _DECODER_MAPS * config.temporal_ratio * group + _KEPT_MAPS)
    pixels = (height // config.patch) * (width // config.patch)
    return int(maps * pixels * config.decoder_width * dtype.itemsize)


def _tokens(rows: int, columns: int, scale: int) -> tuple[int, int]:
    """Noisy tokens at a scale, and history tokens."""
    noisy = token_count(CHUNK_LATENTS, rows // scale, columns // scale)
    return noisy, sum(_history_tokens(rows, columns))


def _history_tokens(rows: int, columns: int) -> tuple[int, int, int]:
    """Tokens of the short, mid and long streams (section 2.3)."""
    return (
        len(SHORT_POSITIONS) * ceil(rows / 2) * ceil(columns / 2),
        ceil(len(MID_POSITIONS) / 2) * ceil(rows / 4) * ceil(columns / 4),
        ceil(len(LONG_POSITIONS) / 4) * ceil(rows / 8) * ceil(columns / 8),
    )


def _forwards(plan: Plan, branches: int) -> list[tuple[int, int]]:
    """How many forward passes a chunk takes, each with how much smaller its latents are."""
    if not isinstance(plan, Pyramid):
        return [(plan.steps * branches, 1)]
    last = len(plan.steps) - 1
    counts = list(plan.steps)
    counts[0] = max(0, counts[0] - plan.zero_init)
    return [(count * branches, 2 ** (last - stage)) for stage, count in enumerate(counts)]


def _configs(model: ModelFolder) -> tuple[TransformerConfig, AutoencoderConfig]:
    def values(part: str) -> dict[str, Any]:
        return read_json(model.folder / part / "config.json")

    return (
        TransformerConfig.from_json(values("transformer")),
        AutoencoderConfig.from_json(values("vae")),
    )


def _empty_autoencoder(config: AutoencoderConfig) -> WanAutoencoder:
    try:
        with torch.device("meta"):
            return WanAutoencoder(config)
    except ValueError as error:
        raise CheckpointError(f"the autoencoder's configuration is not usable: {error}") from None


def _text_tensors(config: dict[str, Any]) -> list[int]:
    """Elements of every parameter of a UMT5 encoder."""
    try:
        vocabulary, width, ffn = config["vocab_size"], config["d_model"], config["d_ff"]
        heads, layers = config["num_heads"], config["num_layers"]
        inner = heads * config["d_kv"]
        buckets = config.get("relative_attention_num_buckets", _TEXT_BUCKETS)
        gated = 2 if config.get("feed_forward_proj", "gated-gelu").startswith("gated") else 1
        block = [inner * width] * 4 + [buckets * heads, width, width] + [width * ffn] * (gated + 1)
        return [vocabulary * width, width, *(block * layers)]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the text encoder's config.json cannot be used ({error!r})"
        ) from None


def _needs(need: float, free: float) -> str:
    return f"{need / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
