"""How other video servers and the official client write what we have a name for.

Their names become ours before anything is checked, so that there is one schema and one set of
bounds. Names: the video APIs of vLLM-Omni and SGLang (specification "ecosystem", 3.4), those of
the published pipeline (3.1).
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["put_nested", "translated"]

_ALIASES = {
    "num_inference_steps": "steps",
    "pyramid_num_inference_steps_list": "steps",
    "is_amplify_first_chunk": "amplify_first_chunk",
    "lora": "loras",
    "image_reference": "input_reference",
    "video_reference": "input_reference",
}
_PART = re.compile(r"\[([A-Za-z0-9_]{0,64})\]", re.ASCII)


def translated(values: Any) -> Any:
    """The fields of a request for a video under our names; what is no object stays what it is.

    Raises:
        ValueError: if something is given under two names, or ``extra_params`` is no object.
    """
    if not isinstance(values, dict):
        return values
    found = {name: value for name, value in values.items() if name != "extra_params"}
    more = values.get("extra_params") or {}
    if not isinstance(more, dict):
        raise ValueError("extra_params must be an object of further fields")
    for name, value in more.items():
        _add(found, name, value)
    for name in [name for name in found if name in _ALIASES]:
        _add(found, _ALIASES[name], found.pop(name), name)
    if isinstance(found.get("loras"), dict):
        found["loras"] = [found["loras"]]
    if isinstance(found.get("input_reference"), str):
        found["input_reference"] = {"image_url": found["input_reference"]}
    return found


def _add(found: dict[str, Any], name: str, value: Any, said: str | None = None) -> None:
    if name in found:
        raise ValueError(f"{said or name} is given twice; the server calls it {name}")
    found[name] = value


def put_nested(values: dict[str, Any], name: str, value: Any) -> bool:
    """Put a form's field such as ``steps[]``, ``video[id]`` or ``loras[][name]`` into ``values``.

    Lists of objects come field by field: one that is there already begins the next object.

    Returns:
        Whether ``name`` is written like that.
    """
    top, bracket, rest = name.partition("[")
    parts = _PART.findall(bracket + rest)
    if not parts or len(parts) > 2 or "".join(f"[{part}]" for part in parts) != bracket + rest:
        return False
    match parts:
        case [""]:
            held = values.setdefault(top, [])
            if isinstance(held, list):
                held.append(value)
        case [key]:
            held = values.setdefault(top, {})
            if isinstance(held, dict):
                held[key] = value
        case ["", key] if key:
            held = values.setdefault(top, [])
            if isinstance(held, list):
                if not held or not isinstance(held[-1], dict) or key in held[-1]:
                    held.append({})
                held[-1][key] = value
        case [key, ""] if key:
            held = values.setdefault(top, {})
            if isinstance(held, dict):
                held.setdefault(key, []).append(value)
        case _:
            return False
    return True
