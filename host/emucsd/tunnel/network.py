"""Addresses, routes and MTU of a tunnel end by pyroute2, and a network namespace of one's own.

Without root an end lives in its own user and network namespace: there it is root over its own network, nowhere else.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import ipaddress
import os
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

from emucsd.tunnel.errors import TunnelError

DEFAULT_NETWORK = "10.77.0.0/24"
DEFAULT_MTU = 32000  # with what the kernel adds, a packet still fits into 32 KiB of contiguous memory
INTERFACE = "emucsd0"
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_HOST = 1  # the host's place in the network; ISP engine i has place 2 + i
_QUEUE = 256  # packets that the kernel keeps for a device


class Plan(NamedTuple):
    """Who has which address."""

    network: ipaddress.IPv4Network
    mtu: int

    @property
    def host(self) -> int:
        """The host's address, as a number."""
        return int(self.network.network_address) + _HOST

    def isp(self, index: int) -> int:
        """ISP engine ``index``'s. :raises TunnelError: the network is too small for it"""
        place = _HOST + 1 + index
        if place >= self.network.num_addresses - 1:
            raise TunnelError(f"{self.network} has no address for ISP engine {index}; choose a larger network")
        return int(self.network.network_address) + place


def plan(network: str = DEFAULT_NETWORK, mtu: int = DEFAULT_MTU) -> Plan:
    """:raises TunnelError: no IPv4 network, or an MTU out of range"""
    try:
        found = ipaddress.IPv4Network(network)
    except ValueError as problem:
        raise TunnelError(f"network {network!r}: {problem}; use one such as {DEFAULT_NETWORK}") from problem
    if not 576 <= mtu <= 65535:
        raise TunnelError(f"MTU {mtu}: use 576 to 65535")
    return Plan(found, mtu)


def dotted(address: int) -> str:
    """10.77.0.1 for its number."""
    return str(ipaddress.IPv4Address(address))


def configure(name: str, address: int, prefix: int, mtu: int) -> None:
    """Give an interface its one address, its MTU and its route, and bring it up (loopback too, where it is down).

    :raises TunnelError: the kernel refuses
    """
    routes_of, refusal = _pyroute2()
    try:
        with routes_of() as routes:
            index = routes.link_lookup(ifname=name)[0]
            routes.link("set", index=index, mtu=mtu, txqlen=_QUEUE)
            wanted = dotted(address)
            for found in routes.get_addr(index=index, family=2):
                if found.get_attr("IFA_LOCAL") != wanted or found["prefixlen"] != prefix:
                    routes.addr("del", index=index, address=found.get_attr("IFA_LOCAL"), prefixlen=found["prefixlen"])
            routes.addr("replace", index=index, address=wanted, prefixlen=prefix)
            routes.link("set", index=index, state="up")  # with it comes the route to the address's network
            routes.link("set", index=routes.link_lookup(ifname="lo")[0], state="up")
    except (refusal, OSError, IndexError) as problem:
        raise TunnelError(f"interface {name} with {dotted(address)}/{prefix}, MTU {mtu}: {problem}") from problem


def _pyroute2() -> tuple[Any, type[Exception]]:
    """pyroute2's IPRoute and its NetlinkError, without what the package's own ``__init__`` loads beside them.

    That is twice as much, and on an emulated processor takes seconds. The package is left as if nobody had loaded it:
    an import of all of it works as ever.
    """
    found = importlib.util.find_spec("pyroute2")
    if "pyroute2" in sys.modules or found is None or found.submodule_search_locations is None:
        return _all_of_pyroute2()
    package = types.ModuleType("pyroute2")
    package.__path__ = list(found.submodule_search_locations)
    package.__spec__ = found
    sys.modules["pyroute2"] = package
    try:
        linux = importlib.import_module("pyroute2.iproute.linux")
        exceptions = importlib.import_module("pyroute2.netlink.exceptions")
        return linux.IPRoute, exceptions.NetlinkError
    except (ImportError, AttributeError):  # another version, put together differently
        del sys.modules["pyroute2"]
        return _all_of_pyroute2()
    finally:
        if sys.modules.get("pyroute2") is package:
            del sys.modules["pyroute2"]


def _all_of_pyroute2() -> tuple[Any, type[Exception]]:
    pyroute2 = importlib.import_module("pyroute2")
    exceptions = importlib.import_module("pyroute2.netlink.exceptions")
    return pyroute2.IPRoute, exceptions.NetlinkError


def quiet(name: str) -> None:
    """No IPv6 on an interface: this network has none, and the kernel would send neighbour discovery into it."""
    with contextlib.suppress(OSError):  # no IPv6, or /proc/sys is read-only: those packets are dropped at the end
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


def may_configure() -> bool:
    """Whether this process may make interfaces in the network namespace that it is in (CAP_NET_ADMIN)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 12 & 1)
    return False


def enter_private() -> None:
    """Move this process, of one thread, into a network namespace of its own (without root: and a user namespace).

    :raises TunnelError: the system does not allow it
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = _CLONE_NEWNET if may_configure() and uid == 0 else _CLONE_NEWUSER | _CLONE_NEWNET
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        problem = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        raise TunnelError(
            f"no network namespace of one's own: {problem.strerror}; allow user namespaces (as root: sysctl "
            "kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 "
            "kernel.apparmor_restrict_unprivileged_userns=0), or run as root"
        ) from problem
    if flags & _CLONE_NEWUSER:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
