"""Whole videos, ours and diffusers', from the same checkpoints and seeds.

Every checkpoint is random, small and written by diffusers. ``python tests/test_parity.py`` runs the
same cases and writes the table of ``docs/parity.md``.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline.published import (
    TEXT_LENGTH,
    lent_factor,
    published_pipeline,
    random_parts,
    write_checkpoint,
)

import helios
from helios.geometry import CHUNK_FRAMES, CHUNK_LATENTS
from helios.pipeline import Pipeline

LATENT_TOLERANCE = 1e-5
BF16_RATIO = 1.1
PROMPTS = ("a red ball rolls on grass", "a blue cube spins over the sand and snow", "a cone")
FLAT_SIZES = itertools.cycle([(64, 64), (48, 80), (64, 96), (32, 48)])
FLAT_STEPS = itertools.cycle([3, 1, 4, 2, 7])
SIZES = itertools.cycle([(64, 128), (128, 64), (64, 192)])
# Diffusers' CFG-Zero* cannot flatten the answer of a coarsest grid one patch wide.
WIDE_SIZES = itertools.cycle([(64, 128), (64, 192)])
STEPS = itertools.cycle([(2, 2, 2), (3, 2, 2), (1, 2, 3), (4, 1, 2), (1, 1, 1)])
CLIPS = itertools.cycle([33, 70, 41])
SEEDS = itertools.count(1)


@dataclass(frozen=True, eq=False)
class Case:
    """One request, said to both sides."""

    kind: str
    start: str
    scale: float
    chunks: int
    size: tuple[int, int]
    steps: Any
    amplify: bool = False
    motion: float | None = None
    picture: tuple[int, int] | None = None
    clip: int = field(default_factory=lambda: next(CLIPS))
    seed: int = field(default_factory=lambda: next(SEEDS))

    @property
    def guidance(self) -> str:
        """Row of the table."""
        if self.scale <= 1:
            return "off"
        return "CFG-Zero*" if self.kind in ("mid", "mid-euler") else "CFG"

    def __str__(self) -> str:
        """A name that tells it from the others."""
        steps = self.steps if isinstance(self.steps, int) else ",".join(map(str, self.steps))
        parts = [self.kind, self.start, self.guidance, f"{self.chunks}x{self.size[0]}x", steps]
        parts += ["amplified"] * self.amplify + ["motion"] * (self.motion is not None)
        parts += ["resized"] * (self.picture is not None)
        return "-".join(str(part) for part in parts) + f"-seed{self.seed}"


def _cases() -> list[Case]:
    starts, lengths = ("text", "image", "video"), (1, 3)
    cases = []
    for start, chunks, scale in itertools.product(starts, lengths, (1.0, 5.0)):
        cases.append(Case("base", start, scale, chunks, next(FLAT_SIZES), next(FLAT_STEPS)))
    for start in starts:
        cases.append(Case("base-euler", start, 2.5, 2, next(FLAT_SIZES), next(FLAT_STEPS)))
        cases.append(Case("mid-euler", start, 2.5, 2, next(WIDE_SIZES), next(STEPS)))
    for start, chunks in itertools.product(starts, lengths):
        cases.append(Case("mid-cfg", start, 1.0, chunks, next(SIZES), next(STEPS)))
        cases.append(Case("mid-cfg", start, 5.0, chunks, next(SIZES), next(STEPS)))
        cases.append(Case("mid", start, 5.0, chunks, next(WIDE_SIZES), next(STEPS)))
        cases.append(Case("distilled", start, 1.0, chunks, next(SIZES), next(STEPS)))
        cases.append(Case("distilled", start, 1.0, chunks, next(SIZES), next(STEPS), amplify=True))
    cases.append(Case("base", "image", 5.0, 3, (48, 64), 3, motion=0.9))
    cases.append(Case("distilled", "text", 1.0, 3, (64, 64), (2, 1, 2), motion=0.6))
    cases.append(Case("mid", "video", 5.0, 1, (64, 128), (2, 2, 2), motion=0.2))
    cases.append(Case("base", "image", 2.0, 1, (64, 96), 2, picture=(50, 90)))
    cases.append(Case("base", "video", 2.0, 1, (48, 64), 2, picture=(30, 30), clip=140))
    return cases


CASES = _cases()
WITH_FRAMES = [case for case in CASES if case.seed % 7 == 1]
IN_BFLOAT16 = [case for case in CASES if case.start == "text" or case.seed % 9 == 0]


class Sides:
    """Both pipelines of every kind of checkpoint, made once; results, made once.

    One kind has an autoencoder that halves three times, as published; the others fold pixels,
    which takes a quarter of the time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = {patched: random_parts(patched=patched) for patched in (False, True)}
        self._made: dict[tuple[str, torch.dtype], tuple[Any, Pipeline]] = {}

    def pair(self, kind: str, dtype: torch.dtype) -> tuple[Any, Pipeline]:
        """Diffusers' pipeline and ours, loaded from the same folder."""
        if (kind, dtype) not in self._made:
            folder = self._folder / kind
            if not folder.exists():
                write_checkpoint(kind, folder, self._parts[kind != "base-euler"])
            self._made[kind, dtype] = (
                published_pipeline(folder, dtype),
                helios.load(folder, device="cpu", dtype=dtype),
            )
        return self._made[kind, dtype]

    @functools.cache  # noqa: B019
    def theirs(
        self, case: Case, dtype: torch.dtype = torch.float32, frames: bool = False
    ) -> tuple[torch.Tensor, np.ndarray | None]:
        """Generated latents ``[16, 9 n, h, w]`` and, if asked for, frames ``[33 n, H, W, 3]``."""
        pipe, _ = self.pair(case.kind, dtype)
        height, width = case.size
        fields: dict[str, Any] = {"guidance_scale": case.scale}
        if case.kind.startswith("base"):
            fields["num_inference_steps"] = case.steps
        else:
            fields["pyramid_num_inference_steps_list"] = list(case.steps)
            fields["is_amplify_first_chunk"] = case.amplify
        if case.start != "text":
            pictures = [Image.fromarray(frame) for frame in _media(case)]
            fields[case.start] = pictures if case.start == "video" else pictures[0]
        if case.motion is not None:
            low, high = (bound * 2 * case.motion for bound in (0.111, 0.135))
            for name in ("image", "video"):
                fields |= {f"{name}_noise_sigma_min": low, f"{name}_noise_sigma_max": high}
            fields["is_skip_first_chunk"] = case.motion > 0.5
        decoded: list[torch.Tensor] = []
        whole = type(pipe.vae).decode

        def decode(z: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
            if frames:
                decoded.append(whole(pipe.vae, z, return_dict=return_dict)[0])
            return (torch.zeros(1, 3, CHUNK_FRAMES, 1, 1),)

        pipe.vae.decode = decode
        with lent_factor():
            result = pipe(
                prompt=PROMPTS[case.seed % len(PROMPTS)],
                negative_prompt="a cone" if case.seed % 2 else None,
                height=height,
                width=width,
                num_frames=CHUNK_FRAMES * case.chunks,
                max_sequence_length=TEXT_LENGTH,
                generator=torch.Generator().manual_seed(case.seed),
                output_type="latent",
                **fields,
            ).frames
        pixels = None
        if frames:
            video = torch.cat(decoded, dim=2)[0].movedim(0, -1)
            pixels = (video / 2 + 0.5).clamp(0, 1).mul(255).round().byte().numpy()
        return result[0, :, -CHUNK_LATENTS * case.chunks :].float(), pixels

    @functools.cache  # noqa: B019
    def ours(
        self, case: Case, dtype: torch.dtype = torch.float32, compat: str | None = "diffusers"
    ) -> torch.Tensor:
        """The same latents from our pipeline."""
        _, pipe = self.pair(case.kind, dtype)
        decode = pipe.codec.decode_uint8
        pipe.codec.decode_uint8 = lambda z: torch.zeros(  # type: ignore[method-assign]
            1, CHUNK_FRAMES, *case.size, 3, dtype=torch.uint8
        )
        try:
            return _run(pipe, case, compat).latents
        finally:
            pipe.codec.decode_uint8 = decode  # type: ignore[method-assign]

    def our_frames(self, case: Case) -> np.ndarray:
        """Frames ``[33 n, H, W, 3]`` from our pipeline."""
        return _run(self.pair(case.kind, torch.float32)[1], case, "diffusers").frames


def _media(case: Case) -> np.ndarray:
    rows, columns = case.picture or case.size
    count = case.clip if case.start == "video" else 1
    rng = np.random.default_rng(case.seed)
    coarse = rng.integers(0, 256, (count, rows // 5 + 1, columns // 5 + 1, 3), np.uint8)
    return coarse.repeat(5, axis=1).repeat(5, axis=2)[:, :rows, :columns]


def _run(pipe: Pipeline, case: Case, compat: str | None) -> helios.Video:
    fields: dict[str, Any] = {}
    if case.start != "text":
        fields[case.start] = _media(case) if case.start == "video" else _media(case)[0]
    if not case.kind.startswith("base"):
        fields["amplify_first_chunk"] = case.amplify
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        video = pipe(
            PROMPTS[case.seed % len(PROMPTS)],
            negative_prompt="a cone" if case.seed % 2 else None,
            height=case.size[0],
            width=case.size[1],
            num_frames=CHUNK_FRAMES * case.chunks,
            steps=case.steps,
            guidance_scale=case.scale,
            motion=case.motion,
            seed=case.seed,
            compat=compat,
            **fields,
        )
    assert isinstance(video, helios.Video)
    return video


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, in units of ``max(1, largest value)``."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1))


def rms(x: torch.Tensor) -> float:
    """Root of the mean square."""
    return float(x.square().mean().sqrt())


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return Sides(tmp_path_factory.mktemp("published"))


def test_the_matrix_is_whole() -> None:
    assert len(CASES) >= 40
    assert len({str(case) for case in CASES}) == len(CASES)
    seen = {(c.kind, c.start, c.guidance, c.chunks, c.amplify) for c in CASES}
    for start, chunks in itertools.product(("text", "image", "video"), (1, 3)):
        for kind, guidance in (
            ("base", "off"),
            ("base", "CFG"),
            ("mid-cfg", "off"),
            ("mid-cfg", "CFG"),
            ("mid", "CFG-Zero*"),
            ("distilled", "off"),
        ):
            assert (kind, start, guidance, chunks, False) in seen
        assert ("distilled", start, "off", chunks, True) in seen


@pytest.mark.parametrize("case", CASES, ids=str)
def test_latents_equal_diffusers(sides: Sides, case: Case) -> None:
    expected, found = sides.theirs(case)[0], sides.ours(case)
    assert found.shape == expected.shape
    assert float(expected.std()) > 0.1
    assert error(found, expected) <= LATENT_TOLERANCE


@pytest.mark.parametrize("case", WITH_FRAMES, ids=str)
def test_frames_equal_diffusers(sides: Sides, case: Case) -> None:
    _, expected = sides.theirs(case, frames=True)
    found = sides.our_frames(case)
    assert expected is not None
    assert found.shape == expected.shape
    assert float(expected.std()) > 2
    assert int(np.abs(found.astype(int) - expected.astype(int)).max()) <= 1


def bf16_errors(sides: Sides, case: Case, compat: str | None) -> tuple[float, float]:
    """Distance to the float32 run of our bfloat16 run and of theirs."""
    exact = sides.ours(case)
    own = sides.ours(case, torch.bfloat16, compat)
    return rms(own - exact), rms(sides.theirs(case, torch.bfloat16)[0] - exact)


@pytest.mark.parametrize("compat", ["diffusers", None])
def test_bfloat16_is_as_near_to_float32_as_theirs(sides: Sides, compat: str | None) -> None:
    pairs = [bf16_errors(sides, case, compat) for case in IN_BFLOAT16]
    own, other = (median(column) for column in zip(*pairs, strict=True))
    assert 1e-4 < own <= BF16_RATIO * other


def test_float32_needs_no_compat(sides: Sides) -> None:
    """Where nothing is rounded there is nothing to be compatible with."""
    for case in CASES[:24:5]:
        assert torch.equal(sides.ours(case), sides.ours(case, compat=None))


NAMES = {
    "base": "Base: flat UniPC",
    "base-euler": "flat Euler",
    "mid-cfg": "three scales, UniPC",
    "mid-euler": "three scales, Euler",
    "mid": "Mid: three scales, UniPC",
    "distilled": "Distilled: few steps",
}


def table(sides: Sides) -> str:
    """The table of ``docs/parity.md``."""
    lines = [
        "| checkpoint | guidance | cases | latents | frames | bf16 | bf16, `compat` |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, name in NAMES.items():
        for guidance in ("off", "CFG", "CFG-Zero*"):
            group = [case for case in CASES if (case.kind, case.guidance) == (kind, guidance)]
            if not group:
                continue
            worst = max(error(sides.ours(case), sides.theirs(case)[0]) for case in group)
            levels = [_levels(sides, case) for case in group if case in WITH_FRAMES]
            ratios = [_ratio(sides, group, compat) for compat in (None, "diffusers")]
            cells = [name, guidance.replace("*", "\\*"), str(len(group)), f"{worst:.1e}"]
            cells += [f"{max(levels)}" if levels else "–", *ratios]
            lines.append(f"| {' | '.join(cells)} |")
    total = [_ratio(sides, CASES, compat) for compat in (None, "diffusers")]
    lines.append(f"| all | | {len(CASES)} | | | {' | '.join(total)} |")
    return "\n".join(lines)


def _levels(sides: Sides, case: Case) -> int:
    _, expected = sides.theirs(case, frames=True)
    assert expected is not None
    return int(np.abs(sides.our_frames(case).astype(int) - expected.astype(int)).max())


def _ratio(sides: Sides, group: list[Case], compat: str | None) -> str:
    pairs = [bf16_errors(sides, case, compat) for case in group if case in IN_BFLOAT16]
    own, other = (median(column) for column in zip(*pairs, strict=True))
    return f"{own / other:.3f}"


def write_table(page: Path) -> None:
    """Replace the table between the two markers of ``page``."""
    head, rest = page.read_text().split(MARKERS[0])
    _, tail = rest.split(MARKERS[1])
    with tempfile.TemporaryDirectory() as folder:
        body = table(Sides(Path(folder)))
    page.write_text(f"{head}{MARKERS[0]}\n{body}\n{MARKERS[1]}{tail}")


MARKERS = ("<!-- table -->", "<!-- end of table -->")

if __name__ == "__main__":
    torch.set_num_threads(1)
    write_table(Path(__file__).parents[1] / "docs" / "parity.md")
