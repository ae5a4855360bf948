"""Sizes, counts and times as people type and read them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Parse = Callable[[str], Any]
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_COUNTS = {"": 1, "K": 1000, "M": 1000_000, "G": 1000_000_000}
_TIMES = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "min": 60_000_000_000}


def size(text: str) -> int:
    """`4096`, `4K`, `4KiB`, `1.5G` -> bytes (powers of 1024). :raises ValueError: no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is no size: give bytes, or a number with K, M, G or T, like 64M")
    return int(float(match[1]) * _SIZES[match[2].upper()])


def count(text: str) -> int:
    """`1000`, `100k`, `2M` -> a whole positive number (powers of 1000). :raises ValueError: no count."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)", text.strip(), re.IGNORECASE)
    number = float(match[1]) * _COUNTS[match[2].upper()] if match else 0.0
    if number < 1 or number != int(number):
        raise ValueError(f"{text!r} is no count: give a whole positive number, like 1000 or 100k")
    return int(number)


def seconds(text: str) -> float:
    """`2`, `0.5s`, `100ms` -> seconds. :raises ValueError: no time."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ns|us|ms|s|min)?", text.strip())
    if not match:
        raise ValueError(f"{text!r} is no time: give seconds, or a number with us, ms, s or min, like 500ms")
    return float(match[1]) * _TIMES[match[2] or "s"] / 1e9


def setting(text: str) -> str:
    """`nand.read_ns=50000`, as it is. :raises ValueError: no `key=value`"""
    key, _, value = text.partition("=")
    if not key.strip() or not value.strip():
        raise ValueError(f"{text!r} sets nothing: give key=value, like nand.read_ns=50000")
    return text


def _digits(value: float) -> str:
    """Three of them, and never an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show_size(value: float) -> str:
    """Bytes for people: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{_digits(value)} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def show_time(ns: float) -> str:
    """Nanoseconds for people: `3.2 ms`."""
    for unit in ("ns", "us", "ms"):
        if abs(ns) < 1000:
            return f"{_digits(ns)} {unit}"
        ns /= 1000
    return f"{_digits(ns)} s"


def show_count(value: float) -> str:
    """A rate or a large count for people: `1.5 M`."""
    for unit in ("", " K", " M", " G"):
        if abs(value) < 1000 or unit == " G":
            return f"{_digits(value)}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


def plain(value: Any) -> Any:
    """Make a result fit for JSON: paths to text, NumPy scalars to Python's, tuples to lists."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)
