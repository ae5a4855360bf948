"""A TUN device: IP packets of this machine as reads and writes (Linux, Documentation/networking/tuntap)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from emucsd.tunnel.errors import TunnelError

DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_REQUEST = struct.Struct("16sH22x")  # struct ifreq
_NAME_BYTES = 15


class Tun:
    """One device; it is gone when this is closed.

    :ivar dropped: packets that the kernel did not take
    """

    def __init__(self, fd: int, name: str) -> None:
        """On a descriptor that is a TUN device already; ``open`` makes one."""
        self.fd, self.name = fd, name
        self.dropped = 0
        os.set_blocking(fd, False)

    @classmethod
    def open(cls, name: str) -> Tun:
        """Make a device in this network namespace. :raises TunnelError: not allowed, or the kernel has none"""
        if not 0 < len(name) <= _NAME_BYTES:
            raise TunnelError(f"interface name {name!r}: use 1 to {_NAME_BYTES} characters")
        try:
            fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as problem:
            raise TunnelError(
                f"{DEVICE}: {problem.strerror}; load the module tun (as root: modprobe tun), or make the node"
            ) from problem
        try:
            fcntl.ioctl(fd, _TUNSETIFF, _REQUEST.pack(name.encode(), _IFF_TUN | _IFF_NO_PI))
        except OSError as problem:
            os.close(fd)
            why = {
                errno.EPERM: "it takes CAP_NET_ADMIN: run as root, or with --private in a network of its own",
                errno.EBUSY: "another program has this interface; choose another name",
            }.get(problem.errno or 0, "the kernel's log (dmesg) may say why")
            raise TunnelError(f"interface {name}: {problem.strerror}; {why}") from problem
        return cls(fd, name)

    def fileno(self) -> int:
        return self.fd

    def read(self, room: memoryview) -> int:
        """The next packet, straight into ``room``. :returns: its length, 0 when there is none"""
        try:
            return os.readv(self.fd, [room])
        except BlockingIOError:
            return 0
        except OSError as problem:
            if problem.errno == errno.EIO:  # the interface is down
                return 0
            raise

    def write(self, packet: memoryview) -> None:
        """Hand a packet to the kernel; what it does not take is dropped and counted, as networks do."""
        try:
            os.write(self.fd, packet)
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        """Harmless when repeated."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
