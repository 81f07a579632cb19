"""Making a clean past imperfect, because a generated past is.

Training sees real latents, generation its own. Noise, blur and changed contrast on some frames of
the window, and windows with a shorter past, close that gap (specification "training", 2.3 and 3).
Everything is vectorised over samples and frames and waits for nothing on the device; frames that
do not exist stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from helios.diffusion import mix
from helios.geometry import CHUNK_LATENTS
from helios.history.window import HISTORY_FRAMES, PAST_FRAMES, HistoryWindow

__all__ = [
    "CorruptionConfig",
    "DropConfig",
    "Granularity",
    "corrupt",
    "drop_history",
    "start_noise",
]

Granularity: TypeAlias = Literal["frame", "chunk", "clip"]
Range: TypeAlias = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class CorruptionConfig:
    """Which damage each frame of the past gets: at most one kind, the rest stays clean.

    Attributes:
        noise: probability of ``(1 - s) z + s n``, with ``s`` uniform in ``noise_range``.
        down_up: probability of shrinking by a share uniform in ``down_up_range`` and back.
        exposure: probability of a change of brightness: scaling about ``exposure_pivot`` by a
            factor uniform in ``exposure_range``. The pivot is the latent of a black frame, one
            number per channel; with an affine autoencoder this is exactly a brighter picture.
            Without a pivot it is zero.
        saturation: probability of scaling the difference from the mean over channels, at each
            place, by a factor uniform in ``saturation_range``.
        scale: probability of scaling the whole latent by a factor uniform in ``scale_range``.
        granularity: whether each frame, each chunk of nine or the whole clip draws its own kind
            and strength. Noise itself is always drawn anew everywhere.
        corrupt_anchor: whether the anchor takes part.
    """

    noise: float = 0.75
    noise_range: Range = (0.0, 1 / 3)
    down_up: float = 0.0
    down_up_range: Range = (0.0, 0.1)
    exposure: float = 0.0
    exposure_range: Range = (0.3, 1.7)
    exposure_pivot: tuple[float, ...] = ()
    saturation: float = 0.0
    saturation_range: Range = (0.3, 1.7)
    scale: float = 0.10
    scale_range: Range = (0.6, 1.4)
    granularity: Granularity = "frame"
    corrupt_anchor: bool = True

    def __post_init__(self) -> None:
        """Refuse probabilities and ranges that are none."""
        shares = {kind: float(getattr(self, kind)) for kind in _KINDS}
        if min(shares.values()) < 0 or sum(shares.values()) > 1 + 1e-9:
            raise ValueError(f"probabilities must be at least 0 and sum to at most 1, got {shares}")
        for kind in _KINDS:
            low, high = getattr(self, f"{kind}_range")
            if not 0 <= low <= high:
                raise ValueError(f"{kind}_range must rise from at least 0, got {(low, high)}")
        if self.noise_range[1] > 1 or self.down_up_range[1] >= 1:
            raise ValueError("noise_range must end at most at 1, down_up_range below 1")
        if self.granularity not in get_args(Granularity):
            raise ValueError(
                f"granularity must be one of {get_args(Granularity)}, got {self.granularity!r}"
            )


_KINDS = ("noise", "down_up", "exposure", "saturation", "scale")


@dataclass(frozen=True, kw_only=True)
class DropConfig:
    """How often the past is shortened, per sample; each is asked only if the one before said no.

    Attributes:
        all: everything goes, anchor included: text to video.
        i2v: only the anchor and the newest frame stay: image to video.
        v2v: the 1, 10 or 19 oldest frames go (equally often), the anchor stays.
    """

    all: float = 0.10
    i2v: float = 0.10
    v2v: float = 0.20

    def __post_init__(self) -> None:
        """Refuse what is not a probability."""
        for name in ("all", "i2v", "v2v"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")

    @property
    def shares(self) -> tuple[float, float, float]:
        """Share of all samples that each of the three really gets."""
        kept = 1 - self.all
        return self.all, kept * self.i2v, kept * (1 - self.i2v) * self.v2v


def drop_history(
    window: HistoryWindow, config: DropConfig, generator: torch.Generator | None = None
) -> HistoryWindow:
    """Shorten the past of each sample by its own draw (training specification, 2.3).

    Args:
        window: the past; dropped frames become zero and absent.
        config: the shares.
        generator: on the window's device.
    """
    batch, device = window.frames.shape[0], window.frames.device
    draw = torch.rand(batch, 1, generator=generator, device=device)
    chunks = torch.randint(3, (batch, 1), generator=generator, device=device)
    everything, image, video = config.shares
    is_all = draw < everything
    is_image = (draw >= everything) & (draw < everything + image)
    is_video = (draw >= everything + image) & (draw < everything + image + video)

    dropped = torch.where(is_video, 1 + CHUNK_LATENTS * chunks, 0)
    dropped = torch.where(is_image, PAST_FRAMES - 1, dropped)
    dropped = torch.where(is_all, PAST_FRAMES, dropped)
    past = torch.arange(PAST_FRAMES, device=device) >= dropped
    keep = torch.cat((~is_all, past), dim=1)
    frames = window.frames.masked_fill(~keep[:, None, :, None, None], 0)
    return replace(window, frames=frames, present=window.present & keep)


class _Damage(NamedTuple):
    """What happens to each frame, both ``[B, 20]``."""

    kind: Tensor
    """Index into ``_KINDS``; ``len(_KINDS)`` is clean."""
    strength: Tensor
    """The amount, in the range of the frame's own kind."""


