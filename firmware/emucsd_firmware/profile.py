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
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from emucsd_firmware.errors import ProfileError
from emucsd_firmware.femu_knobs import FEMU_NAMES, translate

BUILT_IN = Path(__file__).parent / "profiles"
PPN_LIMIT = (1 << 31) - 2  # a map entry is 32 bits: bit 31 marks a buffered page, 0 an unmapped one
SPARE_BLOCKS = 4  # per die, whatever the over-provisioning: one open for the host, one for GC, two to breathe
SECOND = 1_000_000_000
OVERRIDE = "override"  # stands for the file's name in errors; only here text is converted to the setting's type


def knob(low: float, high: float, about: str, *, power: bool = False, default: Any = None) -> Any:
    """A field with its limits (both allowed) and its meaning; ``power``: only powers of two.

    ``default`` is for what files and stores of before it was added do not say.
    """
    return field(metadata={"low": low, "high": high, "about": about, "power": power, "default": default})


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The flash array. A physical page number (ppn) is die, block and page as bit fields:

    ``ppn = die << (block_bits + page_bits) | block << page_bits | page``, where ``block`` counts within the die,
    ``plane = block % planes`` and ``channel = die // dies``. The global block is ``ppn >> page_bits``.
    """

    channels: int = knob(1, 64, "flash channels")
    dies: int = knob(1, 128, "dies on each channel (ways)")
    planes: int = knob(1, 8, "planes of a die", power=True)
    blocks: int = knob(8, 1 << 20, "blocks of a plane")
    pages: int = knob(8, 4096, "pages of a block", power=True)
    page_bytes: int = knob(4096, 32768, "bytes of a page, without its spare area", power=True)

    @property
    def page_bits(self) -> int:
        return (self.pages - 1).bit_length()

    @property
    def block_bits(self) -> int:
        return (self.blocks_per_die - 1).bit_length()

    @property
    def die_bits(self) -> int:
        return (self.die_count - 1).bit_length()

    @property
    def page_shift(self) -> int:
        """log2 of the page's bytes."""
        return (self.page_bytes - 1).bit_length()

    @property
    def die_count(self) -> int:
        return self.channels * self.dies

    @property
    def blocks_per_die(self) -> int:
        return self.blocks * self.planes

    @property
    def block_bytes(self) -> int:
        return self.pages * self.page_bytes

    @property
    def raw_pages(self) -> int:
        return self.die_count * self.blocks_per_die * self.pages

    @property
    def raw_bytes(self) -> int:
        return self.raw_pages * self.page_bytes

    @property
    def ppn_end(self) -> int:
        """One past the highest ppn. More than ``raw_pages`` where a bit field is not filled."""
        return self.ppn(self.die_count - 1, self.blocks_per_die - 1, self.pages - 1) + 1

    @property
    def block_end(self) -> int:
        """One past the highest global block."""
        return ((self.ppn_end - 1) >> self.page_bits) + 1

    def ppn(self, die: int, block: int, page: int) -> int:
        """The physical page number of a page, by die, block within the die, and page within the block."""
        return (die << (self.block_bits + self.page_bits)) | (block << self.page_bits) | page

    def die(self, ppn: int) -> int:
        return ppn >> (self.block_bits + self.page_bits)

    def block(self, ppn: int) -> int:
        """Block within its die."""
        return (ppn >> self.page_bits) & ((1 << self.block_bits) - 1)

    def channel(self, die: int) -> int:
        return die // self.dies


