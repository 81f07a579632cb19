"""Program: how fast a model forgets damage in its past, which decides whether small errors add up.

    python -m helios.evaluation.recovery full=DIR without=DIR [--captions 16] [--out DIR]

Every video is made several times from the same noise. Once the second chunk only goes through the
autoencoder; else it is also spoilt in one known way before it becomes the past. What the spoilt
video has more of than its twin is the damage, and the chunks that follow either carry it on or lose
it. So it goes with a model's own small errors: what is not lost adds up (training.md, 3).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from helios.evaluation.clips import decode, device_name, encode
from helios.evaluation.heliosbench import Bench, takes_of
from helios.evaluation.intervals import curve, plain
from helios.evaluation.pages.charts import Band, line_chart
from helios.evaluation.prompts import scene_prompts
from helios.evaluation.sources import ModelSource, Take
from helios.evaluation.spoil import brighten, saturate, soften, warm
from helios.evaluation.store import Record, Results
from helios.evaluation.suites import ArmSpec
from helios.geometry import CHUNK_FRAMES
from helios.pipeline import load
from helios.storage import write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from helios.pipeline import Pipeline

__all__ = ["SPOILS", "SPOILT", "Recovery", "Spoil", "SpoiltSource", "measure_recovery"]

SPOILT = 1
"""Number of the chunk that is spoilt: the first stays whole, and with it the anchor."""


@dataclass(frozen=True)
class Spoil:
    """One way of spoiling a chunk.

    Attributes:
        name: for the table.
        figure: the curve it shows in.
        apply: frames uint8 ``[B, 33, H, W, 3]`` to frames.
    """

    name: str
    figure: str
    apply: Callable[[Tensor], Tensor]


SPOILS: tuple[Spoil, ...] = (
    Spoil("saturation x 1.4", "saturation", lambda frames: saturate(frames, 1.4)),
    Spoil("12 levels brighter", "lightness", lambda frames: brighten(frames, 12.0)),
    Spoil("blur 1 px", "blur", lambda frames: soften(frames, 1.0)),
    Spoil("warm cast, 12 levels", "delta_e", lambda frames: warm(frames, 12.0)),
)
"""What drift looks like. Grain is not among it: it does not outlive the autoencoder."""


class SpoiltSource(ModelSource):
    """Videos of a model whose second chunk is spoilt, or only encoded again.

    Args:
        name: how tables call it.
        pipe: the model.
        origin: the folder or name it was loaded from.
        spoil: what is done; none: the undamaged twin.
        steps: denoising steps; the model's own if not given.
        guidance: guidance scale; likewise.
    """

    def __init__(
        self,
        name: str,
        pipe: Pipeline,
        origin: str | Path,
        spoil: Spoil | None,
        *,
        steps: int | tuple[int, ...] | None = None,
        guidance: float | None = None,
    ) -> None:
        super().__init__(name, pipe, origin, steps=steps, guidance=guidance)
        self._spoil = spoil

    def identity(self) -> dict[str, Any]:
        """The model's, and what is done to its second chunk."""
        return super().identity() | {"spoilt": None if self._spoil is None else self._spoil.name}

    def retouch(self, chunk: int, latents: Tensor) -> Tensor:
        """The second chunk through the autoencoder, and spoilt on the way."""
        if chunk != SPOILT:
            return latents
        codec = self.pipe.codec
        frames = decode(codec, latents.float())
        if self._spoil is not None:
            frames = self._spoil.apply(frames)
        return encode(codec, frames).to(latents)


@dataclass(frozen=True)
class Recovery:
    """What is left of one damage in the videos of one model.

    Attributes:
        model: its name.
        spoil: what was done.
        excess: how much more of its figure the spoilt chunk had than its twin, mean over prompts.
        left: share of ``excess`` in the spoilt chunk (1) and each that follows, with the ends of
            its 95 % interval over prompts, ``[3, T]``.
    """

    model: str
    spoil: Spoil
    excess: float
    left: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        value, low, high = ([plain(x, 4) for x in row] for row in self.left)
        return {
            "model": self.model,
            "spoilt": self.spoil.name,
            "figure": self.spoil.figure,
            "excess": plain(self.excess),
            "left": {"value": value, "low": low, "high": high},
        }


