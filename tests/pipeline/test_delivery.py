"""Frames arrive in order, beside other work, and failures arrive where frames are asked for."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import helios
from helios.codec import Codec
from helios.pipeline import Pipeline, Request
from helios.pipeline.delivery import Outlet

from .published import random_parts, write_checkpoint

SIZE = {"height": 64, "width": 64, "steps": (1, 1, 1), "amplify_first_chunk": False}


class SlowCodec:
    """Decodes to the number that the latents are, after as many hundredths of a second."""

    device = torch.device("cpu")

    def decode_uint8(self, latents: Tensor) -> Tensor:
        number = int(latents.flatten()[0])
        if number > 9:
            raise RuntimeError(f"no frames of {number}")
        time.sleep(0.01 * number)
        frames = 1 + 4 * (latents.shape[2] - 1)
        return torch.full((1, frames, 2, 2, 3), number, dtype=torch.uint8)


def numbered(number: int) -> Tensor:
    return torch.full((1, 16, 9, 2, 2), float(number))


@pytest.mark.parametrize("beside", [False, True])
def test_order_is_that_of_the_chunks(beside: bool) -> None:
    with Outlet(SlowCodec(), beside=beside) as outlet:  # type: ignore[arg-type]
        coming = [outlet.send(numbered(number), 33) for number in (5, 0, 3)]
        frames = [delivery.wait()[0] for delivery in coming]
    assert [int(part[0, 0, 0, 0]) for part in frames] == [5, 0, 3]
    assert all(part.shape == (33, 2, 2, 3) for part in frames)


def test_the_sender_does_not_wait() -> None:
    with Outlet(SlowCodec(), beside=True) as outlet:  # type: ignore[arg-type]
        began = time.perf_counter()
        delivery = outlet.send(numbered(9), 33)
        sent = time.perf_counter() - began
        _, latents, seconds = delivery.wait()
    assert seconds > 0.05
    assert sent < seconds
    assert torch.equal(latents, numbered(9)[0])


@pytest.mark.parametrize("beside", [False, True])
def test_a_failure_is_raised_where_frames_are_asked_for(beside: bool) -> None:
    with Outlet(SlowCodec(), beside=beside) as outlet:  # type: ignore[arg-type]
        good = outlet.send(numbered(1), 33)
        if not beside:
            with pytest.raises(RuntimeError, match="no frames of 11"):
                outlet.send(numbered(11), 33)
        else:
            bad = outlet.send(numbered(11), 33)
            with pytest.raises(RuntimeError, match="no frames of 11"):
                bad.wait()
        assert good.wait()[0].max() == 1


def test_the_first_frame_comes_alone() -> None:
    with Outlet(SlowCodec(), beside=True) as outlet:  # type: ignore[arg-type]
        delivery = outlet.send(numbered(2), 33, first=True)
        assert delivery.first().shape == (2, 2, 3)
        assert len(delivery.wait()[0]) == 33
        with pytest.raises(ValueError, match="not asked for"):
            outlet.send(numbered(2), 33).first()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decoder")]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("ahead") / "model"
    write_checkpoint("distilled", folder, random_parts(patched=True))
    return helios.load(folder, "cpu", "float32")


@pytest.fixture
def eager(pipe: Pipeline) -> Iterator[Pipeline]:
    """A pipeline that begins chunks before it delivers the ones before."""
    other = copy.copy(pipe)
    other.ahead = True
    yield other
    assert threads() == []


def request(**fields: Any) -> Request:
    return Request.make(prompt="a red ball", seed=5, num_frames=70, **SIZE, **fields)


def drain(pipe: Pipeline, seen: list[int]) -> None:
    for chunk in pipe.stream(request()):
        seen.append(chunk.index)


@pytest.mark.filterwarnings("ignore:this checkpoint was trained")
class TestAhead:
    def test_the_same_video(self, pipe: Pipeline, eager: Pipeline) -> None:
        seen: list[int] = []
        plain = list(pipe.stream(request()))
        ahead = list(eager.stream(request(callback=lambda chunk: seen.append(chunk.index))))
        assert [chunk.index for chunk in ahead] == seen == [0, 1, 2]
        for one, two in zip(plain, ahead, strict=True):
            assert np.array_equal(one.frames, two.frames)
            assert torch.equal(one.latents, two.latents)
            assert set(one.timings) == set(two.timings)
        assert len(ahead[-1].frames) == 4

    def test_the_next_chunk_is_begun_before_one_is_delivered(self, eager: Pipeline) -> None:
        begun: list[int] = []
        own = eager._begin
        eager._begin = lambda *a, **k: (begun.append(1), own(*a, **k))[1]  # type: ignore[method-assign]
        counts = [len(begun) for _ in eager.stream(request())]
        # The first chunk is not held up by the second.
        assert counts == [1, 3, 3]

    def test_left_in_the_middle_it_leaves_nothing(self, eager: Pipeline) -> None:
        stream = eager.stream(request())
        next(stream)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert threads() == []

    def test_what_was_complete_is_delivered_before_the_failure(self, eager: Pipeline) -> None:
        sample, calls = eager.sample, []

        def failing(*arguments: Any) -> Tensor:
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("no more")
            return sample(*arguments)

        eager.sample = failing  # type: ignore[method-assign]
        seen: list[int] = []
        with pytest.raises(RuntimeError, match="no more"):
            drain(eager, seen)
        assert seen == [0, 1]

    def test_values_that_are_not_finite_end_the_stream(self, eager: Pipeline) -> None:
        sample, calls = eager.sample, []

        def broken(*arguments: Any) -> Tensor:
            calls.append(1)
            return sample(*arguments) * (float("nan") if len(calls) == 2 else 1)

        eager.sample = broken  # type: ignore[method-assign]
        seen: list[int] = []
        with pytest.raises(FloatingPointError, match="chunk 1"):
            drain(eager, seen)
        assert seen == [0]

    def test_a_decoder_that_fails(self, eager: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        own, calls = Codec.decode_uint8, []

        def failing(codec: Codec, latents: Tensor) -> Tensor:
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("broken decoder")
            return own(codec, latents)

        monkeypatch.setattr(Codec, "decode_uint8", failing)
        seen: list[int] = []
        with pytest.raises(RuntimeError, match="broken decoder"):
            drain(eager, seen)
        assert seen == [0]

    @pytest.mark.parametrize("ahead", [False, True])
    def test_first_frame(self, pipe: Pipeline, ahead: bool) -> None:
        other = copy.copy(pipe)
        other.ahead = ahead
        first: list[Any] = []
        chunks = other.stream(request(), first_frame=first.append)
        chunk = next(chunks)
        assert len(first) == 1
        assert first[0].shape == (64, 64, 3)
        assert np.abs(first[0].astype(int) - chunk.frames[0]).max() <= 1
        assert len(list(chunks)) == 2
        assert len(first) == 1


def test_a_cpu_does_one_thing_after_the_other(pipe: Pipeline) -> None:
    assert not pipe.runs_ahead
