"""How a model is to run, as options say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from helios.cli.chosen import ChosenModel, parse_engine
from helios.cli.main import run
from helios.media import read_settings
from helios.pipeline import EngineConfig
from helios.serving import ServeConfig
from helios.serving.cluster.ray_app import node_options


def test_only_what_is_asked_for_is_changed(tmp_path: Path) -> None:
    assert parse_engine([]) == {}
    assert parse_engine(["tune_decoder=0"]) == {}
    asked = parse_engine(["reuse_history=scale", "graphs=off"], tmp_path)
    assert asked == {"reuse_history": "scale", "graphs": False, "preview": tmp_path}
    with pytest.raises(ValueError, match="no setting 'quick'; there are graphs, reuse_history"):
        parse_engine(["quick=11"])
    with pytest.raises(ValueError, match="reuse_history: must be one of"):
        parse_engine(["reuse_history=always"])


def test_the_pipeline_runs_so_and_is_loaded_once(tiny_random: Path) -> None:
    asked = {"reuse_history": "chunk", "tune_decoder": 3}
    chosen = ChosenModel(str(tiny_random), "cpu", "fp8", low_memory=True, engine=asked)
    pipeline = chosen.load()
    assert pipeline.engine.config == EngineConfig(reuse_history="chunk", tune_decoder=3)
    assert pipeline.precision == "fp8"
    assert chosen.load() is pipeline


def test_a_video_says_how_it_was_made(tiny_random: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.mp4"
    asked = ["generate", "a red ball", "--model", str(tiny_random), "-o", str(out), "--seed", "7"]
    asked += ["--num-frames", "33", "--steps", "1", "--device", "cpu", "--dtype", "fp8"]
    assert run([*asked, "--engine", "reuse_history=chunk", "--low-memory"]) == 0
    settings = read_settings(out)
    assert settings["dtype"] == "fp8"
    assert settings["approximations"] == ["reuse_history=chunk"]


def test_a_lora_in_fp8_is_refused_before_anything_is_loaded(
    tiny_random: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["generate", "a", "--model", str(tiny_random), "-o", str(tmp_path / "v.mp4")]
    assert run([*asked, "--dtype", "fp8", "--lora", str(tmp_path / "a.safetensors")]) == 2
    assert "merge it first with helios export" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_plan_says_what_stays_in_host_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "tiny", "--device", "rtx4090", "--dtype", "fp8", "--low-memory"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "text_encoder" in x)
    assert line.endswith("in host memory")


def test_servers_pass_it_on(tmp_path: Path) -> None:
    engine = {"reuse_history": "chunk", "preview": tmp_path}
    config = ServeConfig(dtype="fp8", low_memory=True, engine=engine)
    assert config.engine_json == {"reuse_history": "chunk", "preview": str(tmp_path)}
    options = node_options(config)
    assert "--low-memory" in options
    assert options[options.index("--engine") + 1] == "reuse_history=chunk"
    assert f"preview={tmp_path}" in options
