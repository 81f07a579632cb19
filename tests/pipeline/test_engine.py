"""The engine computes what the transformer computes; what it approximates, it names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helios.codec import AutoencoderConfig, PreviewConfig, PreviewDecoder, save_preview
from helios.codec.decode import FastDecoder, PlainOps
from helios.errors import CheckpointError
from helios.evaluation import random_codec
from helios.history import HistoryWindow
from helios.model import HeliosTransformer, TransformerConfig, reset_parameters
from helios.pipeline import Engine, EngineConfig, Pipeline, Request

TEXT_ROWS = 6
TINY_CODEC = AutoencoderConfig(
    base_dim=4, dim_mult=(1, 1), num_res_blocks=1, temperal_downsample=(True,),
    scale_factor_temporal=2, scale_factor_spatial=2,
)  # fmt: skip


def transformer(**changes: object) -> HeliosTransformer:
    config = TransformerConfig(
        num_attention_heads=2,
        attention_head_dim=16,
        rope_dim=(4, 6, 6),
        text_dim=24,
        freq_dim=32,
        ffn_dim=48,
        num_layers=3,
        **changes,  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    model = HeliosTransformer(config)
    reset_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def window(rows: int = 8, columns: int = 8, seed: int = 1) -> HistoryWindow:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(1, 16, 20, rows, columns, generator=generator, dtype=torch.float64)
    return HistoryWindow(frames, torch.ones(1, 20, dtype=torch.bool))


def noisy(rows: int, columns: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 16, 9, rows, columns, generator=generator, dtype=torch.float64)


def words(seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, TEXT_ROWS, 24, generator=generator, dtype=torch.float64)


def told(timestep: int) -> Tensor:
    return torch.tensor([timestep])


def exact(model: HeliosTransformer, x: Tensor, time: int, text: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model(x, told(time), text, window())
    return answer


def test_the_same_velocities_at_every_scale_and_step() -> None:
    model, text = transformer(), words()
    engine = Engine(model)
    engine.begin()
    denoise = engine.bind(text, window())
    for size, time in ((2, 998), (4, 742), (8, 385), (8, 174)):
        engine.at(time)
        x = noisy(size, size)
        torch.testing.assert_close(denoise(x, told(time)), exact(model, x, time, text))


def test_a_time_that_nobody_announced_is_read_from_the_tensor() -> None:
    model, text = transformer(), words()
    engine = Engine(model)
    engine.begin()
    x = noisy(4, 4)
    torch.testing.assert_close(
        engine.bind(text, window())(x, told(500)), exact(model, x, 500, text)
    )


def test_what_is_kept_is_computed_once() -> None:
    model, text, asked = transformer(), words(), []
    read, modulate = model.read, model.modulate
    model.read = lambda t: (asked.append("text"), read(t))[1]  # type: ignore[method-assign]
    model.modulate = lambda t: (asked.append("time"), modulate(t))[1]  # type: ignore[method-assign]
    engine = Engine(model)
    for _ in range(3):
        engine.begin()
        denoise = engine.bind(text, window())
        for time in (900, 400):
            engine.at(time)
            denoise(noisy(2, 2), told(time))
    assert sorted(asked) == ["text", "time", "time"]


def test_two_texts_take_turns_without_being_read_again() -> None:
    model, asked = transformer(), []
    read = model.read
    model.read = lambda t: (asked.append(1), read(t))[1]  # type: ignore[method-assign]
    engine, texts = Engine(model), (words(3), words(4))
    for _ in range(2):
        engine.begin()
        for text in texts:
            x = noisy(2, 2)
            answer = engine.bind(text, window())(x, told(500))
            torch.testing.assert_close(answer, exact(model, x, 500, text))
    # The plain passes read both texts by themselves.
    assert len(asked) == 2


def test_changed_weights_are_noticed() -> None:
    model, text, x = transformer(), words(), noisy(4, 4)
    engine = Engine(model)
    engine.begin()
    engine.at(500)
    before = engine.bind(text, window())(x, told(500))
    with torch.no_grad():
        model.blocks[1].cross_attention.key.weight.mul_(3)  # type: ignore[union-attr]
        model.time.project.bias.add_(0.5)
    engine.begin()
    engine.at(500)
    after = engine.bind(text, window())(x, told(500))
    assert not torch.allclose(before, after, rtol=1e-3)
    torch.testing.assert_close(after, exact(model, x, 500, text))


@pytest.mark.parametrize("reuse", ["scale", "chunk"])
def test_reuse_is_exact_where_history_does_not_look_at_noise(reuse: str) -> None:
    model, text = transformer(restrict_self_attn=True), words()
    engine = Engine(model, EngineConfig(reuse_history=reuse))  # type: ignore[arg-type]
    engine.begin()
    denoise = engine.bind(text, window())
    for size, time in ((2, 998), (2, 833), (4, 742), (4, 512), (8, 385), (8, 174)):
        engine.at(time)
        x = noisy(size, size, seed=time)
        torch.testing.assert_close(denoise(x, told(time)), exact(model, x, time, text))


def test_reuse_begins_anew_where_it_says() -> None:
    model, text = transformer(), words()
    errors: dict[str, list[float]] = {}
    for reuse in ("scale", "chunk"):
        engine = Engine(model, EngineConfig(reuse_history=reuse))  # type: ignore[arg-type]
        engine.begin()
        denoise = engine.bind(text, window())
        for size, time in ((2, 998), (2, 833), (4, 742), (4, 512)):
            engine.at(time)
            x = noisy(size, size, seed=time)
            off = denoise(x, told(time)) - exact(model, x, time, text)
            errors.setdefault(reuse, []).append(float(off.norm()))
    tiny = 1e-9
    assert [error < tiny for error in errors["scale"]] == [True, False, True, False]
    assert [error < tiny for error in errors["chunk"]] == [True, False, False, False]


def test_a_new_chunk_records_its_own_history() -> None:
    model, text = transformer(), words()
    engine = Engine(model, EngineConfig(reuse_history="chunk"))
    for seed in (1, 2):
        engine.begin()
        denoise, x = engine.bind(text, window(seed=seed)), noisy(2, 2)
        with torch.no_grad():
            expected = model(x, told(900), text, window(seed=seed))
        torch.testing.assert_close(denoise(x, told(900)), expected)


def test_amplified_history_is_amplified_once() -> None:
    model, text = transformer(is_amplify_history=True, restrict_self_attn=True), words()
    engine = Engine(model, EngineConfig(reuse_history="chunk"))
    engine.begin()
    denoise = engine.bind(text, window())
    for time in (900, 800):
        x = noisy(4, 4, seed=time)
        torch.testing.assert_close(denoise(x, told(time)), exact(model, x, time, text))


def test_approximations_have_names() -> None:
    assert EngineConfig().approximations == []
    assert EngineConfig(reuse_history="scale").approximations == ["reuse_history=scale"]
    with pytest.raises(ValueError, match="reuse_history must be one of never, scale, chunk"):
        EngineConfig(reuse_history="always")  # type: ignore[arg-type]


def test_no_graphs_where_they_cannot_be() -> None:
    model = transformer()
    assert not Engine(model).graphed  # on a CPU
    hooked = copy.deepcopy(model)
    hooked.blocks[0].register_forward_pre_hook(lambda *_: None)
    assert not Engine(hooked).graphed


def test_a_preview_decoder_is_named_and_changes_frames_only(
    make_pipeline: Callable[..., Pipeline], tmp_path: Path
) -> None:
    pipe = make_pipeline()
    torch.manual_seed(4)
    config = PreviewConfig(
        widths=(8, 6, 4),
        frames=pipe.codec.config.temporal_ratio,
        pixels=pipe.codec.config.spatial_ratio,
    )
    save_preview(PreviewDecoder(config), tmp_path / "preview", pipe.codec)
    asked = Request(prompt="a red ball", num_frames=66, seed=5)
    exact = list(pipe.stream(asked))
    pipe.accelerate(EngineConfig(preview=tmp_path / "preview"))
    preview = list(pipe.stream(asked))
    for one, two in zip(exact, preview, strict=True):
        assert torch.equal(one.latents, two.latents)
        assert one.frames.shape == two.frames.shape
        assert not np.array_equal(one.frames, two.frames)
    assert pipe.settings(asked)["approximations"] == ["preview_decoder"]
    pipe.accelerate(EngineConfig())
    assert np.array_equal(next(pipe.stream(asked)).frames, exact[0].frames)
    with pytest.raises(CheckpointError, match="missing"):
        pipe.accelerate(EngineConfig(preview=tmp_path / "nothing"))
    assert pipe.engine.config == EngineConfig()


def test_the_decoder_is_tuned_once_for_every_size() -> None:
    seen: list[bool] = []

    class Watching(PlainOps):
        def double_norm(self, *inputs: Any) -> Any:
            seen.append(torch.backends.cudnn.benchmark)
            return super().double_norm(*inputs)

    network = random_codec(TINY_CODEC, torch.device("cpu"), torch.float32).network
    decoder = FastDecoder(network, Watching(), trials=3)
    for frames in (1, 2, 2, 3, 1, 2):
        decoder.levels(torch.randn(1, 16, frames, 2, 3))
    assert seen == [False, True, False, True, False, False]
    FastDecoder(network, Watching()).levels(torch.randn(1, 16, 2, 2, 3))
    assert seen[-1] is False
    with pytest.raises(ValueError, match="tune_decoder"):
        EngineConfig(tune_decoder=-1)
