"""Dataclasses as JSON, strictly: every field by its name and type, nothing unknown, nothing converted in silence.

Knows what the declarations here are made of: str, int, float, bool, ``Any``, ``X | None``, ``Literal``,
``tuple[X, ...]``, ``tuple[X, Y]``, ``dict[str, X]`` and further dataclasses. A whole number is a float as well.
Standard library alone.
"""

from __future__ import annotations

import json
import math
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

DEPTH_LIMIT = 32  # of arguments that a caller gives


class FieldError(ValueError):
    """A JSON value that is not what the declaration says; the text begins with the field's path."""


def dump(value: Any) -> Any:
    """A dataclass as objects that ``json`` takes; field order is kept."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: dump(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: dump(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [dump(item) for item in value]
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """A dataclass as JSON. :raises FieldError: a value that JSON has no form for, such as NaN"""
    try:
        return json.dumps(dump(value), indent=indent, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise FieldError(f"{type(value).__name__} can't be written as JSON: {problem}") from None


def from_json(kind: type[T], text: str | bytes) -> T:
    """The dataclass of JSON text. :raises FieldError: no JSON, or not that dataclass"""
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as problem:
        raise FieldError(f"no JSON: {problem}") from None
    return load(kind, found)


def load(kind: type[T], value: Any, path: str = "") -> T:
    """The dataclass of a JSON object.

    :param path: where it lies, for the error's text
    :raises FieldError: fields unknown, missing or of another type; what the dataclass raises itself passes through
    """
    where = path or kind.__name__
    if not isinstance(value, dict):
        raise FieldError(f"{where}: {_told(value)}, must be an object")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass: the caller's part
    if unknown := sorted(set(value) - set(known)):
        raise FieldError(f"{where}: unknown {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
    lacking = [
        name
        for name, field in known.items()
        if name not in value and field.default is MISSING and field.default_factory is MISSING
    ]
    if lacking:
        raise FieldError(f"{where}: {', '.join(map(repr, lacking))} missing")
    hints = get_type_hints(kind)
    return kind(**{name: _load(hints[name], item, f"{path}.{name}" if path else name) for name, item in value.items()})


def _load(hint: Any, value: Any, path: str) -> Any:
    """One value by its type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _load_optional(parts, value, path)
    if origin is Literal:
        if value not in parts:
            raise FieldError(f"{path}: {_told(value)}, must be one of {', '.join(map(repr, parts))}")
        return value
    if origin is tuple:
        return _load_tuple(parts, value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise FieldError(f"{path}: {_told(value)}, must be an object")
        return {key: _load(parts[1], item, f"{path}.{key}") for key, item in value.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        return load(hint, value, path)
    return _plain(hint, value, path)


def _load_optional(parts: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in parts:
        return None
    return _load(next(part for part in parts if part is not type(None)), value, path)


def _load_tuple(parts: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise FieldError(f"{path}: {_told(value)}, must be a list")
    if parts[-1] is Ellipsis:
        return tuple(_load(parts[0], item, f"{path}[{number}]") for number, item in enumerate(value))
    if len(value) != len(parts):
        raise FieldError(f"{path}: {len(value)} values, must be {len(parts)}")
    pairs = enumerate(zip(parts, value, strict=True))
    return tuple(_load(part, item, f"{path}[{number}]") for number, (part, item) in pairs)


def _plain(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:
        _check_depth(value, path, DEPTH_LIMIT)
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise FieldError(f"{path}: {value}, must be finite")
        return float(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise FieldError(f"{path}: {_told(value)}, must be {_NAMES.get(hint, hint.__name__)}")


_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def _check_depth(value: Any, path: str, left: int) -> None:
    if left == 0:
        raise FieldError(f"{path}: nested deeper than {DEPTH_LIMIT}")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for item in inner:
        _check_depth(item, path, left - 1)


def _told(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members; a name that comes twice is a mistake, which ``json`` alone would hide."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} comes twice in an object")
    return found
