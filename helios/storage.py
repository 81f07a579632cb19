"""Weight files and finished files: read strictly, written whole or not at all.

Every safetensors file of the project is opened here and nowhere else, so that one place decides
what is refused: pickles are never opened, a truncated file is named as such, and a folder whose
tensors do not fit the module changes nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from torch import Tensor, nn

__all__ = [
    "assign",
    "atomic_path",
    "read_json",
    "read_tensors",
    "write_json",
    "write_tensors",
]

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` if the block succeeds.

    The folder must exist. On any exception the temporary file is removed and ``path`` is as it was.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private; a finished result has the permissions of any new file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: if it is missing.
        CheckpointCorruptError: if it is not a JSON object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: this is not a complete model folder") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointCorruptError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointCorruptError(f"{path} must hold a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def read_tensors(
    folder: Path, name: str = WEIGHTS_NAME, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """All tensors of one weight file, or of the shards its ``.index.json`` names.

    Args:
        folder: the component's folder, such as ``model/transformer``.
        name: file name of the unsharded form.
        device: where the tensors are placed; on the CPU they are memory-mapped.

    Raises:
        UnsafeCheckpointError: if only pickled weights are there; they are never opened.
        CheckpointCorruptError: if a file is truncated or not safetensors.
        CheckpointError: if no weights are there.
    """
    index = folder / f"{name}.index.json"
    if (folder / name).is_file():
        files = [folder / name]
    elif index.is_file():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        if any(Path(shard).name != shard for shard in shards):
            raise UnsafeCheckpointError(f"{index} names files outside its folder")
        files = [folder / shard for shard in shards]
    else:
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in _PICKLES)
        if pickles:
            raise UnsafeCheckpointError(
                f"{folder / pickles[0]} is a pickle, which can run code when opened; "
                "convert the model to safetensors"
            )
        raise CheckpointError(f"{folder} holds no {name}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt", device=str(device)) as reader:
                tensors.update({key: reader.get_tensor(key) for key in reader.keys()})  # noqa: SIM118
        except FileNotFoundError:
            raise CheckpointError(f"{file} is missing") from None
        except SafetensorError as error:
            raise CheckpointCorruptError(
                f"{file} is damaged or not safetensors ({error}); download it again"
            ) from None
    return tensors


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], name: str = WEIGHTS_NAME) -> None:
    """Write ``tensors`` as one safetensors file in ``folder``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic_path(folder / name) as temporary:
        save_file(plain, temporary, metadata={"format": "pt"})


def assign(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Make ``tensors`` the parameters of ``module``, keeping each tensor's own dtype and device.

    Missing, unexpected and wrong-shape names are listed together and nothing is changed.

    Raises:
        CheckpointError: naming ``what`` and the tensors that do not fit.
    """
    own = module.state_dict()
    problems = [f"missing {key}" for key in sorted(own.keys() - tensors.keys())]
    problems += [f"unexpected {key}" for key in sorted(tensors.keys() - own.keys())]
    problems += [
        f"{key} is {list(tensors[key].shape)}, expected {list(own[key].shape)}"
        for key in sorted(own.keys() & tensors.keys())
        if tensors[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" * (len(problems) > 6))
        raise CheckpointError(f"{what} does not fit its configuration: {shown}")
    module.load_state_dict(dict(tensors), strict=True, assign=True)
