"""Weight files: what is refused, what is listed, and how little memory loading takes."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError
from helios.storage import (
    WEIGHTS_NAME,
    check_file,
    contained,
    fill,
    manifest_of,
    open_file,
    open_weights,
    read_json,
    read_tensors,
    write_tensors,
)


def tensors(count: int = 6, size: int = 100) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"t{i}": torch.randn(size, generator=generator) for i in range(count)}


def raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file with any header one likes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_large_components_become_shards_with_an_index(tmp_path: Path) -> None:
    original = tensors()
    write_tensors(tmp_path, original, shard_bytes=1000)
    names = sorted(path.name for path in tmp_path.iterdir())
    stem = WEIGHTS_NAME.removesuffix(".safetensors")
    assert names == [f"{stem}-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + [
        f"{WEIGHTS_NAME}.index.json"
    ]
    index = json.loads((tmp_path / f"{WEIGHTS_NAME}.index.json").read_text())
    assert index["metadata"]["total_size"] == 6 * 400
    for key, shard in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / shard)[key], original[key])
    again = read_tensors(tmp_path)
    assert again.keys() == original.keys()
    assert all(torch.equal(again[key], original[key]) for key in original)


def test_another_form_replaces_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for limit, count in ((1000, 4), (400, 7), (10_000, 1), (1000, 4)):
        write_tensors(tmp_path, tensors(), shard_bytes=limit)
        assert len(list(tmp_path.iterdir())) == count + 1
        assert read_tensors(tmp_path).keys() == tensors().keys()


def test_only_one_shard_is_copied_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[weakref.ref[torch.Tensor]] = []

    def save(tensors: dict[str, torch.Tensor], path: Path, **_: Any) -> None:
        assert all(earlier() is None for earlier in written)
        written.extend(weakref.ref(tensor) for tensor in tensors.values())
        save_file(tensors, path)

    monkeypatch.setattr("helios.storage.save_file", save)
    write_tensors(tmp_path, tensors(), dtype=torch.bfloat16, shard_bytes=500)
    assert len(written) == 6


def test_a_failed_write_of_shards_leaves_the_old_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tensors(tmp_path, tensors())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls: list[object] = []

    def second_fails(*arguments: Any, **named: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save_file(*arguments, **named)

    monkeypatch.setattr("helios.storage.save_file", second_fails)
    with pytest.raises(OSError, match="space"):
        write_tensors(tmp_path, tensors(), shard_bytes=400)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({}, b"", 2**63 - 1),
        ({}, b"", 0),
        ({}, b"", 1000),
        ({"a": entry(0, 8, [2])}, bytes(4), None),  # cut off
        ({"a": entry(0, 8, [2])}, bytes(12), None),  # overlong
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12), None),  # overlap
        ({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, bytes(20), None),  # hole
        ({"a": entry(0, 8, [3])}, bytes(8), None),
        ({"a": entry(0, 8, [-2])}, bytes(8), None),
        ({"a": entry(0, 8, [True, 2])}, bytes(8), None),
        ({"a": entry(0, 8, [2], "PICKLE")}, bytes(8), None),
        ({"a": [0, 8]}, bytes(8), None),
        (b'{"a": 1, "a": 2}', b"", None),
        (b"[" * 50_000, b"", None),
        (b"not json", b"", None),
        (b"[]", b"", None),
    ],
)
def test_headers_that_lie_are_refused(
    tmp_path: Path, header: Any, data: bytes, length: int | None
) -> None:
    with pytest.raises(CheckpointCorruptError, match=r"a\.safetensors"):
        open_file(raw(tmp_path / "a.safetensors", header, data, length))


def test_a_huge_header_costs_neither_time_nor_memory(tmp_path: Path) -> None:
    """The worst within the limit: as many small lists as fit."""
    path = tmp_path / "a.safetensors"
    for size in (2**20 - 100, 60 * 2**20):
        raw(path, b'{"a":[' + b"[]," * (size // 3) + b"[]]}")
        before, start = _resident(), time.process_time()
        with pytest.raises(CheckpointCorruptError):
            open_file(path)
        assert time.process_time() - start < 5
        assert _resident() - before < 64 * 2**20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_links_must_stay_in_the_model(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    write_tensors(outside, tensors())
    inside = tmp_path / "model" / "transformer"
    inside.mkdir(parents=True)
    (inside / WEIGHTS_NAME).symlink_to(outside / WEIGHTS_NAME)
    with pytest.raises(UnsafeCheckpointError, match="outside"):
        read_tensors(inside)


def test_the_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    cache, store = tmp_path / "models--a--b", tmp_path / "store"
    inside = cache / "snapshots" / "1234" / "transformer"
    inside.mkdir(parents=True)
    (cache / "blobs").mkdir()
    write_tensors(store, tensors())
    (cache / "blobs" / "digest").symlink_to(store / WEIGHTS_NAME)
    (inside / WEIGHTS_NAME).symlink_to(Path("../../../blobs/digest"))
    assert read_tensors(inside).keys() == tensors().keys()
    (inside / "evil").symlink_to(store / WEIGHTS_NAME)
    assert not contained(inside / "evil", inside)


def test_an_index_must_agree_with_its_shards(tmp_path: Path) -> None:
    write_tensors(tmp_path, tensors(), shard_bytes=1000)
    path = tmp_path / f"{WEIGHTS_NAME}.index.json"
    index = json.loads(path.read_text())

    def state(**changes: Any) -> None:
        path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], **changes}}))

    state(t9=index["weight_map"]["t0"])
    with pytest.raises(CheckpointCorruptError, match="does not hold t9"):
        open_weights(tmp_path)
    state(t0=index["weight_map"]["t5"])
    with pytest.raises(CheckpointCorruptError, match="holds t0"):
        open_weights(tmp_path)
    state(t0="../else.safetensors")
    with pytest.raises(UnsafeCheckpointError, match="outside"):
        open_weights(tmp_path)
    state(t9="absent.safetensors")
    with pytest.raises(CheckpointError, match=r"absent\.safetensors is missing"):
        open_weights(tmp_path)
    path.write_text('{"weight_map": [1]}')
    with pytest.raises(CheckpointCorruptError, match="weight_map"):
        open_weights(tmp_path)


def fill_linear(folder: Path, module: nn.Module) -> None:
    weights = open_weights(folder)
    fill(module, weights, "the model", device="cpu", dtype=lambda _: torch.float32)


def test_everything_that_does_not_fit_is_listed_and_nothing_changes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4), nn.Linear(4, 1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    stored = {name: torch.zeros_like(value) for name, value in before.items()}
    del stored["0.bias"]
    stored["extra"] = torch.zeros(1)
    stored["1.weight"] = stored["1.weight"].T.contiguous()
    stored["2.bias"] = torch.zeros(1, dtype=torch.int64)
    write_tensors(tmp_path, stored)
    with pytest.raises(CheckpointError) as caught:
        fill_linear(tmp_path, module)
    text = str(caught.value)
    for part in (
        "missing 0.bias",
        "unexpected extra",
        "1.weight is [2, 4], expected [4, 2]",
        "2.bias is I64, expected a float",
    ):
        assert part in text
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_long_list_is_cut_and_counted(tmp_path: Path) -> None:
    write_tensors(tmp_path, {f"extra{i:03d}": torch.zeros(1) for i in range(50)})
    with pytest.raises(CheckpointError, match="in all 2 missing, 50 unexpected") as caught:
        fill_linear(tmp_path, nn.Linear(2, 2))
    assert str(caught.value).count("extra") == 18


def test_filled_parameters_are_aligned_and_keep_their_gradient_switch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7))
    write_tensors(tmp_path, source.state_dict())
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7))
    fill_linear(tmp_path, module)
    for mine, own in zip(module.parameters(), source.parameters(), strict=True):
        assert torch.equal(mine, own)
        assert mine.requires_grad
        assert mine.data_ptr() % 64 == 0


def test_json_must_be_one_object_without_doubles(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ('{"a": 1, "a": 2}', "[1]", "{", "[" * 100_000, " " * 2**20 + "{}"):
        path.write_text(text)
        with pytest.raises(CheckpointCorruptError, match=r"a\.json"):
            read_json(path)


def test_a_manifest_finds_a_flipped_byte(tmp_path: Path) -> None:
    write_tensors(tmp_path / "part", tensors())
    manifest = manifest_of(tmp_path)
    ((name, wanted),) = manifest["files"].items()
    path = tmp_path / name
    check_file(path, wanted["bytes"], wanted["sha256"])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    check_file(path, wanted["bytes"], None)
    with pytest.raises(CheckpointCorruptError, match=wanted["sha256"]):
        check_file(path, wanted["bytes"], wanted["sha256"])
    path.write_bytes(data[:-1])
    with pytest.raises(CheckpointCorruptError, match="bytes, expected"):
        check_file(path, wanted["bytes"], None)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        check_file(path, wanted["bytes"], None)


MEASURE = """
import re, sys, threading, time
from pathlib import Path
import torch
from helios.model import load_transformer

