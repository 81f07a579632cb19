"""From a folder to a ready pipeline and back: the published layout (specification, section 1.1).

Everything that can be refused from the small JSON files is refused before a weight is read. Class
names are looked up in a table; nothing in a folder can make us load code.
"""

from __future__ import annotations

import difflib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helios.codec import check_codec, load_codec, save_codec
from helios.conditioning import (
    check_text_encoder,
    let_visit,
    load_text_encoder,
    save_text_encoder,
)
from helios.diffusion import CFG, CFGZero, Flat, Pyramid, ScheduleConfig, solver_from_json
from helios.errors import CheckpointError, UnsafeCheckpointError
from helios.files import shown
from helios.geometry import FPS
from helios.kernels import E4M3
from helios.model import Fp8Config, check_transformer, load_transformer, save_transformer
from helios.pipeline.engine import EngineConfig
from helios.pipeline.hub import PUBLISHED, HubId, HubModel, find_on_hub
from helios.pipeline.memory import close_gaps
from helios.pipeline.pipeline import Pipeline
from helios.pipeline.plan import LEAN_GROUP, arithmetic, blocks_away, check_fits
from helios.pipeline.request import GenerationConfig
from helios.storage import (
    MANIFEST_NAME,
    SHARD_BYTES,
    contained,
    manifest_of,
    read_json,
    write_json,
)

__all__ = [
    "BUNDLED",
    "ModelFolder",
    "check_free",
    "check_weights",
    "find_model",
    "inspect_model",
    "load",
    "pick_device",
    "pick_dtype",
    "save",
]

BUNDLED = ("tiny",)
"""Models inside the package, by name."""
SETTINGS_NAME = "helios.json"
"""Our own file beside ``model_index.json``: what the model makes by default. Others ignore it."""
DIFFUSERS_FORMAT = "0.36.0"

