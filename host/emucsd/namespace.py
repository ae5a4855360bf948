"""A namespace: blocking reads and writes, batches, and the rest of the commands of NVM Command Set 1.1 section 3.3.

Arrays from ``drive.alloc`` are used in place; anything else is copied through the drive's memory. Transfers above the
drive's limit (MDTS) become several commands. Every method raises NvmeError where the drive refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.errors import BufferExhausted, InvalidArgument
from emucsd.outcome import Columns, Outcome
from emucsd.passthrough import Data, as_bytes, entry, run
from emucsd.transport import CommandQueue, Memory
from emucsd_wire.identify import IdentifyNamespace
from emucsd_wire.nvme import COPY_RANGE, DSM_RANGE, PAGE, Io

FUA = 1 << 30  # cdw12
_DEALLOCATE = 1 << 25  # cdw12 of Write Zeroes
_MOST_BLOCKS = 1 << 16
_PRP_LIST_BYTES = (PAGE // 8) * PAGE
_STAGE_BYTES = 8 << 20  # moved through the drive's memory at a time
_DSM_RANGES = 256
_SPLIT_DEPTH = 16

_WITHOUT_DATA = frozenset({Io.FLUSH, Io.WRITE_ZEROES, Io.WRITE_UNCORRECTABLE, Io.VERIFY})


class Namespace:
    """One attached namespace.

    :ivar nsid: its id
    :ivar blocks: its LBAs
    :ivar lba_bytes: bytes of each
    """

    def __init__(
        self, nsid: int, found: IdentifyNamespace, lba_bytes: int, mdts: int, queue: Callable[[], CommandQueue]
    ) -> None:
        """:param mdts: bytes that one command may transfer
        :param queue: gives the queue of the calling thread
        """
        self.nsid, self.identity, self.lba_bytes, self.blocks = nsid, found, lba_bytes, found.nsze
        self.max_blocks = max(min(mdts, _PRP_LIST_BYTES) // lba_bytes, 1)
        self._queue = queue

    def __repr__(self) -> str:
        return f"<Namespace {self.nsid}: {self.blocks} blocks of {self.lba_bytes} bytes>"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.blocks * self.lba_bytes

    @property
    def _memory(self) -> Memory:
        return self._queue().memory

    # -- data ----------------------------------------------------------------------------------------------------------

    def read(self, lba: int, blocks: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read ``blocks`` LBAs from ``lba``.

        :param out: array of exactly that many bytes, of any shape and dtype; in the drive's memory nothing is copied
        :returns: ``out``, or a new u8 array in the drive's memory (in this process's own where that is used up)
        """
        self._check(lba, blocks)
        size = blocks * self.lba_bytes
        if out is None:
            try:
                out = self._memory.array(size)
            except BufferExhausted:
                out = np.empty(size, np.uint8)
        if out.nbytes != size or not out.flags.c_contiguous or not out.flags.writeable:
            raise InvalidArgument(f"out has {out.nbytes} bytes, {blocks} blocks need {size}, contiguous and writable")
        row = out.reshape(-1).view(np.uint8)
        if self._memory.holds(row):
            self._transfer(Io.READ, lba, row)
            return out
        for at, piece in self._pieces(size):
            with self._memory.borrow(piece) as staged:
                self._transfer(Io.READ, lba + at // self.lba_bytes, staged)
                row[at : at + piece] = staged
        return out

    def write(self, lba: int, data: Data, *, fua: bool = False) -> None:
        """Write whole blocks from ``lba``.

        :param fua: complete only when the data are on flash (Force Unit Access)
        :raises InvalidArgument: no whole number of blocks
        """
        self._send(Io.WRITE, lba, data, FUA if fua else 0)

    def compare(self, lba: int, data: Data) -> None:
        """:raises CompareFailure: the drive holds something else there"""
        self._send(Io.COMPARE, lba, data, 0)

    def _send(self, opcode: Io, lba: int, data: Data, flags: int) -> None:
        row = as_bytes(data)
        if not len(row) or len(row) % self.lba_bytes:
            raise InvalidArgument(f"{len(row)} bytes are no whole number of blocks of {self.lba_bytes}")
        self._check(lba, len(row) // self.lba_bytes)
        if self._memory.holds(row):
            self._transfer(opcode, lba, row, flags)
            return
        for at, piece in self._pieces(len(row)):
            with self._memory.borrow(piece) as staged:
                staged[:] = row[at : at + piece]
                self._transfer(opcode, lba + at // self.lba_bytes, staged, flags)

    @staticmethod
    def _pieces(size: int) -> Iterator[tuple[int, int]]:
        for at in range(0, size, _STAGE_BYTES):
            yield at, min(_STAGE_BYTES, size - at)

    def _transfer(self, opcode: Io, lba: int, row: NDArray[np.uint8], flags: int = 0) -> None:
        """Bytes in the drive's memory, as one command or as many as MDTS asks for."""
        blocks = len(row) // self.lba_bytes
        if blocks <= self.max_blocks:
            command = entry(opcode, self.nsid, cdw10=lba & 0xFFFF_FFFF, cdw11=lba >> 32, cdw12=(blocks - 1) | flags)
            self._queue().call(command, row).check(f"{opcode.name} nsid {self.nsid} lba {lba} blocks {blocks}")
            return
        starts = np.arange(0, blocks, self.max_blocks, dtype=np.int64)
        counts = np.minimum(self.max_blocks, blocks - starts)
        columns = Columns(
            entry(opcode, self.nsid, cdw12=flags),
            lbas=lba + starts,
            blocks=counts,
            addresses=row.ctypes.data + starts * self.lba_bytes,
            sizes=counts * self.lba_bytes,
            data=(row,),
            latencies=False,
        )
        self._queue().submit(columns, depth=_SPLIT_DEPTH).check()

    def _check(self, lba: int, blocks: int) -> None:
        """The drive checks the namespace's end; here is what no command could even say."""
        if blocks < 1 or not 0 <= lba < 1 << 62:
            raise InvalidArgument(f"lba {lba}, {blocks} blocks: at least one block, from 0 up")

    # -- batches -------------------------------------------------------------------------------------------------------

    def submit(
        self,
        opcodes: ArrayLike,
        lbas: ArrayLike,
        buffers: NDArray[Any] | None = None,
        *,
        blocks: int = 1,
        depth: int = 32,
        fua: bool = False,
        burst: int | None = None,
        arrivals: ArrayLike | None = None,
        latencies: bool = True,
        queue: CommandQueue | None = None,
    ) -> Outcome:
        """Run a batch of commands of ``blocks`` LBAs each, ``depth`` at a time, in one compiled call.

        :param opcodes: ``Io.READ`` and the like, one for all or one for each
        :param lbas: first LBA of each
        :param buffers: in the drive's memory: either ``len(lbas)`` rows, or fewer that are used in turn (row i mod n)
        :param arrivals: ns after the start before which a command is not submitted: open-loop load
        :param queue: instead of this thread's
        :returns: statuses and latencies; ``.check()`` raises for the first that failed
        """
        starts = np.atleast_1d(np.asarray(lbas))
        size = blocks * self.lba_bytes
        if not 1 <= blocks <= self.max_blocks:
            raise InvalidArgument(f"{blocks} blocks a command: 1 to {self.max_blocks} fit in one transfer")
        codes = np.atleast_1d(np.asarray(opcodes))
        carries = not set(np.unique(codes).tolist()) <= _WITHOUT_DATA
        addresses = None
        if carries:
            addresses = self._addresses(buffers, len(starts), size)
        columns = Columns(
            entry(int(codes[0]), self.nsid, cdw12=(blocks - 1) | (FUA if fua else 0)),
            opcodes=codes if len(codes) > 1 else None,
            lbas=starts,
            addresses=addresses,
            sizes=None if addresses is None else size,
            arrivals=arrivals,
            data=() if buffers is None else (buffers,),
            latencies=latencies,
        )
        return (queue or self._queue()).submit(columns, depth=depth, burst=burst)

    def _addresses(self, buffers: NDArray[Any] | None, count: int, size: int) -> NDArray[np.int64]:
        if buffers is None or buffers.nbytes < size or buffers.nbytes % size:
            given = "no" if buffers is None else f"{buffers.nbytes} bytes of"
            raise InvalidArgument(
                f"{given} buffers: give drive.alloc((rows, {size})), one row a command or used in turn"
            )
        if not self._memory.holds(buffers):
            raise InvalidArgument("buffers of a batch must lie in the drive's memory, contiguous: use drive.alloc(…)")
        rows = buffers.nbytes // size
        return buffers.ctypes.data + (np.arange(count, dtype=np.int64) % rows) * size

    # -- commands without data, or with ranges -------------------------------------------------------------------------

    def flush(self) -> None:
        """Everything written and acknowledged so far survives a power cut (and kill -9) once this returns."""
        run(self._queue(), entry(Io.FLUSH, self.nsid), name=f"FLUSH nsid {self.nsid}")

    def verify(self, lba: int, blocks: int) -> None:
        """Read without transferring. :raises UnrecoveredRead: something there is lost"""
        self._each(Io.VERIFY, lba, blocks)

    def write_zeroes(self, lba: int, blocks: int, *, deallocate: bool = False) -> None:
        """Make blocks read as zeros; with ``deallocate`` their flash may be given up."""
        self._each(Io.WRITE_ZEROES, lba, blocks, _DEALLOCATE if deallocate else 0)

    def write_uncorrectable(self, lba: int, blocks: int) -> None:
        """Make reads of these blocks fail until they are written again."""
        self._each(Io.WRITE_UNCORRECTABLE, lba, blocks)

    def _each(self, opcode: Io, lba: int, blocks: int, flags: int = 0) -> None:
        self._check(lba, blocks)
        for at in range(0, blocks, _MOST_BLOCKS):
            count = min(_MOST_BLOCKS, blocks - at)
            low, high = lba + at & 0xFFFF_FFFF, lba + at >> 32
            command = entry(opcode, self.nsid, cdw10=low, cdw11=high, cdw12=(count - 1) | flags)
            run(self._queue(), command, name=f"{opcode.name} nsid {self.nsid} lba {lba + at} blocks {count}")

    def deallocate(self, lba: int, blocks: int) -> None:
        """Tell the drive that these blocks' contents are not needed (TRIM); they read as zeros."""
        self._check(lba, blocks)
        most = (1 << 32) - 1
        self.deallocate_ranges([(lba + at, min(most, blocks - at)) for at in range(0, blocks, most)])

    def deallocate_ranges(self, ranges: Sequence[tuple[int, int]]) -> None:
        """``deallocate`` for many (lba, blocks) at once."""
        for at in range(0, len(ranges), _DSM_RANGES):
            some = ranges[at : at + _DSM_RANGES]
            table = np.zeros(len(some), DSM_RANGE.dtype)
            table["slba"], table["blocks"] = [lba for lba, _ in some], [blocks for _, blocks in some]
            command = entry(Io.DATASET_MANAGEMENT, self.nsid, cdw10=len(some) - 1, cdw11=1 << 2)
            name = f"DATASET_MANAGEMENT nsid {self.nsid} lba {some[0][0]} and {len(some) - 1} more ranges"
            run(self._queue(), command, data=table, name=name)

    def copy(self, source: int, destination: int, blocks: int) -> None:
        """Copy blocks inside the drive; they do not cross the link."""
        self._check(source, blocks)
        self._check(destination, blocks)
        found = self.identity
        piece = min(found.mssrl or _MOST_BLOCKS, _MOST_BLOCKS)
        most = max(min(found.mcl or piece, piece * (found.msrc + 1)), 1)
        for at in range(0, blocks, most):
            count = min(most, blocks - at)
            starts = np.arange(0, count, piece, dtype=np.int64)
            table = np.zeros(len(starts), COPY_RANGE.dtype)
            table["slba"], table["blocks"] = source + at + starts, np.minimum(piece, count - starts) - 1
            low, high = destination + at & 0xFFFF_FFFF, destination + at >> 32
            command = entry(Io.COPY, self.nsid, cdw10=low, cdw11=high, cdw12=len(table) - 1)
            name = f"COPY nsid {self.nsid} lba {source + at} to {destination + at} blocks {count}"
            run(self._queue(), command, data=table, name=name)
