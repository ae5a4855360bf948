"""What a queue pair needs of the connection: the socket, shared memory, the doorbell page and the clock."""

from __future__ import annotations

import mmap

import numpy as np

from emucsd.buffers import SharedMemory
from emucsd.clock import Clock, RealClock
from emucsd.vfio import VfioUser
from emucsd.virtual import VirtualClock
from emucsd_wire.nvme import CLOCK_WORDS_OFFSET, Register
from emucsd_wire.vfio_user import Region

_MODE, _ATTACHED = 0, 6  # ClockWords
_VIRTUAL = 1


class Link:
    """One attached port.

    :ivar page: address of BAR0 + 0x1000 as mapped here, 0 where doorbells are messages
    :ivar clock: the drive's time as this client sees it
    """

    def __init__(self, vfio: VfioUser, memory: SharedMemory) -> None:
        self.vfio, self.memory = vfio, memory
        self._mapping: mmap.mmap | None = None
        self.page = 0
        mapping, info = vfio.map_region(Region.BAR0)
        if mapping is not None and info.mappable_offset == Register.DOORBELLS:
            self._mapping = mapping
            self.page = int(np.frombuffer(mapping, np.uint8).ctypes.data)
        vfio.dma_map(memory.fd, 0, memory.address, memory.size)
        self.clock: Clock = self._attach_clock()

    @property
    def page_view(self) -> memoryview | None:
        """The doorbell page, where it is mapped."""
        return memoryview(self._mapping) if self._mapping is not None else None

    @property
    def words(self) -> int:
        """Address of the ClockWords, 0 where they are not mapped."""
        return self.page + CLOCK_WORDS_OFFSET - Register.DOORBELLS if self.page else 0

    def _attach_clock(self) -> Clock:
        """Follow the drive's clock, and say so: from here on it waits for our grants."""
        if self.read_word(_MODE) != _VIRTUAL:
            self.write_word(_ATTACHED, 1)
            return RealClock()
        clock = VirtualClock(self)
        self.write_word(_ATTACHED, 1)
        return clock

    def read_word(self, index: int) -> int:
        """One of the ClockWords, by its place."""
        if self._mapping is not None:
            return int(np.frombuffer(self._mapping, "<i8", offset=self.words - self.page)[index])
        data = self.vfio.region_read(Region.BAR0, CLOCK_WORDS_OFFSET + 8 * index, 8)
        return int.from_bytes(data, "little")

    def write_word(self, index: int, value: int) -> None:
        """Store one of the ClockWords."""
        if self._mapping is not None:
            np.frombuffer(self._mapping, "<i8", offset=self.words - self.page)[index] = value
        else:
            self.vfio.region_write(Region.BAR0, CLOCK_WORDS_OFFSET + 8 * index, value.to_bytes(8, "little"))

    def doorbell(self, qid: int) -> int:
        """Address of a queue pair's two doorbells (CAP.DSTRD is 0), 0 where they are messages."""
        return self.page + 8 * qid if self.page else 0

    def close(self) -> None:
        """Hang up; the drive resets the controller and lets go of our memory."""
        self.vfio.close()
        self.memory.close()
