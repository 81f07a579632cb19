from dataclasses import replace

import pytest
import torch

from helios.diffusion import Pyramid, ScheduleConfig, steps
from helios.evaluation.generation import chunk_latents, generate_batch, untrained
from helios.pipeline import Pipeline

PROMPTS = ["a red ball rolls on grass", "a blue cube spins on sand", "a green cone"]


def test_a_batch_holds_what_the_pipeline_makes_one_by_one(little: Pipeline) -> None:
    batch = generate_batch(little, PROMPTS, num_chunks=2, seed=11, batch_size=2)
    assert batch.shape == (3, 16, 18, 4, 6)
    assert batch.dtype == torch.float32
    for index, prompt in enumerate(PROMPTS):
        video = little(prompt, num_frames=66, seed=11 + index)
        torch.testing.assert_close(batch[index], video.latents, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_a_batch_starts_from_media_as_the_pipeline_does(little: Pipeline, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 40, 32, 48, 3), generator=generator).byte()
    media = frames[:, 0] if kind == "images" else frames
    batch = generate_batch(
        little, PROMPTS[:2], num_chunks=1, seed=5, steps=2, guidance_scale=1.0, **{kind: media}
    )
    for index, prompt in enumerate(PROMPTS[:2]):
        video = little(
            prompt,
            num_frames=33,
            seed=5 + index,
            steps=2,
            guidance_scale=1.0,
            **{kind[:-1]: media[index].numpy()},
        )
        torch.testing.assert_close(batch[index], video.latents, atol=2e-4, rtol=2e-4)


def test_only_the_first_chunk_is_amplified(little: Pipeline, monkeypatch) -> None:
    seen = []

    def record(denoiser, plan, *rest):
        seen.append(plan.amplify)
        return steps(denoiser, plan, *rest)

    monkeypatch.setattr("helios.pipeline.pipeline.steps", record)
    plan = Pyramid(steps=(1, 1, 1), solver="renoise", amplify=True)
    defaults = replace(little.defaults, plan=plan, guidance=None, height=64, width=64)
    pipe = Pipeline(
        little.transformer,
        little.codec,
        little.text_encoder,
        defaults,
        ScheduleConfig(stages=3),
        name="three stages",
    )
    generate_batch(pipe, PROMPTS[:1], num_chunks=2)
    assert seen == [True, False]


def test_chunks_are_nine_latents_each() -> None:
    latents = torch.arange(27.0).view(1, 1, 27, 1, 1)
    assert chunk_latents(latents, 2).flatten().tolist() == list(range(18, 27))


def test_untrained_has_other_weights_and_leaves_the_model_alone(little: Pipeline) -> None:
    before = {name: value.clone() for name, value in little.transformer.state_dict().items()}
    blank, again = untrained(little, 3), untrained(little, 3)
    after = little.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    mine, theirs = blank.transformer.state_dict(), again.transformer.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not torch.equal(mine["head.project.weight"], before["head.project.weight"])


def test_what_cannot_be_generated_is_refused(little: Pipeline) -> None:
    image = torch.zeros(1, 32, 48, 3, dtype=torch.uint8)
    video = torch.zeros(1, 33, 32, 48, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at least 1"):
        generate_batch(little, PROMPTS, num_chunks=0)
    with pytest.raises(ValueError, match="as many images"):
        generate_batch(little, PROMPTS, num_chunks=1, images=image)
    with pytest.raises(ValueError, match="not both"):
        generate_batch(little, PROMPTS[:1], num_chunks=1, images=image, videos=video)
