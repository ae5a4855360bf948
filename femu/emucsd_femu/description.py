"""What a testbed is made of: a TOML file, checked to the last key.

    [testbed]   name, images ("full" or "small")
    [[drive]]   name, profile, size, clock, store, firmware, set = {"nand.read_ns" = 50000}
    [drive.isp] engine ("machine", "local" or "none"), memory
    [host]      engine ("machine" or "none"), memory, cpus, qemu ("auto" or "femu"), compare ("none" or "femu")
    [tunnel]    enabled, network, mtu
    [cluster]   ocfs2, mount

Everything has a default; no file at all is one drive, a host machine, and a machine in the drive. Sizes are bytes or
texts such as "2GiB".
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from emucsd_femu.errors import DescriptionError
from emucsd_femu.qemu import MOST_DRIVES
from emucsd_wire.paths import PathError, check_name

DEFAULT_NAME = "testbed"
DEFAULT_DRIVE = "csd"
IMAGES = ("full", "small")
ISP_ENGINES = ("machine", "local", "none")
HOST_ENGINES = ("machine", "none")
HOST_QEMUS = ("auto", "femu")
COMPARISONS = ("none", "femu")
CLOCKS = ("real", "virtual")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_LEAST_MEMORY = 256 << 20
_MTU = (1280, 65535)  # the least that IPv6 takes, the most that a TUN device does


@dataclass(frozen=True)
class Isp:
    """The engine inside a drive."""

    engine: str = "machine"
    memory: int = 1 << 30  # bytes


@dataclass(frozen=True)
class DriveOf:
    """One drive: what ``emucsd up --drive-only`` takes."""

    name: str
    profile: str = "femu"
    size: str | None = None
    clock: str = "real"
    store: str | None = None
    firmware: str | None = None
    set: tuple[tuple[str, str], ...] = ()
    isp: Isp = Isp()


@dataclass(frozen=True)
class Host:
    """The host machine."""

    engine: str = "machine"
    memory: int = 1 << 30  # bytes
    cpus: int = 1
    qemu: str = "auto"  # "femu": FEMU's binary
    compare: str = "none"  # "femu": FEMU's own SSD of the first drive's profile is there as well


@dataclass(frozen=True)
class Tunnel:
    """The network over all drives."""

    enabled: bool = True
    network: str = "10.77.0.0/24"
    mtu: int | None = None  # None: the tunnel's own choice

    def address(self, isp: int | None) -> str:
        """The address of drive ``isp``'s engine; None: of the host."""
        return str(ipaddress.ip_network(self.network)[1 if isp is None else 2 + isp])


@dataclass(frozen=True)
class Description:
    """A testbed."""

    name: str = DEFAULT_NAME
    images: str = "full"
    drives: tuple[DriveOf, ...] = (DriveOf(DEFAULT_DRIVE),)
    host: Host = Host()
    tunnel: Tunnel = Tunnel()
    ocfs2: bool = True
    mount: str = "/shared"  # where shared namespaces are mounted on both sides; "": nowhere

    def public(self) -> dict[str, Any]:
        """As JSON tells it."""
        return asdict(self)

    @property
    def isps(self) -> dict[int, DriveOf]:
        """The drives that have an engine, by number."""
        return {number: drive for number, drive in enumerate(self.drives) if drive.isp.engine != "none"}


class _Section:
    """One table of the file, each key of which must be asked for."""

    def __init__(self, where: str, content: Any) -> None:
        if not isinstance(content, Mapping):
            raise DescriptionError(f"{where}: {content!r} is no table")
        self._where, self._left = where, dict(content)

    def take(self, key: str, parse: Callable[[Any], Any], default: Any) -> Any:
        """The value of a key. :raises DescriptionError: it is not what ``parse`` takes"""
        if key not in self._left:
            return default
        value = self._left.pop(key)
        try:
            return parse(value)
        except (ValueError, PathError) as problem:
            raise DescriptionError(f"{self._where}.{key} = {value!r}: {problem}") from problem

    def end(self, *known: str) -> None:
        """:raises DescriptionError: keys are left that mean nothing"""
        if self._left:
            unknown = ", ".join(sorted(self._left))
            raise DescriptionError(f"{self._where}: unknown key {unknown}; there are {', '.join(known)}")


