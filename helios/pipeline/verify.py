"""Is what lies here what was written, and can it be used: models and training checkpoints alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError
from helios.pipeline.build import check_weights, inspect_model
from helios.storage import MANIFEST_NAME, Weights, check_file, contained, open_file, read_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["verify_folder"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


def verify_folder(folder: Path, say: Callable[[str], None] = lambda _: None) -> None:
    """Check every file of a model or a training checkpoint.

    Lengths and digests by the folder's manifest, or by the hub's names of its files; headers; that
    all weights are finite; of a model, that everything fits its configuration.

    Args:
        folder: a model folder, or a training checkpoint.
        say: told of every file.

    Raises:
        CheckpointError: naming everything that is wrong; CheckpointCorruptError if it is damage.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    wanted = dict(_wanted(folder))
    weights = {path for path in folder.rglob("*.safetensors") if path.is_file()}
    if not wanted and not weights:
        raise CheckpointError(f"{folder} holds no weights")
    problems: list[CheckpointError] = []
    for path in sorted(wanted.keys() | weights):
        name = path.relative_to(folder).as_posix()
        size, digest = wanted.get(path, (None, None))
        try:
            check_file(path, size, digest)
            if path in weights and (broken := _not_finite(path)):
                shown = ", ".join(broken[:20])
                raise CheckpointCorruptError(
                    f"{path} is not finite in {len(broken)} tensors: {shown}"
                )
        except CheckpointError as error:
            say(f"{name}  {error}")
            problems.append(error)
        else:
            say(f"{name}  ok" if digest else f"{name}  readable; no digest is known")
    if problems:
        more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
        raise type(problems[0])(f"{problems[0]}{more}")
    if (folder / "model_index.json").is_file():
        check_weights(inspect_model(folder))


def _wanted(folder: Path) -> Iterator[tuple[Path, tuple[int | None, str | None]]]:
    """Length and SHA-256 of every file of which they are known."""
    if (folder / MANIFEST_NAME).is_file():
        try:
            for name, entry in read_json(folder / MANIFEST_NAME)["files"].items():
                if not contained(folder / name, folder):
                    raise UnsafeCheckpointError(f"{folder / MANIFEST_NAME} names {name!r}")
                yield folder / name, (int(entry["bytes"]), str(entry["sha256"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointCorruptError(
                f"{folder / MANIFEST_NAME} is malformed ({error!r})"
            ) from None
        return
    for path in folder.rglob("*"):
        # In the hub's cache a large file is a link to a blob that is called by its digest.
        if path.is_symlink() and _SHA256.fullmatch(path.readlink().name):
            yield path, (None, path.readlink().name)


def _not_finite(file: Path) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    tensors = Weights(open_file(file)).read()
    return [name for name, t in tensors if t.is_floating_point() and not _is_finite(t)]


def _is_finite(tensor: Tensor) -> bool:
    # Eight-bit floats must be widened to be looked at.
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    return bool(wide.isfinite().all())
