"""What people write: one rule for prompts wherever they come from. Imports nothing heavy."""

from __future__ import annotations

import unicodedata

from helios.errors import InputError

__all__ = ["MAX_PROMPT", "check_prompt"]

MAX_PROMPT = 4096
"""Code points a prompt may have, normalised and trimmed."""
_LONGEST = 16 * MAX_PROMPT
"""Beyond this a text is not even normalised: no form C is so much shorter."""


def check_prompt(text: str, *, name: str = "prompt", empty: bool = False) -> str:
    """The prompt, trimmed, in normal form C and with plain line ends, if it can be used.

    Args:
        text: as the person wrote it.
        name: what to call it in the error.
        empty: whether it may be empty, as a negative prompt may.

    Raises:
        InputError: if it is not text, empty, longer than 4,096 code points, or holds a control
            character or half a surrogate pair.
    """
    if not isinstance(text, str):
        raise InputError(f"{name} must be text, got {type(text).__name__}")
    if len(text) > _LONGEST:
        raise InputError(f"{name} has {len(text):,} characters; at most {MAX_PROMPT:,} are read")
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n")).strip()
    if not text and not empty:
        raise InputError(f"{name} is empty; describe what the video shall show")
    if len(text) > MAX_PROMPT:
        raise InputError(f"{name} has {len(text):,} characters; at most {MAX_PROMPT:,} are read")
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n":
            raise InputError(
                f"{name} holds the character U+{ord(character):04X}, which is not text; remove it"
            )
    return text
