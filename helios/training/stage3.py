"""Stage 3, second part: a few-step student by distribution matching (training.md, 6).

A student and a critic learn in turn. The student makes a chunk in a few steps from a real, damaged
past; two scores say where it should have gone. Both scores are one frozen network, the teacher: as
it is, it knows the real distribution; with the critic's adapter on, which follows what the student
makes, the student's. The critic learns every step, the student every fifth.

Student, teacher and critic are the same class, and the student is sampled as the pipeline does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from helios.conditioning import TextEncoder
from helios.data import Batch
from helios.diffusion import CFG, Denoiser, combine, mix, to_clean, velocity
from helios.distributed import World
from helios.history import DropConfig, HistoryWindow, corrupt
from helios.model import (
    Graphs,
    HeliosTransformer,
    adapters_of,
    bind,
    new_adapter,
    recompute_blocks,
)
from helios.training.adversarial import (
    AdversarialConfig,
    Discriminator,
    cached_gradient,
    draw_crop,
    heads_loss,
    judge,
    student_loss,
)
from helios.training.dmd import DynamicRenoise, matching_gradient, matching_loss
from helios.training.examples import cut_example, read_tokens
from helios.training.flow_stage import FlowStage
from helios.training.model_stage import ModelStage, frozen_base
from helios.training.networks import load_networks, parts_of
from helios.training.optim import OptimizerConfig
from helios.training.residence import Residence
from helios.training.rollout import draw_exits, simulate
from helios.training.stage import Player
from helios.training.stage3_config import Stage3Config
from helios.training.windows import Noised, Windows

__all__ = ["Stage3"]

CRITIC = "critic"
GRAPHS = 64
"""Forms of a block that may be compiled; PyTorch gives up after eight."""
NOTHING = DropConfig(all=1.0, i2v=0.0, v2v=0.0)
"""Text to video: the whole past is dropped."""


class Stage3(FlowStage):
    """A student and a critic that learn in turn; see `FlowStage` for data and results."""

    config: Stage3Config
    _residence: Residence | None = None

    def __init__(self, config: Stage3Config, world: World, *, seed: int, compiled: bool) -> None:
        super().__init__(config, world, seed=seed, compiled=compiled)
        if config.teacher is None:
            raise ValueError(
                "this preset needs a teacher: give --set stage.teacher=DIR, a model of stage 1"
            )
        teacher, text = load_networks(config.teacher, config.transformer)
        own_text = parts_of(self._model)[1]
        if own_text.tokenizer.get_vocab() != text.tokenizer.get_vocab():
            raise ValueError(f"{config.initial} and {config.teacher} know different words")
        # Stages 2 and 3 leave the text encoder as it is, so there is mostly one to hold.
        shared = _alike(own_text, text)
        if config.clips is not None and not shared:
            raise ValueError(
                f"{config.initial} and {config.teacher} read captions differently, but those of "
                "stage.clips are encoded once"
            )
        self._teacher_text = own_text if shared else text.to(world.device).requires_grad_(False)
        if config.adapter is None:
            teacher.requires_grad_(False)
        else:
            frozen_base(teacher, world.device)
        self._frozen = teacher.to(world.device)
        adapter = new_adapter(teacher, config.critic)
        adapters_of(teacher).add(CRITIC, adapter)
        if config.recompute:
            recompute_blocks(teacher)
        self._critic = nn.ModuleDict({"adapter": adapter})
        self._heads: Discriminator | None = None
        if config.adversarial is not None:
            if max(config.adversarial.blocks) >= config.transformer.num_layers:
                raise ValueError(
                    f"stage.adversarial.blocks must be below {config.transformer.num_layers}, "
                    f"got {config.adversarial.blocks}"
                )
            self._heads = Discriminator(
                config.adversarial, config.transformer.width, config.transformer.out_channels
            ).to(world.device)
            self._critic["heads"] = self._heads
        if compiled:
            # Three scales, with gradients and without, adapters on and off, crops: each a graph.
            torch._dynamo.config.recompile_limit = GRAPHS
            self._compile(teacher)
        with torch.no_grad():
            empty = self._empty.to(self._teacher_text.device)
            self._unconditional = read_tokens(self._teacher_text, empty).to(world.device)
        if config.offload:
            student = self._model if self._reads_text else parts_of(self._model)[0]
            models = {"student": student, "teacher": teacher}
            self._residence = Residence(models, world.device)
        # A small model is launched more slowly than it runs; a large one is not, and moves.
        small = config.adapter is None and not config.transformer.absolute_positions
        self._graphs = Graphs() if small and world.device.type == "cuda" else None
        self._progress = 0.0
        # The same on every rank, so that no rank waits for another's longer rollout.
        self._choices = torch.Generator().manual_seed(seed)

    @property
    def model(self) -> nn.Module:
        """The student with its text encoder, on the device."""
        if self._residence is not None:
            self._residence.use("student")
        return self._model

    @property
    def _teacher(self) -> HeliosTransformer:
        """The frozen network of both scores, on the device."""
        if self._residence is not None:
            self._residence.use("teacher")
        return self._frozen

    def _networks(self) -> tuple[HeliosTransformer, TextEncoder]:
        return ModelStage._networks(self)  # never fresh ones

    def players(self, optimizer: OptimizerConfig) -> Mapping[str, Player]:
        """The student, whose average is the result, and the critic."""
        return {
            "student": Player(module=self.model, loss=self.loss, optimizer=optimizer),
            "critic": Player(
                module=self._critic,
                loss=self.critic_loss,
                optimizer=self.config.critic_optimizer,
                averaged=False,
            ),
        }

    def turns(self, step: int) -> Sequence[str]:
        """The student learns in step ``student_after`` and every ``student_every``-th after it."""
        late = step - self.config.student_after
        due = late >= 0 and late % self.config.student_every == 0
        return ("student", "critic") if due else ("critic",)

    def batch(self, progress: float) -> Batch:
        """Random clips."""
        self._progress = progress
        return super().batch(progress)

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The student's: distribution matching, and the adversarial term if there is one."""
        config = self.config
        windows = self.windows(batch, self._first())
        made = self.rollout(windows)
        with torch.no_grad():
            noised = self._noised(made.detach(), config.renoise, windows.progress)
            real, fake = self.scores(noised, windows)
            gradient = matching_gradient(made, real, fake)
        loss = matching_loss(made, gradient)
        scalars = {"matching": loss, "gradient": gradient.abs().mean()}
        if config.adversarial is not None:
            term = self._student_term(made, noised, windows, config.adversarial)
            scalars["adversarial"] = term
            loss = loss + term
        _ = self.model  # back in its place, for the backward pass
        return loss.float(), scalars

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The critic's: the velocity of what the student makes, and its heads' terms."""
        config = self.config
        windows = self.windows(batch, self._first())
        with torch.no_grad():
            made = self.rollout(windows)
            uniform = replace(config.renoise, fade=0.0)
            noised = self._noised(made, uniform, windows.progress)
        answer = self._teacher(
            noised.x, noised.timestep, windows.score_text, windows.window
        ).float()
        flow = (answer - velocity(made, noised.noise)).square().mean()
        scalars = {"flow": flow}
        loss = flow
        if config.adversarial is not None:
            terms = self._head_terms(noised, windows, config.adversarial)
            scalars |= terms
            loss = loss + torch.stack(list(terms.values())).sum()
        return loss, scalars

    def windows(
        self, batch: Batch, first: bool, generator: torch.Generator | None = None
    ) -> Windows:
        """Sections and pasts cut from clips; ``first``: text to video, all without a past."""
        config, noise = self.config, generator or self.noise
        example = cut_example(
            batch.latents,
            first_share=config.first_share if first else 0.0,
            drop=NOTHING if first else replace(config.drop, all=0.0),
            corruption=config.corruption,
            generator=noise,
        )
        own = example.window
        if config.student_corruption is not None:
            own = corrupt(own, config.student_corruption, noise)
        encoder = parts_of(self.model)[1]
        with torch.no_grad():
            text = self.read(self.model, batch, noise)
            score_text = text
            if batch.tokens is not None and self._teacher_text is not encoder:
                score_text = read_tokens(self._teacher_text, batch.tokens)
            return Windows(
                clean=example.clean,
                window=example.window,
                own=own,
                text=text,
                score_text=score_text,
                first=first,
                progress=self._progress,
            )

    def rollout(
        self,
        windows: Windows,
        student: HeliosTransformer | None = None,
        generator: torch.Generator | None = None,
        *,
        whole: bool = False,
    ) -> Tensor:
        """What the student makes of each past, ``[B, C, 9, h, w]``.

        Args:
            windows: pasts and captions.
            student: another network than the one that learns.
            generator: of the noise; the stage's own if not given.
            whole: take all steps, as a sampler does, instead of leaving stages at random.
        """
        plan, noise = self.config.plan, generator or self.noise
        plan = plan if windows.first else replace(plan, amplify=False)
        if student is None:
            network = parts_of(self.model)[0]
            denoiser = self._repeated("student", network, windows.text, windows.own)
        else:
            denoiser = bind(student, windows.text, windows.own)
        start = torch.randn(windows.clean.shape, generator=noise, device=self.device)
        exits = None if whole else draw_exits(plan, self._choices)
        return simulate(denoiser, plan, start, self.config.schedule, noise, exits=exits)

    def scores(self, noised: Noised, windows: Windows) -> tuple[Tensor, Tensor]:
        """The clean samples that the real and the fake score predict: adapter off, adapter on."""
        teacher, text, window = self._teacher, windows.score_text, windows.window
        given = (noised.x, noised.timestep)
        fake = self._repeated("fake", teacher, text, window)(*given).float()
        with adapters_of(teacher).using():
            real = self._repeated("real", teacher, text, window)(*given).float()
            if self.config.guidance != 1:
                without = self._unconditional.expand_as(text)
                against = self._repeated("real", teacher, without, window)(*given).float()
                real = combine(real, against, CFG(self.config.guidance))
        return to_clean(noised.x, real, noised.sigma), to_clean(noised.x, fake, noised.sigma)

    @torch.no_grad()
    def losses(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """How far the student's continuation is from the true one, ``[B]``, always with a past.

        Scenes move by rules, so what follows a past is nearly known; without one it is not.
        """
        windows = self.windows(batch, False, generator)
        made = self.rollout(windows, parts_of(model)[0], generator, whole=True)
        return {"distance": (made.float() - windows.clean).square().mean(dim=(1, 2, 3, 4))}

    def state_dict(self) -> dict[str, Tensor]:
        """Position in the scenes, and the generators."""
        return {**super().state_dict(), "choices": self._choices.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a position."""
        super().load_state_dict(state)
        self._choices.set_state(state["choices"].cpu().clone())

    def _first(self) -> bool:
        """Whether the next batch is text to video: all of it, for its plan is another."""
        chance = float(torch.rand((), generator=self._choices, dtype=torch.float64))
        return chance < self.config.text_share

    def _repeated(
        self, name: str, network: HeliosTransformer, text: Tensor, window: HistoryWindow
    ) -> Denoiser:
        """`bind`, by a recorded graph wherever no gradient is asked for, as in most passes.

        A graph reads the weights where they are, so it follows what is learnt. ``name`` tells
        networks apart, and what of their adapters acts.
        """
        plain, graphs = bind(network, text, window), self._graphs
        if graphs is None:
            return plain
        call = partial(_uncompiled, network)

        def denoise(x: Tensor, timestep: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                return plain(x, timestep)
            inputs = (x, timestep, text, window.frames, window.present)
            shapes = tuple((value.shape, value.dtype) for value in inputs)
            return graphs((name, shapes), call, inputs)

        return denoise

    def _noised(self, clean: Tensor, law: DynamicRenoise, progress: float) -> Noised:
        tokens = clean.shape[-3:].numel() // 4
        sigma = law.draw(len(clean), progress, self.config.schedule, tokens, self.noise)
        noise = torch.randn(clean.shape, generator=self.noise, device=self.device)
        return Noised(mix(clean, noise, sigma), noise, sigma)

    def _student_term(
        self, made: Tensor, noised: Noised, windows: Windows, config: AdversarialConfig
    ) -> Tensor:
        """The student's adversarial loss, at new noise and the levels of the scores."""
        heads = self._heads
        assert heads is not None
        noise = torch.randn(made.shape, generator=self.noise, device=self.device)
        rows, columns = made.shape[-2:]
        crop = draw_crop(rows, columns, config.crop, self._choices)

        def term(x: Tensor) -> Tensor:
            given = (mix(x, noise, noised.sigma), noised.timestep)
            context = (windows.score_text, windows.window)
            return student_loss(judge(self._teacher, heads, *given, *context, crop), config)

        return cached_gradient(term, made)

    def _head_terms(
        self, noised: Noised, windows: Windows, config: AdversarialConfig
    ) -> dict[str, Tensor]:
        """The heads' losses: made, real and perturbed samples of the same pasts in one pass."""
        assert self._heads is not None
        shape = windows.clean.shape
        noise, little = (
            torch.randn(shape, generator=self.noise, device=self.device) for _ in range(2)
        )
        real = mix(windows.clean, noise, noised.sigma)
        twin = real + config.r1_sigma * little
        crop = draw_crop(shape[-2], shape[-1], config.crop, self._choices)
        window = HistoryWindow.stack([windows.window] * 3)
        logits = judge(
            self._teacher,
            self._heads,
            torch.cat((noised.x, real, twin)),
            noised.timestep.repeat(3),
            windows.score_text.repeat(3, 1, 1),
            window,
            crop,
        )
        made, true, perturbed = logits.chunk(3)
        return heads_loss(made, true, perturbed, config)


def _uncompiled(
    network: HeliosTransformer,
    x: Tensor,
    timestep: Tensor,
    text: Tensor,
    frames: Tensor,
    present: Tensor,
) -> Tensor:
    """A forward pass that can be recorded: as it is written, its casts of weights its own."""
    narrow, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with (
        torch.compiler.set_stance("force_eager"),
        torch.autocast("cuda", dtype, enabled=narrow, cache_enabled=False),
    ):
        velocity: Tensor = network(x, timestep, text, HistoryWindow(frames, present))
    return velocity


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules of a class have the same values."""
    mine, others = one.state_dict(), other.state_dict()
    pairs = ((value, others[name]) for name, value in mine.items() if name in others)
    return mine.keys() == others.keys() and all(
        a.shape == b.shape and torch.equal(a.to(b.device), b) for a, b in pairs
    )
