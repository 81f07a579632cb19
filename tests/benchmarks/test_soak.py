"""The load program: every scenario it names exists, and its figures are what they are called."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
soak = importlib.import_module("soak")
soak_server = importlib.import_module("soak_server")


def test_every_scenario_is_there() -> None:
    for name in soak.ORDER:
        assert callable(getattr(soak.Soak, name.lower()))
    found = {n.upper() for n in dir(soak.Soak) if n[0] == "s" and n[1:].isdigit()}
    assert found == set(soak.ORDER)


def test_a_slope_is_found_with_its_interval() -> None:
    times = [float(second) for second in range(60)]
    rise, interval = soak_server.slope(times, [5 + 0.25 * t for t in times])
    assert rise == pytest.approx(0.25)
    assert interval == pytest.approx(0, abs=1e-6)
    noisy = [5 + 0.25 * t + (-1) ** int(t) for t in times]
    rise, interval = soak_server.slope(times, noisy)
    assert abs(rise - 0.25) < interval < 0.03


def test_percentiles() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert soak_server.percentile(values, 0.99) == 100
    assert soak_server.percentile(values, 0.5) == 51
    assert soak_server.percentile([], 0.5) == 0


@pytest.mark.parametrize("wrong", [["--only", "S5"], ["--chunks", "10"]])
def test_what_it_cannot_run_is_refused(wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["soak.py", *wrong])
    with pytest.raises(SystemExit) as ended:
        soak.main()
    assert ended.value.code == 2
