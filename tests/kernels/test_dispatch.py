import itertools
import logging

import pytest
import torch

from helios import kernels
from helios.kernels import Machine, choose, dispatch, paths

BF16, FP32 = torch.bfloat16, torch.float32
CPU = Machine()
TURING = Machine(capability=(7, 5), triton=True, cudnn=True)
AMPERE = Machine(capability=(8, 0), triton=True, cudnn=True)
ADA = Machine(capability=(8, 9), triton=True, flash3=True, cudnn=True)
HOPPER = Machine(capability=(9, 0), triton=True, flash3=True, cudnn=True)
BARE_HOPPER = Machine(capability=(9, 0))
BLACKWELL = Machine(capability=(10, 0), triton=True, flash3=True, cudnn=True)
ALL = [CPU, TURING, AMPERE, ADA, HOPPER, BARE_HOPPER, BLACKWELL]


@pytest.mark.parametrize(
    ("machine", "triton", "fp8", "flash3"),
    [
        (CPU, False, False, False),
        (TURING, False, False, False),
        (AMPERE, True, False, False),
        (ADA, True, True, False),
        (HOPPER, True, True, True),
        (BARE_HOPPER, False, True, False),
        (BLACKWELL, True, True, False),
    ],
)
def test_what_a_machine_runs(machine, triton, fp8, flash3):
    assert (machine.runs_triton, machine.runs_fp8, machine.runs_flash3) == (triton, fp8, flash3)


@pytest.mark.parametrize(
    ("machine", "keys", "expected"),
    [
        (CPU, 11040, "plain"),
        (TURING, 11040, "plain"),
        (AMPERE, 11040, "flash"),
        (ADA, 11040, "flash"),
        (HOPPER, 11040, "flash3"),
        (HOPPER, 4560, "flash3"),
        (HOPPER, 2940, "flash3"),
        (HOPPER, 1104, "cudnn"),
        (HOPPER, 512, "cudnn"),
        (BARE_HOPPER, 11040, "flash"),
        (BLACKWELL, 11040, "cudnn"),
    ],
)
def test_attention_by_machine_and_length(machine, keys, expected):
    assert choose(machine, BF16, 128, keys) == expected


def test_attention_that_flash3_cannot_do():
    assert choose(HOPPER, FP32, 128, 11040) == "plain"
    assert choose(HOPPER, torch.float16, 128, 11040) == "cudnn"
    assert choose(HOPPER, BF16, 128, 11040, gradient=True) == "cudnn"
    assert choose(HOPPER, BF16, 100, 11040) == "flash"
    assert choose(HOPPER, BF16, 256, 11040) == "flash"


def test_every_machine_has_a_path_for_everything():
    for machine in ALL:
        found = paths(machine)
        assert [path.operation for path in found] == [path.operation for path in paths(CPU)]
        assert all(path.form and path.why for path in found)
    assert {path.form for path in paths(HOPPER)} == {
        "Triton", "cuDNN", "FlashAttention-3", "in hardware",
    }  # fmt: skip
    advice = [path.why for path in paths(BARE_HOPPER)]
    assert any("helios-video[cuda]" in why for why in advice)
    assert sum("fa3-fwd" in why for why in advice) == 2


@pytest.mark.parametrize("machine", ALL)
def test_whatever_the_machine_the_cpu_gives_the_same_numbers(machine):
    """Capabilities are those of the device that holds the tensors; a CPU has none."""
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(2, 2, 2, 16, generator=torch.Generator().manual_seed(1)).unbind(1)
    expected = kernels.modulated_norm(x, *rows, 3, 1e-6)
    with kernels.simulated(machine):
        assert not dispatch.uses_triton(x)
        assert torch.equal(kernels.modulated_norm(x, *rows, 3, 1e-6), expected)


class OnCuda:
    """A stand-in for a tensor on a GPU, as far as choices look at it."""

    device = torch.device("cuda", 0)


def test_choices_on_a_gpu_of_each_kind(monkeypatch):
    for machine, inside in itertools.product(ALL, (False, True)):
        with kernels.simulated(machine):
            assert dispatch.machine_of(OnCuda.device) == machine
            if inside:
                with kernels.plain(), kernels.plain():
                    assert not dispatch.uses_triton(OnCuda())
                    assert not dispatch.is_fast(OnCuda())
            else:
                assert dispatch.uses_triton(OnCuda()) is machine.runs_triton
                assert dispatch.is_fast(OnCuda())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with kernels.simulated(HOPPER):
        assert not dispatch.uses_triton(OnCuda())


def forget():
    dispatch._examine.cache_clear()
    dispatch.say_once.cache_clear()


@pytest.fixture
def _fresh_choices():
    """What was said and found before is forgotten, and what the test finds afterwards too."""
    forget()
    yield
    forget()


@pytest.mark.usefixtures("_fresh_choices")
@pytest.mark.parametrize(
    ("capability", "lines"),
    [
        ((9, 0), ["Triton does not run", "FlashAttention-3 is not installed"]),
        ((8, 0), ["Triton does not run"]),
        ((7, 5), ["older than Ampere"]),
    ],
)
def test_what_is_missing_is_said_in_one_line(capability, lines, monkeypatch, caplog):
    """This process has no GPU, so the trial launch fails as on a machine without a compiler."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: capability)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            machine = dispatch.machine_of(OnCuda.device)
            assert machine.capability == capability
            assert not machine.runs_triton
            assert not machine.runs_flash3
            choose(machine, BF16, 128, 11040)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(lines)
    for line, start in zip(said, lines):
        assert start in line
        assert "\n" not in line


@pytest.mark.usefixtures("_fresh_choices")
def test_a_broken_flash3_is_reported_and_done_without(monkeypatch, caplog):
    def load(name):
        if name == "fa3_fwd_interface":
            raise OSError("libcudart.so.13: cannot open shared object file\nsecond line")
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(dispatch, "import_module", load)
    with caplog.at_level(logging.WARNING):
        assert not dispatch._has_flash3()
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("fa3_fwd_interface cannot be loaded (libcudart")
    assert "second" not in said
    monkeypatch.setattr(dispatch, "import_module", lambda _name: None)
    assert dispatch._has_flash3()


def test_run_takes_the_gradient_of_the_formula():
    """A fast form that is off by far: forwards its own number, backwards the formula's."""

    def formula(x, y, power):
        return (x * y) ** power, x + y

    def fast(x, y, power):
        return 0 * x + 7, 0 * y + 8

    x, y = (torch.tensor([2.0, 3.0], requires_grad=True) for _ in range(2))
    outs = dispatch.run(fast, formula, x, y, 2)
    assert outs[0].tolist() == [7, 7]
    assert outs[1].tolist() == [8, 8]
    (found,) = torch.autograd.grad(outs[0].sum(), x, retain_graph=True)
    torch.testing.assert_close(found, 2 * x.detach() ** 3)
    (found,) = torch.autograd.grad(outs[1].sum(), y)
    torch.testing.assert_close(found, torch.ones(2))
    assert not dispatch.run(fast, formula, x.detach(), y.detach(), 2)[0].requires_grad
    with torch.no_grad():
        assert not dispatch.run(fast, formula, x, y, 2)[0].requires_grad