def anonymous():
    text = Path("/proc/self/status").read_text()
    return sum(int(re.search(key + r":\\s+(\\d+)", text)[1]) for key in ("RssAnon", "RssShmem"))

peak, running = 0, True
def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)

start = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
model = load_transformer(Path(sys.argv[1]), dtype=torch.bfloat16)
running = False
watcher.join()
print((peak - start) * 1024, sum(p.nbytes for p in model.parameters()))
"""


def test_float32_shards_become_bfloat16_without_a_second_copy(tmp_path: Path) -> None:
    """340 MB in two shards: what stays is half of it, and nothing but a tensor comes on top."""
    from helios.model import TransformerConfig, empty_transformer, fp32_names, published_name
    from helios.storage import write_json

    config = TransformerConfig(
        num_attention_heads=12, attention_head_dim=64, rope_dim=(24, 20, 20), num_layers=9,
        ffn_dim=3072, text_dim=512,
    )  # fmt: skip
    model = empty_transformer(config)
    assert fp32_names(model)
    values = {
        published_name(name): torch.full(p.shape, 0.5) for name, p in model.named_parameters()
    }
    total = sum(value.nbytes for value in values.values())
    assert total > 300e6
    write_tensors(tmp_path, values, shard_bytes=total // 2 + 10_000_000)
    write_json(tmp_path / "config.json", config.to_json())
    shards = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert len(shards) == 2
    biggest = max(value.nbytes for value in values.values())
    del values
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, kept = map(int, result.stdout.split())
    assert peak < 1.25 * max(shards) + 16 * 2**20
    # The sharper bound: the model itself, one tensor on its way, and what the allocator holds.
    assert peak < kept + biggest + 16 * 2**20