def measure_recovery(
    bench: Bench,
    specs: Sequence[ArmSpec],
    takes: Sequence[Take],
    spoils: Sequence[Spoil] = SPOILS,
    *,
    device: torch.device,
    dtype: str = "auto",
) -> list[Recovery]:
    """What is left of every damage in the videos of every model.

    Args:
        bench: measures videos of its greatest length, three chunks or more, and files the results.
        specs: the models; of several trainings of one the mean counts.
        takes: prompts and seeds.
        spoils: what is done.
        device: where the models run.
        dtype: of the models.

    Raises:
        ValueError: if the videos end before anything could recover.
        CheckpointError: for an unknown model.
    """
    if max(bench.lengths) < (SPOILT + 2) * CHUNK_FRAMES:
        raise ValueError(f"recovery shows in {SPOILT + 2} chunks or more")
    found = []
    for spec in specs:
        records: dict[Spoil | None, list[list[Record]]] = {}
        for model in spec.models:
            pipe = load(model, device=device, dtype=dtype)
            for spoil in (None, *spoils):
                source = SpoiltSource(
                    spec.name, pipe, model, spoil, steps=spec.steps, guidance=spec.guidance
                )
                bench.measure(source, takes)
                records.setdefault(spoil, []).append(bench.records(source, takes))
        for spoil in spoils:
            found.append(_recovery(spec.name, spoil, records[spoil], records[None]))
    return found


def _recovery(
    model: str, spoil: Spoil, spoilt: Sequence[Sequence[Record]], twins: Sequence[Sequence[Record]]
) -> Recovery:
    """Of lists of records, one list per training."""
    with_damage, without = (
        np.array([[record.curves[spoil.figure] for record in records] for records in trainings])
        for trainings in (spoilt, twins)
    )
    rows = (with_damage - without).astype(np.float64).mean(axis=0)[:, SPOILT:]
    excess = float(rows[:, 0].mean())
    return Recovery(model, spoil, excess, np.stack(curve(list(rows / excess))))


def table(found: Sequence[Recovery]) -> str:
    """Markdown: a row per damage and model, a column per chunk, shares in percent."""
    count = found[0].left.shape[1]
    heads = ["| | |", *(f" {k} later |" for k in range(1, count))]
    lines = ["".join(heads), "|---" * (count + 1) + "|"]
    order = list(dict.fromkeys(one.spoil for one in found))
    for one in sorted(found, key=lambda one: order.index(one.spoil)):
        cells = [
            f"{100 * value:.0f} ({100 * low:.0f} to {100 * high:.0f})"
            for value, low, high in one.left.T[1:]
        ]
        lines.append(f"| {one.spoil.name} | {one.model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(found: Sequence[Recovery], spoil: Spoil) -> str:
    """SVG: a line per model, from the spoilt chunk on."""
    bands = [
        Band(one.model, list(range(one.left.shape[1])), *(100 * one.left).tolist())
        for one in found
        if one.spoil == spoil
    ]
    return line_chart(
        f"{spoil.name}: left of it, %", bands, x_label="chunks later", legend=True, alone=True
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table; with ``--out`` write figures and plots and keep the records."""
    parser = argparse.ArgumentParser(description="How fast models forget damage in their past.")
    parser.add_argument("models", nargs="+", help="[NAME=]MODEL[,MODEL...][@steps=25][@guidance=3]")
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, help="folder for recovery.json, plots and records")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    with TemporaryDirectory(prefix="helios-recovery-") as folder:
        bench = Bench(
            results=Results(Path(options.out or folder) / "records"),
            lengths=(CHUNK_FRAMES * options.chunks,),
            batch_size=options.batch_size or (64 if device.type == "cuda" else 4),
        )
        found = measure_recovery(
            bench,
            [ArmSpec.parse(text) for text in options.models],
            takes_of(scene_prompts(options.captions, options.seed), seed=options.seed),
            device=device,
            dtype=options.dtype,
        )
    print(table(found))
    if options.out is not None:
        values = {
            "command": " ".join(("python -m helios.evaluation.recovery", *sys.argv[1:])),
            "environment": {"device": device_name(device), "torch": torch.__version__},
            "captions": options.captions,
            "seed": options.seed,
            "recovery": [one.to_json() for one in found],
        }
        write_json(options.out / "recovery.json", values)
        for spoil in SPOILS:
            path = options.out / f"{spoil.figure}.svg"
            path.write_text(plot(found, spoil), "utf-8")


if __name__ == "__main__":
    main()
