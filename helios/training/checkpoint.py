"""Checkpoints: everything needed to go on, written whole or not at all.

A checkpoint is a folder ``step-00000500`` with one file of what all ranks share (parameters,
average, optimizer), one small file per rank (data position, random states) and, written last, a
manifest with the size and SHA-256 of each. It is made under a temporary name and renamed, so a
folder with the right name is complete. No file of it can run code when read.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helios.distributed import World
from helios.errors import CheckpointCorruptError, CheckpointError
from helios.storage import read_json, read_tensors, write_json, write_tensors

__all__ = ["Snapshot", "find", "load", "random_state", "save", "set_random_state", "verify"]

MANIFEST = "manifest.json"
SHARED = "shared.safetensors"
VERSION = 1
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A moment of a training run.

    Attributes:
        step: optimizer steps made.
        shared: tensors that are the same on every rank.
        own: tensors of this rank.
        info: what else is to be known, ready for JSON.
    """

    step: int
    shared: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    info: Mapping[str, Any]


def save(folder: Path, snapshot: Snapshot, world: World, keep: int) -> Path:
    """Write ``folder/step-…`` and remove all but the ``keep`` newest.

    Every rank calls this. If it fails or is interrupted, earlier checkpoints are as they were, and
    a temporary folder that is left behind is in nobody's way.

    Raises:
        OSError: if it cannot be written; on every rank, whichever it happened on.
    """
    target = folder / f"step-{snapshot.step:08d}"
    temporary = folder / f".{target.name}.tmp"
    _together(world, lambda: _make_room(folder, temporary), only_main=True)
    try:
        _together(world, lambda: _write(temporary, snapshot, world))
        _together(world, lambda: _commit(temporary, target, snapshot, world), only_main=True)
    except BaseException:
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if world.is_main:
        for old in _newest_first(folder)[keep:]:
            shutil.rmtree(old, ignore_errors=True)
    return target


def _together(world: World, work: Callable[[], None], *, only_main: bool = False) -> None:
    """Do ``work`` on every rank or on the first; if one fails, none goes on."""
    failure: OSError | None = None
    if world.is_main or not only_main:
        try:
            work()
        except OSError as error:
            failure = error
    world.together(failure, OSError("another rank could not write its part of the checkpoint"))


def _make_room(folder: Path, temporary: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()


def _write(temporary: Path, snapshot: Snapshot, world: World) -> None:
    if world.is_main:
        write_tensors(temporary, snapshot.shared, SHARED)
    write_tensors(temporary, snapshot.own, _rank_file(world.rank))


def _commit(temporary: Path, target: Path, snapshot: Snapshot, world: World) -> None:
    """The manifest, then the rename that makes the folder count."""
    files = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
    manifest = {
        "version": VERSION,
        "step": snapshot.step,
        "world_size": world.size,
        "info": dict(snapshot.info),
        "files": files,
    }
    write_json(temporary / MANIFEST, manifest)
    for path in (*temporary.iterdir(), temporary):
        _flush(path)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    _flush(target.parent)


def find(folder: Path, resume: str, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint that ``resume`` means.

    Args:
        folder: where the checkpoints of this run are.
        resume: a checkpoint's folder, or "auto": the newest complete one.
        warn: called with a line for every damaged one that is passed over.

    Returns:
        None if "auto" finds that there is none yet.

    Raises:
        CheckpointError: if the one that is named is missing or damaged, or if "auto" finds only
            damaged ones: a run that existed is never silently started again.
    """
    if resume != "auto":
        verify(Path(resume))
        return Path(resume)
    candidates = _newest_first(folder)
    for path in candidates:
        try:
            verify(path)
        except CheckpointError as error:
            warn(f"checkpoint {path.name} is passed over: {error}")
        else:
            return path
    if candidates:
        raise CheckpointError(f"none of the {len(candidates)} checkpoints in {folder} is whole")
    return None


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file is as it was written.

    Raises:
        CheckpointError: if the checkpoint or one of its files is missing.
        CheckpointCorruptError: if a file differs from what the manifest says.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a checkpoint folder")
    manifest = read_json(path / MANIFEST)
    if manifest.get("version") != VERSION:
        raise CheckpointError(f"{path} has version {manifest.get('version')}, expected {VERSION}")
    try:
        for name, wanted in manifest["files"].items():
            file = path / Path(name).name
            if not file.is_file():
                raise CheckpointError(f"{file} is missing")
            found = _describe(file)
            if found != wanted:
                raise CheckpointCorruptError(
                    f"{file} is damaged: {found['bytes']} bytes with SHA-256 "
                    f"{found['sha256'][:12]}…, expected {wanted['bytes']} with "
                    f"{wanted['sha256'][:12]}…"
                )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointCorruptError(f"{path / MANIFEST} is malformed ({error!r})") from None
    return manifest


def load(path: Path, world: World) -> Snapshot:
    """The checkpoint at ``path`` as this rank needs it, on the CPU.

    Raises:
        CheckpointError: if it is damaged, or was made by another number of ranks.
    """
    manifest = read_json(path / MANIFEST)
    if manifest["world_size"] != world.size:
        raise CheckpointError(
            f"{path} was made by {manifest['world_size']} ranks and there are {world.size}: "
            "start as many as before"
        )
    return Snapshot(
        step=manifest["step"],
        shared=read_tensors(path, SHARED),
        own=read_tensors(path, _rank_file(world.rank)),
        info=manifest["info"],
    )


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of every global random generator, of Python, NumPy, torch and the device."""
    _, words, _ = random.getstate()
    _, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what `random_state` gave."""
    random.setstate((3, tuple(state["python"].tolist()), None))
    position, has_gauss = state["numpy_position"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(state["numpy_gauss"])))
    torch.set_rng_state(state["torch"].clone())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].clone(), device)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _newest_first(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    named = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return [path for _, path in sorted(((int(m[1]), p) for m, p in named if m), reverse=True)]


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _flush(path: Path) -> None:
    """Ask the disk to keep a file or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