@dataclass(frozen=True, slots=True, kw_only=True)
class Nand:
    """Times and abilities of the flash."""

    read_ns: int = knob(0, SECOND, "array to page register")
    program_ns: int = knob(0, SECOND, "page register to array")
    erase_ns: int = knob(0, 2 * SECOND, "one block")
    transfer_ns_per_4k: int = knob(0, SECOND // 10, "channel time for 4096 bytes; others in proportion, rounded up")
    command_ns: int = knob(0, SECOND, "channel time for the command and address of each operation")
    cache_read: bool = knob(0, 1, "the array reads the next page while the last one leaves the cache register")
    multi_plane: bool = knob(0, 1, "operations of one kind on distinct planes share one array time")
    suspend: bool = knob(0, 1, "a host's read passes programs and erases, also one that is running")
    suspend_ns: int = knob(0, SECOND, "die time to suspend a running program or erase")
    suspend_reads: int = knob(1, 32767, "array reads that may pass any one program or erase")
    retry_ns: int = knob(0, SECOND // 100, "die time of one read-retry step")
    max_retries: int = knob(0, 64, "read-retry steps before a page is given up")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How often the flash errs. All zero: it never does, and nothing is spent on asking."""

    rber_base: float = knob(0, 0.1, "bit errors per bit of a fresh page")
    rber_per_erase: float = knob(0, 0.1, "added for each erase of the block")
    rber_per_read: float = knob(0, 0.1, "added for each read of the block since its erase (read disturb)")
    rber_per_day: float = knob(0, 0.1, "added for each day since the page was programmed (retention)")
    ecc_bits: int = knob(0, 1024, "bits that the ECC corrects in each KiB")
    read_fail_ppm: int = knob(0, 1_000_000, "reads per million that no retry recovers, whatever the bit errors")
    factory_bad_ppm: int = knob(0, 500_000, "blocks per million that are bad from the factory")
    program_fail_ppm: int = knob(0, 1_000_000, "programs per million that fail")
    erase_fail_ppm: int = knob(0, 1_000_000, "erases per million that fail")
    endurance: int = knob(0, 1 << 31, "erases that a block survives; 0: any number")
    seed: int = knob(0, (1 << 63) - 1, "every draw is a hash of this seed and of the place and wear it is about")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The PCIe link of port 0."""

    bytes_per_us: int = knob(0, 1_000_000, "bandwidth of each direction; 0: infinite")
    delay_ns: int = knob(0, SECOND, "one way")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEnd:
    """The controller's front end: one server, commands in turn."""

    command_ns: int = knob(0, SECOND, "each command")
    per_page_ns: int = knob(0, SECOND, "each flash page that a command touches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ftl:
    """The flash translation layer."""

    over_provision: float = knob(0.01, 0.98, "fraction of the raw capacity that is kept back")
    gc_low: float = knob(0.0, 0.9, "garbage collection starts when a die has this fraction of its blocks free")
    gc_high: float = knob(0.0, 0.95, "and stops at this one")
    streams: int = knob(1, 3, "open blocks by temperature: 1 all together, 2 host and GC apart, 3 hot, cold and GC")
    wear_gap: int = knob(1, 1 << 31, "spread of erase counts within a die that starts wear levelling")
    trim_ns: int = knob(0, SECOND, "each Dataset Management range")


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """The DRAM write buffer. With it the drive has a volatile write cache."""

    pages: int = knob(0, 1 << 20, "flash pages that it holds; 0: every write waits for its program")
    write_ns: int = knob(0, SECOND, "each page taken in")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """The embedding lookup engine."""

    clock_mhz: int = knob(1, 10_000, "engine clock")
    translate_cycles: int = knob(0, 1 << 20, "EV translator: cycles for each index")
    sum_lanes: int = knob(1, 4096, "EV sum: FP32 adders side by side")
    sum_cycles: int = knob(0, 1 << 20, "EV sum: cycles for each pass of a vector over the lanes")
    path_buffer: int = knob(1, 65535, "EV-FMC: vector reads in flight for each die")


@dataclass(frozen=True, slots=True, kw_only=True)
class Isp:
    """The Linux computer inside the drive, as the ``local`` engine stands for it: see docs/isp.md."""

    cores: int = knob(1, 1024, "cores of the ISP engine", default=4)
    memory_bytes: int = knob(1 << 26, 1 << 40, "memory that its jobs may use together", default=6_000_000_000)
    cpu_share: float = knob(
        0.001, 1.0, "part of a core of this machine that each is worth; 1: no throttle", default=1.0
    )


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
    power: bool
    default: Any = None  # None: it must be stated


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
        return Knob(key, str, 0, 0, "", False)
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
            f"write it as {'true or false' if row.kind is bool else 'a number without quotes'}"
        )
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


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}i": 1 << (10 * i) for i, unit in enumerate("KMGT", start=1)}


def _parse(row: Knob, text: str, source: str) -> Any:
    """A value as the command line gives it. Sizes take K, M, G, T (decimal) and Ki, Mi, Gi, Ti, with B or not."""
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
