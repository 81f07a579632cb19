"""Program: what every metric says of damage that is known, so that readers can weigh a figure.

    python -m helios.evaluation.sensitivity [--captions 8] [--chunks 3] [--out sensitivity.json]

Renders are damaged in one way at a time, with a known strength, and measured as videos of a model
are. A metric is worth reading if it moves with its own damage and stays where it is with others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from helios.evaluation.heliosbench import Bench, takes_of
from helios.evaluation.metrics.judge_file import JUDGE_FOLDER, load_judge
from helios.evaluation.pages.catalogue import figure
from helios.evaluation.pages.tables import KEY_FIGURES
from helios.evaluation.prompts import scene_prompts
from helios.evaluation.sources import Take, TruthSource
from helios.evaluation.spoil import add_noise, brighten, saturate, soften, warm
from helios.evaluation.store import Results
from helios.evaluation.summary import Arm, summary
from helios.geometry import CHUNK_FRAMES
from helios.storage import write_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DAMAGES", "Damage", "DamagedSource", "measure_damages"]


@dataclass(frozen=True)
class Damage:
    """One way of spoiling a video.

    Attributes:
        name: for the table.
        apply: frames uint8 ``[B, 33, H, W, 3]``, the number of the chunk, how far the video has
            come (0 to 1) and the first chunk, to frames.
    """

    name: str
    apply: Callable[[Tensor, int, float, Tensor], Tensor]


def _flash(frames: Tensor, chunk: int) -> Tensor:
    """Every other chunk a little brighter: a jump at every border and none inside."""
    return brighten(frames, 6.0 * (chunk % 2))


def _slow(frames: Tensor) -> Tensor:
    """Every second frame twice: less even, not less motion."""
    return frames[:, torch.arange(frames.shape[1], device=frames.device) // 2 * 2]


DAMAGES: tuple[Damage, ...] = (
    Damage("none", lambda x, k, t, first: x),
    Damage("blur 1 px", lambda x, k, t, first: soften(x, 1.0)),
    Damage("blur 2 px", lambda x, k, t, first: soften(x, 2.0)),
    Damage("noise 4 levels", lambda x, k, t, first: add_noise(x, k, 4.0)),
    Damage("saturation rising to x 1.4", lambda x, k, t, first: saturate(x, 1 + 0.4 * t)),
    Damage("warm cast rising to 12 levels", lambda x, k, t, first: warm(x, 12 * t)),
    Damage("blur rising to 2 px", lambda x, k, t, first: soften(x, 2 * t)),
    Damage("noise rising to 4 levels", lambda x, k, t, first: add_noise(x, k, 4 * t)),
    Damage("brightness jumps at borders", lambda x, k, t, first: _flash(x, k)),
    Damage("every chunk starts again", lambda x, k, t, first: first),
    Damage("every second frame repeated", lambda x, k, t, first: _slow(x)),
)
"""From none to all."""


class DamagedSource(TruthSource):
    """Renders with one damage.

    Args:
        damage: what is done to them.
        height: pixels.
        width: pixels.
        device: where they are rendered.
        rendered: chunks that were rendered before, shared between sources.
    """

    def __init__(
        self,
        damage: Damage,
        height: int,
        width: int,
        device: torch.device,
        rendered: dict[tuple[Take, ...], list[Tensor]],
    ) -> None:
        super().__init__(height, width, device)
        self.name = damage.name
        self._damage = damage
        self._rendered = rendered

    def identity(self) -> dict[str, Any]:
        """The renders and what was done to them."""
        return super().identity() | {"damage": self.name}

    def chunks(self, takes: Sequence[Take], count: int) -> Iterator[Tensor]:
        """Rendered, then spoilt."""
        key = tuple(takes)
        if key not in self._rendered:
            self._rendered[key] = list(super().chunks(takes, count))
        clean = self._rendered[key]
        for index, frames in enumerate(clean):
            yield self._damage.apply(frames, index, index / max(1, count - 1), clean[0])


def measure_damages(
    bench: Bench,
    takes: Sequence[Take],
    damages: Sequence[Damage] = DAMAGES,
    *,
    height: int = 128,
    width: int = 192,
    device: torch.device | None = None,
) -> dict[str, dict[str, Any]]:
    """Per damage the summary of its videos."""
    place = device or torch.device("cpu")
    rendered: dict[tuple[Take, ...], list[Tensor]] = {}
    arms = []
    for damage in damages:
        source = DamagedSource(damage, height, width, place, rendered)
        bench.measure(source, takes)
        arms.append(Arm(damage.name, [bench.records(source, takes)]))
    return {arm.name: summary(arm, bench.lengths, arms[0]) for arm in arms}


def table(summaries: Mapping[str, Mapping[str, Any]], length: int) -> str:
    """Markdown: a row per damage; value of the whole, and change where a video has two ends."""
    shown = [
        name
        for name in KEY_FIGURES
        if name in next(iter(summaries.values()))["lengths"][str(length)]
    ]
    lines = ["| | " + " | ".join(figure(name).title for name in shown) + " |"]
    lines.append("|---" * (len(shown) + 1) + "|")
    for damage, arm in summaries.items():
        cells = []
        for name in shown:
            entry = arm["lengths"][str(length)][name]
            text = figure(name).text(entry["value"]["value"])
            if "change" in entry and "rising" in damage:
                change = entry["change"]["value"]
                text += f" ({'+' if change > 0 else ''}{figure(name).text(change)})"
            cells.append(text)
        lines.append(f"| {damage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write all figures to ``--out`` if given."""
    parser = argparse.ArgumentParser(description="What every metric says of known damage.")
    parser.add_argument("--captions", type=int, default=8)
    parser.add_argument("--chunks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON of everything")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    with TemporaryDirectory(prefix="helios-sensitivity-") as folder:
        bench = Bench(
            results=Results(Path(folder)),
            lengths=(CHUNK_FRAMES * options.chunks,),
            judge=load_judge(JUDGE_FOLDER, device),
            batch_size=64 if device.type == "cuda" else 4,
        )
        takes = takes_of(scene_prompts(options.captions, options.seed), seed=options.seed)
        summaries = measure_damages(bench, takes, device=device)
    print(table(summaries, bench.lengths[0]))
    if options.out is not None:
        write_json(options.out, summaries)


if __name__ == "__main__":
    main()
