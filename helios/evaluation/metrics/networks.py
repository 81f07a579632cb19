"""Scores that need a network which is not ours: aesthetic, semantic and naturalness.

Networks are read from a folder, or from the hub's cache if they happen to be there; nothing is ever
downloaded. What is not there is not measured, and one line says what would have to be there. The
folder:

    aesthetic.safetensors   the linear head over CLIP ViT-L/14: weight [1, 768] and bias [1]
    clip/                   CLIP ViT-L/14 (transformers' folder layout)
    semantic/               a CLIP or X-CLIP that embeds eight frames and a text
    naturalness/            a vision-language model that answers about images

Source: specification "training", section 9.1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from helios.errors import CheckpointError
from helios.storage import read_tensors

__all__ = ["ClipScore", "FrameScore", "Networks", "load_networks"]

FrameScore = Callable[[Tensor], Tensor]
"""Frames uint8 ``[N, H, W, 3]`` to ``[N]``."""

CLIP_ID = "openai/clip-vit-large-patch14"
SEMANTIC_ID = "microsoft/xclip-base-patch32"

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures, per channel."""

BATCH = 64

QUESTION = (
    "These are frames of one video, in order. How natural does the video look: are things whole, "
    "does everything move as it would in the world, and does nothing appear, vanish or melt? "
    "Answer with one digit, from 1 (unnatural) to 5 (natural)."
)


@dataclass(frozen=True)
class ClipScore:
    """A score of a few frames of a clip and its text.

    Attributes:
        frames: how many it looks at.
        score: uint8 ``[frames, H, W, 3]`` and the text to a number from 0 to 1.
        network: what is behind it, for reports.
    """

    frames: int
    score: Callable[[Tensor, str], float]
    network: str


@dataclass(frozen=True)
class Networks:
    """The scores that can be had, and a line on each that cannot.

    Attributes:
        frames: scores of single frames.
        clips: scores of clips.
        missing: name to what would have to be there.
        used: name to the network behind it.
    """

    frames: Mapping[str, FrameScore] = field(default_factory=dict)
    clips: Mapping[str, ClipScore] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    used: Mapping[str, str] = field(default_factory=dict)


def load_networks(folder: Path | None, device: torch.device | str = "cpu") -> Networks:
    """Whatever of the three scores can be loaded without a download.

    Args:
        folder: see above; none: only the hub's cache is looked at.
        device: where the networks run.

    Raises:
        CheckpointError: if a folder was named that does not exist, or holds a network that cannot
            be used.
    """
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"networks: {folder} is not a folder")
    frames: dict[str, FrameScore] = {}
    clips: dict[str, ClipScore] = {}
    missing: dict[str, str] = {}
    used: dict[str, str] = {}
    place = torch.device(device)
    where = "the folder given with --networks" if folder is None else str(folder)
    head = None if folder is None else folder / "aesthetic.safetensors"
    clip = _find(folder, "clip", CLIP_ID)
    if head is not None and head.is_file() and clip is not None:
        frames["aesthetic"], used["aesthetic"] = _aesthetic(clip, head, place), clip
    else:
        lacking = "aesthetic.safetensors" if clip is not None else "clip/ and aesthetic.safetensors"
        missing["aesthetic"] = (
            f"needs {lacking} in {where} (CLIP ViT-L/14 and its linear aesthetic head)"
        )
    semantic = _find(folder, "semantic", SEMANTIC_ID)
    if semantic is not None:
        clips["semantic"] = _semantic(semantic, place)
        used["semantic"] = clips["semantic"].network
    else:
        missing["semantic"] = f"needs semantic/ in {where} (a CLIP or X-CLIP), or {SEMANTIC_ID}"
    natural = _find(folder, "naturalness", None)
    if natural is not None:
        clips["naturalness"], used["naturalness"] = _naturalness(natural, place), natural
    else:
        missing["naturalness"] = f"needs naturalness/ in {where} (a vision-language model)"
    return Networks(frames, clips, missing, used)


def _find(folder: Path | None, name: str, hub: str | None) -> str | None:
    """A folder with a model, or the name of one that the hub's cache holds."""
    if folder is not None and (folder / name / "config.json").is_file():
        return str(folder / name)
    if hub is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(hub, file) for file in ("config.json", "model.safetensors")]
    return hub if all(isinstance(path, str) for path in found) else None


