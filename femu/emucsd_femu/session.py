"""One client's vfio-user conversation with one port.

A session answers messages in order, one at a time, and keeps what the client brought (memory, eventfds) until it
unmaps it or is gone. Which way the doorbells go is chosen once, by the VERSION message:

- *mapped*: the pages from BAR0 + 0x1000 on may be mapped, a doorbell is a plain store that the data plane finds;
- *trapped*: no region may be mapped, so that QEMU posts its doorbell writes as messages and waits for none.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from emucsd_femu.dma import DmaTable
from emucsd_femu.errors import ConnectionLost, MessageError
from emucsd_femu.interrupts import Interrupts, irq_count
from emucsd_femu.memory_guard import MemoryGuard
from emucsd_femu.messages import Channel, Message
from emucsd_femu.pci import DOORBELL_PAGE, MAPPABLE_BYTES, USED_BYTES, ConfigSpace, region_bytes
from emucsd_femu.port import DevicePort
from emucsd_firmware.errors import FirmwareError
from emucsd_wire.layout import Codec
from emucsd_wire.vfio_user import (
    CAP_SPARSE_MMAP,
    DEVICE_INFO,
    DMA_MAP,
    DMA_UNMAP,
    HEADER,
    IRQ_INFO,
    IRQ_SET,
    IRQS,
    MAX_FDS,
    MAX_MAPS,
    MAX_TRANSFER,
    MULTI_WRITE,
    MULTI_WRITES,
    OWN_CAPABILITY,
    PAGE_SIZES,
    REGION_ACCESS,
    REGION_INFO,
    REGIONS,
    SPARSE_MMAP,
    TYPE_COMMAND,
    TYPE_MASK,
    TYPE_REPLY,
    VERSION,
    Command,
    DeviceFlag,
    DeviceInfo,
    IrqFlag,
    IrqInfo,
    Region,
    RegionAccess,
    RegionFlag,
    RegionInfo,
    SparseMmap,
    Version,
)

log = logging.getLogger(__name__)

W = TypeVar("W", bound=tuple[Any, ...])

_CAPABILITIES = {
    "max_msg_fds": MAX_FDS,
    "max_data_xfer_size": MAX_TRANSFER,
    "pgsizes": PAGE_SIZES,
    "max_dma_maps": MAX_MAPS,
}  # write_multiple is left out: it makes QEMU queue every message
_VERSION_LIMIT = 4096


class Doorbells(Enum):
    """How a drive offers its doorbells; AUTO leaves it to each client's VERSION message."""

    AUTO = "auto"
    MAPPED = "mapped"
    TRAPPED = "trapped"


class State(Enum):
    """Where a session is."""

    NEW = "connected, no version agreed"
    READY = "version agreed"
    CLOSED = "closed"


class Reply(NamedTuple):
    """What a message is answered with."""

    payload: bytes = b""
    fds: tuple[int, ...] = ()


def _unpack(codec: Codec[W], payload: bytes) -> W:
    if len(payload) < codec.size:
        raise MessageError(errno.EINVAL, f"payload of {len(payload)} bytes, {codec.layout.__name__} has {codec.size}")
    return codec.unpack(payload)


def parse_capabilities(text: bytes) -> dict[str, Any] | None:
    """The client's capabilities, None where it sent no text. :raises MessageError: not NUL-terminated JSON objects"""
    if not text:
        return None
    if len(text) > _VERSION_LIMIT or text[-1] != 0:
        raise MessageError(errno.EINVAL, f"version text of {len(text)} bytes is too long or lacks its NUL")
    try:
        content = json.loads(text[:-1] or b"{}")
    except (ValueError, RecursionError) as problem:
        raise MessageError(errno.EINVAL, f"version text is no JSON: {problem}") from problem
    capabilities = content.get("capabilities", {}) if isinstance(content, dict) else None
    if not isinstance(capabilities, dict):
        raise MessageError(errno.EINVAL, "version text is no object of capabilities")
    return capabilities


