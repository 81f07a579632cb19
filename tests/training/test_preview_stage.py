"""A preview decoder learns from a codec that has learnt nothing itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helios.codec import Codec, PreviewConfig, WanAutoencoder, load_codec, load_preview, save_codec
from helios.errors import CheckpointError
from helios.training import (
    OptimizerConfig,
    PreviewStageConfig,
    RunConfig,
    TrainingConfig,
    train,
)

from .small import RING, codec_config
from .toys import alone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_codec(Codec(WanAutoencoder(codec_config().stage.autoencoder)), tmp_path / "vae")
    return tmp_path / "vae"


def config(codec: Path, **trainer: object) -> RunConfig:
    return RunConfig(
        stage=PreviewStageConfig(
            preview=PreviewConfig(widths=(8, 8, 8)),
            codec=codec,
            data=replace(RING, first_groups=1, groups=1, refresh_every=0),
            batch=2,
            window=32,
            validation_clips=2,
        ),
        trainer=TrainingConfig(
            steps=40,
            log_every=1,
            checkpoint_every=0,
            final_checkpoint=False,
            ema_decay=0.5,
            optimizer=OptimizerConfig(lr=2e-2, warmup_steps=3),
            **trainer,  # type: ignore[arg-type]
        ),
    )


def test_it_comes_near_the_codec(folder: Path, tmp_path: Path) -> None:
    report = train(config(folder), tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    assert report["psnr_worst"] <= report["psnr"]
    assert (tmp_path / "run/samples/final/preview.png").read_bytes()[:4] == b"\x89PNG"
    decoder = load_preview(tmp_path / "run/model/preview", load_codec(folder))
    assert decoder.config.widths == (8, 8, 8)
    again = config(folder)
    again = replace(again, stage=replace(again.stage, initial=tmp_path / "run/model/preview"))
    model = again.stage.build(alone(), seed=3, compiled=False).model
    assert all(torch.equal(v, decoder.state_dict()[n]) for n, v in model.state_dict().items())
    other = replace(again.stage, preview=PreviewConfig(widths=(8, 8, 4)))
    with pytest.raises(CheckpointError, match="another shape"):
        other.build(alone(), seed=3, compiled=False)


@pytest.mark.parametrize(
    "bad", [{"window": 12}, {"batch": 0}, {"moving_weight": 0.5}, {"gradient_weight": -1.0}]
)
def test_config_refuses_what_cannot_be_learnt(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        PreviewStageConfig(preview=PreviewConfig(), codec=Path("vae"), **bad)  # type: ignore[arg-type]
