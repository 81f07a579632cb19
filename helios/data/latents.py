"""Precomputed shards: files of examples that were encoded once, written whole and read shuffled.

A folder holds ``settings.json`` (what made it), one safetensors file per shard, every tensor of
which has one row per example, and ``manifest.json``, written last: without it the folder is not
complete. All examples of a shard have the same shapes; shards of the same shapes form a bucket, and
a batch never mixes buckets.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helios.errors import CheckpointError, DataError
from helios.storage import (
    MANIFEST_NAME,
    manifest_of,
    open_file,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)

__all__ = ["ShardReader", "ShardWriter", "read_shard_settings"]

SETTINGS_NAME = "settings.json"
VERSION = 1


class ShardWriter:
    """Writes a folder of shards; what is there already from the same settings is kept.

    Args:
        folder: made if missing.
        settings: everything that decides the content, ready for JSON.

    Raises:
        DataError: if ``folder`` holds shards of other settings, or something else.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._settings = {"version": VERSION, **settings}

    def start(self) -> None:
        """Take the folder; on several ranks the first one does this."""
        path = self.folder / SETTINGS_NAME
        if path.is_file():
            held = read_json(path)
            changed = sorted(
                key
                for key in held.keys() | self._settings.keys()
                if held.get(key) != self._settings.get(key)
            )
            if changed:
                raise DataError(
                    f"{self.folder} was made with other settings ({', '.join(changed)}); give the "
                    "same ones to go on, or another --out"
                )
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise DataError(f"{self.folder} holds other files; choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, self._settings)

    def has(self, index: int) -> bool:
        """Whether shard ``index`` is there and whole."""
        path = self.folder / _shard_name(index)
        try:
            return path.is_file() and bool(open_file(path))
        except CheckpointError:
            return False

    def write(self, index: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write shard ``index``, whole or not at all.

        Args:
            index: its number.
            tensors: each with one row per example.
            metadata: text to go along, such as the captions.
        """
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        name = _shard_name(index)
        write_tensors(self.folder, tensors, name, shard_bytes=total + 1, metadata=metadata)

    def finish(self) -> None:
        """The manifest, which says that every shard is there."""
        write_json(self.folder / MANIFEST_NAME, manifest_of(self.folder))


def _shard_name(index: int) -> str:
    return f"{index:05d}.safetensors"


def read_shard_settings(folder: Path, kind: str) -> dict[str, Any]:
    """What made the complete folder of shards of this ``kind``.

    Raises:
        DataError: if it is none, is not complete, or holds something else.
    """
    if not (folder / SETTINGS_NAME).is_file():
        raise DataError(f"{folder} holds no shards (looked for {SETTINGS_NAME}); helios precompute")
    settings = read_json(folder / SETTINGS_NAME)
    if settings.get("version") != VERSION or settings.get("kind") != kind:
        found = f"{settings.get('kind')!r} of version {settings.get('version')}"
        raise DataError(f"{folder} holds {found}, needed are {kind!r} of version {VERSION}")
    if not (folder / MANIFEST_NAME).is_file():
        raise DataError(
            f"{folder} is not complete; run the same helios precompute again, which goes on"
        )
    return settings


@dataclass(frozen=True, eq=False)
class _Bucket:
    """Examples of the same shapes: where each one is."""

    shards: tuple[str, ...]
    rows: tuple[tuple[int, int], ...]
    """Shard and row of every example."""


class ShardReader:
    """Shuffled batches of a folder of shards, for one rank; it can say where it is.

    In every epoch each rank sees its own examples, as many as every other rank, in the same bucket
    at the same time; a rest that fills no batch on every rank waits for another shuffle.

    Args:
        folder: complete shards.
        kind: what they must hold.
        batch: examples of a batch.
        device: where batches go.
        seed: of the order.
        rank: this rank.
        size: number of ranks.
        resident: keep everything on the device, if it fits; otherwise files stay mapped.

    Raises:
        DataError: if the folder is not complete, or no bucket fills a batch.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        *,
        batch: int,
        device: torch.device,
        seed: int = 0,
        rank: int = 0,
        size: int = 1,
        resident: bool = False,
    ) -> None:
        self.settings = read_shard_settings(folder, kind)
        self._folder, self._device = folder, device
        self._batch, self._seed, self._rank, self._size = batch, seed, rank, size
        self._resident = resident
        self._buckets = _buckets(folder)
        self._held: dict[str, Mapping[str, Tensor]] = {}
        self._whole: dict[int, Mapping[str, Tensor]] = {}
        self._epoch, self._next = 0, 0
        self._plan: list[tuple[int, list[int]]] = []
        if not self._plan_of(0):
            largest = max((len(b.rows) for b in self._buckets), default=0)
            raise DataError(
                f"{folder} has at most {largest} examples of one shape, but {size} ranks need "
                f"{batch} each; make more, or lower stage.batch"
            )

    def prepare(self) -> None:
        """Open every shard; when resident, bring it to the device."""
        for number, bucket in enumerate(self._buckets):
            opened = (read_tensors(self._folder, name) for name in bucket.shards)
            if self._resident:
                self._whole[number] = _joined(opened, len(bucket.rows), self._device)
            else:
                self._held |= zip(bucket.shards, opened, strict=True)
        self._plan = self._plan_of(self._epoch)

    def batch(self) -> dict[str, Tensor]:
        """The next examples, every tensor with one row for each, on the device."""
        if self._next >= len(self._plan):
            self._epoch, self._next = self._epoch + 1, 0
            self._plan = self._plan_of(self._epoch)
        bucket, chosen = self._plan[self._next]
        self._next += 1
        if self._resident:
            index = torch.tensor(chosen).to(self._device, non_blocking=True)
            return {key: value[index] for key, value in self._whole[bucket].items()}
        return self._gather(self._buckets[bucket], chosen)

    def state_dict(self) -> dict[str, Tensor]:
        """Which epoch, and how many batches of it were taken."""
        return {"place": torch.tensor([self._epoch, self._next], dtype=torch.int64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back."""
        self._epoch, self._next = state["place"].tolist()
        self._plan = self._plan_of(self._epoch)

    def _plan_of(self, epoch: int) -> list[tuple[int, list[int]]]:
        """Bucket and examples of each batch of this rank; as long on every rank."""
        rng = random.Random(f"helios shards {self._seed} {epoch}")
        whole = self._batch * self._size
        plan: list[tuple[int, list[int]]] = []
        for number, bucket in enumerate(self._buckets):
            order = list(range(len(bucket.rows)))
            rng.shuffle(order)
            for first in range(0, len(order) - whole + 1, whole):
                part = order[first : first + whole]
                plan.append((number, part[self._rank :: self._size]))
        rng.shuffle(plan)
        return plan

    def _gather(self, bucket: _Bucket, chosen: Sequence[int]) -> dict[str, Tensor]:
        """The chosen rows, shard by shard."""
        wanted: dict[int, list[int]] = {}
        for index in chosen:
            shard, row = bucket.rows[index]
            wanted.setdefault(shard, []).append(row)
        parts = []
        for shard, rows in sorted(wanted.items()):
            held = self._held[bucket.shards[shard]]
            parts.append({key: value[rows] for key, value in held.items()})
        return {
            key: torch.cat([part[key] for part in parts]).to(self._device, non_blocking=True)
            for key in parts[0]
        }


def _joined(
    shards: Iterable[Mapping[str, Tensor]], rows: int, device: torch.device
) -> dict[str, Tensor]:
    """All rows of some shards in one tensor each, brought to the device one shard at a time."""
    whole: dict[str, Tensor] = {}
    first = 0
    for shard in shards:
        for key, value in shard.items():
            if key not in whole:
                shape = (rows, *value.shape[1:])
                whole[key] = torch.empty(shape, dtype=value.dtype, device=device)
            whole[key][first : first + len(value)] = value
        first += len(next(iter(shard.values())))
    return whole


def _buckets(folder: Path) -> list[_Bucket]:
    """Shards grouped by the shapes of their examples, in the order of their names.

    Raises:
        DataError: if a shard is not one.
    """
    groups: dict[tuple[object, ...], list[tuple[str, int]]] = {}
    for path in sorted(folder.glob("[0-9]*.safetensors")):
        entries = open_file(path)
        counts = {entry.shape[0] if entry.shape else 0 for entry in entries.values()}
        if len(counts) != 1:
            raise DataError(f"{path} is no shard: its tensors have {sorted(counts)} rows")
        shapes = tuple(sorted((name, entry.shape[1:]) for name, entry in entries.items()))
        groups.setdefault(shapes, []).append((path.name, counts.pop()))
    return [
        _Bucket(
            shards=tuple(name for name, _ in shards),
            rows=tuple((s, row) for s, (_, count) in enumerate(shards) for row in range(count)),
        )
        for shards in groups.values()
    ]
