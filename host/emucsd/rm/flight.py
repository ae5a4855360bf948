"""Batches in flight: a slot each, with its payload, its outputs and its two commands; the oldest is read first.

RM_READ goes out once RM_SEND has completed, since a command without data overtakes one whose data are still on their
way; it waits in the drive until the outputs are there. Results are copied to where the caller reads them, so a slot is
free as soon as it is read.
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
from emucsd.rm.registers import Registers
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
    """A part under way, and the tokens of its two commands, -1 where there is none out."""

    def __init__(self, batch: Batch, part: Part, slot: Slot, filled: Filled) -> None:
        self.batch, self.part, self.slot, self.filled = batch, part, slot, filled
        self.sending = self.reading = -1
        self.tries = 0
        self.place = 0  # among the batches that the drive has accepted, from 1 on

    def fail(self, error: EmucsdError) -> None:
        """The first error is the batch's."""
        self.batch.error = self.batch.error or error


Explain = Callable[[Batch, Part, str, int, int], EmucsdError]


class Flight:
    """The parts under way of one session, in the order in which they were sent.

    :ivar depth: parts that may be under way; ``width``: numbers of a sample's outputs
    :param slots: one more than that, so that the next part is written while all are under way
    :param explain: makes the error for a batch, part, command, status and dword 0
    :param again: send a part again when its tables changed while it was under way
    :param registers: the session's, where they are in reach; with ``mmio`` parameters go through them
    """

    def __init__(
        self,
        drive: Drive,
        slots: list[Slot],
        width: int,
        explain: Explain,
        *,
        again: bool,
        registers: Registers | None = None,
        mmio: bool = False,
    ) -> None:
        self._queue = drive.queue
        self._registers, self._mmio, self._accepted = registers, mmio, 0
        self._free = slots[::-1]
        self.depth, self.width = len(slots) - 1, width
        self._explain, self._again = explain, again
        self._flying: collections.deque[_Flying] = collections.deque()

    def __len__(self) -> int:
        return len(self._flying)

    @property
    def free(self) -> int:
        """Parts that can be sent without waiting."""
        return self.depth - len(self._flying)

    @property
    def queue(self) -> Any:
        """The queue that the commands go over."""
        return self._queue

    def slot(self) -> Slot:
        """A free slot: there is always one."""
        return self._free.pop()

    def give_back(self, slot: Slot) -> None:
        """It was not used."""
        self._free.append(slot)

    def send(self, batch: Batch, part: Part, slot: Slot, filled: Filled) -> None:
        """Send what lies in the slot, after waiting for the oldest part where as many as may be are under way.

        Where that fails the slot is free again, and the batch waits for one part less.
        """
        slot.send[_BYTES] = filled.size
        slot.read[_BYTES] = 4 * part.samples * self.width
        flying = _Flying(batch, part, slot, filled)
        try:
            while len(self._flying) >= self.depth:
                self.finish_oldest()
            self._submit(flying)
        except BaseException:
            self._free.append(slot)
            batch.left -= 1
            raise
        earlier = list(self._flying)
        self._flying.append(flying)
        for before in earlier:
            self._read(before)

    def _submit(self, flying: _Flying) -> None:
        """Send a part, for the first time or once more."""
        slot, filled, samples = flying.slot, flying.filled, flying.part.samples
        if self._mmio and self._registers is not None:
            for earlier in self._flying:  # they have taken theirs
                self._read(earlier)
            slot.header[:3] = 0
            self._registers.leave(samples, filled.lookups, filled.flags)
        else:
            slot.header[0], slot.header[1], slot.header[2] = samples, filled.lookups, filled.flags
        flying.tries += 1
        flying.sending = self._queue.submit_one(slot.send, slot.payload[: filled.size])

    def _read(self, flying: _Flying) -> None:
        """Have its outputs brought, once it was accepted; waits for that."""
        if flying.sending < 0:
            return
        done = self._queue.wait(flying.sending)
        flying.sending = -1
        if done.status & 0x7FF:
            error = self._explain(flying.batch, flying.part, "RM_SEND", done.status, done.result & 0xFFFF_FFFF)
            flying.fail(error)
            return
        self._accepted += 1
        flying.place = self._accepted
        outputs = flying.slot.outputs[: flying.part.samples * self.width]
        flying.reading = self._queue.submit_one(flying.slot.read, outputs)

    def finish_oldest(self) -> None:
        """Wait for the oldest part; its slot is free then. Its error, if any, is its batch's."""
        flying = self._flying[0]
        while self._changed(flying):
            self._submit(flying)  # once more, from the payload that is still there
        self._flying.popleft()
        self._free.append(flying.slot)
        flying.batch.left -= 1

    def _changed(self, flying: _Flying) -> bool:
        """Wait for a part's outputs. Whether they may mix versions of a table, and are to be asked for again."""
        self._read(flying)
        if flying.reading < 0:
            return False
        done = self._queue.wait(flying.reading)
        flying.reading = -1
        part, status = flying.part, done.status & 0x7FF
        if status:
            flying.fail(self._explain(flying.batch, part, "RM_READ", done.status, done.result & 0xFFFF_FFFF))
            return False
        if done.result & 1 and self._again and flying.tries < TRIES:
            return True
        outputs = flying.slot.outputs[: part.samples * self.width]
        flying.batch.out[part.first : part.last] = outputs.reshape(part.samples, self.width)
        return False

    def ended(self, batch: Batch) -> bool:
        """Whether a batch's outputs are there, by the registers: nothing is sent, nothing is waited for.

        False as well where they are not in reach, and for a batch that was refused.
        """
        place, accepted = 0, self._accepted
        for flying in self._flying:
            if flying.sending >= 0:  # accepted, as far as is known
                accepted += 1
            if flying.batch is batch:
                place = accepted if flying.sending >= 0 else flying.place
        return self._registers is not None and place > 0 and self._registers.ready >= place

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
            flying.fail(error)
            flying.batch.left -= 1
            for token in (flying.sending, flying.reading):
                if token >= 0 and timeout > 0:
                    try:
                        self._queue.wait(token, timeout)
                    except EmucsdError:
                        self._queue.abandon(token)