def _load(cls: Any, name: str, device: torch.device) -> Any:
    """A network of transformers: never a pickle, never code of its own, never a download."""
    try:
        with _quiet():
            network = cls.from_pretrained(name, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        line = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"networks: {name} cannot be used: {line}") from None
    return network.to(device).eval() if hasattr(network, "eval") else network


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without lists of the half of a CLIP that is not needed."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _pixels(frames: Tensor, size: int, device: torch.device) -> Tensor:
    """Frames as CLIP saw pictures: the shorter side to ``size``, the middle, normalised."""
    values = frames.to(device).movedim(-1, 1).float() / 255
    height, width = values.shape[-2:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    values = F.interpolate(values, shape, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    values = values[..., top : top + size, left : left + size]
    mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
    return (values - mean) / torch.tensor(DEVIATION, device=device).view(3, 1, 1)


def _aesthetic(clip: str, head: Path, device: torch.device) -> FrameScore:
    from transformers import CLIPVisionModelWithProjection

    tower = _load(CLIPVisionModelWithProjection, clip, device)
    tensors = read_tensors(head.parent, head.name)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    width = int(tower.config.projection_dim)
    if shapes != {"weight": (1, width), "bias": (1,)}:
        raise CheckpointError(
            f"{head} must hold weight [1, {width}] and bias [1], it holds {shapes}"
        )
    weight, bias = (tensors[name].float().to(device) for name in ("weight", "bias"))
    size = int(tower.config.image_size)

    @torch.no_grad()
    def score(frames: Tensor) -> Tensor:
        parts = []
        for part in frames.split(BATCH):
            embedded = tower(pixel_values=_pixels(part, size, device)).image_embeds
            graded = F.linear(F.normalize(embedded.float(), dim=-1), weight, bias)[:, 0]
            parts.append((graded / 10).clamp(0, 1))
        return torch.cat(parts).to(frames.device)

    return score


def _semantic(name: str, device: torch.device) -> ClipScore:
    from transformers import AutoConfig, AutoTokenizer, CLIPModel, XCLIPModel

    config = _load_config(AutoConfig, name)
    kinds = {"clip": CLIPModel, "xclip": XCLIPModel}
    if config.model_type not in kinds:
        raise CheckpointError(
            f"networks: {name} is a {config.model_type}; semantic/ must be a CLIP or X-CLIP"
        )
    model = _load(kinds[config.model_type], name, device)
    tokenizer = _load(AutoTokenizer, name, device)
    size = int(config.vision_config.image_size)
    wanted = int(getattr(config.vision_config, "num_frames", 8))

    @torch.no_grad()
    def score(frames: Tensor, prompt: str) -> float:
        text = tokenizer(
            prompt,
            return_tensors="pt",
            truncation=True,
            max_length=int(config.text_config.max_position_embeddings),
        )
        pixels = _pixels(frames, size, device)
        video = pixels[None] if config.model_type == "xclip" else pixels
        out = model(
            input_ids=text["input_ids"].to(device),
            attention_mask=text["attention_mask"].to(device),
            pixel_values=video,
        )
        logits = out.logits_per_video if config.model_type == "xclip" else out.logits_per_image
        return float(logits.float().mean() / model.logit_scale.float().exp())

    return ClipScore(wanted, score, f"{config.model_type} ({Path(name).name})")


def _load_config(cls: Any, name: str) -> Any:
    try:
        return cls.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        line = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"networks: {name} cannot be used: {line}") from None


def _naturalness(name: str, device: torch.device) -> ClipScore:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = _load(AutoModelForImageTextToText, name, device)
    processor = _load_config(AutoProcessor, name)

    def score(frames: Tensor, prompt: str) -> float:
        return (grade(model, processor, frames) - 1) / 4

    return ClipScore(16, score, Path(name).name)


@torch.no_grad()
def grade(model: Any, processor: Any, frames: Tensor) -> float:
    """The expected answer, 1 to 5, of a vision-language model: no sampling, so no seed.

    Args:
        model: called with what the processor gives, returns ``logits``.
        processor: with a chat template and a tokenizer.
        frames: uint8 ``[N, H, W, 3]``.
    """
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames.cpu().numpy()]
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    content.append({"type": "text", "text": QUESTION})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    device = next(model.parameters()).device
    logits = model(**{key: value.to(device) for key, value in inputs.items()}).logits[0, -1]
    digits = [processor.tokenizer.encode(str(k), add_special_tokens=False)[-1] for k in range(1, 6)]
    share = logits[digits].float().softmax(dim=0)
    return float((share * torch.arange(1.0, 6.0, device=share.device)).sum())