def size(value: Any) -> int:
    """Bytes, from a number or a text such as "2GiB". :raises ValueError: it is neither"""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or not float(found[1]):
        raise ValueError('must be a number of bytes, or a text such as "2GiB"')
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _memory(value: Any) -> int:
    amount = size(value)
    if amount < _LEAST_MEMORY:
        raise ValueError(f"must be at least {_LEAST_MEMORY >> 20} MiB for a Linux to boot")
    return amount >> 20 << 20


def _table(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError("must be a table")
    return value


def _tables(value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError("must be tables; write each as [[drive]]")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text")
    return value


def _capacity(value: Any) -> str:
    size(value)
    return str(value)


def _name(value: Any) -> str:
    return check_name(_text(value))


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _mount(value: Any) -> str:
    if not isinstance(value, str) or (value and not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", value)):
        raise ValueError('must be an absolute folder without blanks, or "" to mount nothing')
    return value


def _among(*allowed: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return str(value)

    return parse


def _between(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"must be a number from {low} to {high}")
        return value

    return parse


def _network(value: Any) -> str:
    try:
        network = ipaddress.IPv4Network(_text(value))
    except ValueError as problem:
        raise ValueError(f"must be an IPv4 network such as 10.77.0.0/24 ({problem})") from problem
    if network.num_addresses < MOST_DRIVES + 3:
        raise ValueError(f"has {network.num_addresses} addresses; take a prefix of at most 28 bits")
    return str(network)


def _overrides(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise ValueError('must be a table such as {"nand.read_ns" = 50000}')
    return tuple((key, str(one).lower() if isinstance(one, bool) else str(one)) for key, one in _flat(value, ""))


def _flat(table: Mapping[str, Any], above: str) -> list[tuple[str, Any]]:
    """nand.read_ns = 5 without quotes is a table within a table: meant is the same."""
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        found += _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else [(f"{above}{key}", value)]
    return found


def parse(content: Mapping[str, Any], folder: Path | None = None) -> Description:
    """A description from what a TOML file holds.

    :param folder: what relative paths in it start from
    :raises DescriptionError: names the key, its value, and what it takes
    """
    top = _Section("the file", content)
    about = _Section("testbed", top.take("testbed", _table, {}))
    drives = top.take("drive", _tables, [{}])
    if not 1 <= len(drives) <= MOST_DRIVES:
        raise DescriptionError(f"drive: {len(drives)} of them; a testbed has 1 to {MOST_DRIVES}")
    cluster = _Section("cluster", top.take("cluster", _table, {}))
    found = Description(
        name=about.take("name", _name, DEFAULT_NAME),
        images=about.take("images", _among(*IMAGES), "full"),
        drives=tuple(_drive(number, one, len(drives), folder) for number, one in enumerate(drives)),
        host=_host(_Section("host", top.take("host", _table, {}))),
        tunnel=_tunnel(_Section("tunnel", top.take("tunnel", _table, {}))),
        ocfs2=cluster.take("ocfs2", _switch, True),
        mount=cluster.take("mount", _mount, "/shared"),
    )
    about.end("name", "images")
    cluster.end("ocfs2", "mount")
    top.end("testbed", "drive", "host", "tunnel", "cluster")
    return _whole(found)


def _drive(number: int, content: Any, count: int, folder: Path | None) -> DriveOf:
    section = _Section(f"drive[{number}]", content)
    isp = _Section(f"drive[{number}].isp", section.take("isp", _table, {}))

    def path(value: Any) -> str:
        return str((folder or Path.cwd()) / Path(_text(value)).expanduser())

    def profile(value: Any) -> str:
        return path(value) if _text(value).endswith(".toml") else str(value)

    found = DriveOf(
        name=section.take("name", _name, DEFAULT_DRIVE if count == 1 else f"{DEFAULT_DRIVE}{number}"),
        profile=section.take("profile", profile, "femu"),
        size=section.take("size", _capacity, None),
        clock=section.take("clock", _among(*CLOCKS), "real"),
        store=section.take("store", path, None),
        firmware=section.take("firmware", path, None),
        set=section.take("set", _overrides, ()),
        isp=Isp(isp.take("engine", _among(*ISP_ENGINES), "machine"), isp.take("memory", _memory, Isp.memory)),
    )
    isp.end("engine", "memory")
    section.end("name", "profile", "size", "clock", "store", "firmware", "set", "isp")
    return found


def _host(section: _Section) -> Host:
    found = Host(
        section.take("engine", _among(*HOST_ENGINES), "machine"),
        section.take("memory", _memory, Host.memory),
        section.take("cpus", _between(1, 64), Host.cpus),
        section.take("qemu", _among(*HOST_QEMUS), Host.qemu),
        section.take("compare", _among(*COMPARISONS), Host.compare),
    )
    section.end("engine", "memory", "cpus", "qemu", "compare")
    if found.compare == "femu" and found.qemu != "femu":
        raise DescriptionError('host.compare = "femu": only FEMU\'s binary has its SSD; say qemu = "femu" as well')
    return found


def _tunnel(section: _Section) -> Tunnel:
    found = Tunnel(
        section.take("enabled", _switch, True),
        section.take("network", _network, Tunnel.network),
        section.take("mtu", _between(*_MTU), None),
    )
    section.end("enabled", "network", "mtu")
    return found


def _whole(found: Description) -> Description:
    """What no single key can tell."""
    names = [found.name, *(drive.name for drive in found.drives)]
    for name in names:
        if names.count(name) > 1:
            raise DescriptionError(f"name = {name!r} is given twice; testbed and drives have a folder each")
    for number, drive in enumerate(found.drives):
        if drive.clock == "virtual" and (found.host.engine == "machine" or drive.isp.engine == "machine"):
            raise DescriptionError(
                f"drive[{number}].clock = 'virtual': a Linux in a machine cannot say when it waits; use "
                "clock = 'real', or no machines (host.engine and isp.engine)"
            )
    return found


def read(path: Path | None) -> Description:
    """The description in a file; None: the default. :raises DescriptionError: see ``parse``"""
    if path is None:
        return parse({})
    try:
        content = tomllib.loads(path.read_text())
    except OSError as problem:
        raise DescriptionError(f"{path}: {problem.strerror}") from problem
    except ValueError as problem:
        raise DescriptionError(f"{path}: no TOML: {problem}") from problem
    try:
        return parse(content, path.absolute().parent)
    except DescriptionError as problem:
        raise DescriptionError(f"{path}: {problem}") from problem


def with_options(
    found: Description, *, name: str | None = None, small: bool = False, drive: Mapping[str, Any] | None = None
) -> Description:
    """The same with what a command line says besides.

    :param drive: fields for its only drive
    :raises DescriptionError: it has several drives
    """
    if name is not None:
        found = replace(found, name=_named(name))
    if small:
        found = replace(found, images="small")
    if drive:
        if len(found.drives) > 1:
            keys = ", ".join(drive)
            raise DescriptionError(f"{keys}: which of {len(found.drives)} drives is meant? say it in the file")
        found = replace(found, drives=(replace(found.drives[0], **drive),))
    return _whole(found)


def _named(name: str) -> str:
    try:
        return check_name(name)
    except PathError as problem:
        raise DescriptionError(f"testbed.name = {name!r}: {problem}") from problem