_CLASSES: dict[str, tuple[str, ...]] = {
    "transformer": ("HeliosTransformer3DModel",),
    "vae": ("AutoencoderKLWan",),
    "scheduler": ("HeliosScheduler", "HeliosDMDScheduler"),
    "text_encoder": ("UMT5EncoderModel",),
}
_PIPELINES = ("HeliosPipeline", "HeliosPyramidPipeline")
_OPTIONAL = ("text_encoder", "tokenizer")


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model folder whose small files were read and found good; no weight is loaded.

    Attributes:
        folder: where it is.
        name: what the model is called.
        defaults: what it makes when not told otherwise.
        schedule: the noise schedule it was trained with.
        has_text_encoder: false: texts must come encoded.
        hub: where weights that are not here yet come from.
    """

    folder: Path
    name: str
    defaults: GenerationConfig
    schedule: ScheduleConfig
    has_text_encoder: bool
    hub: HubModel | None = None


def load(
    name_or_folder: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    revision: str | None = None,
    low_memory: bool = False,
) -> Pipeline:
    """A ready pipeline from a bundled model, the hub, or a folder in the published layout.

    Args:
        name_or_folder: ``"tiny"``, a folder with ``model_index.json``, or a hub id such as
            ``"BestWishYsh/Helios-Distilled"``, pinned as ``"owner/name@revision"`` if wanted; what
            is not here yet is downloaded.
        device: ``"auto"`` is CUDA if there is one, else the CPU. A GPU becomes PyTorch's current
            device: whoever uses two in one process changes it before using the other.
        dtype: ``"auto"`` is bfloat16 on CUDA and on CPUs that multiply it in hardware, else
            float32; or ``"float32"``, ``"bfloat16"``, or ``"fp8"``: bfloat16 with the
            transformer's matrix products in e4m3, which needs half the room.
        revision: a branch, tag or commit on the hub.
        low_memory: on CUDA, need less of it and be slower: see ``load_inspected``.

    Raises:
        CheckpointError: for an unknown model, or weights that do not fit; nothing stays loaded.
        MemoryError: if the weights cannot fit on the device; nothing is read then.
        ValueError: for a device or dtype that is not possible here.
    """
    place = pick_device(device)
    precision = pick_dtype(dtype, place, fp8=True)
    model = inspect_model(name_or_folder, revision=revision)
    return load_inspected(model, place, precision, low_memory=low_memory)


def load_inspected(
    model: ModelFolder,
    device: torch.device,
    dtype: torch.dtype,
    *,
    codec_dtype: torch.dtype | None = None,
    low_memory: bool = False,
) -> Pipeline:
    """The pipeline of a folder that ``inspect_model`` accepted.

    Args:
        model: what is to be loaded; weights on the hub are downloaded.
        device: where it goes.
        dtype: of the transformer, the text encoder and the decoder; of ``pick_dtype``.
        codec_dtype: of the decoder, if another.
        low_memory: on CUDA, the text encoder stays in host memory and its layers visit the device,
            a chunk is decoded in parts and before the next one is begun, and no graphs are kept. As
            many of the transformer's blocks as have to come from host memory for every pass.

    Raises:
        MemoryError: if its weights cannot fit on ``device``, before any is downloaded or read.
        CheckpointError: for weights that do not fit their configuration.
    """
    lean = low_memory and device.type == "cuda"
    if device.type == "cuda" and device.index is not None:
        # Kernels are launched on the current device, whatever device their tensors are on.
        torch.cuda.set_device(device)
    if lean:
        close_gaps()
    check_fits(model, device, dtype, low_memory=lean)
    if model.hub is not None:
        model.hub.fetch(lambda line: print(f"downloading {line}", file=sys.stderr, flush=True))
    text_encoder = None
    if model.has_text_encoder:
        place = torch.device("cpu") if lean else device
        text_encoder = load_text_encoder(model.folder, device=place, dtype=arithmetic(dtype))
        _align(text_encoder)
        if lean:
            let_visit(text_encoder, device)
    transformer = load_transformer(
        model.folder / "transformer",
        device=device,
        dtype=arithmetic(dtype),
        fp8=Fp8Config() if dtype == E4M3 else None,
        away=blocks_away(model, device, dtype) if lean else 0,
    )
    codec = load_codec(model.folder / "vae", device=device, dtype=codec_dtype or arithmetic(dtype))
    if text_encoder is not None and text_encoder.dim != transformer.config.text_dim:
        raise CheckpointError(
            f"{model.folder}: the text encoder gives {text_encoder.dim} columns, "
            f"the transformer reads {transformer.config.text_dim}"
        )
    pipeline = Pipeline(
        transformer.eval(),
        codec,
        text_encoder,
        model.defaults,
        model.schedule,
        name=model.name,
        engine=EngineConfig(graphs=not lean),
    )
    if lean:
        codec.group, pipeline.ahead = LEAN_GROUP, False
        torch.cuda.empty_cache()
    return pipeline


def _align(module: nn.Module) -> None:
    """Give parameters that still lie in a mapped file memory of their own.

    There they start at any multiple of 8 bytes, where matrix products are slower and round
    differently: the same weights would give other frames when loaded than when trained.
    """
    for parameter in module.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


def find_model(name_or_folder: str | Path) -> Path:
    """The folder of a bundled model, of a path, or of a hub id's files in the cache.

    Of the hub only the small files are fetched.

    Raises:
        CheckpointError: if it is none of these, saying what is known.
    """
    return _find(name_or_folder, None)[0]


def _find(name_or_folder: str | Path, revision: str | None) -> tuple[Path, HubModel | None]:
    name = str(name_or_folder)
    if name in BUNDLED:
        folder = Path(__file__).resolve().parent.parent / "assets" / name
        if not (folder / "model_index.json").is_file():
            raise CheckpointError(
                f"the bundled model {name!r} is missing here; install helios-video again"
            )
        return folder, None
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder, None
    if folder.exists():
        raise CheckpointError(f"{name} is a file; give the folder that holds model_index.json")
    hub_id = HubId.parse(name, revision)
    close = difflib.get_close_matches(name, (*BUNDLED, *PUBLISHED), n=1)
    hint = f"; did you mean {close[0]!r}?" if close and close[0] != name else ""
    if hub_id is None:
        raise CheckpointError(
            f"unknown model {name!r}: known are {', '.join(BUNDLED)}, folders in the published "
            f"layout (with model_index.json) and hub ids (owner/name){hint}"
        )
    try:
        model = find_on_hub(hub_id)
    except CheckpointError as error:
        raise type(error)(f"{error}, and no folder here has this name{hint}") from error
    return model.folder, model


def inspect_model(name_or_folder: str | Path, *, revision: str | None = None) -> ModelFolder:
    """Read and check the small files of a model, without its weights.

    Args:
        name_or_folder: see ``load``.
        revision: likewise.

    Raises:
        CheckpointError: if the folder is not a complete Helios model.
    """
    folder, hub = _find(name_or_folder, revision)
    index = read_json(folder / "model_index.json")
    pipeline_class = index.get("_class_name")
    if pipeline_class not in _PIPELINES:
        raise CheckpointError(f"{folder} is a {pipeline_class}, not one of {', '.join(_PIPELINES)}")
    for part, classes in _CLASSES.items():
        name = _component(index, part)
        if name is None and part in _OPTIONAL:
            continue
        if name not in classes:
            raise CheckpointError(f"{folder}: {part} is {name}, expected {' or '.join(classes)}")
        if not (folder / part).is_dir():
            raise CheckpointError(f"{folder / part} is missing: the model is not complete")
        if not contained(folder / part, folder):
            raise UnsafeCheckpointError(f"{folder / part} is a link to outside the model folder")
    has_text = all(_component(index, part) is not None for part in _OPTIONAL)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    try:
        schedule = ScheduleConfig.from_json(scheduler)
        defaults = _defaults(folder, index, scheduler)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: its settings cannot be used: {error}") from None
    return ModelFolder(
        folder=folder,
        name=folder.resolve().name if hub is None else str(hub.id),
        defaults=defaults,
        schedule=schedule,
        has_text_encoder=has_text,
        hub=hub,
    )


def check_weights(model: ModelFolder) -> None:
    """Check by the headers alone that the weights of ``model`` are whole and fit its configuration.

    Raises:
        CheckpointError: listing what does not fit.
    """
    check_transformer(model.folder / "transformer")
    check_codec(model.folder / "vae")
    if model.has_text_encoder:
        check_text_encoder(model.folder)


def _component(index: dict[str, Any], part: str) -> str | None:
    """Class name of one part; none if the folder goes without it."""
    entry = index.get(part)
    if not isinstance(entry, list) or len(entry) != 2:
        return None
    return None if entry[1] is None else str(entry[1])


def _defaults(folder: Path, index: dict[str, Any], scheduler: dict[str, Any]) -> GenerationConfig:
    if (folder / SETTINGS_NAME).is_file():
        settings = read_json(folder / SETTINGS_NAME)
        return GenerationConfig.from_json(settings.get("generation", {}))
    return published_defaults(index, scheduler)


def published_defaults(index: dict[str, Any], scheduler: dict[str, Any]) -> GenerationConfig:
    """What a published checkpoint makes by default (specification, section 1.5)."""
    solver = solver_from_json(scheduler)
    if index.get("is_distilled") or solver == "renoise":
        return GenerationConfig(
            plan=Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True),
            guidance=None,
            distilled=True,
        )
    if index.get("_class_name") == "HeliosPyramidPipeline":
        zero = bool(index.get("is_cfg_zero_star"))
        return GenerationConfig(
            plan=Pyramid(steps=(20, 20, 20), solver=solver, zero_init=2 if zero else 0),
            guidance=CFGZero(5.0) if zero else CFG(5.0),
        )
    return GenerationConfig(plan=Flat(steps=50, solver=solver), guidance=CFG(5.0), fps=FPS)


def save(
    pipeline: Pipeline, folder: Path, *, overwrite: bool = False, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Write ``pipeline`` in the published layout, whole or not at all, with its manifest.

    Args:
        pipeline: what to write, in the dtype it is loaded in.
        folder: must not exist, or be empty, unless ``overwrite``.
        overwrite: replace a folder that is a model; nothing else is ever deleted.
        shard_bytes: a transformer of more bytes is written as several files with an index.

    Raises:
        FileExistsError: if ``folder`` is in use.
    """
    folder = Path(folder)
    check_free(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(pipeline, draft, shard_bytes)
        write_json(draft / MANIFEST_NAME, manifest_of(draft))
        mask = os.umask(0)
        os.umask(mask)
        draft.chmod(0o777 & ~mask)
        if folder.exists():
            shutil.rmtree(folder)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write where something is, unless it is a model and may be replaced.

    Raises:
        FileExistsError: if ``folder`` is in use.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "model_index.json").is_file():
        raise FileExistsError(f"{shown(folder)} exists and is no model; choose another folder")
    if not overwrite:
        raise FileExistsError(
            f"{shown(folder)} holds a model; choose another folder, or replace it with --overwrite "
            "(overwrite=True)"
        )


