"""The texts of one stream: encoded when they are needed, in force when their chunk comes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from helios.conditioning import TextEncoder, clean_prompt
from helios.errors import InputError
from helios.pipeline.request import Request, Resolved

if TYPE_CHECKING:
    from helios.conditioning import PromptTrack
    from helios.pipeline.pipeline import Pipeline

__all__ = ["Texts", "warn_about"]


class Texts:
    """The embeddings in force at each chunk, each text encoded once while it is needed."""

    def __init__(self, pipeline: Pipeline, request: Request, resolved: Resolved) -> None:
        self._pipeline = pipeline
        self._given = None if request.prompt_embeds is None else self._place(request.prompt_embeds)
        self._known: dict[str, Tensor] = {}
        self.negative: Tensor | None = None
        """What guidance moves away from, ``[1, L, D]``; none if guidance is off."""
        if resolved.guidance is not None:
            given = request.negative_prompt_embeds
            self.negative = (
                self._encode(resolved.negative_prompt) if given is None else self._place(given)
            )

    def at(self, chunk: int, track: PromptTrack | None) -> Tensor:
        """What ``chunk`` shows, ``[1, L, D]``, between prompts in a transition."""
        if track is None:
            if self._given is None:
                raise InputError("give either a prompt or prompt_embeds")
            return self._given
        blend = track.blend(chunk)
        self._known = {
            text: self._known[text] if text in self._known else self._encode(text)
            for text in blend.prompts
        }
        shown = self._known[blend.parts[0][0]]
        for text, weight in blend.parts[1:]:
            shown = torch.lerp(shown, self._known[text], weight)
        return shown

    @torch.no_grad()
    def _encode(self, text: str) -> Tensor:
        if self._pipeline.text_encoder is None:
            raise ValueError("this checkpoint has no text encoder")
        return self._place(self._pipeline.text_encoder.encode([text]))

    def _place(self, embeds: Tensor) -> Tensor:
        shape = (1, *embeds.shape[-2:])
        return embeds.reshape(shape).to(self._pipeline.device, self._pipeline.dtype)


def warn_about(text: str, encoder: TextEncoder | None) -> None:
    """Say what of ``text`` the encoder cannot read: it must not be dropped in silence."""
    if encoder is None:
        return
    tokenizer = encoder.tokenizer
    clean = clean_prompt(text)
    tokens = tokenizer(clean, return_offsets_mapping=True, verbose=False)
    if len(tokens.input_ids) > encoder.max_length:
        warnings.warn(
            f"the prompt has {len(tokens.input_ids)} tokens; this model reads the first "
            f"{encoder.max_length}",
            stacklevel=4,
        )
    unknown = [
        clean[start:end]
        for token, (start, end) in zip(tokens.input_ids, tokens.offset_mapping, strict=True)
        if token == tokenizer.unk_token_id and end > start
    ]
    if unknown:
        words = ", ".join(dict.fromkeys(unknown))
        warnings.warn(f"this model does not know the words: {words}", stacklevel=4)
