"""The diffusion transformer: noisy latents, a timestep, text and a window in; a velocity out."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor, nn

from helios.history import HistoryWindow
from helios.kernels import modulated_norm
from helios.model.attention import Rotation
from helios.model.block import Block
from helios.model.config import TransformerConfig
from helios.model.embedding import TextProjection, TimeEmbedding
from helios.model.patch import Patches, unpatch
from helios.model.rope import move_anchor, rotary_tables

__all__ = ["HeliosTransformer", "grid"]


def grid(latents: Tensor) -> tuple[int, int, int]:
    """Frames, rows and columns of the tokens of ``latents [B, C, T, h, w]``.

    Raises:
        ValueError: if rows or columns are odd.
    """
    frames, rows, columns = latents.shape[2:]
    if rows % 2 or columns % 2:
        raise ValueError(f"rows and columns of latents must be even, got {rows}x{columns}")
    return frames, rows // 2, columns // 2


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
        origin: tuple[int, int] | None = None,
        hidden: MutableMapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Velocity ``noise - clean`` of the noisy latents.

        Args:
            x: ``[B, C, T, h, w]`` noisy latents of the chunk, ``h`` and ``w`` even.
            timestep: ``[B]``, any real dtype, on the scale 0 to 1000.
            text: ``[B, M, text_dim]`` text embeddings; all rows are read, padding included.
            window: history of the same batch at full resolution, rows and columns even.
            origin: row and column of latents, even, at which ``x`` lies in the picture if it is a
                crop of it; none: it is the whole picture, at this or a coarser scale.
            hidden: its keys are numbers of blocks; what the noisy tokens are after each of them is
                put in its place, ``[B, D, T, h / 2, w / 2]``.

        Returns:
            ``[B, C, T, h, w]`` in the dtype of the model. Inputs are cast to it.

        Raises:
            ValueError: if rows or columns are odd.
        """
        chunk = grid(x)
        window = self.remembered(window)
        rotation = self.rotation(chunk, window, origin)
        tokens, split = self.patches(x.to(self.dtype), window)
        head_time, modulation = self.time_rows(timestep, tokens.dtype)
        text = self.text(text.to(self.dtype))
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, text, modulation, rotation, split)
            if hidden is not None and number in hidden:
                hidden[number] = tokens[:, split:].transpose(1, 2).unflatten(2, chunk)
        return unpatch(self.head(tokens[:, split:], head_time), *chunk).to(self.dtype)

    def remembered(self, window: HistoryWindow) -> HistoryWindow:
        """What of ``window`` this transformer looks at, in its dtype."""
        window = window.without_anchor() if self.config.without_anchor else window
        return window.to(dtype=self.dtype)

    def rotation(
        self,
        chunk: tuple[int, int, int],
        window: HistoryWindow,
        origin: tuple[int, int] | None = None,
    ) -> Rotation:
        """Rotary tables of one sequence of history and noisy tokens; see `forward`.

        Args:
            chunk: frames, rows and columns of noisy tokens.
            window: history, for its size and for what has elapsed.
            origin: of the noisy latents.

        Raises:
            ValueError: for odd sizes, or if positions are absolute and nobody says where.
        """
        config, device = self.config, window.frames.device
        past = grid(window.frames)[1:]
        if origin is not None and (origin[0] % 2 or origin[1] % 2):
            raise ValueError(f"rows and columns of latents must be even, got an origin {origin}")
        place = (0, 0) if origin is None else (origin[0] // 2, origin[1] // 2)
        spread = past[0] // chunk[1] if config.aligned_scales and origin is None else 1
        tables = rotary_tables(
            config.rope_dim, config.rope_theta, chunk, past, device, place, spread
        )
        if not config.absolute_positions:
            return tables
        if window.elapsed is None:
            raise ValueError(
                "this transformer has absolute positions: window.elapsed must say how many latent "
                "frames came before"
            )
        return move_anchor(tables, window.elapsed, config.rope_dim, config.rope_theta, past)

    def time_rows(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Head modulation ``[B, D]``; block modulation ``[B, 2, 6, D]``, history row first."""
        head, noisy = self.time(timestep, dtype)
        history = noisy
        if self.config.zero_history_timestep:
            history = self.time(timestep.new_zeros(1), dtype)[1].expand_as(noisy)
        return head, torch.stack((history, noisy), dim=1)
