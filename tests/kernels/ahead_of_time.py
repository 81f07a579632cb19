"""Every Triton kernel compiled without a GPU, as it is launched at the 14B shapes.

Runs in a process of its own, in which nothing is interpreted; see test_triton.py.
"""

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from helios.kernels import gelu_triton, norm_triton, rope_triton, scaled_triton, stream_triton

SHARED_LIMIT = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Shared memory that one program may have, by target."""
WITH_E4M3 = (89, 90, 100)
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
}
WIDTH, HIDDEN, HEADS, CHANNELS = 5120, 13824, 40, 128


class Recorded(Exception):  # noqa: N818 - not an error: what a launch was called with
    """Stops a launch and carries its arguments."""


class Recorder:
    """Stands where a kernel stands and notes how it is launched."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, []

    def __getitem__(self, grid):
        def launch(*args, **options):
            assert all(size >= 1 for size in grid)
            self.launches.append((args, options))

        return launch


def launches(monkeypatch, module, name, call):
    """The arguments of every launch of ``module.name`` that ``call`` makes; nothing runs."""
    recorder = Recorder(getattr(module, name))
    monkeypatch.setattr(module, name, recorder)
    call()
    assert recorder.launches
    return recorder.kernel, recorder.launches


def compiled(kernel, args, options, target):
    names = kernel.arg_names
    signature, constants, attributes = {}, {}, {}
    for index, (name, value) in enumerate(zip(names, args)):
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    for name, value in options.items():
        if name in names:
            signature[name] = "constexpr"
            constants[name] = value
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    settings = {"num_warps": options.get("num_warps", 4)}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=settings)


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def vectors(count):
    return meta(1, 2, count, WIDTH, dtype=torch.float32).unbind(dim=2)


LENGTH, SPLIT = 11040, 2400
X, NOISY = (1, LENGTH, WIDTH), (1, LENGTH - SPLIT, WIDTH)
EPS = 1e-6


def norm_calls():
    gate, shift, scale = vectors(3)
    gains = meta(WIDTH, dtype=torch.float32)
    for fp8 in (False, True):
        yield (
            f"gate and norm {fp8}",
            fp8,
            lambda e=fp8: norm_triton.gated_add_layer_norm(
                meta(*X), meta(*X), gate, SPLIT, gains, gains, SPLIT, EPS, fp8=e
            ),
        )
        yield (
            f"text and norm {fp8}",
            fp8,
            lambda e=fp8: norm_triton.text_add_modulated_norm(
                meta(*X), meta(*NOISY), SPLIT, shift, scale, SPLIT, EPS, fp8=e, in_place=True
            ),
        )
        yield (
            f"gate and next norm {fp8}",
            fp8,
            lambda e=fp8: norm_triton.gated_add_modulated_norm(
                meta(*X), meta(*X), gate, shift, scale, SPLIT, EPS, fp8=e
            ),
        )


def stream_calls():
    gate, last_gate, shift, scale = vectors(4)
    affine = meta(WIDTH, dtype=torch.float32), meta(WIDTH, dtype=torch.float32)
    x, noisy = meta(*X), meta(*NOISY)
    yield "rms", False, lambda: norm_triton.rms_norm(noisy, meta(WIDTH), EPS)
    yield "layer", False, lambda: norm_triton.layer_norm(x, *affine, EPS)
    yield "gate", False, lambda: norm_triton.gated_add(x, x, gate, SPLIT)
    first = (x[:, SPLIT:], x[:, SPLIT:], gate, 0, None, 0)
    whole = (x, x, gate, SPLIT, noisy, SPLIT)
    yield "stream", False, lambda: stream_triton.total(*whole, (x, last_gate))
    for fp8 in (False, True):
        modulate = norm_triton.modulated_norm_e4m3 if fp8 else norm_triton.modulated_norm
        yield f"modulated {fp8}", fp8, lambda f=modulate: f(x, shift, scale, SPLIT, EPS)
        yield (
            f"stream, text {fp8}",
            fp8,
            lambda e=fp8: stream_triton.normalised(*first, affine, EPS, fp8=e),
        )
        yield (
            f"stream, modulated {fp8}",
            fp8,
            lambda e=fp8: stream_triton.normalised(*whole, (scale, shift), EPS, fp8=e),
        )


def calls():
    """Every launch: where its kernel is, whether it writes e4m3, and the call."""
    for name, fp8, call in norm_calls():
        yield name, norm_triton, "norm_kernel", fp8, call
    for name, fp8, call in stream_calls():
        yield name, stream_triton, "stream_kernel", fp8, call
    joined = meta(1, LENGTH, 3 * WIDTH)[..., :WIDTH]
    tables = meta(2, LENGTH, CHANNELS // 2, dtype=torch.float32).unbind(0)
    factor = meta(HEADS, dtype=torch.float32)
    rope = (rope_triton, "norm_rope_kernel")
    args = (joined, meta(WIDTH), *tables, EPS)
    yield "rope", *rope, False, lambda: rope_triton.norm_rope(*args)
    yield "rope e4m3", *rope, True, lambda: rope_triton.norm_rope_e4m3(*args, factor)
    hidden, bias = meta(1, LENGTH, HIDDEN), meta(HIDDEN)
    gelu = (gelu_triton, "gelu_kernel")
    yield "gelu", *gelu, False, lambda: gelu_triton.gelu(hidden, None)
    yield "gelu bias", *gelu, False, lambda: gelu_triton.gelu(hidden, bias)
    yield "gelu e4m3", *gelu, True, lambda: gelu_triton.gelu_e4m3(hidden, None)
    stream = (stream_triton, "stream_kernel")
    yield "rows", *stream, True, lambda: scaled_triton.quantise_rows(meta(*X))
    yield "rows of a weight", *stream, True, lambda: scaled_triton.quantise_rows(meta(64, HIDDEN))
    value = joined.unflatten(-1, (HEADS, CHANNELS))
    heads = lambda: scaled_triton.quantise_heads(value)  # noqa: E731
    yield "largest of a head", scaled_triton, "head_largest_kernel", False, heads
    yield "values of a head", scaled_triton, "head_values_kernel", True, heads
    centred = lambda: scaled_triton.quantise_centred(value)  # noqa: E731
    yield "parts of a channel", scaled_triton, "channel_parts_kernel", False, centred
    yield "means of a channel", scaled_triton, "channel_means_kernel", False, centred
    yield "centred values", scaled_triton, "head_values_kernel", True, centred
    mean = meta(1, WIDTH, dtype=torch.float32)
    offset = lambda: scaled_triton.quantise_rows(meta(*X), mean)  # noqa: E731
    yield "rows with an offset", *stream, True, offset


CASES = [
    pytest.param(module, name, call, target, id=f"{label}-{target}")
    for label, module, name, fp8, call in calls()
    for target in SHARED_LIMIT
    if not fp8 or target in WITH_E4M3
]


_TOGETHER = (
    "channel_means_kernel",
    "channel_parts_kernel",
    "head_largest_kernel",
    "head_values_kernel",
)
"""Kernels of which one call launches several."""


@pytest.mark.parametrize(("module", "name", "call", "target"), CASES)
def test_compiles_and_fits(module, name, call, target, monkeypatch):
    for other in _TOGETHER:
        if other != name:
            monkeypatch.setattr(scaled_triton, other, Recorder(None))
    kernel, found = launches(monkeypatch, module, name, call)
    for args, options in found:
        made = compiled(kernel, args, options, target)
        assert made.metadata.shared <= SHARED_LIMIT[target]
        assert f"sm_{target}" in made.asm["ptx"]
        assert len(made.asm["cubin"]) > 1000
