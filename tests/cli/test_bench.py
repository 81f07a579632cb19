"""``helios bench`` from the command line, on random weights small enough for seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helios.cli.main import run

QUICK = ["--layers", "1", "--size", "64x64", "--chunks", "1", "--warm", "1", "--rounds", "1"]


def test_both_engines_on_the_same_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "random-tiny", "--against", "diffusers", *QUICK, "--forwards", "1"]
    arguments += ["--skip", "history_once_a_scale"]
    code = run([*arguments, "--dtype", "float32", "--steps", "1,1,1", "--out", str(tmp_path)])
    assert code == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "bench.json").read_text())
    assert not result["left_out"]
    kinds = {name: arm["kind"] for name, arm in result["arms"].items()}
    assert kinds["helios"] == "exact"
    assert "baseline" in kinds.values()
    for arm in result["arms"].values():
        # float32 against float32: both compute the same function of the same tensors.
        if arm["kind"] != "approximate":
            assert max(part["relative_l2"] for part in arm["error"]) < 1e-4
            assert arm["plans"]["1,1,1"]["latents"]["relative_l2"] < 1e-3
        assert arm["decode_error"]["relative_l2"] < 1e-4
        assert arm["plans"]["1,1,1"]["frames_per_second"] > 0
    assert result["hardware"]["diffusers"]
    assert (tmp_path / "bench.md").read_text().strip() == capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "nobody"], "against must be one of diffusers"),
        (["--steps", "2,2"], "three numbers"),
        (["--layers", "2"], "random weights only"),
        (["random-huge"], "random-tiny or random-14b"),
        (["random-tiny", "--size", "100x100"], "nearest legal size"),
        (["random-tiny", *QUICK, "--only", "nothing"], "only must be one of helios"),
        (["random-tiny", *QUICK, "--only", "helios", "--skip", "helios"], "leave no engine"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err
