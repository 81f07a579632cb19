"""Weight files and finished files: read strictly, written whole or not at all.

Every safetensors file of the project is opened here and nowhere else, so that one place decides
what is refused: pickles are never opened, what a header promises is held against the file before a
byte of it is believed, and a folder whose tensors do not fit the module changes nothing. Files are
memory-mapped and tensors placed one by one, so a model is never in host memory twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError
from helios.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

__all__ = [
    "MANIFEST_NAME",
    "PICKLES",
    "SHARD_BYTES",
    "TensorEntry",
    "Weights",
    "assign",
    "atomic_path",
    "check_entries",
    "check_file",
    "contained",
    "file_digest",
    "fill",
    "manifest_of",
    "open_file",
    "open_weights",
    "place",
    "read_json",
    "read_metadata",
    "read_tensors",
    "write_json",
    "write_tensors",
]

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
MANIFEST_NAME = "manifest.json"
"""Length and SHA-256 of every other file of a folder."""
SHARD_BYTES = 5_000_000_000
"""Above this a component is written as several files."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that could run code when opened."""
_JSON_LIMIT = 2**20
"""Longest JSON believed, headers included: eight times what the published model needs, and what a
hostile one can cost in memory stays below 64 MiB."""
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
}  # fmt: skip
"""Bits of each safetensors dtype that PyTorch has as well."""
_FLOATS = ("F64", "F32", "F16", "BF16")
"""What a floating-point parameter may be stored as; eight-bit floats mean nothing unscaled."""
_KINDS = {torch.float8_e4m3fn: "F8_E4M3"}
_SHOWN = 20
_ALIGNMENT = 64


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: if it is missing.
        CheckpointCorruptError: if it is not a JSON object, or names a key twice.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_JSON_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} is missing: this is not a complete model folder") from None
    if len(data) > _JSON_LIMIT:
        raise CheckpointCorruptError(f"{path} is longer than {_JSON_LIMIT} bytes")
    return _json_object(data, path)


