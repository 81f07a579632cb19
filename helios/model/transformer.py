"""The diffusion transformer: noisy latents, a timestep, text and a window in; a velocity out."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor, nn

from helios.history import HistoryWindow
from helios.kernels import modulated_norm
from helios.model.block import Block
from helios.model.config import TransformerConfig
from helios.model.embedding import TextProjection, TimeEmbedding
from helios.model.patch import Patches, unpatch
from helios.model.rope import rotary_tables

__all__ = ["HeliosTransformer"]


class Head(nn.Module):
    """Noisy tokens to patches of velocity (section 3.3 of the specification)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, width) / width**0.5)
        self.project = nn.Linear(width, config.out_channels * 4)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``[B, N, D]`` tokens and ``[B, D]`` time modulation to ``[B, N, 4 * channels]``."""
        shift, scale = (self.modulation + time.float()[:, None]).chunk(2, dim=1)
        pair = (-1, 2, -1)
        return self.project(modulated_norm(x, shift.expand(pair), scale.expand(pair), 0, self.eps))


class HeliosTransformer(nn.Module):
    """The published network in any size, for use and for training.

    Precision. Parameters may be all float32 (then ``torch.autocast`` gives bfloat16 training), or
    of a lower dtype but for those that :func:`helios.model.fp32_names` lists. Change the dtype
    with :func:`helios.model.cast`: ``.to(dtype)`` would narrow those too. Norms, modulation,
    rotation and the timestep embedding are computed in float32 in every case.

    Compilation. ``forward`` has no graph breaks and no host synchronisation; rotary tables are
    constants of the graph. Compile the model, or its ``blocks`` one by one, with
    ``dynamic=False``: a new geometry is a new graph.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = Patches(config)
        self.time = TimeEmbedding(config)
        self.text = TextProjection(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the latents in and out; some parameters may be kept wider."""
        return self.head.project.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.head.project.weight.device

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        window: HistoryWindow,
        *,
        origin: tuple[int, int] = (0, 0),
        hidden: MutableMapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Velocity ``noise - clean`` of the noisy latents.

        Args:
            x: ``[B, C, T, h, w]`` noisy latents of the chunk, ``h`` and ``w`` even.
            timestep: ``[B]``, any real dtype, on the scale 0 to 1000.
            text: ``[B, M, text_dim]`` text embeddings; all rows are read, padding included.
            window: history of the same batch at full resolution, rows and columns even.
            origin: row and column of latents, even, at which ``x`` lies in the picture: not at
                its corner if it is a crop of it.
            hidden: its keys are numbers of blocks; what the noisy tokens are after each of them is
                put in its place, ``[B, D, T, h / 2, w / 2]``.

        Returns:
            ``[B, C, T, h, w]`` in the dtype of the model. Inputs are cast to it.

        Raises:
            ValueError: if rows or columns are odd.
        """
        geometry = (*x.shape[3:], *window.frames.shape[3:])
        if any(size % 2 for size in (*geometry, *origin)):
            raise ValueError(f"rows and columns of latents must be even, got {geometry}, {origin}")
        rows, columns, past_rows, past_columns = (size // 2 for size in geometry)
        chunk = (x.shape[2], rows, columns)
        tokens, split = self.patches(x.to(self.dtype), window.to(dtype=self.dtype))
        rotation = rotary_tables(
            self.config.rope_dim,
            self.config.rope_theta,
            chunk,
            (past_rows, past_columns),
            tokens.device,
            (origin[0] // 2, origin[1] // 2),
        )
        head_time, modulation = self._time_rows(timestep, tokens.dtype)
        text = self.text(text.to(self.dtype))
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, text, modulation, rotation, split)
            if hidden is not None and number in hidden:
                hidden[number] = tokens[:, split:].transpose(1, 2).unflatten(2, chunk)
        return unpatch(self.head(tokens[:, split:], head_time), *chunk).to(self.dtype)

    def _time_rows(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Head modulation ``[B, D]``; block modulation ``[B, 2, 6, D]``, history row first."""
        head, noisy = self.time(timestep, dtype)
        history = noisy
        if self.config.zero_history_timestep:
            history = self.time(timestep.new_zeros(1), dtype)[1].expand_as(noisy)
        return head, torch.stack((history, noisy), dim=1)
