"""The fast decoder equals the plain one; its kernels equal their plain forms, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helios.codec import AutoencoderConfig, Codec, WanAutoencoder
from helios.codec.decode import FastDecoder, PlainOps

CONFIGS = {
    "published levels": AutoencoderConfig(base_dim=8, num_res_blocks=1),
    "patched": AutoencoderConfig(
        base_dim=8,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        temperal_downsample=(True, True),
        in_channels=12,
        out_channels=12,
        patch_size=2,
    ),
}


def network(config: AutoencoderConfig, dtype: torch.dtype = torch.float64) -> WanAutoencoder:
    torch.manual_seed(0)
    made = WanAutoencoder(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            # Gains and biases start at 1 and near 0, where a mistake in them would not show.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.to(dtype)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 4)])
def test_equal_to_the_plain_decoder(name: str, shape: tuple[int, int]) -> None:
    made = network(CONFIGS[name])
    latents = torch.randn(shape[0], 16, shape[1], 4, 6, dtype=torch.float64)
    with torch.no_grad():
        plain = made.decode_patches(latents)
    fast = FastDecoder(made)(latents).movedim(-1, 1)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_narrow_arithmetic_is_no_worse_than_the_plain_one() -> None:
    made = network(CONFIGS["published levels"])
    latents = torch.randn(1, 16, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        true = made.decode_patches(latents)
        plain = made.bfloat16().decode_patches(latents)
    fast = FastDecoder(made)(latents).movedim(-1, 1)
    worst = (plain.double() - true).norm()
    assert (fast.double() - true).norm() < 1.1 * worst


def test_bytes_are_the_rounded_frames() -> None:
    made = network(CONFIGS["patched"], torch.float32)
    latents = torch.randn(1, 16, 2, 4, 4)
    frames = FastDecoder(made)(latents)
    expected = (frames * 127.5 + 127.5).round().clamp(0, 255)
    assert torch.equal(FastDecoder(made).levels(latents), expected.to(torch.uint8))
    assert expected.min() == 0
    assert expected.max() == 255


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("group", [1, 2, 3, 9])
@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (1, 7)])
def test_groups_of_latents_are_the_whole(name: str, group: int, shape: tuple[int, int]) -> None:
    """A later group looks back at the two frames before it, wherever frames are looked back at."""
    made = network(CONFIGS[name])
    latents = torch.randn(shape[0], 16, shape[1], 2, 3, dtype=torch.float64)
    whole, parts = FastDecoder(made), FastDecoder(made, group=group)
    expected = whole(latents)
    for _ in range(2):  # nothing stays of a call
        torch.testing.assert_close(parts(latents), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(parts.levels(latents), whole.levels(latents))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 3, 20])
def test_groups_are_the_whole_in_narrow_arithmetic(dtype: torch.dtype, group: int) -> None:
    made = network(CONFIGS["patched"], dtype)
    latents = torch.randn(2, 16, 5, 2, 3)
    whole, parts = FastDecoder(made), FastDecoder(made, group=group)
    expected = whole(latents)
    assert (parts(latents) - expected).norm() <= 1e-5 * expected.norm()
    assert (parts.levels(latents).int() - whole.levels(latents).int()).abs().max() <= 1


def test_nothing_stays_of_a_call_that_failed() -> None:
    class Failing(PlainOps):
        left = -1

        def norm(self, h: Tensor, bias: Tensor, gamma: Tensor, past: int) -> Tensor:
            self.left -= 1
            if self.left == 0:
                raise RuntimeError("out of memory")
            return super().norm(h, bias, gamma, past)

    ops, latents = Failing(), torch.randn(1, 16, 4, 2, 2)
    decoder = FastDecoder(network(CONFIGS["patched"], torch.float32), ops, group=1)
    expected = decoder(latents)
    ops.left = 9
    with pytest.raises(RuntimeError, match="out of memory"):
        decoder(latents)
    assert torch.equal(decoder(latents), expected)


def test_groups_hold_fewer_frames_at_a_time() -> None:
    class Watched(PlainOps):
        most = 0

        def norm(self, h: Tensor, bias: Tensor, gamma: Tensor, past: int) -> Tensor:
            self.most = max(self.most, h.shape[1])
            return super().norm(h, bias, gamma, past)

    made, latents = network(CONFIGS["published levels"]), torch.randn(1, 16, 9, 2, 2)
    for group, most in ((0, 33), (3, 12), (1, 4)):
        ops = Watched()
        FastDecoder(made.float(), ops, group=group).levels(latents)
        assert ops.most == most


def test_a_group_is_none_or_some() -> None:
    with pytest.raises(ValueError, match="group must be"):
        FastDecoder(network(CONFIGS["patched"]), group=-1)


def test_the_residual_form_is_refused() -> None:
    config = AutoencoderConfig(base_dim=8, is_residual=True)
    with pytest.raises(ValueError, match="is_residual"):
        FastDecoder(WanAutoencoder(config))


def test_kernels_in_the_interpreter() -> None:
    # Triton decides when it is first imported whether programs are interpreted.
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("decode_kernels.py"))],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_kernels_compile_without_a_gpu() -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("decode_kernels.py")),
            "80",
            "89",
            "90",
            "100",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_codec_decodes_the_same_by_either(monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(CONFIGS["patched"], torch.float32)
    codec, latents = Codec(made), torch.randn(1, 16, 3, 4, 4)
    frames, levels = codec.decode(latents), codec.decode_uint8(latents)
    monkeypatch.setattr("helios.codec.codec.fast_ops", lambda _: PlainOps())
    torch.testing.assert_close(codec.decode(latents), frames, rtol=1e-4, atol=1e-4)
    off = (codec.decode_uint8(latents).int() - levels.int()).abs()
    assert off.max() <= 1
    with torch.no_grad():
        made.decoder.up_blocks[0].upsamplers[0].doubling.weight.mul_(1.5)
    changed = codec.decode(latents)
    assert not torch.allclose(changed, frames, atol=1e-2)
    monkeypatch.undo()
    torch.testing.assert_close(changed, codec.decode(latents), rtol=1e-4, atol=1e-4)
