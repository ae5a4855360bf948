"""A vfio-user client: one connection to one port of a drive (vfio-user protocol 0.0).

Requests wait for their reply, one at a time. Beside them the compiled rings send posted REGION_WRITEs on the same
socket: each is one small send, which a stream socket takes whole or not at all, so messages never interleave.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import logging
import mmap
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from emucsd.errors import ConnectionLost, DriveBusy, DriveNotFound, DriveTimeout, ProtocolError, RequestRefused
from emucsd_wire import vfio_user as wire
from emucsd_wire.vfio_user import Command

log = logging.getLogger(__name__)

_LARGEST_REPLY = 1 << 20


class Reply(NamedTuple):
    """A reply's payload and the descriptors that came with it; whoever takes it closes them."""

    payload: bytes
    fds: list[int]


class RegionInfo(NamedTuple):
    """A region's size and, where one part of it can be mapped, that part."""

    size: int
    mappable_offset: int
    mappable_size: int  # 0: nothing can be mapped
    fd: int  # -1: none
    file_offset: int  # where ``mappable_offset`` lies in the file


class VfioUser:
    """A connection. Closing it makes the drive forget everything this client set up.

    :param path: the port's socket
    :param timeout: seconds that a reply may take
    :raises DriveNotFound: nothing listens there
    :raises DriveBusy: another client is on it
    :raises ProtocolError: no vfio-user 0.x server
    """

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        self.path, self.timeout = path, timeout
        self.lost: Callable[[str], ConnectionLost] = ConnectionLost  # a drive that we started knows more to say
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._lock = threading.RLock()
        self._inbox = bytearray()
        self._fds: list[int] = []
        self._next_id = 0
        self._error: ConnectionLost | None = None
        try:
            self._connect()
            self.capabilities = self._negotiate()
        except BaseException:
            self.close()
            raise

    # -- life ------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._socket.settimeout(self.timeout)
        try:
            self._socket.connect(os.fspath(self.path))
        except (FileNotFoundError, ConnectionRefusedError) as exc:
            raise DriveNotFound(f"no drive listens at {self.path}; start it first (emucsd up, or Drive.start)") from exc
        except TimeoutError as exc:
            raise DriveTimeout(
                f"{self.path} took no connection in {self.timeout:g} s; is another client on it?"
            ) from exc

    def _negotiate(self) -> dict[str, Any]:
        offer = {
            "capabilities": {"max_msg_fds": wire.MAX_FDS, "max_data_xfer_size": 1 << 20, wire.OWN_CAPABILITY: True}
        }
        text = json.dumps(offer).encode() + b"\0"
        try:
            payload = self.request(Command.VERSION, wire.VERSION.pack(wire.Version(0, 0)) + text).payload
        except RequestRefused as exc:
            if exc.errno != errno.EBUSY:
                raise
            raise DriveBusy(
                f"{self.path} serves another client{_mounted(self.path)}; close that one, or attach to the other port"
            ) from exc
        if len(payload) < wire.VERSION.size:
            raise ProtocolError(f"VERSION was answered with {len(payload)} bytes, at least 4 are due")
        version = wire.VERSION.unpack(payload)
        if version.major != 0:
            raise ProtocolError(f"the server speaks vfio-user {version.major}.{version.minor}; this client speaks 0.0")
        try:
            answer = json.loads(payload[wire.VERSION.size :].rstrip(b"\0") or b"{}")
            return dict(answer.get("capabilities", {}))
        except (ValueError, AttributeError, TypeError) as exc:
            raise ProtocolError(f"VERSION was answered with no JSON object: {payload[4:80]!r}") from exc

    def close(self) -> None:
        """Leave. Harmless when repeated."""
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def fileno(self) -> int:
        """The socket's descriptor, for posted doorbells from compiled code."""
        return self._socket.fileno()

    def check(self) -> None:
        """:raises ConnectionLost: (or what ``lost`` makes) the drive has hung up"""
        if self._error is not None:
            raise self.lost(str(self._error))
        poller = select.poll()
        poller.register(self._socket, select.POLLRDHUP)
        if poller.poll(0):
            self._fail("the drive closed the connection")

    def _fail(self, text: str, cause: BaseException | None = None) -> None:
        self._error = ConnectionLost(f"{self.path}: {text}; commands that were out have no known outcome")
        raise self.lost(str(self._error)) from cause

    # -- messages --------------------------------------------------------------------------------------------------

    def request(self, command: Command, payload: bytes = b"", fds: list[int] | None = None) -> Reply:
        """Send one request and wait for its reply.

        :raises RequestRefused: an error reply
        :raises ConnectionLost: hang-up
        :raises DriveTimeout: no reply within ``timeout``
        """
        with self._lock:
            if self._error is not None:
                raise self.lost(str(self._error))
            self._next_id = (self._next_id + 1) & 0xFFFF
            header = wire.Header(self._next_id, command, wire.HEADER.size + len(payload), wire.TYPE_COMMAND, 0)
            deadline = time.monotonic() + self.timeout
            self._send(wire.HEADER.pack(header) + payload, fds or [])
            while True:
                answer, reply = self._receive(command.name, deadline)
                if answer.flags & wire.TYPE_MASK == wire.TYPE_COMMAND:
                    self._decline(answer)
                elif answer.message_id == header.message_id:
                    break
                # else: the reply of a request whose wait was interrupted
                for fd in reply.fds:
                    os.close(fd)
        if answer.command != command:
            raise ProtocolError(f"{command.name} was answered as command {answer.command}")
        if answer.flags & wire.ERROR:
            for fd in reply.fds:
                os.close(fd)
            raise RequestRefused(command.name, answer.error)
        return reply

    def _send(self, message: bytes, fds: list[int]) -> None:
        """The drive gets the descriptors with the first byte, as the protocol wants."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self._socket.sendmsg([message], ancillary, socket.MSG_NOSIGNAL)
            if sent < len(message):
                self._socket.sendall(message[sent:])
        except TimeoutError as exc:
            raise DriveTimeout(f"{self.path} took no message for {self.timeout:g} s; its log may say why") from exc
        except OSError as exc:
            self._fail(f"sending failed: {exc.strerror}", exc)

    def _receive(self, name: str, deadline: float) -> tuple[wire.Header, Reply]:
        """The next whole message. An interrupted call leaves what it got for the next one."""
        self._read(wire.HEADER.size, name, deadline)
        header = wire.HEADER.unpack(self._inbox)
        if not wire.HEADER.size <= header.size <= _LARGEST_REPLY:
            self._fail(f"a message of {header.size} bytes (16 to {_LARGEST_REPLY} are legal)")
        self._read(header.size, name, deadline)
        payload = bytes(self._inbox[wire.HEADER.size : header.size])
        del self._inbox[: header.size]
        fds, self._fds = self._fds, []
        return header, Reply(payload, fds)

    def _read(self, count: int, name: str, deadline: float) -> None:
        """Read until the inbox holds ``count`` bytes, and no byte more: descriptors belong to one message."""
        while len(self._inbox) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DriveTimeout(f"{self.path}: no reply to {name} in {self.timeout:g} s; its log may say why")
            self._socket.settimeout(left)
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, count - len(self._inbox), wire.MAX_FDS)
            except TimeoutError:
                continue
            except OSError as exc:
                self._fail(f"receiving failed: {exc.strerror}", exc)
            self._fds += fds
            if not data:
                self._fail("the drive closed the connection")
            self._inbox += data

    def _decline(self, command: wire.Header) -> None:
        """Refuse a request of the server (DMA by message): all our memory is mapped."""
        log.warning("%s: declined command %d of the server", self.path, command.command)
        if not command.flags & wire.NO_REPLY:
            flags = wire.TYPE_REPLY | wire.ERROR
            size = wire.HEADER.size
            answer = wire.Header(command.message_id, command.command, size, flags, errno.EOPNOTSUPP)
            self._send(wire.HEADER.pack(answer), [])

    # -- the device ------------------------------------------------------------------------------------------------

    def device_info(self) -> wire.DeviceInfo:
        """:raises ProtocolError: no PCI device"""
        request = wire.DEVICE_INFO.pack(wire.DeviceInfo(wire.DEVICE_INFO.size, 0, 0, 0))
        info: wire.DeviceInfo = self._unpack(wire.DEVICE_INFO, self.request(Command.DEVICE_GET_INFO, request))
        if not info.flags & wire.DeviceFlag.PCI:
            raise ProtocolError(f"the device has flags {info.flags:#x}: no PCI device, so no NVMe controller")
        return info

    def region_info(self, region: wire.Region) -> RegionInfo:
        """Size of a region and the one area of it that may be mapped. Close ``fd`` when it is not -1."""
        most = wire.REGION_INFO.size + wire.SPARSE_MMAP.size
        request = wire.REGION_INFO.pack(wire.RegionInfo(most, 0, region, 0, 0, 0))
        reply = self.request(Command.DEVICE_GET_REGION_INFO, request)
        info = self._unpack(wire.REGION_INFO, reply)
        fd = reply.fds.pop(0) if reply.fds else -1
        for extra in reply.fds:
            os.close(extra)
        if fd == -1 or not info.flags & wire.RegionFlag.MMAP:
            return RegionInfo(info.size, 0, 0, fd, 0)
        offset, size = 0, info.size
        if info.flags & wire.RegionFlag.CAPS and info.cap_offset + wire.SPARSE_MMAP.size <= len(reply.payload):
            capability = wire.SPARSE_MMAP.unpack(reply.payload, info.cap_offset)
            if capability.id == wire.CAP_SPARSE_MMAP and capability.areas == 1:
                offset, size = capability.offset, capability.size
        return RegionInfo(info.size, offset, size, fd, (info.offset + offset) % (1 << 64))  # u64, and it wraps

    @staticmethod
    def _unpack(codec: Any, reply: Reply) -> Any:
        if len(reply.payload) < codec.size:
            raise ProtocolError(f"{codec.layout.__name__} of {len(reply.payload)} bytes, {codec.size} are due")
        return codec.unpack(reply.payload)

    def region_read(self, region: wire.Region, offset: int, count: int) -> bytes:
        """``count`` bytes of a region. :raises RequestRefused: outside of it"""
        request = wire.REGION_ACCESS.pack(wire.RegionAccess(offset, region, count))
        payload = self.request(Command.REGION_READ, request).payload
        data = payload[wire.REGION_ACCESS.size :]
        if len(data) != count:
            raise ProtocolError(f"REGION_READ of {count} bytes brought {len(data)}")
        return data

    def region_write(self, region: wire.Region, offset: int, data: bytes) -> None:
        """:raises RequestRefused: outside of the region, or not writable"""
        request = wire.REGION_ACCESS.pack(wire.RegionAccess(offset, region, len(data)))
        self.request(Command.REGION_WRITE, request + data)

    def posted_write(self, region: wire.Region, offset: int, value: bytes) -> bytes:
        """The bytes of a REGION_WRITE that gets no reply, for compiled code to send."""
        size = wire.HEADER.size + wire.REGION_ACCESS.size + len(value)
        header = wire.Header(0, Command.REGION_WRITE, size, wire.TYPE_COMMAND | wire.NO_REPLY, 0)
        return wire.HEADER.pack(header) + wire.REGION_ACCESS.pack(wire.RegionAccess(offset, region, len(value))) + value

    def map_region(self, region: wire.Region) -> tuple[mmap.mmap | None, RegionInfo]:
        """Map the mappable area of a region; None when the server offers none."""
        info = self.region_info(region)
        if info.mappable_size == 0:
            if info.fd != -1:
                os.close(info.fd)
            return None, info
        with contextlib.closing(_Descriptor(info.fd)):
            return mmap.mmap(info.fd, info.mappable_size, offset=info.file_offset), info

    def dma_map(self, fd: int, offset: int, iova: int, size: int) -> None:
        """Let the drive reach ``size`` bytes of a file as I/O virtual addresses from ``iova``."""
        flags = wire.DmaFlag.READ | wire.DmaFlag.WRITE
        request = wire.DMA_MAP.pack(wire.DmaMap(wire.DMA_MAP.size, flags, offset, iova, size))
        self.request(Command.DMA_MAP, request, [fd])

    def dma_unmap(self, iova: int, size: int) -> None:
        """Take a mapping back; the drive has let go of it when this returns."""
        request = wire.DMA_UNMAP.pack(wire.DmaUnmap(wire.DMA_UNMAP.size, 0, iova, size))
        self.request(Command.DMA_UNMAP, request)

    def set_vector(self, vector: int, eventfd: int) -> None:
        """Have an MSI-X vector signal an eventfd, which is non-blocking from then on."""
        flags = wire.IrqAction.DATA_EVENTFD | wire.IrqAction.TRIGGER
        request = wire.IRQ_SET.pack(wire.IrqSet(wire.IRQ_SET.size, flags, wire.Irq.MSIX, vector, 1))
        self.request(Command.DEVICE_SET_IRQS, request, [eventfd])

    def reset(self) -> None:
        """Function-level reset of the device."""
        self.request(Command.DEVICE_RESET)


def _mounted(path: Path) -> str:
    """' (…)' where the port's client is a mount of this machine's; only asked when something went wrong."""
    from emucsd.mount.mounts import mounts

    for mount in mounts():
        if (mount.runtime / f"port{mount.port}") == path.parent:
            return f" (emucsd mount on {mount.directory}: emucsd umount {mount.directory} ends it)"
    return ""


class _Descriptor:
    """A descriptor that contextlib.closing can close."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)
