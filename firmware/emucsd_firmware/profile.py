"""Profiles: what a drive is made of and how long its parts take.

A profile is a TOML file, one table a part; every key carries its unit in its name. The built-in ones lie in
``profiles/`` and say where each value comes from. A user's own file states everything, or ``base = "rmssd"`` and what
differs. Loading is strict: a key that is unknown, missing, of another type or outside its limits is a ``ProfileError``.

    load("rmssd")
    load("femu", **{"nand.read_ns": 50_000, "capacity_bytes": 1 << 40})
    load("femu", pg_rd_lat=50_000, nchs=4, devsz_mb=1024)      # FEMU's own knob names: emucsd_firmware.femu_knobs
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from emucsd_firmware.errors import ProfileError
from emucsd_firmware.femu_knobs import FEMU_NAMES, translate
from emucsd_firmware.parts import (
    Buffer,
    FrontEnd,
    Ftl,
    Geometry,
    Isp,
    Link,
    Lookup,
    Mlp,
    Nand,
    RecSsd,
    Reliability,
    knob,
)

BUILT_IN = Path(__file__).parent / "profiles"
PPN_LIMIT = (1 << 31) - 2  # a map entry is 32 bits: bit 31 marks a buffered page, 0 an unmapped one
SPARE_BLOCKS = 4  # per die, whatever the over-provisioning: one open for the host, one for GC, two to breathe
OVERRIDE = "override"  # stands for the file's name in errors; only here text is converted to the setting's type


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A drive's description, checked. Make one with ``load``."""

    name: str
    source: str
    geometry: Geometry
    nand: Nand
    reliability: Reliability
    link: Link
    front_end: FrontEnd
    ftl: Ftl
    buffer: Buffer
    lookup: Lookup
    mlp: Mlp
    recssd: RecSsd
    isp: Isp
    capacity_bytes: int = knob(1 << 20, 1 << 46, "what all namespaces together can hold")
    lba_bytes: int = knob(512, 4096, "logical block of a namespace unless it is formatted otherwise: 512 or 4096")

    def with_capacity(self, capacity_bytes: int) -> Profile:
        """This drive with as many blocks a plane as the capacity and the over-provisioning need.

        :raises ProfileError: no geometry of this shape addresses that many pages
        """
        geometry = self.geometry
        raw = math.ceil(capacity_bytes / (1 - self.ftl.over_provision))
        per_die = math.ceil(raw / geometry.block_bytes / geometry.die_count)
        full = math.ceil(capacity_bytes / geometry.block_bytes / geometry.die_count)
        per_die = max(per_die, full + SPARE_BLOCKS) + self._bad_allowance(per_die + SPARE_BLOCKS)
        blocks = max(8, math.ceil(per_die / geometry.planes))
        grown = replace(self, capacity_bytes=capacity_bytes, geometry=replace(geometry, blocks=blocks))
        return checked(grown, self.source)

    def _bad_allowance(self, blocks: int) -> int:
        """Blocks of a die that may be bad from the factory: expected plus four standard deviations."""
        expected = blocks * self.reliability.factory_bad_ppm / 1e6
        return math.ceil(expected + 4 * math.sqrt(expected))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the TOML has them; ``from_dict`` takes them back."""
        return asdict(self)

    def __str__(self) -> str:
        g = self.geometry
        return (
            f"{self.name}: {self.capacity_bytes / 2**30:.4g} GiB on {g.channels} channels x {g.dies} dies x "
            f"{g.planes} planes x {g.blocks} blocks x {g.pages} pages x {g.page_bytes} B"
        )


class Knob(NamedTuple):
    """One setting: its key as overrides name it, its type, limits and meaning."""

    key: str
    kind: type
    low: float
    high: float
    about: str
    power: bool = False
    default: Any = None  # None: it must be stated
    choices: tuple[str, ...] = ()  # the names that it may have; empty: it is a number with limits


def knobs(owner: type = Profile, prefix: str = "") -> Iterator[Knob]:
    """All settings of a profile, in the order of the declarations."""
    hints = get_type_hints(owner)
    for item in fields(owner):
        kind = hints[item.name]
        if isinstance(kind, type) and is_dataclass(kind):
            yield from knobs(kind, f"{prefix}{item.name}.")
        elif item.metadata:
            yield Knob(prefix + item.name, kind, **item.metadata)


KNOBS = {row.key: row for row in knobs()}


def names() -> list[str]:
    """The built-in profiles."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def load(name_or_path: str | Path, **overrides: Any) -> Profile:
    """A built-in profile by name, or a TOML file by path (anything with a slash or ``.toml``).

    :param overrides: dotted keys (``nand.read_ns``), ``capacity_bytes`` and ``lba_bytes``, or FEMU's names. Strings
        are converted (``"40000"``, ``"true"``, ``"32GiB"``). A capacity without ``geometry.blocks`` resizes the array.
    :raises ProfileError: no such profile, or a value that can't be used
    """
    source, flat = _read(name_or_path)
    own = {key: value for key, value in overrides.items() if key in KNOBS}
    theirs = {key: value for key, value in overrides.items() if key not in KNOBS}
    for key in theirs:
        if key not in FEMU_NAMES:
            close = _close(key, [*KNOBS, *FEMU_NAMES])
            raise ProfileError(f"override: {key}: no such setting{close}; `emucsd profile` lists them all")
    asked = {key: _value(KNOBS[key], value, OVERRIDE) for key, value in own.items()}
    complete = from_dict(flat, source, check=False)
    theirs = translate(theirs, {**_flatten(complete.to_dict()), **asked})
    asked = {**{key: _value(KNOBS[key], value, OVERRIDE) for key, value in theirs.items()}, **asked}
    profile = from_dict({**flat, **asked}, source, check=False)
    if "capacity_bytes" in own and not {"geometry.blocks", "blks_per_pl"} & overrides.keys():
        return profile.with_capacity(profile.capacity_bytes)
    return checked(profile, source)


