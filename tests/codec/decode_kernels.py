"""Checks of the decoder's kernels, run by test_decode.py in processes of their own.

Without an argument: in Triton's interpreter, against the plain forms. With compute
capabilities such as 90: compiled for them, to machine code, without a GPU.
"""

from __future__ import annotations

import sys

import torch

from helios.codec import AutoencoderConfig, WanAutoencoder
from helios.codec.decode import FastDecoder, PlainOps
from helios.codec.decode_triton import TritonOps, between_kernel, levels_kernel


def check_operations(channels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    plain, fused = PlainOps(), TritonOps()
    h, skip = normal(2, 3, 5, 7, channels), normal(2, 3, 5, 7, channels)
    bias, gamma = normal(channels), normal(channels)
    phases = normal(2, 3, 4, 5, 4 * channels)
    # The interpreter cuts where hardware rounds, so bfloat16 may be one step off.
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for past in (0, 2):
        ours, theirs = (ops.norm(h, bias, gamma, past) for ops in (fused, plain))
        torch.testing.assert_close(ours, theirs, **close)
        for name, arguments in (("add_norm", (h, bias, skip)), ("double_norm", (phases, bias))):
            for gains in (gamma, None):
                ours, theirs = (
                    getattr(ops, name)(*arguments, gains, past) for ops in (fused, plain)
                )
                torch.testing.assert_close(ours[0], theirs[0], **close)
                assert (ours[1] is None) == (theirs[1] is None) == (gains is None)
                if gains is not None:
                    torch.testing.assert_close(ours[1], theirs[1], **close)
    spread = h * 0.7
    spare = torch.cat((spread, normal(2, 3, 5, 7, 5)), dim=-1)[..., :channels]
    assert torch.equal(fused.levels(spare, bias), fused.levels(spread, bias))
    off = (fused.levels(spread, bias).int() - plain.levels(spread, bias).int()).abs()
    assert off.max() <= 1
    assert off.float().mean() < 0.01


def check_decoder() -> None:
    torch.manual_seed(0)
    network = WanAutoencoder(AutoencoderConfig(base_dim=8, num_res_blocks=1)).eval()
    latents = torch.randn(1, 16, 2, 1, 2)
    with torch.no_grad():
        plain = network.decode_patches(latents)
    fast = FastDecoder(network, TritonOps(), group=1)(latents).movedim(-1, 1)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    decoder = FastDecoder(network, TritonOps())
    # Channels of zeros beside the three stay where they are made.
    levels = decoder.levels(latents)
    assert levels.shape == (1, 5, 8, 16, 3)
    assert levels.is_contiguous()
    expected = FastDecoder(network).levels(latents)
    assert (levels.int() - expected.int()).abs().max() <= 1


def compile_for(capability: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = GPUTarget("cuda", capability, 32)
    pointers = dict.fromkeys(("h_ptr", "skip_ptr", "sum_ptr", "out_ptr"), "*bf16")
    pointers |= {"bias_ptr": "*bf16", "gamma_ptr": "*bf16", "root": "fp32"}
    sizes = dict.fromkeys(("frames", "height", "width"), "i32")
    flags = [
        {"HAS_SKIP": skip, "WRITE_SUM": skip or gather, "NORM": norm, "GATHER": gather}
        for skip, norm, gather in (
            (False, True, False),
            (True, True, False),
            (True, False, False),
            (False, True, True),
            (False, False, True),
        )
    ]
    for chosen in flags:
        constants = {"C": 96, "HEAD": 64, "TAIL": 32, "BLOCK_P": 32, "PAST": 2, "FULL": True}
        constants |= chosen
        signature = pointers | sizes | dict.fromkeys(constants, "constexpr")
        made = triton.compile(ASTSource(between_kernel, signature, constants), target=target)
        assert made.asm["cubin"]
    constants = {"C": 3, "WIDE": 8, "BLOCK": 1024}
    signature = {"h_ptr": "*bf16", "bias_ptr": "*bf16", "out_ptr": "*u8", "count": "i32"}
    signature |= dict.fromkeys(constants, "constexpr")
    made = triton.compile(ASTSource(levels_kernel, signature, constants), target=target)
    assert made.asm["cubin"]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for number in sys.argv[1:]:
            compile_for(int(number))
    else:
        for width in (3, 24, 32):
            for kind in (torch.float32, torch.bfloat16):
                check_operations(width, kind)
        check_decoder()
