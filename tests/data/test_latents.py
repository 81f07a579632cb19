import random
from dataclasses import replace
from itertools import chain

import pytest
import torch

from helios.data import ShardReader, ShardWriter, write_shards
from helios.distributed import World
from helios.errors import DataError

KIND = {"kind": "numbers"}
CPU = torch.device("cpu")


def write(folder, counts=(4, 4, 3), widths=(2, 2, 2), settings=KIND, finish=True):
    writer = ShardWriter(folder, settings)
    writer.start()
    first = 0
    for index, (count, width) in enumerate(zip(counts, widths, strict=True)):
        values = torch.arange(first, first + count).float()
        writer.write(index, {"x": values[:, None].expand(count, width)}, {"captions": "[]"})
        first += count
    if finish:
        writer.finish()
    return folder


def reader(folder, **changes):
    made = ShardReader(folder, "numbers", **{"batch": 2, "device": CPU, **changes})
    made.prepare()
    return made


def drawn(source, count):
    return [source.batch()["x"][:, 0].tolist() for _ in range(count)]


@pytest.mark.parametrize("resident", [False, True])
def test_an_epoch_shows_every_example_once_in_another_order(tmp_path, resident):
    source = reader(write(tmp_path / "a"), resident=resident)
    epochs = [list(chain(*drawn(source, 5))) for _ in range(2)]
    for epoch in epochs:
        assert len(set(epoch)) == 10  # of 11, in batches of two
        assert set(epoch) <= set(range(11))
    assert epochs[0] != epochs[1]


def test_ranks_share_the_examples_of_an_epoch(tmp_path):
    folder = write(tmp_path / "a")
    parts = [drawn(reader(folder, rank=rank, size=2), 2) for rank in range(2)]
    seen = [x for part in parts for batch in part for x in batch]
    assert len(set(seen)) == 8


def test_a_batch_never_mixes_shapes(tmp_path):
    source = reader(write(tmp_path / "a", counts=(3, 4, 3), widths=(2, 5, 2)))
    shapes = [tuple(source.batch()["x"].shape) for _ in range(5)]
    assert sorted(shapes) == [(2, 2)] * 3 + [(2, 5)] * 2


def test_it_goes_on_where_it_was(tmp_path):
    folder = write(tmp_path / "a")
    source = reader(folder)
    drawn(source, 7)
    state = source.state_dict()
    other = ShardReader(folder, "numbers", batch=2, device=CPU)
    other.load_state_dict(state)
    other.prepare()
    assert drawn(other, 6) == drawn(source, 6)


def test_what_is_not_whole_or_not_wanted_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no shards"):
        reader(tmp_path)
    with pytest.raises(DataError, match="not complete"):
        reader(write(tmp_path / "a", finish=False))
    with pytest.raises(DataError, match="'letters'"):
        reader(write(tmp_path / "b", settings={"kind": "letters"}))
    with pytest.raises(DataError, match="at most 11 examples"):
        reader(write(tmp_path / "c"), batch=6, size=2)
    with pytest.raises(DataError, match=r"other settings \(seed\)"):
        ShardWriter(tmp_path / "c", {**KIND, "seed": 1}).start()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "note.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        ShardWriter(tmp_path / "d", KIND).start()


def test_ranks_make_their_own_shards_and_a_damaged_one_is_made_again(tmp_path):
    made = []

    def make(first, count):
        made.append(first)
        return {"x": torch.arange(first, first + count).float()[:, None]}, {}

    alone = World(device=CPU)
    writer = ShardWriter(tmp_path / "a", KIND)
    write_shards(writer, 7, 3, make, alone, lambda _: None)
    assert made == [0, 3, 6]
    path = tmp_path / "a" / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    write_shards(writer, 7, 3, make, alone, lambda _: None)
    assert made == [0, 3, 6, 3]
    assert sorted(chain(*drawn(reader(tmp_path / "a", batch=1), 7))) == list(range(7))

    class Second(World):
        def agree(self, *values):
            return values

    made.clear()
    writer.start()
    for part in (tmp_path / "a").glob("0*"):
        part.unlink()
    write_shards(writer, 7, 3, make, replace(Second(device=CPU), rank=1, size=2), lambda _: None)
    assert made == [3]


def test_reading_leaves_everybody_elses_random_numbers_alone(tmp_path):
    """Training.md, 11, F28."""
    folder = write(tmp_path / "a")

    def numbers():
        return random.random(), float(torch.rand(()))

    random.seed(1)
    torch.manual_seed(1)
    expected = numbers()
    random.seed(1)
    torch.manual_seed(1)
    drawn(reader(folder, seed=7), 9)
    assert numbers() == expected