def from_dict(data: Mapping[str, Any], source: str, *, check: bool = True) -> Profile:
    """A profile out of nested or dotted keys, every one present but those that have a default.

    :raises ProfileError: a key is missing or unknown, a value is of another type or outside its limits
    """
    flat = _flatten(data)
    strings: dict[str, Any] = {key: str(flat.pop(key, "")) for key in ("name", "source")}
    values = {key: row.default for key, row in KNOBS.items() if row.default is not None}
    values |= {key: _value(_known(key, source), value, source) for key, value in flat.items()}
    if missing := [key for key in KNOBS if key not in values]:
        raise ProfileError(
            f"{source}: {', '.join(missing)} missing; state {'it' if len(missing) == 1 else 'them'}, or begin the file"
            f' with base = "{names()[0]}" (or another built-in profile) and give only what differs'
        )
    parts: dict[str, Any] = {}
    for key, value in values.items():
        part, _, leaf = key.rpartition(".")
        parts.setdefault(part, {})[leaf] = value
    hints = get_type_hints(Profile)
    tables: dict[str, Any] = {part: hints[part](**leaves) for part, leaves in parts.items() if part}
    profile = Profile(**strings, **parts[""], **tables)
    return checked(profile, source) if check else profile


def checked(profile: Profile, source: str) -> Profile:
    """The rules that take more than one value. :raises ProfileError: one is broken"""
    g, ftl = profile.geometry, profile.ftl
    if profile.lba_bytes not in (512, 4096):
        raise ProfileError(f"{source}: lba_bytes = {profile.lba_bytes}: must be 512 or 4096; set one of these")
    if g.ppn_end > PPN_LIMIT:
        raise ProfileError(
            f"{source}: geometry addresses {g.ppn_end} pages of {g.page_bytes} bytes, the limit is {PPN_LIMIT}; "
            f"ask for less capacity (this is {profile.capacity_bytes} bytes) or set geometry.page_bytes higher"
        )
    if not ftl.gc_low < ftl.gc_high < ftl.over_provision:
        raise ProfileError(
            f"{source}: ftl.gc_low = {ftl.gc_low}, ftl.gc_high = {ftl.gc_high}, ftl.over_provision = "
            f"{ftl.over_provision}: must rise in this order, else a full drive never ends its garbage collection; "
            "lower the gc_ marks or keep more back"
        )
    bad = profile._bad_allowance(g.blocks_per_die)
    usable = (g.blocks_per_die - SPARE_BLOCKS - bad) * g.die_count * g.block_bytes
    if profile.capacity_bytes > usable:
        raise ProfileError(
            f"{source}: capacity_bytes = {profile.capacity_bytes}: this geometry holds at most {usable} (raw "
            f"{g.raw_bytes}, less {SPARE_BLOCKS} spare and {bad} perhaps bad blocks of each die); ask for less, or "
            f"leave geometry.blocks out of the overrides and it grows"
        )
    return profile


