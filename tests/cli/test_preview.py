"""``helios generate --preview`` on a random model and a random preview decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helios.cli.main import run
from helios.codec import PreviewConfig, PreviewDecoder, save_preview
from helios.media import read_settings, read_video
from helios.pipeline import Pipeline


def test_the_video_says_that_it_is_a_preview(
    tiny_random: Path, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    codec = pipeline.codec
    config = PreviewConfig(
        widths=(8, 6, 4),
        frames=codec.config.temporal_ratio,
        pixels=codec.config.spatial_ratio,
    )
    torch.manual_seed(0)
    save_preview(PreviewDecoder(config), tmp_path / "preview", codec)
    asked = ["generate", "a red ball", "--model", str(tiny_random), "--dtype", "float32"]
    asked += ["--num-frames", "33", "--seed", "7", "--steps", "1"]
    assert run([*asked, "-o", "exact.mp4"]) == 0
    assert run([*asked, "-o", "preview.mp4", "--preview", "preview"]) == 0
    frames = [read_video(tmp_path / f"{name}.mp4")[0] for name in ("exact", "preview")]
    assert frames[0].shape == frames[1].shape
    assert not np.array_equal(*frames)
    assert read_settings(tmp_path / "preview.mp4")["approximations"] == ["preview_decoder"]
    assert "approximations" not in read_settings(tmp_path / "exact.mp4")


def test_a_folder_without_one_is_refused_before_any_work(
    tiny_random: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["generate", "a red ball", "--model", str(tiny_random), "-o", str(tmp_path / "v.mp4")]
    assert run([*asked, "--preview", str(tmp_path / "none")]) == 4
    assert "no preview decoder is there; train one" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
