import json

import pytest

from helios.cli.main import run
from helios.diffusion import CFGZero, Pyramid
from helios.pipeline import GenerationConfig

SMALL = ["--scenes", "3", "--sections", "2", "--steps", "2,2,2", "--shard", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, make_pipeline):
    """A random model of three scales, as a folder."""
    defaults = GenerationConfig(
        height=64, width=64, plan=Pyramid(steps=(2, 2, 2)), guidance=CFGZero(2.0)
    )
    return make_pipeline(defaults, stages=3).save(tmp_path_factory.mktemp("teacher") / "mid")


@pytest.mark.filterwarnings("ignore")
def test_trajectories_are_written_once_and_say_what_made_them(tmp_path, teacher, capsys):
    command = ["precompute", "trajectories", str(teacher), "--out", str(tmp_path / "a"), *SMALL]
    assert run(command) == 0
    settings = json.loads((tmp_path / "a/settings.json").read_text())
    assert settings["captions"] == 3
    assert settings["guidance"] == 2.0
    assert settings["schedule"]["time_shift_type"] == "linear"
    assert settings["schedule"]["shift_mode"] == "consistent"
    assert "shard 2 of 2" in capsys.readouterr().err
    assert run(command) == 0
    assert "shard" not in capsys.readouterr().err
    assert run([*command, "--seed", "1"]) == 8
    assert "other settings" in capsys.readouterr().err


def test_what_cannot_be_is_refused(tmp_path, teacher, capsys):
    command = ["precompute", "trajectories", str(teacher), "--out", str(tmp_path / "a"), *SMALL]
    assert run([*command, "--steps", "20"]) == 2
    assert "samples 3 scales" in capsys.readouterr().err
    assert run([*command, "--shift", "square"]) == 2
    assert run([*command, "--captions", str(tmp_path / "none.txt")]) == 3
    (tmp_path / "empty.txt").write_text("\n")
    assert run([*command, "--captions", str(tmp_path / "empty.txt")]) == 3
    assert run(["precompute", "latents", str(tmp_path / "none"), "--out", str(tmp_path / "b")]) == 3
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