def _read(name_or_path: str | Path) -> tuple[str, dict[str, Any]]:
    """(what to call it in errors, dotted keys with those of its base filled in)."""
    text = str(name_or_path)
    built_in = isinstance(name_or_path, str) and "/" not in text and not text.endswith(".toml")
    path = BUILT_IN / f"{text}.toml" if built_in else Path(name_or_path)
    if built_in and text not in names():
        raise ProfileError(
            f"profile {text!r}: no such built-in profile{_close(text, names())}; there are {', '.join(names())}, "
            "or give the path of a TOML file"
        )
    source = path.name if built_in else text
    try:
        data = tomllib.loads(path.read_text())
    except OSError as exc:
        raise ProfileError(f"{source}: {exc.strerror}; give the path of a readable TOML file") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ProfileError(f"{source}: not TOML: {exc}; correct that line") from exc
    base = data.pop("base", None)
    flat = _flatten(data)
    flat.setdefault("name", path.stem)
    for key in flat:
        _known(key, source)
    if base is None:
        return source, flat
    if base not in names():
        raise ProfileError(f"{source}: base = {base!r}: must be a built-in profile: one of {', '.join(names())}")
    inherited = _read(str(base))[1]
    if "capacity_bytes" in flat and "geometry.blocks" not in flat:
        merged = from_dict({**inherited, **flat}, source, check=False)
        flat["geometry.blocks"] = merged.with_capacity(merged.capacity_bytes).geometry.blocks
    return source, {**inherited, **flat}


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _known(key: str, source: str) -> Knob:
    if key in ("name", "source"):
        return Knob(key, str, 0, 0, "")
    if key not in KNOBS:
        raise ProfileError(f"{source}: {key}: no such setting{_close(key, KNOBS)}; remove or rename it")
    return KNOBS[key]


def _close(word: str, possible: Mapping[str, Any] | list[str]) -> str:
    """', did you mean …?' or nothing."""
    leaves = {name.rpartition(".")[2]: name for name in possible}
    found = difflib.get_close_matches(word, list(possible), n=3, cutoff=0.6)
    found = found or [leaves[n] for n in difflib.get_close_matches(word.rpartition(".")[2], list(leaves), n=3)]
    return f", did you mean {' or '.join(found)}?" if found else ""


def _value(row: Knob, value: Any, source: str) -> Any:
    """The value in its type, within its limits."""
    given, kind = value, row.kind.__name__
    if isinstance(value, str) and source == OVERRIDE:
        value = _parse(row, value, source)
    if kind == "float" and type(value).__name__ == "int":
        value = float(value)
    if type(value).__name__ != kind:
        raise ProfileError(
            f"{source}: {row.key} = {given!r} is {type(value).__name__}, must be {kind} ({row.about}); "
            f"write it as {_written(row)}"
        )
    if row.choices:
        if value not in row.choices:
            allowed = " or ".join(row.choices)
            raise ProfileError(f"{source}: {row.key} = {given!r}: must be {allowed} ({row.about}); choose one of these")
        return value
    if not row.low <= value <= row.high:
        raise ProfileError(
            f"{source}: {row.key} = {given!r}: must be {row.low} to {row.high} ({row.about}); choose one of these"
        )
    if row.power and value & (value - 1):
        raise ProfileError(
            f"{source}: {row.key} = {given!r}: must be a power of two ({row.about}); "
            f"{1 << (value.bit_length() - 1)} and {1 << value.bit_length()} are next to it"
        )
    return value


def _written(row: Knob) -> str:
    if row.choices:
        return "text in quotes"
    return "true or false" if row.kind is bool else "a number without quotes"


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}i": 1 << (10 * i) for i, unit in enumerate("KMGT", start=1)}


def _parse(row: Knob, text: str, source: str) -> Any:
    """A value as the command line gives it. Sizes take K, M, G, T (decimal) and Ki, Mi, Gi, Ti, with B or not."""
    if row.choices:
        return text
    if row.kind is bool and text.lower() in ("true", "false", "1", "0", "on", "off", "yes", "no"):
        return text.lower() in ("true", "1", "on", "yes")
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", text) if row.key.endswith("_bytes") else None
    try:
        if size:
            return round(Decimal(size[1]) * _UNITS[size[2] or ""])
        return float(text) if row.kind is float else int(text, 0)
    except ValueError:
        raise ProfileError(
            f"{source}: {row.key} = {text!r} can't be read as {row.kind.__name__} ({row.about}); give a plain number"
        ) from None
