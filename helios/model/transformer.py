"""The diffusion transformer: noisy latents, a timestep, text and a window in; a velocity out."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from helios.history import HistoryWindow
from helios.kernels import modulated_norm
from helios.model.attention import KeyValue, Rotation
from helios.model.block import Block, Modulation
from helios.model.config import TransformerConfig
from helios.model.embedding import TextProjection, TimeEmbedding
from helios.model.patch import Patches, unpatch
from helios.model.rope import move_anchor, rotary_tables

__all__ = ["HeliosTransformer", "StepRows", "TextMemory", "grid"]


class TextMemory(NamedTuple):
    """What every block reads in one text: made by `HeliosTransformer.read`, once per prompt.

    Attributes:
        blocks: keys and values by block, ``[B, M, H, d]`` each.
    """

    blocks: tuple[KeyValue, ...]


class StepRows(NamedTuple):
    """What one timestep comes to in every block: made by `HeliosTransformer.modulate`.

    Attributes:
        head: ``[B, D]``, the time part of the head's modulation.
        blocks: ``[blocks, B, 2, 6, D]`` float32, history row first, the blocks' own tables added.
    """

    head: Tensor
    blocks: Tensor


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
        timestep: Tensor | StepRows,
        text: Tensor | TextMemory,
        window: HistoryWindow,
        *,
        origin: tuple[int, int] | None = None,
        hidden: MutableMapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Velocity ``noise - clean`` of the noisy latents.

        Args:
            x: ``[B, C, T, h, w]`` noisy latents of the chunk, ``h`` and ``w`` even.
            timestep: ``[B]``, any real dtype, on the scale 0 to 1000; or what `modulate` makes
                of it.
            text: ``[B, M, text_dim]`` text embeddings; all rows are read, padding included; or
                what `read` makes of them.
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
        count = len(self.blocks)
        rows: Sequence[Tensor | Modulation]
        if isinstance(timestep, StepRows):
            head_time = timestep.head
            rows = [Modulation(*table.unbind(dim=2)) for table in timestep.blocks]
        else:
            head_time, modulation = self.time_rows(timestep, tokens.dtype)
            rows = [modulation] * count
        words: Sequence[Tensor | KeyValue]
        words = text.blocks if isinstance(text, TextMemory) else [self._project(text)] * count
        # Nobody reads the history that would leave the last block. On a CPU it is computed all the
        # same: products of fewer rows round differently, and there every bit is the published one.
        drop_from = count if tokens.device.type == "cpu" else count - 1
        for number, block in enumerate(self.blocks):
            last = number == drop_from
            given = (words[number], rows[number], rotation, split)
            tokens = block(tokens, *given, keep_history=not last)
            split = 0 if last else split
            if hidden is not None and number in hidden:
                hidden[number] = tokens[:, split:].transpose(1, 2).unflatten(2, chunk)
        return unpatch(self.head(tokens[:, split:], head_time), *chunk).to(self.dtype)

    def read(self, text: Tensor) -> TextMemory:
        """What the blocks read in ``text [B, M, text_dim]``, to be used at every step.

        It holds as long as the weights stay as they are.
        """
        projected = self._project(text)
        blocks = (cast(Block, block) for block in self.blocks)
        return TextMemory(tuple(block.cross_attention.read(projected) for block in blocks))

    def modulate(self, timestep: Tensor) -> StepRows:
        """What ``timestep [B]`` comes to in head and blocks: 2.5 MB a sample at the full size."""
        head, rows = self.time_rows(timestep, self._token_dtype(timestep.device.type))
        blocks = (cast(Block, block) for block in self.blocks)
        tables = [torch.stack(block.modulate(rows), dim=2) for block in blocks]
        return StepRows(head, torch.stack(tables))

    def _token_dtype(self, device_type: str) -> torch.dtype:
        """Dtype of the tokens, which autocast may make another than that of the weights."""
        if torch.is_autocast_enabled(device_type):
            return torch.get_autocast_dtype(device_type)
        return self.dtype

    def _project(self, text: Tensor) -> Tensor:
        projected: Tensor = self.text(text.to(self.dtype))
        return projected

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
