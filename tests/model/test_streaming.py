"""Blocks whose matrices come for every pass: the same numbers, two blocks' room, home again."""

import pytest
import torch

from helios.model import (
    Fp8Config,
    LoraConfig,
    adapters_of,
    load_transformer,
    new_adapter,
    save_transformer,
)
from helios.model.quantised import MATRICES
from helios.model.streaming import Guest, Home, is_streamed, spread, stream_blocks
from helios.pipeline.engine import Engine, EngineConfig

from .cases import build, inputs


@pytest.mark.parametrize(
    ("blocks", "away", "numbers"),
    [(4, 0, []), (4, 1, [2]), (4, 2, [1, 3]), (4, 4, [0, 1, 2, 3]), (40, 3, [6, 20, 33])],
)
def test_blocks_that_stay_stand_between_those_that_come(blocks, away, numbers):
    assert sorted(spread(blocks, away)) == numbers


def test_what_comes_is_what_every_pass_multiplies_with():
    assert is_streamed("blocks.3.feed_forward.expand.weight", (3,))
    assert is_streamed("blocks.3.self_attention.out.values", (1, 3))
    for name in (
        "blocks.3.feed_forward.expand.bias",
        "blocks.3.cross_attention.key.weight",
        "blocks.3.modulation",
        "blocks.2.feed_forward.expand.weight",
        "head.project.weight",
    ):
        assert not is_streamed(name, (3,))
    model = build()
    names = {n for n, _ in model.named_parameters() if is_streamed(n, range(99))}
    assert len(names) == len(MATRICES) * len(model.blocks)


def test_a_home_holds_copies_side_by_side(monkeypatch):
    monkeypatch.setattr("helios.model.streaming._PIECE", 1024)
    taken, empty = [], torch.empty

    def counted(size, *, dtype, pin_memory=False):
        taken.append((size, pin_memory))
        return empty(size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", counted)
    given = [torch.randn(3, 5), torch.ones(7).to(torch.float8_e4m3fn), torch.randn(256)]
    home = Home("cuda")
    kept = [home.keep(tensor) for tensor in given]
    for one, other in zip(kept, given, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.float(), other.float())
    assert kept[1].data_ptr() - kept[0].data_ptr() == 64
    assert taken == [(0, False), (1024, True), (1024, True)]


@torch.no_grad()
@pytest.mark.parametrize("away", [1, 2, 3])
@pytest.mark.parametrize("fp8", [None, Fp8Config()])
def test_passes_are_those_of_a_resident_model(away, fp8, tmp_path):
    save_transformer(build(num_layers=3), tmp_path)
    resident = load_transformer(tmp_path, dtype=torch.bfloat16, fp8=fp8)
    streamed = load_transformer(tmp_path, dtype=torch.bfloat16, fp8=fp8, away=away)
    own = {n: id(t) for n, t in (*streamed.named_parameters(), *streamed.named_buffers())}
    for seed in (0, 1):
        given = inputs(resident.config, seed=seed)
        assert torch.equal(streamed(*given), resident(*given))
    after = {n: id(t) for n, t in (*streamed.named_parameters(), *streamed.named_buffers())}
    assert after == own


@torch.no_grad()
def test_two_blocks_have_room_at_a_time():
    model = build(num_layers=3)
    seen = []
    stream_blocks(model, "cpu", (0, 1, 2))
    for block in model.blocks:
        block.feed_forward.expand.register_forward_pre_hook(
            lambda layer, _: seen.append(layer.weight.data_ptr())
        )
    for _ in range(2):
        model(*inputs(model.config))
    assert len(seen) == 6
    assert len(set(seen)) == 2
    home = {block.feed_forward.expand.weight.data_ptr() for block in model.blocks}
    assert home.isdisjoint(seen)


@torch.no_grad()
def test_a_pass_that_fails_leaves_every_matrix_at_home():
    model = build()
    own = [id(p) for p in model.parameters()]
    stream_blocks(model, "cpu", (0, 1))

    def fail(*_):
        raise torch.OutOfMemoryError("no room")

    handle = model.blocks[1].feed_forward.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        model(*inputs(model.config))
    assert [id(p) for p in model.parameters()] == own
    handle.remove()
    expected = build()
    expected.load_state_dict(model.state_dict())
    assert torch.equal(model(*inputs(model.config)), expected(*inputs(model.config)))


@torch.no_grad()
def test_adapters_act_on_what_comes():
    resident, streamed = build(), build()
    streamed.load_state_dict(resident.state_dict())
    stream_blocks(streamed, "cpu", (0, 1))
    for model in (resident, streamed):
        adapter = new_adapter(model, LoraConfig(), torch.Generator().manual_seed(0))
        adapters_of(model).add("a", adapter, 1.0)
    given = inputs(resident.config)
    assert torch.equal(streamed(*given), resident(*given))


def test_the_history_is_not_reused_then():
    model = build()
    stream_blocks(model, "cpu", (1,))
    assert not Engine(model).graphed
    with pytest.raises(ValueError, match="history cannot be reused"):
        Engine(model, EngineConfig(reuse_history="chunk"))


def test_a_guest_has_its_own_tensors_back():
    layer = torch.nn.Linear(2, 2)
    own = list(layer.parameters())
    guest = Guest(layer, lambda name: name == "weight")
    guest.dress([torch.zeros(2, 2)])
    assert not layer.weight.any()
    guest.undress()
    assert all(a is b for a, b in zip(layer.parameters(), own, strict=True))
