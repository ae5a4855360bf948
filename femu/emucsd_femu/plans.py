"""From a testbed's description to what each of its machines boots, and what runs in it."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path

from emucsd_femu.description import Description
from emucsd_femu.errors import TestbedError
from emucsd_femu.keys import KeyPair
from emucsd_femu.machine import Plan
from emucsd_femu.qemu import FIRST_DRIVE_SLOT
from emucsd_femu.qemu_root import OLDEST, Qemu
from emucsd_images.image import Image
from emucsd_images.seed import Seed
from emucsd_wire import paths

HOST = "host"
TOKEN_FILE = "/etc/emucsd/token"
CLUSTER = "emucsd"
_CLUSTER_PORT = 7777
_ISP_CPUS = 4  # Newport's engine has 4x Cortex-A53; in WFI they cost nothing
_SOURCES = {HOST: ("emucsd_wire", "emucsd"), "isp": ("emucsd_wire", "emucsd", "emucsd_agent")}


def isp_name(number: int) -> str:
    """The machine in drive ``number``."""
    return f"isp{number}"


def wanted(description: Description) -> dict[str, str]:
    """Machine -> image, the host machine first."""
    suffix = "-small" if description.images == "small" else ""
    found = {HOST: f"host{suffix}"} if description.host.engine == "machine" else {}
    machines = [number for number, drive in description.isps.items() if drive.isp.engine == "machine"]
    return found | {isp_name(number): f"isp{suffix}" for number in machines}


def plan(
    description: Description, name: str, found: Image, user: KeyPair, own: KeyPair, token: str, emulator: Qemu
) -> Plan:
    """A machine's plan."""
    number = None if name == HOST else int(name.removeprefix("isp"))
    drives = list(description.drives) if number is None else [description.drives[number]]
    port = 0 if number is None else 1
    addresses = {HOST: description.tunnel.address(None)}
    addresses |= {isp_name(isp): description.tunnel.address(isp) for isp in description.isps}
    seed = Seed(
        name,
        own.private,
        user.public,
        "slirp" if number is None else "none",
        sources(HOST if number is None else "isp"),
        services(description, number, bind=emulator.version < OLDEST),
        cluster(addresses) if description.ocfs2 else None,
        addresses if description.tunnel.enabled else {},
        {TOKEN_FILE: f"{token}\n".encode()},
    )
    return Plan(
        name,
        found,
        seed,
        [paths.port_socket(paths.runtime_folder(drive.name), port) for drive in drives],
        description.host.memory if number is None else description.drives[number].isp.memory,
        description.host.cpus if number is None else _ISP_CPUS,
        own.public,
        user.private,
        None if number is None else addresses[name],
        number is None or description.tunnel.enabled,
    )


def services(description: Description, number: int | None, *, bind: bool = False) -> list[str]:
    """What a machine keeps alive.

    :param number: of its drive; None: the host machine
    :param bind: drives have no PCI class here (FEMU's binary): the driver is told their ids
    """
    if number is None:
        count = len(description.drives)
        words = ["python3", "-m", "emucsd.tunnel", "host", "--network", description.tunnel.network]
    else:
        count = 1
        words = ["python3", "-m", "emucsd_agent", "--token-file", TOKEN_FILE]
    told = "echo 1d1d 1f1f >/sys/bus/pci/drivers/nvme/new_id; " if bind else ""
    if not description.tunnel.enabled:
        return [f"{told}exec sleep infinity"] if bind else []
    if number is None and description.tunnel.mtu is not None:
        words += ["--mtu", str(description.tunnel.mtu)]
    folders = [f"/sys/bus/pci/devices/0000:00:{FIRST_DRIVE_SLOT + n:02x}.0/nvme" for n in range(count)]
    # drives are probed side by side: which is nvme0 is chance, the slot is not
    ready = " && ".join(f"ls {folder}/nvme* >/dev/null 2>&1" for folder in folders)
    drives = " ".join(f'--drive "/dev/$(ls {folder})"' for folder in folders)
    ends = f"{told}until {ready}; do usleep 50000; done; exec {shlex.join(words)} {drives}"
    return [ends, *mounts(description, number)]


def mounts(description: Description, number: int | None) -> list[str]:
    """The shared namespaces, each on the host machine and on the machine in its drive.

    On a host machine with several drives each has a folder of its drive's name.
    """
    if not (description.ocfs2 and description.mount and description.host.engine == "machine"):
        return []
    shared = [isp for isp, drive in description.isps.items() if drive.isp.engine == "machine"]
    found = []
    for isp in shared if number is None else [number]:
        own = number is None and len(description.drives) > 1
        folder = f"{description.mount}/{description.drives[isp].name}" if own else description.mount
        slot = FIRST_DRIVE_SLOT + (isp if number is None else 0)
        found.append(f": ocfs2; exec emucsd-ocfs2 keep 0000:00:{slot:02x}.0 {folder}")
    return found


def sources(kind: str) -> Sequence[Path]:
    """Our own packages that a machine gets. :raises TestbedError: one is not here"""
    return [_package(name) for name in _SOURCES[kind]]


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    places = list(found.submodule_search_locations or []) if found is not None else []
    if not places:
        raise TestbedError(f"the package {name} is not installed here, and machines need it")
    return Path(places[0])


def cluster(addresses: dict[str, str]) -> str:
    """/etc/ocfs2/cluster.conf: every machine is a node, named as its host name is."""
    text = f"cluster:\n\tnode_count = {len(addresses)}\n\tname = {CLUSTER}\n\n"
    for number, (name, address) in enumerate(addresses.items()):
        text += (
            f"node:\n\tip_port = {_CLUSTER_PORT}\n\tip_address = {address}\n\tnumber = {number}\n\tname = {name}\n"
            f"\tcluster = {CLUSTER}\n\n"
        )
    return text
