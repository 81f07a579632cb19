"""Controls between chunks; whatever is stopped, saved or branched goes on as if it had not been."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helios.diffusion import Pyramid
from helios.errors import CheckpointCorruptError, InputError
from helios.history import DriftConfig
from helios.pipeline import Chunk, GenerationConfig, Pipeline, Request, Session
from helios.storage import read_tensors, write_tensors

A, B, C = "a red ball rolls on grass", "a blue cube spins on snow", "a green cone bounces"
ALWAYS = DriftConfig(mean_threshold=1e-6, variance_threshold=1e-6)


def asked(**values: Any) -> Request:
    return Request(**({"prompt": A, "seed": 3, "steps": 1, "num_frames": 165} | values))


def same(one: Iterable[Chunk], other: Iterable[Chunk]) -> bool:
    """Whether both are the same chunks, bit for bit."""
    left, right = list(one), list(other)
    return len(left) == len(right) > 0 and all(
        a.index == b.index
        and a.prompt == b.prompt
        and np.array_equal(a.frames, b.frames)
        and torch.equal(a.latents, b.latents)
        for a, b in zip(left, right, strict=True)
    )


def take(session: Session, count: int) -> list[Chunk]:
    return [next(session) for _ in range(count)]


def picture(seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 80, 3), np.uint8)


def rewritten(path: Path, **changes: Any) -> Path:
    """The session file with entries of its document replaced."""
    tensors = read_tensors(path.parent, path.name)
    document = json.loads(bytes(tensors["document"].tolist())) | changes
    tensors["document"] = torch.tensor(list(json.dumps(document).encode()), dtype=torch.uint8)
    write_tensors(path.parent, tensors, "changed.safetensors")
    return path.with_name("changed.safetensors")


def test_a_session_is_the_stream_is_the_whole_call(pipeline: Pipeline) -> None:
    request = asked(num_frames=70, steps=2)
    session = pipeline.session(request)
    chunks = list(session)
    assert same(chunks, pipeline.stream(request))
    whole = pipeline(A, seed=3, steps=2, num_frames=70)
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), whole.frames)
    assert session.index == 3
    assert session.settings == whole.settings
    assert list(session) == []


def test_the_seventh_generation_is_the_first(pipeline: Pipeline) -> None:
    request = asked(num_frames=40, steps=2)
    first = list(pipeline.stream(request))
    for seed in range(5):
        other = asked(prompt=B, seed=seed, num_frames=33, anti_drift=seed % 2 == 0)
        next(pipeline.stream(other))
    assert same(first, pipeline.stream(request))


def test_a_live_prompt_is_a_scripted_one(pipeline: Pipeline) -> None:
    session = pipeline.session(asked())
    chunks = take(session, 2)
    assert session.prompt(B, transition_chunks=3) == 2
    chunks += list(session)
    assert [chunk.prompt for chunk in chunks] == [A, A, B, B, B]
    assert same(chunks, pipeline.stream(asked(prompt=[(0, A), (2, B)], transition_chunks=3)))
    plain = list(pipeline.stream(asked()))
    # The first chunk of a transition still shows the old prompt.
    assert torch.equal(chunks[2].latents, plain[2].latents)
    assert not torch.equal(chunks[3].latents, plain[3].latents)


def test_a_prompt_forgotten_or_not_shows_the_same(pipeline: Pipeline) -> None:
    def play(keep: int) -> list[Chunk]:
        session, chunks = pipeline.session(asked(num_frames=None), keep=keep), []
        for text, length in ((B, 3), (C, 2), (A, 4), (C, 3)):
            session.prompt(text, length)
            chunks += take(session, 2)
        return chunks

    assert same(play(0), play(20))


def test_the_last_prompt_stays_and_calls_before_a_chunk_replace_each_other(
    pipeline: Pipeline,
) -> None:
    session = pipeline.session(asked(prompt=[(0, A), (3, C)], num_frames=None))
    assert session.prompt(B) == 0
    assert next(session).prompt == B
    assert session.prompt(A, 0) == session.prompt(C, 0) == 1
    assert [chunk.prompt for chunk in take(session, 5)] == [C] * 5
    assert session.track is not None
    assert session.track.changes == ((0, B), (1, C))


def test_a_live_prompt_lands_later_if_asked_and_can_be_moved(pipeline: Pipeline) -> None:
    session = pipeline.session(asked())
    chunks = take(session, 1)
    assert session.prompt(B, 2, chunk=4) == 4
    assert session.prompt(B, 2, chunk=2) == 2
    assert session.prompt(B, 2, chunk=3) == 3
    assert session.prompt(C, chunk=0) == 1
    assert session.prompt(B, 2, chunk=3) == 3
    chunks += list(session)
    assert [chunk.prompt for chunk in chunks] == [A, A, A, B, B]
    scripted = asked(prompt=[(0, A), (3, B)], transition_chunks=2)
    assert same(chunks, pipeline.stream(scripted))
    for wrong in (-1, True, 1.0):
        with pytest.raises(ValueError, match="chunk must be"):
            session.prompt(C, chunk=wrong)  # type: ignore[arg-type]


def test_a_prompt_during_a_chunk_lands_in_the_next_one(pipeline: Pipeline) -> None:
    live = copy.copy(pipeline)
    live.transformer = copy.deepcopy(pipeline.transformer)
    landed: list[int] = []
    session = live.session(asked())

    def ask(*_: Any) -> None:
        if session.index == 1 and not landed:
            thread = threading.Thread(target=lambda: landed.append(session.prompt(B, 0)))
            thread.start()
            thread.join()

    live.transformer.register_forward_pre_hook(ask)
    chunks = list(session)
    assert landed == [2]
    assert same(chunks, pipeline.stream(asked(prompt=[(0, A), (2, B)])))


def test_one_thread_at_a_time_makes_chunks(pipeline: Pipeline) -> None:
    live = copy.copy(pipeline)
    live.transformer = copy.deepcopy(pipeline.transformer)
    session = live.session(asked(num_frames=33))
    caught: list[BaseException] = []

    def intrude(*_: Any) -> None:
        try:
            next(session)
        except RuntimeError as error:
            caught.append(error)

    live.transformer.register_forward_pre_hook(intrude)
    assert len(list(session)) == 1
    assert "another thread" in str(caught[0])


def test_prompt_b_after_a_is_prompt_b_alone(pipeline: Pipeline, make_pipeline: Callable) -> None:
    """Nothing of an earlier prompt stays behind: the same past and noise, and B from the start."""
    session = pipeline.session(asked(guidance_scale=3))
    take(session, 2)
    session.prompt(B, 0)
    after = next(session)

    fresh: Pipeline = make_pipeline()
    request = asked(prompt=B, guidance_scale=3)
    resolved = fresh.defaults.resolve(request, fresh.schedule, endless=True)
    state = pipeline.session(asked(guidance_scale=3))
    take(state, 2)
    before = state.branch(2)._states[-1]
    generator = torch.Generator().manual_seed(0)
    generator.set_state(before.random)
    texts = fresh.texts(request, resolved)
    alone = fresh.sample(
        2, resolved, [generator], before.history.window(),
        texts.at(0, resolved.track), texts.negative,
    )  # fmt: skip
    assert torch.equal(after.latents, alone[0])


def test_unusable_prompts_change_nothing(pipeline: Pipeline) -> None:
    session = pipeline.session(asked(num_frames=66))
    next(session)
    with pytest.raises(InputError, match="prompt is empty"):
        session.prompt("  ")
    with pytest.raises(ValueError, match="transition_chunks"):
        session.prompt(B, -1)
    with pytest.warns(UserWarning, match="does not know the words: zebra"):
        session.branch(1).prompt("a zebra")
    assert [chunk.prompt for chunk in session] == [A]


def test_stop_ends_before_the_next_chunk(pipeline: Pipeline) -> None:
    session = pipeline.session(asked(num_frames=None))
    for chunk in session:
        if chunk.index == 1:
            session.stop()
    assert session.stopped
    assert session.index == 2
    assert not session.branch(2).stopped


def test_the_callback_may_stop_and_prompt(pipeline: Pipeline) -> None:
    landed: list[int] = []

    def control(chunk: Chunk) -> None:
        if chunk.index == 0:
            landed.append(session.prompt(B, 0))
        else:
            session.stop()

    session = pipeline.session(asked(callback=control))
    assert [chunk.prompt for chunk in session] == [A, B]
    assert landed == [1]


CASES: dict[str, dict[str, Any]] = {
    "text": {},
    "guided": {"guidance_scale": 3, "negative_prompt": C, "steps": 2, "num_frames": None},
    "image": {"image": picture(), "motion": 0.8},
    "video": {"video": np.stack([picture(seed) for seed in range(34)]), "video_noise": (0.0, 0.1)},
    "drift": {"anti_drift": ALWAYS},
    "track": {"prompt": [(0, A), (1, B), (4, C)], "transition_chunks": 3},
    "compat": {"compat": "diffusers"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("made", [0, 1, 2])
def test_resumed_equals_uninterrupted(
    pipeline: Pipeline, make_pipeline: Callable, tmp_path: Path, case: str, made: int
) -> None:
    request = asked(**CASES[case])
    through = pipeline.session(request)
    expected = take(through, 4)[made:]

    session = pipeline.session(request)
    take(session, made)
    session.stop()
    saved = session.save(tmp_path / "stream.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["stream.safetensors"]
    again = make_pipeline().resume(saved)
    assert again.index == made
    assert same(take(again, 4 - made), expected)
    assert again.settings == session.settings


def test_resumed_within_a_live_transition(pipeline: Pipeline, tmp_path: Path) -> None:
    def play(session: Session) -> Session:
        take(session, 1)
        session.prompt(B, 4)
        take(session, 2)
        session.prompt(C, 3)
        take(session, 1)
        return session

    through = play(pipeline.session(asked(num_frames=None)))
    saved = play(pipeline.session(asked(num_frames=None))).save(tmp_path / "s.safetensors")
    assert same(take(pipeline.resume(saved), 3), take(through, 3))


def test_resumed_with_the_pyramid_and_a_generator(make_pipeline: Callable, tmp_path: Path) -> None:
    """Block noise is drawn in the middle of a chunk; the state of the generator covers it."""
    plan = Pyramid(steps=(1, 1, 1), solver="renoise", amplify=True)
    defaults = GenerationConfig(height=64, width=64, plan=plan, guidance=None, distilled=True)
    pipe: Pipeline = make_pipeline(defaults, stages=3)

    def start() -> Session:
        generator = torch.Generator().manual_seed(8)
        return pipe.session(Request(prompt=A, generator=generator))

    through, session = start(), start()
    take(through, 1), take(session, 1)
    saved = session.save(tmp_path / "s.safetensors")
    assert same(take(pipe.resume(saved), 1), take(through, 1))


def test_embeddings_are_saved_too(pipeline: Pipeline, tmp_path: Path) -> None:
    assert pipeline.text_encoder is not None
    bare = copy.copy(pipeline)
    bare.text_encoder = None
    request = asked(
        prompt=None,
        prompt_embeds=pipeline.text_encoder.encode([A]),
        negative_prompt_embeds=pipeline.text_encoder.encode([C])[0],
    )
    session = bare.session(request)
    by_text = next(pipeline.stream(asked(negative_prompt=C)))
    assert torch.equal(next(session).latents, by_text.latents)
    saved = session.save(tmp_path / "s.safetensors")
    assert same(bare.resume(saved), session)
    with pytest.raises(ValueError, match="shows prompt_embeds"):
        session.prompt(B)


def test_a_longer_video_from_a_finished_session(pipeline: Pipeline, tmp_path: Path) -> None:
    long = list(pipeline.stream(asked(num_frames=120)))
    session = pipeline.session(asked(num_frames=66))
    list(session)
    saved = session.save(tmp_path / "s.safetensors")
    assert list(pipeline.resume(saved)) == []
    seen: list[Chunk] = []
    longer = list(pipeline.resume(saved, num_frames=120, callback=seen.append))
    assert same(longer, long[2:])
    assert seen == longer
    with pytest.raises(ValueError, match=r"num_frames=40: .* has 66 frames already"):
        pipeline.resume(saved, num_frames=40)
    cut = pipeline.session(asked(num_frames=34))
    list(cut)
    with pytest.raises(ValueError, match="its last chunk was cut at frame 34"):
        pipeline.resume(cut.save(tmp_path / "cut.safetensors"), num_frames=99)


def test_another_model_is_refused(
    pipeline: Pipeline, make_pipeline: Callable, tmp_path: Path
) -> None:
    saved = pipeline.session(asked()).save(tmp_path / "s.safetensors")
    for part in ("transformer", "codec", "text_encoder"):
        other: Pipeline = make_pipeline()
        module = other.codec.network if part == "codec" else getattr(other, part)
        with torch.no_grad():
            list(module.parameters())[-1].add_(0.5)
        with pytest.raises(ValueError, match=r"made by other weights .*'small', cpu float32"):
            other.resume(saved)
    rounded: Pipeline = make_pipeline()
    rounded.transformer.to(torch.bfloat16)
    with pytest.raises(ValueError, match="load the same model"):
        rounded.resume(saved)


def test_other_defaults_are_refused(
    pipeline: Pipeline, make_pipeline: Callable, tmp_path: Path
) -> None:
    from dataclasses import replace

    saved = pipeline.session(asked(steps=None)).save(tmp_path / "s.safetensors")
    other: Pipeline = make_pipeline()
    other.defaults = replace(other.defaults, negative_prompt="a cube")
    with pytest.raises(ValueError, match="saved with negative_prompt '', now 'a cube'"):
        other.resume(saved)
    other = make_pipeline()
    other.schedule = replace(other.schedule, gamma=0.25)
    with pytest.raises(ValueError, match=r"saved with schedule .* it cannot go on here"):
        other.resume(saved)
    renamed: Pipeline = make_pipeline()
    renamed.name = "elsewhere"
    assert len(take(renamed.resume(saved), 1)) == 1


def test_files_that_are_no_session_are_refused_in_one_line(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    saved = pipeline.session(asked()).save(tmp_path / "s.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        pipeline.resume(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointCorruptError, match="schema 2; this version of helios reads 1"):
        pipeline.resume(rewritten(saved, schema=2))
    for changes, words in (
        ({"index": -1}, "index -1"),
        ({"index": "1"}, "index '1'"),
        ({"request": {"colour": 1}}, "colour"),
        ({"request": 3}, "damaged"),
        ({"track": {"changes": [[0, A]]}}, "transitions"),
        ({"settings": []}, "damaged"),
    ):
        with pytest.raises(CheckpointCorruptError, match=words) as caught:
            pipeline.resume(rewritten(saved, **changes))
        assert "\n" not in str(caught.value)

    def broken(**tensors: Tensor) -> Path:
        write_tensors(tmp_path, read_tensors(tmp_path, saved.name) | tensors, "b.safetensors")
        return tmp_path / "b.safetensors"

    for tensors in (
        {"random": torch.zeros(7, dtype=torch.uint8)},
        {"history.frames": torch.zeros(1, 16, 20, 8, 8)},
        {"history.more": torch.zeros(1)},
        {"document": torch.zeros(4, dtype=torch.uint8)},
    ):
        with pytest.raises((CheckpointCorruptError, ValueError)):
            pipeline.resume(broken(**tensors))
    data = saved.read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"\x80\x04K\x01."):
        (tmp_path / "d.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointCorruptError):
            pipeline.resume(tmp_path / "d.safetensors")


def test_a_failed_save_leaves_the_old_file(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = pipeline.session(asked())
    saved = session.save(tmp_path / "s.safetensors")
    before = saved.read_bytes()
    next(session)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("helios.storage.save_file", full)
        with pytest.raises(OSError, match="No space"):
            session.save(saved)
    assert saved.read_bytes() == before
    assert list(tmp_path.iterdir()) == [saved]
    session.save(saved)
    assert saved.read_bytes() != before


def test_a_branch_repeats_or_goes_on_differently(pipeline: Pipeline) -> None:
    session = pipeline.session(asked())
    chunks = take(session, 2)
    session.prompt(B, 2)
    chunks += list(session)
    repeated = session.branch(1)
    assert same(repeated, chunks[1:])
    other = session.branch(3)
    assert other.prompt(C, 0) == 3
    different = list(other)
    assert [chunk.prompt for chunk in different] == [C, C]
    assert not torch.equal(different[0].latents, chunks[3].latents)
    assert same(other.branch(2), [chunks[2], *different])
    assert session.index == 5
    assert same(session.branch(4), chunks[4:])


def test_a_branch_with_a_seed_draws_other_noise_and_is_repeatable(pipeline: Pipeline) -> None:
    session = pipeline.session(asked())
    chunks = take(session, 3)
    again = [take(session.branch(1, seed=9), 2) for _ in range(2)]
    assert same(again[0], again[1])
    assert not np.array_equal(again[0][0].frames, chunks[1].frames)
    assert same([next(session)], list(pipeline.stream(asked()))[3:4])


@pytest.mark.parametrize(("first", "goes_on"), [(66, 2), (50, 1), (None, 2)])
def test_an_extended_session_is_the_longer_one(
    pipeline: Pipeline, first: int | None, goes_on: int
) -> None:
    whole = list(pipeline.stream(asked(num_frames=132)))
    session = pipeline.session(asked(num_frames=first))
    before = take(session, 2)
    session.stop()
    assert next(session, None) is None
    assert session.extend(132) == goes_on
    assert same(before[:goes_on] + list(session), whole)
    assert session.settings["num_frames"] == 132
    with pytest.raises(ValueError, match="more frames already"):
        session.extend(99)


def test_a_cut_chunk_whose_beginning_is_gone_cannot_be_made_whole(pipeline: Pipeline) -> None:
    session = pipeline.session(asked(num_frames=40), keep=0)
    take(session, 2)
    with pytest.raises(ValueError, match="not kept"):
        session.extend(66)
    assert session.index == 2


def test_branches_side_by_side_do_not_touch(pipeline: Pipeline) -> None:
    session = pipeline.session(asked(num_frames=None))
    take(session, 1)
    one, two = session.branch(1), session.branch(1)
    mixed = [(next(session), next(one), next(two)) for _ in range(2)]
    for chunks in mixed:
        assert same([chunks[0]], [chunks[1]])
        assert same([chunks[0]], [chunks[2]])


def test_only_the_last_borders_are_kept(pipeline: Pipeline) -> None:
    session = pipeline.session(asked(num_frames=None), keep=2)
    assert session.kept == range(1)
    take(session, 6)
    assert session.kept == range(4, 7)
    for chunk in (3, 7, -1, True, 4.0):
        with pytest.raises(ValueError, match="chunk must be from 4 to 6"):
            session.branch(chunk)  # type: ignore[arg-type]
    branched = session.branch(5)
    assert branched.kept == range(4, 6)
    take(branched, 2)
    assert branched.kept == range(5, 8)
    with pytest.raises(ValueError, match="keep must be"):
        pipeline.session(asked(), keep=-1)


def test_what_a_session_carries_does_not_grow(pipeline: Pipeline, tmp_path: Path) -> None:
    session = pipeline.session(asked(num_frames=None), keep=0)
    sizes = []
    for index in range(4):
        session.prompt([A, B][index % 2], 0)
        take(session, 1)
        session.save(tmp_path / "s.safetensors")
        assert session.track is not None
        assert len(session.track.changes) <= 2
        sizes.append((tmp_path / "s.safetensors").stat().st_size)
        assert session.kept == range(index + 1, index + 2)
    assert max(sizes) - min(sizes) < 64


def test_a_failure_within_a_chunk_can_be_repeated(pipeline: Pipeline) -> None:
    live = copy.copy(pipeline)
    live.transformer = copy.deepcopy(pipeline.transformer)
    session = live.session(asked(steps=2, num_frames=99))
    chunks = take(session, 1)

    def fail(*_: Any) -> None:
        handle.remove()
        raise KeyboardInterrupt

    handle = live.transformer.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        next(session)
    assert session.index == 1
    chunks += list(session)
    assert same(chunks, pipeline.stream(asked(steps=2, num_frames=99)))


def test_anti_drift_damages_the_memory_never_the_picture(pipeline: Pipeline) -> None:
    plain = list(pipeline.stream(asked(num_frames=99)))
    drifting = list(pipeline.stream(asked(num_frames=99, anti_drift=ALWAYS)))
    assert all("drift_noise" not in chunk.timings for chunk in plain)
    assert [chunk.timings["drift_noise"] for chunk in drifting] == [0.0, 1 / 3, 1 / 3]
    assert drifting[1].timings["drift_mean"] > 0 < drifting[1].timings["drift_variance"]
    # Chunk 1 triggers: it is shown as it is, only the next one sees a noisy past.
    assert same(drifting[:2], plain[:2])
    assert not torch.equal(drifting[2].latents, plain[2].latents)
    assert same(drifting, pipeline.stream(asked(num_frames=99, anti_drift=ALWAYS)))


def test_anti_drift_that_is_not_triggered_changes_nothing(pipeline: Pipeline) -> None:
    calm = DriftConfig(mean_threshold=1e6, variance_threshold=1e6)
    plain = list(pipeline.stream(asked(num_frames=99)))
    watched = list(pipeline.stream(asked(num_frames=99, anti_drift=calm)))
    assert same(watched, plain)
    assert [chunk.timings["drift_noise"] for chunk in watched] == [0.0] * 3
    assert pipeline.settings(asked())["anti_drift"] is False
    assert pipeline.settings(asked(anti_drift=True))["anti_drift"]["rho"] == 0.9


def test_noise_reaches_the_history_and_spares_the_anchor(pipeline: Pipeline) -> None:
    session = pipeline.session(asked(anti_drift=ALWAYS))
    chunks = take(session, 2)
    window = session._states[-1].history.window()
    assert torch.equal(window.anchor[0], chunks[0].latents[:, :1])
    assert torch.equal(window.frames[0, :, 2:11], chunks[0].latents)
    kept = window.frames[0, :, 11:]
    assert not torch.equal(kept, chunks[1].latents)
    noise = (kept - (2 / 3) * chunks[1].latents) * 3
    assert noise.std().item() == pytest.approx(1.0, abs=0.1)