def _write(pipeline: Pipeline, folder: Path, shard_bytes: int) -> None:
    save_transformer(pipeline.transformer, folder / "transformer", shard_bytes=shard_bytes)
    save_codec(pipeline.codec, folder / "vae")
    (folder / "scheduler").mkdir()
    scheduler = pipeline.schedule.to_json(pipeline.defaults.plan.solver)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    text: list[str | None] = [None, None]
    tokenizer: list[str | None] = [None, None]
    if pipeline.text_encoder is not None:
        save_text_encoder(pipeline.text_encoder, folder)
        text = ["transformers", "UMT5EncoderModel"]
        tokenizer = ["transformers", type(pipeline.text_encoder.tokenizer).__name__]
    plan, guidance = pipeline.defaults.plan, pipeline.defaults.guidance
    index: dict[str, Any] = {
        "_class_name": "HeliosPyramidPipeline" if isinstance(plan, Pyramid) else "HeliosPipeline",
        "_diffusers_version": DIFFUSERS_FORMAT,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": text,
        "tokenizer": tokenizer,
        "transformer": ["diffusers", "HeliosTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if isinstance(plan, Pyramid):
        index["is_cfg_zero_star"] = isinstance(guidance, CFGZero)
        index["is_distilled"] = pipeline.defaults.distilled
    write_json(folder / "model_index.json", index)
    settings = {"schema_version": 1, "generation": pipeline.defaults.to_json()}
    write_json(folder / SETTINGS_NAME, settings)


def pick_device(device: str | torch.device) -> torch.device:
    """The device to use; ``"auto"`` is CUDA if there is one, else the CPU.

    Raises:
        ValueError: if the device is unknown or not here.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from None
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!s} is not here; use --device cpu, see helios doctor")
    return place


def pick_dtype(dtype: str | torch.dtype, device: torch.device, *, fp8: bool = False) -> torch.dtype:
    """The dtype to compute in; ``"auto"`` takes bfloat16 where the hardware multiplies it.

    That is every CUDA device, and CPUs with AVX-512-BF16 or AMX; elsewhere bfloat16 would be
    emulated and slower than float32.

    Args:
        dtype: auto, float32 or bfloat16.
        device: where.
        fp8: whether "fp8" may be asked for as well, the transformer's products in e4m3.

    Raises:
        ValueError: for another dtype.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if fp8:
        known |= {"fp8": E4M3, "float8_e4m3fn": E4M3}
    if dtype == "auto":
        fast = device.type == "cuda" or cpu_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    chosen = known.get(str(dtype).removeprefix("torch."))
    if chosen is None:
        names = "float32, bfloat16 or fp8" if fp8 else "float32 or bfloat16"
        raise ValueError(f"dtype must be auto, {names}, got {dtype!r}")
    return chosen


def cpu_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512-BF16 or AMX)."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        have = capabilities()
        return bool(have.get("avx512_bf16") or have.get("amx_bf16"))
    # Older torch tells only through these.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
