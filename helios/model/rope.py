"""Rotary tables: the cosines and sines of every token's frame, row and column.

Tables depend on the geometry alone. They are computed once per geometry and device, in float32
on the CPU, and kept outside the module: there is no buffer that a cast could harm, and a compiled
graph holds them as constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from helios.history import CHUNK_POSITIONS, LONG_POSITIONS, MID_POSITIONS, SHORT_POSITIONS

__all__ = ["move_anchor", "rotary_tables"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _constant_in_graphs(function: _Function) -> _Function:
    return cast(_Function, torch.compiler.assume_constant_result(function))


# While a graph is traced the tables are made for real and become constants of it.
@_constant_in_graphs
def rotary_tables(
    rope_dim: tuple[int, int, int],
    theta: float,
    chunk: tuple[int, int, int],
    history: tuple[int, int],
    device: torch.device,
    origin: tuple[int, int] = (0, 0),
    spread: int = 1,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for ``[long | mid | short | noisy]`` (section 2.4 of the specification).

    Noisy and short tokens sit at whole positions of their own grids. Mid and long tokens take the
    mean of the cosines and of the sines of the short-grid cells they cover.

    Args:
        rope_dim: channels per head for time, rows and columns.
        theta: base of the frequencies.
        chunk: frames, rows and columns of noisy tokens.
        history: rows and columns of short history tokens.
        device: where the tables are needed.
        origin: row and column of the first noisy token, if the chunk is a crop of the picture.
        spread: rows and columns of history that a noisy token covers; above 1 noisy tokens sit at
            their middle instead (training.md, F14).

    Returns:
        Two ``[L, head_dim / 2]`` float32 tensors.
    """
    return _tables(rope_dim, theta, chunk, history, device, origin, spread)


# Room for every place of a half-size crop at the tiny size; the tables are small.
@lru_cache(maxsize=128)
def _tables(
    rope_dim: tuple[int, int, int],
    theta: float,
    chunk: tuple[int, int, int],
    history: tuple[int, int],
    device: torch.device,
    origin: tuple[int, int],
    spread: int,
) -> tuple[Tensor, Tensor]:
    # Tensors born in inference mode could never be saved for a later backward pass.
    with torch.inference_mode(False), torch.no_grad():
        first = CHUNK_POSITIONS[0]
        frames = tuple(range(first, first + chunk[0]))
        rows, columns = (
            [start + spread * place + (spread - 1) / 2 for place in range(size)]
            for start, size in zip(origin, chunk[1:])
        )
        noisy = _angles(rope_dim, theta, frames, rows, columns)
        past_rows, past_columns = (range(size) for size in history)
        short = _angles(rope_dim, theta, SHORT_POSITIONS, past_rows, past_columns)
        mid = _angles(rope_dim, theta, MID_POSITIONS, past_rows, past_columns)
        long = _angles(rope_dim, theta, LONG_POSITIONS, past_rows, past_columns)
        parts = (_averaged(long, 4), _averaged(mid, 2), _circle(short), _circle(noisy))
        cos, sin = torch.cat([part.flatten(1) for part in parts], dim=1).T.chunk(2, dim=1)
        return cos.contiguous().to(device), sin.contiguous().to(device)


def _angles(
    rope_dim: tuple[int, int, int],
    theta: float,
    *places: Sequence[float],
) -> Tensor:
    """Angle of every frequency at every frame, row and column, ``[head_dim / 2, T, Y, X]``."""
    grid = torch.meshgrid(
        *(torch.tensor(axis, dtype=torch.float32, device="cpu") for axis in places),
        indexing="ij",
    )
    angles = [
        _frequencies(size, theta, torch.float32)[:, None, None, None] * positions
        for size, positions in zip(rope_dim, grid)
    ]
    return torch.cat(angles)


def _frequencies(size: int, theta: float, dtype: torch.dtype) -> Tensor:
    """The ``size / 2`` frequencies of an axis, on the CPU."""
    return 1.0 / theta ** (torch.arange(0, size, 2, dtype=dtype, device="cpu") / size)


def move_anchor(
    tables: tuple[Tensor, Tensor],
    elapsed: Tensor,
    rope_dim: tuple[int, int, int],
    theta: float,
    history: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Tables of absolute positions: the anchor stays at time 0 while the video goes on.

    Attention sees differences of positions only. That every frame moves on by ``elapsed`` and the
    anchor does not is therefore the same as an anchor that falls back by it, and so it is computed.

    Args:
        tables: of `rotary_tables`, ``[L, head_dim / 2]`` each.
        elapsed: ``[B]`` int64, latent frames before the chunk.
        rope_dim: channels per head for time, rows and columns.
        theta: base of the frequencies.
        history: rows and columns of short history tokens.

    Returns:
        Two ``[B, L, head_dim / 2]`` float32 tensors.
    """
    count = history[0] * history[1]
    first = sum(
        -(-len(frames) // window) * math.prod(-(-size // window) for size in history)
        for frames, window in ((LONG_POSITIONS, 4), (MID_POSITIONS, 2))
    )
    frequencies = _frequencies(rope_dim[0], theta, torch.float64).to(elapsed.device)
    angles = -elapsed.double()[:, None, None] * frequencies
    moved = []
    for table, circle in zip(tables, (angles.cos(), angles.sin())):
        whole = table.repeat(len(elapsed), 1, 1)
        whole[:, first : first + count, : len(frequencies)] = circle.to(table.dtype)
        moved.append(whole)
    return moved[0], moved[1]


def _circle(angles: Tensor) -> Tensor:
    """Cosines above sines, ``[head_dim, T, Y, X]``."""
    return torch.cat((angles.cos(), angles.sin()))


def _averaged(angles: Tensor, window: int) -> Tensor:
    """Cosines and sines averaged over cubes, the far ends repeated to fill the last cube."""
    circle = _circle(angles)[None]
    missing = [-size % window for size in reversed(angles.shape[1:])]
    padding = [amount for size in missing for amount in (0, size)]
    return F.avg_pool3d(F.pad(circle, padding, mode="replicate"), window)[0]
