"""The judge's file: every weight a few whole steps, chosen so that its answers stay.

``weights.safetensors.xz`` is one safetensors file, compressed by xz. A matrix, kernel or table
``[R, ...]`` is int8 of that shape beside the fp16 length of a step for each of its R rows, under
its name with ``.scale`` behind it: a weight is the product of both. Vectors are fp16, running
statistics fp32, counters int64.

Steps are long (`STEPS`), so most numbers are small; xz spends on each number what its frequency is
worth, under five bits. What rounding one weight does to a layer's outputs is made up for by weights
not yet rounded whose inputs resemble its own (GPTQ, arXiv 2210.17323), which takes some clips to
see what inputs are like.
"""

from __future__ import annotations

import lzma
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from helios.errors import CheckpointCorruptError, CheckpointError
from helios.evaluation.metrics.scene_judge import JudgeConfig, SceneJudge, channels_last
from helios.storage import assign, atomic_path, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

__all__ = ["JUDGE_FOLDER", "input_products", "load_judge", "row_steps", "save_judge", "whole_steps"]

JUDGE_FOLDER = Path(__file__).parents[2] / "assets" / "judge"
"""The bundled judge."""

WEIGHTS = "weights.safetensors.xz"
SCALE = ".scale"
"""What the name of a weight's steps ends with."""

STEPS = 1500.0
"""Steps to the root mean square of a row, times the root of the weights in its layer. Layers matter
about equally, so a byte more is worth the same everywhere when the square of a step grows as their
number does."""
LEVELS = 127
"""Most steps from zero."""
DAMPING = 0.01
"""Share of the inputs' mean square that is added to each one's: few clips do not show them all."""
PLACES = 512
"""Places of a batch at which a layer's inputs are looked at."""

# Of each byte by itself: there are no words here that repeat.
_PRESET = 9 | lzma.PRESET_EXTREME
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": _PRESET, "lc": 0, "lp": 0, "pb": 0}]


def save_judge(judge: SceneJudge, folder: Path, clips: Tensor) -> None:
    """Write ``config.json`` and the weights, rounded so that little changes on ``clips``.

    The same judge and clips give the same bytes.

    Args:
        judge: in evaluation mode; it is not changed.
        folder: made if missing.
        clips: uint8 ``[B, T, H, W, 3]``, like those that will be judged; sixteen are enough.

    Raises:
        RuntimeError: if the judge is in training mode, where looking would change it.
    """
    from safetensors.torch import save

    products = input_products(judge, clips)
    tensors: dict[str, Tensor] = {}
    for name, value in judge.state_dict().items():
        if value.ndim > 1:
            rows = value.double().cpu().flatten(1)
            step = row_steps(rows)
            # What is no layer's weight has no inputs: each number is rounded by itself.
            seen = products.get(name.removesuffix(".weight"), torch.eye(rows.shape[1]).double())
            tensors[name] = whole_steps(rows, step, seen).view(value.shape)
            tensors[name + SCALE] = step
        else:
            narrow = value.is_floating_point() and "running" not in name
            tensors[name] = value.half() if narrow else value
    folder.mkdir(parents=True, exist_ok=True)
    packed = lzma.compress(save(tensors), filters=_FILTERS)
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(packed)
    write_json(folder / "config.json", judge.config.to_json())


def load_judge(folder: Path = JUDGE_FOLDER, device: torch.device | str = "cpu") -> SceneJudge:
    """The judge in ``folder``, in fp32 and ready to read.

    Raises:
        CheckpointError: if the folder holds none or its weights do not fit.
    """
    judge = SceneJudge(JudgeConfig.from_json(read_json(folder / "config.json")))
    tensors = _read(folder / WEIGHTS)
    for name in [name for name in tensors if name + SCALE in tensors]:
        scale = tensors.pop(name + SCALE).float()
        tensors[name] = tensors[name].float() * scale.view(-1, *[1] * (tensors[name].ndim - 1))
    assign(judge, tensors, f"{folder}: the judge")
    judge = judge.float().to(device).eval()
    channels_last(judge)
    return judge


