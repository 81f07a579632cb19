"""Batches of encoded clips: what `helios precompute latents` wrote, for the stages that learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from helios.data.batch import Batch
from helios.data.latents import ShardReader
from helios.data.precompute import LATENTS, codec_digest
from helios.errors import DataError
from helios.geometry import CHUNK_LATENTS
from helios.storage import read_metadata, read_tensors

if TYPE_CHECKING:
    from helios.codec import AutoencoderConfig

__all__ = ["ClipLatents"]

ROOM = 0.1
"""Share of the device's memory that clips may take; what is larger is read file by file."""


class ClipLatents:
    """Encoded clips with their captions' embeddings, shuffled in every epoch; it can be resumed.

    Args:
        folder: that `helios precompute latents` wrote.
        size: height and width of the pictures, which must be those of the folder.
        sections: of every clip that are used, from its beginning.
        codec: the autoencoder that the latents must come from.
        text_dim: columns that the embeddings must have.
        batch_size: clips in a batch.
        device: where batches go.
        seed: of the order.
        rank: this rank.
        ranks: how many there are.

    Raises:
        DataError: if the folder is none, is not complete, or was made for something else.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: tuple[int, int],
        sections: int,
        codec: AutoencoderConfig,
        text_dim: int,
        batch_size: int,
        device: torch.device,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.folder = folder
        self._sections = sections
        self._reader = ShardReader(
            folder,
            LATENTS,
            batch=batch_size,
            device=device,
            seed=seed,
            rank=rank,
            size=ranks,
            resident=_fits(folder, device),
        )
        made = self._reader.settings
        if (made["height"], made["width"]) != size:
            raise DataError(
                f"{folder} has pictures of {made['width']}x{made['height']}, this run learns "
                f"{size[1]}x{size[0]}; set stage.data.height and stage.data.width, or run helios "
                f"precompute latents with --size {size[1]}x{size[0]}"
            )
        if made["sections"] < sections:
            raise DataError(
                f"{folder} has clips of {made['sections']} sections, stage.sections asks for "
                f"{sections}"
            )
        if made["codec"] != codec_digest(codec):
            raise DataError(
                f"{folder} was encoded by another autoencoder; run helios precompute latents with "
                "the --model that training starts from"
            )
        if made["text_dim"] != text_dim:
            raise DataError(
                f"{folder} has captions of {made['text_dim']} columns, this model reads {text_dim}"
            )
        self.prepare = self._reader.prepare
        self.state_dict = self._reader.state_dict
        self.load_state_dict = self._reader.load_state_dict

    def batch(self) -> Batch:
        """The next clips."""
        row = self._reader.batch()
        return Batch(latents=row["latents"][:, :, : self._latent_frames], text=row["text"])

    def captions(self, count: int) -> list[str]:
        """The first captions of the folder, at most ``count``."""
        found: list[str] = []
        for path in sorted(self.folder.glob("[0-9]*.safetensors")):
            found += json.loads(read_metadata(path)["captions"])
            if len(found) >= count:
                break
        return found[:count]

    def first_text(self) -> Tensor:
        """The embedding of the first caption, ``[L, D]`` on the CPU."""
        path = min(self.folder.glob("[0-9]*.safetensors"))
        return read_tensors(self.folder, path.name)["text"][0]

    @property
    def _latent_frames(self) -> int:
        return self._sections * CHUNK_LATENTS


def _fits(folder: Path, device: torch.device) -> bool:
    """Whether all shards are small beside the device's memory."""
    if device.type != "cuda":
        return False
    bytes_of = sum(path.stat().st_size for path in folder.glob("[0-9]*.safetensors"))
    return bytes_of < ROOM * torch.cuda.get_device_properties(device).total_memory
