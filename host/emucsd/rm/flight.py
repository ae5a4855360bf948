"""Batches in flight: a slot each, with its payload, its outputs and its two commands; the oldest is read first.

RM_READ goes out once RM_SEND has completed, since the two may overtake each other on the way; it waits in the drive
until the outputs are there. Results are copied to where the caller reads them, so a slot is free as soon as it is read.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emucsd.drive import Drive
from emucsd.errors import EmucsdError
from emucsd.passthrough import entry
from emucsd.rm.inputs import Floats, Sparse
from emucsd.rm.payload import Filled, Part
from emucsd_wire.nvme import SQE, Io

TRIES = 16  # of a batch whose tables change while it is under way
_BYTES, _TAG = "cdw12", "cdw11"


class Slot:
    """Memory and commands of one batch in flight; its number is its tag."""

    def __init__(self, drive: Drive, number: int, session: int, nsid: int, size: int, outputs: int) -> None:
        """:param size: bytes of a payload; ``outputs``: numbers of a result, both at most"""
        self.number = number
        self.payload: NDArray[np.uint8] = drive.alloc(size)
        self.header = self.payload[:32].view(np.uint32)
        self.header[:] = 0
        self.outputs: Floats = drive.alloc(outputs, np.float32)
        self.send, self.read = (
            np.frombuffer(SQE.pack(entry(opcode, nsid, cdw10=session, cdw11=number)), SQE.dtype).copy()
            for opcode in (Io.RM_SEND, Io.RM_READ)
        )


class Batch:
    """What a caller waits for: one answer, out of one or several parts."""

    def __init__(self, sparse: Sparse, parts: int, outputs: int) -> None:
        self.sparse, self.left = sparse, parts
        self.out: Floats = np.empty((sparse.samples, outputs), np.float32)
        self.error: EmucsdError | None = None


class _Flying:
    """A part under way. ``token`` is RM_SEND's until ``reading``, then RM_READ's."""

    def __init__(self, batch: Batch, part: Part, slot: Slot, filled: Filled, token: int) -> None:
        self.batch, self.part, self.slot, self.filled, self.token = batch, part, slot, filled, token
        self.reading = False
        self.tries = 1


Explain = Callable[[Batch, Part, str, int, int], EmucsdError]


class Flight:
    """The parts under way of one session, in the order in which they were sent.

    :ivar depth: slots; ``width``: numbers of a sample's outputs
    :param explain: makes the error for a batch, part, command, status and dword 0
    :param again: send a part again when its tables changed while it was under way
    """

    def __init__(self, drive: Drive, slots: list[Slot], width: int, explain: Explain, *, again: bool) -> None:
        self._queue = drive.queue
        self._free = slots[::-1]
        self.depth, self.width = len(slots), width
        self._explain, self._again = explain, again
        self._flying: collections.deque[_Flying] = collections.deque()

    def __len__(self) -> int:
        return len(self._flying)

    @property
    def free(self) -> int:
        """Slots that ``slot`` gives without waiting."""
        return len(self._free)

    @property
    def queue(self) -> Any:
        """The queue that the commands go over."""
        return self._queue

    def slot(self) -> Slot:
        """A free slot, after waiting for the oldest part where there is none."""
        if not self._free:
            self.finish_oldest()
        return self._free.pop()

    def give_back(self, slot: Slot) -> None:
        """It was not used."""
        self._free.append(slot)

    def send(self, batch: Batch, part: Part, slot: Slot, filled: Filled) -> None:
        """Send what lies in the slot; then have the parts before it read."""
        slot.header[0], slot.header[1], slot.header[2] = part.samples, filled.lookups, filled.flags
        slot.send[_BYTES] = filled.size
        slot.read[_BYTES] = 4 * part.samples * self.width
        token = self._queue.submit_one(slot.send, slot.payload[: filled.size])
        earlier = list(self._flying)
        self._flying.append(_Flying(batch, part, slot, filled, token))
        for flying in earlier:
            self._read(flying)

    def _read(self, flying: _Flying) -> None:
        """Have its outputs brought, once it was accepted."""
        if flying.reading or flying.token < 0:
            return
        done = self._queue.wait(flying.token)
        flying.token = -1
        if done.status & 0x7FF:
            flying.batch.error = flying.batch.error or self._explain(
                flying.batch, flying.part, "RM_SEND", done.status, done.result & 0xFFFF_FFFF
            )
            return
        slot, part = flying.slot, flying.part
        flying.token = self._queue.submit_one(slot.read, slot.outputs[: part.samples * self.width])
        flying.reading = True

    def finish_oldest(self) -> None:
        """Wait for the oldest part; its slot is free then. Its error, if any, is its batch's."""
        flying = self._flying[0]
        while True:
            self._read(flying)
            if flying.token < 0:
                break
            done = self._queue.wait(flying.token)
            flying.token = -1
            batch, part = flying.batch, flying.part
            if done.status & 0x7FF:
                batch.error = batch.error or self._explain(
                    batch, part, "RM_READ", done.status, done.result & 0xFFFF_FFFF
                )
                break
            if done.result & 1 and self._again and flying.tries < TRIES:
                self._resend(flying)
                continue
            got = flying.slot.outputs[: part.samples * self.width]
            batch.out[part.first : part.last] = got.reshape(part.samples, self.width)
            break
        self._flying.popleft()
        self._free.append(flying.slot)
        flying.batch.left -= 1

    def _resend(self, flying: _Flying) -> None:
        """Its samples may have seen different versions of a table: once more, from the payload that is still there."""
        slot = flying.slot
        flying.tries += 1
        flying.reading = False
        flying.token = self._queue.submit_one(slot.send, slot.payload[: flying.filled.size])

    def finish(self, batch: Batch) -> None:
        """Wait for a batch, and whatever was sent before it."""
        while batch.left:
            self.finish_oldest()

    def finish_all(self) -> None:
        """Wait for everything."""
        while self._flying:
            self.finish_oldest()

    def drop(self, error: EmucsdError, timeout: float) -> None:
        """The session is gone, or to go: what is under way ends with this error, and its commands are let go.

        :param timeout: 0: the queue is gone as well, and must not be touched: its doorbell is a new queue's by now
        """
        while self._flying:
            flying = self._flying.popleft()
            flying.batch.error = flying.batch.error or error
            flying.batch.left -= 1
            if flying.token >= 0 and timeout > 0:
                try:
                    self._queue.wait(flying.token, timeout)
                except EmucsdError:
                    self._queue.abandon(flying.token)