def row_steps(rows: Tensor) -> Tensor:
    """The fp16 length ``[R]`` of a step for each row ``[R, N]``; no weight is above `LEVELS`."""
    typical = rows.square().mean(dim=1).sqrt() * (math.sqrt(rows.numel()) / STEPS)
    length = typical.maximum(rows.abs().amax(dim=1) / LEVELS)
    return length.clamp_min(torch.finfo(torch.half).tiny).half()


def whole_steps(rows: Tensor, step: Tensor, products: Tensor) -> Tensor:
    """Numbers of steps that keep the products of ``rows`` with their inputs, int8 ``[R, N]``.

    Column by column, the largest inputs first: what is left of a weight after rounding is spread
    over the columns to come as the inverse of ``products`` says (GPTQ, algorithm 1).

    Args:
        rows: ``[R, N]``.
        step: ``[R]``, from `row_steps`.
        products: float64 ``[N, N]``, mean of ``x xᵀ`` over inputs x; unrelated inputs make this
            the nearest numbers.
    """
    square = products.diagonal().mean()
    damped = products + torch.eye(len(products)) * (DAMPING * square).clamp_min(1e-12)
    order = damped.diagonal().argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order]))
    spread = torch.linalg.cholesky(inverse, upper=True)
    left = (rows.double() / step.double()[:, None])[:, order]
    chosen = torch.empty_like(left)
    for column in range(len(order)):
        chosen[:, column] = left[:, column].round().clamp(-LEVELS, LEVELS)
        error = (left[:, column] - chosen[:, column]) / spread[column, column]
        left[:, column:] -= torch.outer(error, spread[column, column:])
    result = torch.empty(rows.shape, dtype=torch.int8)
    result[:, order] = chosen.to(torch.int8)
    return result


@torch.no_grad()
def input_products(judge: SceneJudge, clips: Tensor) -> dict[str, Tensor]:
    """Of each layer by name, the mean of ``x xᵀ`` over its inputs, float64 ``[N, N]`` on the CPU.

    An input is what one output is made of: all N numbers that a row of the weight meets.

    Args:
        judge: in evaluation mode.
        clips: uint8 ``[B, T, H, W, 3]``.

    Raises:
        RuntimeError: if the judge is in training mode.
    """
    if judge.training:
        raise RuntimeError("the judge must be in evaluation mode to be written")
    generator = torch.Generator().manual_seed(0)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str, layer: nn.Module) -> RemovableHandle:
        def look(_: nn.Module, given: tuple[Tensor]) -> None:
            inputs = _inputs(layer, given[0])
            places = torch.randperm(len(inputs), generator=generator)[:PLACES]
            seen = inputs[places.to(inputs.device)].float()
            sums[name] = sums.get(name, 0) + (seen.T @ seen).double().cpu()
            counts[name] = counts.get(name, 0) + len(seen)

        return layer.register_forward_pre_hook(look)

    layers = {name: layer for name, layer in judge.named_modules() if isinstance(layer, _LAYERS)}
    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        for clip in clips.split(1):
            judge.opinion(clip.to(judge.colour.device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / counts[name] for name, total in sums.items()}


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def _inputs(layer: nn.Module, x: Tensor) -> Tensor:
    """What each output of ``layer`` is made of, ``[M, N]`` in the order of its weight."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return x.flatten(0, -2)
    # A series is an image one pixel high.
    flat = (1,) * (2 - len(layer.kernel_size))
    assert not isinstance(layer.padding, str)
    patches = F.unfold(
        x.reshape(*x.shape[:2], *flat, *x.shape[2:]),
        (*flat, *layer.kernel_size),
        dilation=(*flat, *layer.dilation),
        padding=(*(0 for _ in flat), *layer.padding),
        stride=(*flat, *layer.stride),
    )
    return patches.transpose(1, 2).flatten(0, 1)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(lzma.decompress(path.read_bytes())))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: this is no complete judge") from None
    except (lzma.LZMAError, EOFError, SafetensorError) as error:
        raise CheckpointCorruptError(f"{path} is damaged: {error}") from None