def corrupt(
    window: HistoryWindow, config: CorruptionConfig, generator: torch.Generator | None = None
) -> HistoryWindow:
    """Damage the frames that exist (training specification, 3).

    Args:
        window: the past.
        config: which damage, how often, how strong.
        generator: on the window's device.

    Returns:
        A window with the same frames present; clean and absent frames are unchanged bit for bit.
    """
    damage = _draw(window, config, generator)
    strength = damage.strength[:, None, :, None, None]
    z = window.frames.float()
    out = z
    for index, kind in enumerate(_KINDS):
        if getattr(config, kind) > 0:
            chosen = (damage.kind == index)[:, None, :, None, None]
            out = torch.where(chosen, _damaged(kind, z, strength, config, generator), out)
    return replace(window, frames=out.to(window.frames.dtype))


def _damaged(
    kind: str,
    z: Tensor,
    strength: Tensor,
    config: CorruptionConfig,
    generator: torch.Generator | None,
) -> Tensor:
    """All frames ``[B, C, 20, h, w]`` with one kind of damage, ``strength`` broadcasting."""
    if kind == "noise":
        noise = torch.randn(z.shape, generator=generator, device=z.device)
        return mix(z, noise, strength)
    if kind == "down_up":
        return _down_up(z, strength[:, 0, :, 0, 0], config.down_up_range[1])
    if kind == "saturation":
        pivot = z.mean(dim=1, keepdim=True)
        return pivot + strength * (z - pivot)
    if kind == "exposure" and config.exposure_pivot:
        # Copied without waiting: the values travel while the host goes on.
        pivot = torch.tensor(config.exposure_pivot).to(z.device, non_blocking=True)
        pivot = pivot.view(1, -1, 1, 1, 1)
        return pivot + strength * (z - pivot)
    return z * strength


