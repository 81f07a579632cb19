"""Changing a configuration from text: ``path=value``, checked against the type of the field."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["override", "paths"]

T = TypeVar("T")
_TRUE, _FALSE = ("true", "on", "yes", "1"), ("false", "off", "no", "0")
_NOTHING = ("none", "null")
_SHOWN = 3
_FEW = 8


def override(config: T, settings: Sequence[str]) -> T:
    """A copy of the dataclass ``config`` with every ``path=value`` of ``settings`` applied.

    Paths are field names joined by dots. Values are read by the type of the field: numbers, true
    or false, text, ``none`` where it is allowed (for a group of settings too), and comma-separated
    lists.

    Raises:
        ValueError: naming everything that is wrong at once.
    """
    problems: list[str] = []
    changes: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        path = path.strip()
        if not equals or not path:
            problems.append(f"{setting!r} must be path=value")
            continue
        try:
            _note(changes, config, path, text.strip())
        except ValueError as error:
            problems.append(str(error))
    result = _rebuilt(config, changes, "", problems)
    if problems:
        raise ValueError("; ".join(problems))
    return result


def paths(config: Any, prefix: str = "") -> Iterator[str]:
    """Every path that can be set, in order."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        path = prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from paths(value, path + ".")
        else:
            yield path


def _note(changes: dict[str, Any], config: Any, path: str, text: str) -> None:
    """Put the value that ``text`` means into the tree of changes."""
    owner, tree = config, changes
    *outer, name = path.split(".")
    for part in outer:
        if not _has(owner, part) or not dataclasses.is_dataclass(getattr(owner, part)):
            raise ValueError(_unknown(config, path))
        owner = getattr(owner, part)
        below = tree.setdefault(part, {})
        if below is None:
            raise ValueError(f"{path} cannot be set: {part} was set to none")
        tree = below
    if not _has(owner, name):
        raise ValueError(_unknown(config, path))
    current = getattr(owner, name)
    optional = types.NoneType in typing.get_args(_type_of(owner, name))
    if dataclasses.is_dataclass(current) and not (optional and text.lower() in _NOTHING):
        inside = ", ".join(f"{path}.{f.name}" for f in dataclasses.fields(current)[:_SHOWN])
        raise ValueError(f"{path} is a group of settings: set one of {inside} …")
    try:
        tree[name] = _parse(text, _type_of(owner, name))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _has(owner: Any, name: str) -> bool:
    return any(field.name == name for field in dataclasses.fields(owner))


def _unknown(config: Any, path: str) -> str:
    known = list(paths(config))
    near = difflib.get_close_matches(path, known, n=_SHOWN, cutoff=0.5)
    # A bare name is often meant to be somewhere deeper.
    last = path.rpartition(".")[2]
    near += [item for item in known if item.rpartition(".")[2] == last and item not in near]
    if not near:
        names = {item.rpartition(".")[2]: item for item in known}
        near = [names[n] for n in difflib.get_close_matches(last, names, n=_SHOWN)]
    hint = f"; near it: {', '.join(near[:_SHOWN])}"
    if not near:
        few = len(known) <= _FEW
        hint = f"; there are {', '.join(known)}" if few else "; --show prints all there are"
    return f"there is no setting {path!r}{hint}"


def _type_of(owner: Any, name: str) -> Any:
    try:
        return typing.get_type_hints(type(owner))[name]
    except NameError:  # a type that is imported for checking only
        return type(getattr(owner, name))


def _rebuilt(config: T, changes: dict[str, Any], path: str, problems: list[str]) -> T:
    """``config`` with the tree of changes; its own checks run once, after all of them."""
    values = {}
    for name, change in changes.items():
        current = getattr(config, name)
        nested = isinstance(change, dict)
        values[name] = _rebuilt(current, change, f"{path}{name}.", problems) if nested else change
    if not values:
        return config
    try:
        return dataclasses.replace(config, **values)  # type: ignore[type-var]
    except ValueError as error:
        problems.append(f"{path.rstrip('.') or 'configuration'}: {error}")
        return config


def _parse(text: str, kind: Any) -> Any:
    """The value of type ``kind`` that ``text`` means."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(text, arguments)
    if origin is typing.Literal:
        options = {str(option): option for option in arguments}
        if text not in options:
            raise ValueError(f"must be one of {', '.join(options)}, got {text!r}")
        return options[text]
    if origin is tuple or kind is tuple:
        return _parse_tuple(text, arguments)
    if kind is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise ValueError(f"must be true or false, got {text!r}")
        return text.lower() in _TRUE
    if kind is int:
        return _parse_int(text)
    if kind is float:
        return _parse_float(text)
    if kind is Path:
        return Path(text).expanduser()
    if kind is str:
        return text
    if kind is types.NoneType:
        if text.lower() not in _NOTHING:
            raise ValueError(f"can only be none, got {text!r}")
        return None
    raise ValueError("cannot be set from text")


def _parse_union(text: str, options: Sequence[Any]) -> Any:
    if types.NoneType in options and text.lower() in _NOTHING:
        return None
    failure = ValueError("cannot be set from text")
    for option in options:
        if option is types.NoneType:
            continue
        try:
            return _parse(text, option)
        except ValueError as error:
            failure = error
    raise failure


def _parse_int(text: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise ValueError(f"must be a whole number, got {text!r}") from None


def _parse_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"must be a number, got {text!r}") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"must be a finite number, got {text!r}")
    return value


def _parse_tuple(text: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """A list such as ``24,20,20`` or ``[24, 20, 20]``."""
    inner = text.strip()
    if inner[:1] in ("[", "(") and inner[-1:] in ("]", ")"):
        inner = inner[1:-1]
    parts = [part.strip().strip("\"'") for part in inner.split(",") if part.strip()]
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        kinds: Sequence[Any] = [arguments[0]] * len(parts)
    else:
        kinds = arguments or [str] * len(parts)
    if len(kinds) != len(parts):
        raise ValueError(f"must be {len(kinds)} values, got {json.dumps(text)}")
    return tuple(_parse(part, kind) for part, kind in zip(parts, kinds, strict=True))
