"""Every metric moves with its own damage and stays where it is with the others."""

from typing import Any

import pytest
import torch

from helios.evaluation.heliosbench import Bench, takes_of
from helios.evaluation.prompts import scene_prompts
from helios.evaluation.sensitivity import DAMAGES, DamagedSource, measure_damages, table
from helios.evaluation.store import Results

LENGTH = 99


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("damages")
    bench = Bench(results=Results(folder), lengths=(LENGTH,), batch_size=2, say=lambda line: None)
    return measure_damages(bench, takes_of(scene_prompts(2)), height=48, width=72)


@pytest.fixture(scope="module")
def of(measured: dict[str, dict[str, Any]]) -> Any:
    def value(damage: str, name: str, part: str = "value") -> float:
        return float(measured[damage]["lengths"][str(LENGTH)][name][part]["value"])

    return value


def test_blur_and_noise_are_told_apart(of: Any) -> None:
    for mild, strong in (("none", "blur 1 px"), ("blur 1 px", "blur 2 px")):
        assert of(strong, "sharpness") < of(mild, "sharpness")
        assert of(strong, "blur") > of(mild, "blur") + 0.02
    # Four levels in each channel are 4 / √3 in their mean.
    assert of("noise 4 levels", "noise") == pytest.approx(4 / 3**0.5, rel=0.15)
    assert of("blur 2 px", "noise") <= of("none", "noise") + 0.1
    assert of("noise 4 levels", "blur") < of("blur 1 px", "blur")


@pytest.mark.parametrize(
    ("damage", "name", "least"),
    [
        ("saturation rising to x 1.4", "saturation", 0.04),
        ("blur rising to 2 px", "blur", 0.05),
        ("noise rising to 4 levels", "noise", 1.0),
    ],
)
def test_what_rises_drifts(of: Any, damage: str, name: str, least: float) -> None:
    assert of(damage, name, "change") > of("none", name, "change") + least


def test_colour_drifts_with_colour_only(of: Any) -> None:
    usual = of("none", "delta_e")
    assert of("warm cast rising to 12 levels", "delta_e") > usual + 3
    assert of("saturation rising to x 1.4", "delta_e") > usual + 1
    for other in ("blur rising to 2 px", "every second frame repeated"):
        assert of(other, "delta_e") == pytest.approx(usual, abs=1.0)


def test_seams_are_seen_at_seams(of: Any) -> None:
    usual = of("none", "flicker")
    assert of("brightness jumps at borders", "flicker") > 3 * usual
    assert of("blur 1 px", "flicker") < 1.5 * usual
    assert of("every chunk starts again", "snap_back") > of("none", "snap_back") + 2
    assert of("every chunk starts again", "snap_rate") == 1
    assert of("none", "snap_rate") < 1


def test_stutter_is_less_smooth(of: Any) -> None:
    assert of("every second frame repeated", "smoothness") < of("none", "smoothness")


def test_the_table_has_a_row_for_every_damage(measured: dict[str, dict[str, Any]]) -> None:
    lines = table(measured, LENGTH).splitlines()
    assert len(lines) == 2 + len(DAMAGES)
    assert len({line.count("|") for line in lines}) == 1


def test_damages_are_filed_apart() -> None:
    names = {str(DamagedSource(d, 64, 96, torch.device("cpu"), {}).identity()) for d in DAMAGES}
    assert len(names) == len(DAMAGES)