def _draw(
    window: HistoryWindow, config: CorruptionConfig, generator: torch.Generator | None
) -> _Damage:
    """Choose kind and strength, shared within each group of the granularity."""
    batch, device = window.frames.shape[0], window.frames.device
    groups = {"frame": HISTORY_FRAMES, "chunk": 4, "clip": 1}[config.granularity]
    drawn = torch.rand(2, batch, groups, generator=generator, device=device)
    choice, amount = _spread(drawn, config.granularity)

    kind = torch.full_like(choice, len(_KINDS), dtype=torch.int64)
    strength = torch.zeros_like(choice)
    below = 0.0
    for index, name in enumerate(_KINDS):
        above = below + getattr(config, name)
        chosen = (choice >= below) & (choice < above)
        low, high = getattr(config, f"{name}_range")
        kind = torch.where(chosen, index, kind)
        strength = torch.where(chosen, low + (high - low) * amount, strength)
        below = above
    touchable = window.present
    if not config.corrupt_anchor:
        touchable = torch.cat((torch.zeros_like(touchable[:, :1]), touchable[:, 1:]), dim=1)
    return _Damage(torch.where(touchable, kind, len(_KINDS)), strength)


def _spread(drawn: Tensor, granularity: Granularity) -> Tensor:
    """Draws ``[..., groups]`` given to the 20 frames of a window.

    By chunk the groups are the anchor, the one frame left of a third chunk, and two whole chunks.
    """
    if granularity == "frame":
        return drawn
    shape = drawn.shape[:-1]
    if granularity == "clip":
        return drawn.expand(*shape, HISTORY_FRAMES)
    older, newer = (drawn[..., i, None].expand(*shape, CHUNK_LATENTS) for i in (2, 3))
    return torch.cat((drawn[..., :2], older, newer), dim=-1)


def _down_up(z: Tensor, share: Tensor, largest: float) -> Tensor:
    """Shrink each frame by its ``share [B, 20]`` and enlarge it back, both bilinear.

    Resizing is linear in rows and in columns, so every possible size is a matrix per axis and each
    frame picks its own: no loop over frames and no size read back from the device.
    """
    rows, columns = (
        _resizing(size, largest, z.device)[_target(size, share, largest)][:, None]
        for size in z.shape[-2:]
    )
    return rows @ z @ columns.transpose(-1, -2)


def _smallest(size: int, largest: float) -> int:
    return max(1, round(size * (1 - largest)))


def _target(size: int, share: Tensor, largest: float) -> Tensor:
    """Which of the possible sizes, counted from the smallest, ``share`` leads to."""
    smallest = _smallest(size, largest)
    return (size * (1 - share)).round().long().clamp(smallest, size) - smallest


@lru_cache(maxsize=32)
def _resizing(size: int, largest: float, device: torch.device) -> Tensor:
    """``[sizes, size, size]``: down to each possible size with antialiasing and up again."""
    eye = torch.eye(size)[None, None]
    matrices = []
    for small in range(_smallest(size, largest), size + 1):
        down = F.interpolate(eye, size=(small, size), mode="bilinear", antialias=True)
        matrices.append(F.interpolate(down, size=(size, size), mode="bilinear")[0, 0])
    return torch.stack(matrices).to(device, non_blocking=True)


def start_noise(
    latents: Tensor,
    low: float,
    high: float,
    generator: torch.Generator | None = None,
    *,
    per_frame: bool = False,
) -> Tensor:
    """Noise on the latents of a start image or video, as the published pipelines draw it.

    First the level, uniform from ``low`` to ``high``, then the noise (specification "model and
    sampling", 7.5 to 7.7). Both are drawn where the generator lives.

    Args:
        latents: ``[B, C, T, h, w]``.
        low: lowest level.
        high: highest level.
        generator: advanced by one ``rand`` and one ``randn``.
        per_frame: one level per latent frame (video) instead of one for all (image).

    Raises:
        ValueError: unless ``0 <= low <= high <= 1``.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"noise must rise within 0 to 1, got {(low, high)}")
    source = generator.device if generator is not None else latents.device
    count = latents.shape[2] if per_frame else 1
    level = torch.rand(count, generator=generator, device=source) * (high - low) + low
    noise = torch.randn(latents.shape, generator=generator, device=source).to(latents.device)
    return mix(latents, noise, level.to(latents.device).view(1, 1, -1, 1, 1))
