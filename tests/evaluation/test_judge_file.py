"""What is written of a judge: whole steps, exactly those that are read again."""

import lzma
from dataclasses import fields, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from helios.errors import CheckpointError
from helios.evaluation.metrics.judge_file import (
    LEVELS,
    STEPS,
    input_products,
    load_judge,
    row_steps,
    save_judge,
    whole_steps,
)
from helios.evaluation.metrics.scene_judge import Opinion, SceneJudge
from helios.evaluation.train_judge import judge_config

SMALL = replace(judge_config(), widths=(8, 8, 16), hidden=16)
PACKED = "weights.safetensors.xz"


def small_judge() -> SceneJudge:
    torch.manual_seed(0)
    return SceneJudge(SMALL).eval()


def clips(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 33, 32, 48, 3), generator=generator).byte()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    save_judge(small_judge(), folder, clips(2))
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(lzma.decompress((folder / PACKED).read_bytes()))


def test_what_is_read_is_exactly_what_was_chosen(folder: Path) -> None:
    held, judge, again = stored(folder), small_judge(), load_judge(folder)
    products = input_products(judge, clips(2))
    assert again.config == judge.config
    assert {value.dtype for value in again.parameters()} == {torch.float32}
    for name, value in judge.state_dict().items():
        read = again.state_dict()[name]
        if value.ndim == 1 and "running" not in name:
            assert torch.equal(read, value.half().float()), name
        elif value.ndim < 2:
            assert torch.equal(read, value), name
        else:
            rows = value.double().flatten(1)
            step = row_steps(rows)
            seen = products.get(name.removesuffix(".weight"), torch.eye(rows.shape[1]).double())
            codes = whole_steps(rows, step, seen)
            assert held[name].dtype == torch.int8
            assert torch.equal(held[name].flatten(1), codes), name
            assert torch.equal(held[name + ".scale"], step), name
            assert torch.equal(read.flatten(1), codes.float() * step.float()[:, None]), name


def test_the_same_judge_and_clips_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save_judge(small_judge(), tmp_path, clips(2))
    assert (tmp_path / PACKED).read_bytes() == (folder / PACKED).read_bytes()


def test_steps_suit_their_row() -> None:
    rows = torch.randn(4, 4000, dtype=torch.float64) * torch.tensor([[1e-3], [0.02], [1.0], [30]])
    rows[1, 7] = 100.0
    step = row_steps(rows)
    typical = rows.square().mean(dim=1).sqrt() * rows.numel() ** 0.5 / STEPS
    torch.testing.assert_close(step[[0, 2, 3]].double(), typical[[0, 2, 3]], rtol=1e-3, atol=0)
    assert step[1] == torch.tensor(100 / LEVELS).half()
    assert row_steps(torch.zeros(1, 3))[0] > 0


def test_unrelated_inputs_leave_each_number_the_nearest() -> None:
    rows = torch.randn(6, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[2] = 0
    step = row_steps(rows)
    codes = whole_steps(rows, step, torch.diag(torch.rand(50).double() + 0.1))
    assert torch.equal(codes.double(), (rows / step.double()[:, None]).round())
    apart = (rows - codes.double() * step.double()[:, None]).abs()
    assert (apart <= step.double()[:, None] / 2 * (1 + 1e-9)).all()
    assert torch.equal(whole_steps(rows, step, torch.zeros(50, 50).double()), codes)


def test_numbers_stay_within_eight_bits() -> None:
    rows = torch.full((1, 40), 1e-6, dtype=torch.float64)
    rows[0, 0] = 1.0
    short = torch.tensor([1e-3]).half()
    codes = whole_steps(rows, short, torch.ones(40, 40).double())
    # What is cut off one weight is put on the others, which the same inputs meet.
    assert codes[0, 0] == LEVELS
    assert 400 < codes[0, 1:].sum() < 1000
    assert codes.abs().max() <= LEVELS


def test_related_inputs_make_up_for_each_other() -> None:
    generator = torch.Generator().manual_seed(3)
    sources = torch.randn(2000, 12, dtype=torch.float64, generator=generator)
    mix = torch.randn(12, 60, dtype=torch.float64, generator=generator)
    noise = torch.randn(2000, 60, dtype=torch.float64, generator=generator)
    inputs = sources @ mix + 0.3 * noise + 1
    rows = torch.randn(20, 60, dtype=torch.float64, generator=generator)
    step = row_steps(rows)
    long = step.double()[:, None]
    codes = whole_steps(rows, step, inputs.T @ inputs / len(inputs))
    fitted = (inputs @ (rows - codes.double() * long).T).square().mean()
    nearest = (inputs @ (rows - (rows / long).round() * long).T).square().mean()
    assert fitted < nearest / 5


def test_a_layer_is_seen_as_it_computes() -> None:
    judge = small_judge()
    seen: dict[str, torch.Tensor] = {}
    layers = {
        name: module
        for name, module in judge.named_modules()
        if name in ("at_eighth.1.second.weight", "object_mix.2.weight", "scene_in")
    }
    for name, module in layers.items():
        module.register_forward_hook(
            lambda _, given, out, name=name: seen.__setitem__(name, out.detach())
        )
    few = clips(1)[:, :4]
    products = input_products(judge, few)
    judge.opinion(few)
    for name, module in layers.items():
        rows = module.weight.detach().double().flatten(1)
        assert products[name].shape == (rows.shape[1],) * 2
        bias = 0 if module.bias is None else module.bias.detach()
        out = seen[name] if isinstance(module, torch.nn.Linear) else seen[name].movedim(1, -1)
        # Of the second look alone; the first one differs a little.
        measured = (out - bias).double().flatten(0, -2).square().mean(0)
        told = (rows @ products[name] * rows).sum(1)
        torch.testing.assert_close(told, measured, rtol=0.35, atol=1e-3)


def test_opinions_stay(folder: Path) -> None:
    judge, again, frames = small_judge(), load_judge(folder), clips(2)
    one, two = judge.opinion(frames), again.opinion(frames)
    for field in fields(Opinion):
        mine, theirs = getattr(one, field.name), getattr(two, field.name)
        torch.testing.assert_close(mine, theirs, atol=0.15, rtol=0.15)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        load_judge(tmp_path)
    with pytest.raises(RuntimeError, match="evaluation mode"):
        save_judge(SceneJudge(SMALL), tmp_path, clips(1))
    assert not list(tmp_path.iterdir())
    text = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"hidden": 16', '"hidden": 24'))
    weights = tmp_path / PACKED
    weights.write_bytes((folder / PACKED).read_bytes())
    with pytest.raises(CheckpointError, match="does not fit"):
        load_judge(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_judge(tmp_path)
