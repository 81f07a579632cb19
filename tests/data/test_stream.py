import pytest
import torch

from helios.data import Batch, RingConfig
from helios.data.stream import Ring

SMALL = RingConfig(
    height=32, width=48, supersampling=1, group=2, first_groups=2, groups=3, refresh_every=2
)


def counting(config, made, pieces=1):
    def make(index):
        for piece in range(pieces):
            made.append(index + piece / 10)
            if piece + 1 < pieces:
                yield
        return (torch.full((config.group, 1), index),)

    return Ring(make, config, torch.Generator().manual_seed(0))


def test_the_ring_grows_then_replaces_the_oldest():
    made = []
    ring = counting(SMALL, made)
    ring.prepare()
    assert made == [0, 1]
    assert ring.clips == 4
    held = []
    for _ in range(7):
        (store,), places = ring.draw(5)
        assert places.max() < ring.clips
        held.append(sorted(set(store[: ring.clips, 0].tolist())))
    assert made == [0, 1, 2, 3, 4]
    # A group is there one turn after its last piece.
    assert held == [*[[0, 1]] * 4, *[[0, 1, 2]] * 2, [1, 2, 3]]


def test_a_group_is_made_in_pieces_spread_over_batches():
    made = []
    ring = counting(SMALL, made, pieces=3)
    ring.prepare()
    assert made == [0, 0.1, 0.2, 1, 1.1, 1.2]
    counts = []
    for _ in range(13):
        ring.draw(1)
        counts.append((len(made) - 6, ring.clips))
    pieces, clips = zip(*counts, strict=True)
    assert pieces == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6)
    assert clips == (4,) * 8 + (6,) * 5


@pytest.mark.parametrize("drawn", [0, 1, 2, 5, 6, 7, 8, 9, 14])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_resumed_ring_goes_on_exactly(drawn, pieces):
    straight = counting(SMALL, [], pieces)
    straight.prepare()
    for _ in range(drawn):
        straight.draw(3)
    resumed = counting(SMALL, [], pieces)
    resumed.load_state_dict({k: v.clone() for k, v in straight.state_dict().items()})
    resumed.prepare()
    for _ in range(9):
        (one,), here = straight.draw(3)
        (other,), there = resumed.draw(3)
        assert torch.equal(one[here], other[there])


def test_mismatched_batches_are_refused():
    with pytest.raises(ValueError, match="2 clips but 3 captions"):
        Batch(latents=torch.zeros(2, 16, 9, 2, 2), tokens=torch.zeros(3, 4))
    with pytest.raises(ValueError, match="either"):
        Batch(latents=torch.zeros(2, 16, 9, 2, 2))
    with pytest.raises(ValueError, match="text"):
        Batch(latents=torch.zeros(2, 16, 9, 2, 2), text=torch.zeros(2, 4))


@pytest.mark.parametrize("bad", [{"height": 40}, {"groups": 1}, {"group": 0}])
def test_impossible_rings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RingConfig(**bad)