def choose_doorbells(capabilities: dict[str, Any] | None) -> Doorbells:
    """SPDK sends no text and needs the page mapped, our own client says who it is; anybody else is QEMU-like."""
    if capabilities is None or capabilities.get(OWN_CAPABILITY):
        return Doorbells.MAPPED
    return Doorbells.TRAPPED


class Session:
    """One connection to one port. Its owner calls ``pump`` when the socket is ready, and ``close`` at the end."""

    def __init__(
        self,
        channel: Channel,
        port: DevicePort,
        config: ConfigSpace,
        doorbells: Doorbells,
        guard: MemoryGuard | None = None,
    ) -> None:
        self.channel = channel
        self.state = State.NEW
        self.doorbells = doorbells
        self.messages = 0
        self.refused = 0
        self._port = port
        self._config = config
        self._dma = DmaTable(port, guard)
        self._interrupts = Interrupts(port)
        self._answers: dict[int, Callable[[Message], Reply]] = {
            Command.VERSION: self._version,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._device_info,
            Command.DEVICE_GET_REGION_INFO: self._region_info,
            Command.DEVICE_GET_IRQ_INFO: self._irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.REGION_WRITE_MULTI: self._region_write_multi,
            Command.DEVICE_RESET: self._device_reset,
        }

    def pump(self, limit: int = 64) -> bool:
        """Answer what has arrived, at most ``limit`` messages. :returns: whether the connection is still up"""
        try:
            for _ in range(limit):
                if not self.channel.flush():
                    break
                message = self.channel.receive()
                if message is None:
                    break
                with message:
                    self._handle(message)
        except ConnectionLost as end:
            log.log(logging.INFO if end.clean else logging.WARNING, "port %d: %s", self._port.number, end)
            return False
        except MessageError as problem:
            self._refuse_stream(problem)
            return False
        return True

    def close(self) -> None:
        """Reset the controller, then take back all that the client brought. Its queues must be gone first."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        for step in (self._port.reset, self._interrupts.clear, self._dma.clear, self._config.reset, self.channel.close):
            try:
                step()
            except (
                Exception
            ):  # our own bug: the other steps still matter, or the next client inherits this one's memory
                log.exception("port %d: %s failed while a client was let go", self._port.number, step.__qualname__)

    @property
    def memory_lost(self) -> bool:
        """Whether the client cut the memory that it had lent."""
        return self._dma.lost

    def status(self) -> dict[str, Any]:
        """For the control API."""
        return {
            "state": self.state.name.lower(),
            "doorbells": self.doorbells.value,
            "messages": self.messages,
            "refused": self.refused,
            "dma_ranges": len(self._dma),
            "dma_bytes": self._dma.mapped_bytes,
            "vectors": len(self._interrupts),
        }

    # one message

    def _handle(self, message: Message) -> None:
        header = message.header
        self.messages += 1
        if header.flags & TYPE_MASK == TYPE_REPLY:
            raise ConnectionLost(f"unsolicited reply to command {header.command}")
        error, reply = 0, Reply()
        try:
            reply = self._answer(message)
        except MessageError as problem:
            error = problem.errno
            self._note(message, problem)
        except FirmwareError as problem:
            error = errno.EINVAL
            self._note(message, problem)
        if message.wants_reply:
            self.channel.reply(header, b"" if error else reply.payload, reply.fds, error)

    def _answer(self, message: Message) -> Reply:
        header = message.header
        if header.flags & TYPE_MASK != TYPE_COMMAND:
            raise MessageError(errno.EINVAL, f"message type {header.flags & TYPE_MASK}")
        answer = self._answers.get(header.command)
        if answer is None:
            raise MessageError(errno.EOPNOTSUPP, f"command {header.command} is unknown")
        if (self.state is State.NEW) != (header.command == Command.VERSION):
            raise MessageError(errno.EINVAL, f"command {header.command} while {self.state.value}")
        if message.too_many_fds:
            raise MessageError(errno.EINVAL, f"more than {MAX_FDS} descriptors came with one message")
        return answer(message)

    def _note(self, message: Message, problem: Exception) -> None:
        """Log a refusal; a client that does nothing else must not fill the disk."""
        self.refused += 1
        if self.refused & self.refused - 1 == 0:
            log.warning("port %d: refused command %d: %s", self._port.number, message.header.command, problem)

    def _refuse_stream(self, problem: MessageError) -> None:
        """A size that cannot be: say so, as the stream can't be followed behind it."""
        log.warning("port %d: %s; closing", self._port.number, problem)
        try:
            self.channel.reply(self.channel.refused, error=problem.errno)
        except ConnectionLost as end:
            log.info("port %d: %s", self._port.number, end)

    # the commands

    def _version(self, message: Message) -> Reply:
        """Our reply must fit into the request's size (QEMU's buffer), and minor must be 0, whatever SPDK asks for."""
        asked = _unpack(VERSION, message.payload)
        if asked.major != 0:
            raise MessageError(errno.EINVAL, f"version {asked.major}.{asked.minor}; this server speaks 0.0")
        capabilities = parse_capabilities(message.payload[VERSION.size :])
        if self.doorbells is Doorbells.AUTO:
            self.doorbells = choose_doorbells(capabilities)
        self._port.trapped = self.doorbells is Doorbells.TRAPPED
        self.state = State.READY
        log.info("port %d: client connected, doorbells %s", self._port.number, self.doorbells.value)
        fixed = VERSION.pack(Version(0, 0))
        for offered in ({"capabilities": _CAPABILITIES}, {}):
            text = json.dumps(offered, separators=(",", ":")).encode() + b"\0"
            if HEADER.size + len(fixed) + len(text) <= message.header.size:
                return Reply(fixed + text)
        return Reply(fixed)

    def _dma_map(self, message: Message) -> Reply:
        self._dma.map(_unpack(DMA_MAP, message.payload), message.fds)
        return Reply()

    def _dma_unmap(self, message: Message) -> Reply:
        self._dma.unmap(_unpack(DMA_UNMAP, message.payload))
        return Reply(message.payload[: DMA_UNMAP.size])

    def _device_info(self, message: Message) -> Reply:
        asked = _unpack(DEVICE_INFO, message.payload)
        _check_argsz(asked.argsz, DEVICE_INFO.size)
        flags = DeviceFlag.RESET | DeviceFlag.PCI
        return Reply(DEVICE_INFO.pack(DeviceInfo(DEVICE_INFO.size, flags, REGIONS, IRQS)))

    def _region_info(self, message: Message) -> Reply:
        """A client that has room for 32 bytes only learns how many it needs, and asks again."""
        asked = _unpack(REGION_INFO, message.payload)
        _check_argsz(asked.argsz, REGION_INFO.size)
        if asked.region >= REGIONS:
            raise MessageError(errno.EINVAL, f"region {asked.region}, the last is {REGIONS - 1}")
        size = region_bytes(asked.region)
        flags = RegionFlag.READ | RegionFlag.WRITE if size else RegionFlag(0)
        plain = RegionInfo(REGION_INFO.size, flags, asked.region, 0, size, 0)
        if asked.region != Region.BAR0 or self.doorbells is not Doorbells.MAPPED:
            return Reply(REGION_INFO.pack(plain))
        whole = REGION_INFO.size + SPARSE_MMAP.size
        if asked.argsz < whole:
            return Reply(REGION_INFO.pack(plain._replace(argsz=whole)))
        flags |= RegionFlag.MMAP | RegionFlag.CAPS
        info = RegionInfo(whole, flags, asked.region, REGION_INFO.size, size, self._file_offset())
        area = SparseMmap(CAP_SPARSE_MMAP, 1, 0, 1, 0, DOORBELL_PAGE, MAPPABLE_BYTES)
        return Reply(REGION_INFO.pack(info) + SPARSE_MMAP.pack(area), (self._port.doorbell_fd,))

    def _file_offset(self) -> int:
        """What a client adds to the area's offset to find it in its file, whose end it is (u64, wraps)."""
        start = os.fstat(self._port.doorbell_fd).st_size - MAPPABLE_BYTES
        return (start - DOORBELL_PAGE) & 0xFFFF_FFFF_FFFF_FFFF

    def _irq_info(self, message: Message) -> Reply:
        asked = _unpack(IRQ_INFO, message.payload)
        _check_argsz(asked.argsz, IRQ_INFO.size)
        if asked.irq >= IRQS:
            raise MessageError(errno.EINVAL, f"irq {asked.irq}, the last is {IRQS - 1}")
        # without NORESIZE a client adds and takes vectors one by one, instead of all anew
        return Reply(IRQ_INFO.pack(IrqInfo(IRQ_INFO.size, IrqFlag.EVENTFD, asked.irq, irq_count(asked.irq))))

    def _set_irqs(self, message: Message) -> Reply:
        request = _unpack(IRQ_SET, message.payload)
        _check_argsz(request.argsz, IRQ_SET.size)
        self._interrupts.set(request, message.payload[IRQ_SET.size :], message.fds)
        return Reply()

    def _region_read(self, message: Message) -> Reply:
        access = _unpack(REGION_ACCESS, message.payload)
        return Reply(message.payload[: REGION_ACCESS.size] + self._read(access))

    def _region_write(self, message: Message) -> Reply:
        access = _unpack(REGION_ACCESS, message.payload)
        data = message.payload[REGION_ACCESS.size :]
        if len(data) != access.length:
            raise MessageError(errno.EINVAL, f"write of {access.length} bytes carries {len(data)}")
        self._write(access, data)
        return Reply(message.payload[: REGION_ACCESS.size])

    def _region_write_multi(self, message: Message) -> Reply:
        count = int.from_bytes(message.payload[:8], "little")
        items = message.payload[8:]
        if len(message.payload) < 8 or count > MULTI_WRITES or len(items) != count * MULTI_WRITE.size:
            raise MessageError(
                errno.EINVAL, f"{count} writes in {len(message.payload)} bytes, the most is {MULTI_WRITES}"
            )
        for at in range(0, len(items), MULTI_WRITE.size):
            item = MULTI_WRITE.unpack(items, at)
            if item.length > 8:
                raise MessageError(errno.EINVAL, f"write of {item.length} bytes, the most is 8")
            data = item.data.to_bytes(8, "little")[: item.length]
            self._write(RegionAccess(item.offset, item.region, item.length), data)
        return Reply(message.payload[:8])

    def _device_reset(self, message: Message) -> Reply:
        self._reset()
        return Reply()

    # the device

    def _reset(self) -> None:
        self._port.reset()
        self._config.reset()

    def _read(self, access: RegionAccess) -> bytes:
        _check_access(access)
        if access.region == Region.BAR0 and access.offset < USED_BYTES:
            return self._port.region_read(Region.BAR0, access.offset, access.length)
        if access.region == Region.CONFIG:
            return self._config.read(access.offset, access.length)
        return bytes(access.length)  # MSI-X: clients keep the table themselves, and nothing is ever pending; reserved

    def _write(self, access: RegionAccess, data: bytes) -> None:
        _check_access(access)
        if access.region == Region.BAR0 and access.offset < USED_BYTES:
            self._port.region_write(Region.BAR0, access.offset, data)
        elif access.region == Region.CONFIG and self._config.write(access.offset, data):
            log.info("port %d: function level reset", self._port.number)
            self._reset()


def _check_argsz(argsz: int, needed: int) -> None:
    if argsz < needed:
        raise MessageError(errno.EINVAL, f"argsz {argsz}, at least {needed} is needed")


def _check_access(access: RegionAccess) -> None:
    size = region_bytes(access.region)
    if access.length == 0 or access.length > MAX_TRANSFER or access.offset + access.length > size:
        raise MessageError(
            errno.EINVAL, f"{access.offset:#x}+{access.length:#x} is outside region {access.region} ({size:#x} bytes)"
        )