def _json_object(data: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key is there twice")
        return dict(pairs)

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointCorruptError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointCorruptError(f"{path} must hold a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """What a header says of one tensor.

    Attributes:
        file: the file that holds it.
        dtype: in safetensors' words, such as ``"BF16"``.
        shape: of the tensor.
        start: first byte after the header.
        bytes: how many it takes.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


class Weights:
    """The tensors of one component: known from headers, mapped into memory when they are read.

    Args:
        entries: by name.
    """

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self.entries = entries

    @property
    def files(self) -> list[Path]:
        """The files, in order."""
        return sorted({entry.file for entry in self.entries.values()})

    @property
    def bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(entry.bytes for entry in self.entries.values())

    def read(self, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, in the order of the files; on the CPU they are mapped.

        One file is open at a time, and let go when none of its tensors is in use.

        Raises:
            CheckpointCorruptError: if a file has changed since its header was read.
        """
        for file in self.files:
            own = ((e.start, name) for name, e in self.entries.items() if e.file == file)
            names = [name for _, name in sorted(own)]
            try:
                with safe_open(file, framework="pt", device=str(device)) as reader:
                    for name in names:
                        yield name, reader.get_tensor(name)
            except (FileNotFoundError, SafetensorError) as error:
                raise _damaged(file, str(error)) from None


def open_weights(folder: Path, name: str = WEIGHTS_NAME) -> Weights:
    """The tensors of one weight file, or of the shards its ``.index.json`` names, by headers alone.

    Args:
        folder: the component's folder, such as ``model/transformer``.
        name: file name of the unsharded form.

    Raises:
        UnsafeCheckpointError: if only pickled weights are there, or a file lies outside the folder.
        CheckpointCorruptError: if a file is truncated, overlong or not safetensors.
        CheckpointError: if no weights are there.
    """
    index = folder / f"{name}.index.json"
    if (folder / name).is_file():
        return Weights(open_file(folder / name))
    if not index.is_file():
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES)
        if pickles:
            raise UnsafeCheckpointError(
                f"{folder / pickles[0]} is a pickle, which can run code when opened; "
                "convert the model to safetensors"
            )
        raise CheckpointError(f"{folder} holds no {name}")
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise CheckpointCorruptError(f"{index} has no weight_map of names to files")
    shards = sorted(set(where.values()))
    if any(Path(shard).name != shard for shard in shards):
        raise UnsafeCheckpointError(f"{index} names files outside its folder")
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise CheckpointError(f"{folder / absent[0]} is missing ({len(absent)} of {len(shards)})")
    entries: dict[str, TensorEntry] = {}
    for shard in shards:
        held = open_file(folder / shard)
        wrong = [key for key in held if where.get(key) != shard]
        if wrong:
            raise CheckpointCorruptError(
                f"{folder / shard} holds {wrong[0]}; {index.name} does not say so"
            )
        entries.update(held)
    lost = sorted(where.keys() - entries.keys())
    if lost:
        raise CheckpointCorruptError(f"{folder / where[lost[0]]} does not hold {lost[0]}")
    return Weights(entries)


def open_file(file: Path) -> dict[str, TensorEntry]:
    """What the header of one safetensors file promises, held against the file itself.

    Raises:
        UnsafeCheckpointError: if the file is a link that leaves the model folder.
        CheckpointCorruptError: if header and file do not agree: the data must be covered without
            holes or overlaps, to the last byte.
        CheckpointError: if it is missing.
    """
    header, size = _header(file)
    header.pop("__metadata__", None)
    try:
        entries = {name: _entry(file, name, value) for name, value in header.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, str(error)) from None
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].bytes)):
        if entry.start != end:
            raise _damaged(file, f"{name} starts at {entry.start}, expected {end}")
        end += entry.bytes
    if end != size:
        raise _damaged(file, f"{size} bytes of data, expected {end}")
    return entries


def read_metadata(file: Path) -> dict[str, str]:
    """The text that a safetensors file carries beside its tensors; see `open_file`."""
    header, _ = _header(file)
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(file, "metadata that is not text")
    return metadata


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, and how many bytes of data follow it."""
    if not contained(file, file.parent.parent):
        raise UnsafeCheckpointError(f"{file} is a link to outside the model folder")
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 10 or not 2 <= length <= size - 8:
                raise _damaged(file, f"{size} bytes, header of {length}")
            if length > _JSON_LIMIT:
                raise _damaged(file, f"a header of {length} bytes; at most {_JSON_LIMIT} are read")
            header = _json_object(stream.read(length), file)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    return header, size - 8 - length


def _entry(file: Path, name: str, value: dict[str, Any]) -> TensorEntry:
    dtype, shape, (start, stop) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    whole = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    if not whole or dtype not in _BITS or stop - start != prod(shape) * _BITS[dtype] // 8:
        raise ValueError(f"{name} is {dtype} {list(shape)} in bytes {start} to {stop}")
    return TensorEntry(file=file, dtype=dtype, shape=shape, start=start, bytes=stop - start)


def _damaged(file: Path, why: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(
        f"{file} is damaged or not safetensors ({why}); download it again"
    )


def contained(path: Path, root: Path) -> bool:
    """Whether ``path``, with all links followed, lies in ``root``.

    The hub's cache, where a model is a folder of links into ``blobs`` beside it, counts as inside.
    """
    home = root.resolve()
    if path.resolve().is_relative_to(home):
        return True
    cache = next((p.parent for p in (home, *home.parents) if p.name == "snapshots"), None)
    if cache is None or not path.is_symlink():
        return False
    # A blob may itself be a link, into a store that several caches share.
    return (path.parent.resolve() / path.readlink()).parent.resolve() == cache / "blobs"


def read_tensors(
    folder: Path, name: str = WEIGHTS_NAME, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """All tensors of a component as they are stored; see `open_weights` for what is refused.

    Args:
        folder: the component's folder, such as ``model/transformer``.
        name: file name of the unsharded form.
        device: where the tensors are placed; on the CPU they are memory-mapped.
    """
    return dict(open_weights(folder, name).read(device))


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    name: str = WEIGHTS_NAME,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``tensors`` as safetensors in ``folder``, whole or not at all.

    Args:
        folder: made if missing.
        tensors: on any device; no more than one file's worth is copied at a time.
        name: of the file, or what the names of several are made from.
        dtype: stored dtype of all tensors; None keeps each tensor's own.
        shard_bytes: more than this goes into several files with an index.
        metadata: text that goes into the header of every file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = _groups(tensors, dtype, shard_bytes)
    stem = name.removesuffix(".safetensors")
    count = len(groups)
    names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    stale = _files_of(folder, name)
    drafts: list[tuple[Path, Path]] = []
    try:
        for file, keys in zip([name] if count == 1 else names, groups, strict=True):
            draft = folder / f".{file}.draft"
            drafts.append((draft, folder / file))
            # Not by name: a name would keep this file's copies while the next one's are made.
            save_file(
                {key: tensors[key].detach().to("cpu", dtype).contiguous() for key in keys},
                draft,
                metadata={"format": "pt", **(metadata or {})},
            )
        for draft, path in drafts:
            draft.replace(path)
    finally:
        for draft, _ in drafts:
            draft.unlink(missing_ok=True)
    index = folder / f"{name}.index.json"
    if count > 1:
        where = {key: file for file, keys in zip(names, groups, strict=True) for key in keys}
        total = sum(_bytes(tensor, dtype) for tensor in tensors.values())
        write_json(index, {"metadata": {"total_size": total}, "weight_map": where})
    written = {path for _, path in drafts} | ({index} if count > 1 else set())
    for path in stale - written:
        path.unlink(missing_ok=True)


def _groups(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int
) -> list[list[str]]:
    """Names in their order, cut where a file would grow beyond ``limit`` bytes."""
    groups: list[list[str]] = [[]]
    room = limit
    for name, tensor in tensors.items():
        size = _bytes(tensor, dtype)
        if groups[-1] and size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


def _bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _files_of(folder: Path, name: str) -> set[Path]:
    """The files that hold, or held, the component called ``name``."""
    stem = re.escape(name.removesuffix(".safetensors"))
    ours = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.safetensors|{re.escape(name)}\.index\.json")
    return {path for path in folder.iterdir() if ours.fullmatch(path.name)}


def assign(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Make ``tensors`` the parameters of ``module``, keeping each tensor's own dtype and device.

    What does not fit is listed together and nothing is changed.

    Raises:
        CheckpointError: naming ``what`` and the tensors that do not fit.
    """
    found = {
        key: (
            tuple(value.shape),
            str(value.dtype).removeprefix("torch."),
            value.is_floating_point(),
        )
        for key, value in tensors.items()
    }
    _check_fit(module, found, what)
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def fill(
    module: nn.Module,
    weights: Weights,
    what: str,
    *,
    device: torch.device | str,
    dtype: Callable[[str], torch.dtype],
    rename: Mapping[str, str] | None = None,
    convert: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Make stored tensors the parameters of ``module``, one by one, in the dtype wanted.

    Everything is checked by the headers first. At no time is there more in host memory than what
    stays there and one tensor.

    Args:
        module: on the meta device, or any other: its parameters are replaced.
        weights: what is stored.
        what: how errors call it.
        device: where the parameters go.
        dtype: of each, by the module's own name.
        rename: the module's name of stored names that differ.
        convert: makes the module's values of stored ones, by the module's own name.

    Raises:
        CheckpointError: if a tensor is missing, unexpected, or of a wrong shape or dtype; nothing
            is changed.
    """
    check_entries(module, weights, what, rename=rename)
    placed = place(weights, device=device, dtype=dtype, rename=rename, convert=convert)
    module.load_state_dict(dict(placed), strict=True, assign=True)


def place(
    weights: Weights,
    *,
    device: torch.device | str,
    dtype: Callable[[str], torch.dtype],
    rename: Mapping[str, str] | None = None,
    convert: Callable[[str, Tensor], Tensor] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Stored tensors by the module's own names, each read when it is asked for; see `fill`."""
    for stored, tensor in weights.read():
        name = (rename or {}).get(stored, stored)
        value = tensor if convert is None else convert(name, tensor)
        value = value.to(device, dtype(name))
        # In a mapped file tensors start at any multiple of 8 bytes, where matrix products are
        # slower and round differently: weights would give other frames when loaded than trained.
        if value.device.type == "cpu" and value.data_ptr() % _ALIGNMENT:
            value = value.clone()
        yield name, value


def check_entries(
    module: nn.Module, weights: Weights, what: str, *, rename: Mapping[str, str] | None = None
) -> None:
    """Check by the headers that ``weights`` fit ``module``; see `fill`.

    Raises:
        CheckpointError: listing everything that does not fit.
    """
    found = {
        (rename or {}).get(name, name): (entry.shape, entry.dtype, entry.dtype in _FLOATS)
        for name, entry in weights.entries.items()
    }
    _check_fit(module, found, what)


def _is_plain_float(tensor: Tensor) -> bool:
    """Whether it is a float that means something without a scale."""
    return tensor.is_floating_point() and tensor.dtype.itemsize > 1


def _check_fit(
    module: nn.Module, found: Mapping[str, tuple[tuple[int, ...], str, bool]], what: str
) -> None:
    """Hold shape, dtype and whether that is a plain float against the module's own tensors."""
    own = module.state_dict()
    both = sorted(own.keys() & found.keys())
    shapes = [key for key in both if found[key][0] != tuple(own[key].shape)]
    dtypes = [key for key in both if found[key][2] != _is_plain_float(own[key])]
    kinds = {
        "missing": [f"missing {key}" for key in sorted(own.keys() - found.keys())],
        "unexpected": [f"unexpected {key}" for key in sorted(found.keys() - own.keys())],
        "of a wrong shape": [
            f"{key} is {list(found[key][0])}, expected {list(own[key].shape)}" for key in shapes
        ],
        "of a wrong dtype": [
            f"{key} is {found[key][1]}, expected "
            + (
                "a float of 16 bits or more"
                if _is_plain_float(own[key])
                else _KINDS.get(own[key].dtype, "whole numbers")
            )
            for key in dtypes
        ],
    }
    problems = [line for lines in kinds.values() for line in lines]
    if problems:
        totals = ", ".join(f"{len(lines)} {kind}" for kind, lines in kinds.items() if lines)
        more = f"; … in all {totals}" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            f"{what} does not fit its configuration: {'; '.join(problems[:_SHOWN])}{more}"
        )


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_of(folder: Path) -> dict[str, Any]:
    """Length and SHA-256 of every file below ``folder``, ready for its ``manifest.json``."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        "version": 1,
        "files": {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": file_digest(path),
            }
            for path in files
            if path != folder / MANIFEST_NAME
        },
    }


def check_file(path: Path, size: int | None, digest: str | None) -> None:
    """Hold a file against its known length and SHA-256, whichever are known.

    Raises:
        CheckpointError: if it is missing.
        CheckpointCorruptError: if it differs, with what was expected and what was found.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    found = path.stat().st_size
    if size is not None and found != size:
        raise CheckpointCorruptError(f"{path} is damaged: {found} bytes, expected {size}")
    if digest is not None and (actual := file_digest(path)) != digest:
        raise CheckpointCorruptError(f"{path} is damaged: SHA-256 {actual}, expected {digest}")
