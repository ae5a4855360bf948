"""What is attached to the drive's own engine alone: whatever the host sends, it neither sees nor changes it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emucsd import Drive, Namespace, Table
from emucsd.direct import Direct
from emucsd.embedded import DriveProcess
from emucsd.errors import DriveTimeout, InvalidNamespace, NvmeError
from emucsd.passthrough import entry
from emucsd.rows import TableClosed
from emucsd.transport import CommandQueue
from emucsd_wire.nvme import COPY_RANGE, NSID_ALL, Admin, Io, Status
from emucsd_wire.vendor import VendorAdmin

SIZE = 32 << 20
BLOCKS = 2048  # of 4 KiB: 8 MiB of secrets
MARK = b"known to the drive's own engine alone; "
# what would take the controller away from under the test, waits by design, or is for all of the drive
LEFT_OUT = {
    Admin.DELETE_SQ,
    Admin.CREATE_SQ,
    Admin.DELETE_CQ,
    Admin.CREATE_CQ,
    Admin.ASYNC_EVENT_REQUEST,
    Admin.DOORBELL_BUFFER_CONFIG,
    Admin.SANITIZE,
}


class Both:
    """A drive with a namespace for each port alone, and a client on each."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.process = DriveProcess(profile="null", size=SIZE, store=store)
        self.attach()
        self.host.admin.delete_namespace(1)
        self.secret = self.engine.create_namespace(BLOCKS, shared=False)
        self.mine = self.host.create_namespace(BLOCKS, shared=False)
        self.secret.write(0, secrets())
        self.secret.flush()

    def attach(self) -> None:
        self.direct = Direct(self.process.runtime)
        self.host = Drive(self.direct, self.process.runtime, 0)
        self.engine = Drive.open(self.process.runtime, port=1)

    def close(self) -> None:
        self.host.close()
        self.engine.close()
        self.process.stop()

    def intact(self) -> bool:
        return bool(np.array_equal(self.secret.read(0, BLOCKS).reshape(-1), secrets()))


def secrets() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Every 64 bytes of it say what they are, and where they belong."""
    lines = b"".join(MARK + b"%025d" % number for number in range(BLOCKS * 64))
    return np.frombuffer(lines, np.uint8)


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        both = Both(Path(folder) / "store")
        yield both
        both.close()


def send(drive: Drive, queue: CommandQueue, opcode: int, nsid: int, rng: random.Random, size: int = 16384) -> bytes:
    """One command with an answer's room of ``size`` bytes. :returns: what lies there afterwards"""
    buffer = drive.alloc(size)
    buffer[:] = 0xEE
    lba, blocks = rng.choice([0, 1, 7, BLOCKS - 1, rng.randrange(BLOCKS)]), rng.choice([0, 3])
    words = rng.choice(
        [
            {"cdw10": lba, "cdw12": blocks},
            {"cdw10": rng.randrange(256) | (size // 4 - 1) << 16},
            {f"cdw{number}": rng.getrandbits(rng.choice([1, 8, 16])) for number in (10, 11, 12, 14, 15)},
        ]
    )
    with contextlib.suppress(DriveTimeout):
        queue.call(entry(opcode, nsid, **words), buffer, timeout=2.0)
    return buffer.tobytes()


@pytest.mark.parametrize("which", ["io", "admin"])
def test_every_opcode(both: Both, which: str) -> None:
    """No opcode, with the private namespace's id or any other, brings a byte of it to the host, or changes one."""
    rng = random.Random(which)
    theirs = [send(both.engine, both.engine.queue, Io.READ, both.secret.nsid, rng) for _ in range(8)]
    assert any(MARK in found for found in theirs), "the engine itself must see it, or this proves nothing"
    for opcode in range(256):
        if which == "admin" and opcode in LEFT_OUT:
            continue
        for nsid in (both.secret.nsid, NSID_ALL, 0, rng.randrange(1, 40)):
            queue = both.direct.admin if which == "admin" else both.direct.queues[0]
            found = send(both.host, queue, opcode, nsid, rng)
            assert MARK not in found, f"{which} opcode {opcode:#04x}, nsid {nsid:#x}"
        if opcode % 64 == 63:
            assert both.intact(), f"something changed by {which} opcode {opcode - 63:#04x} to {opcode:#04x}"


def test_comparing(both: Both) -> None:
    """Compare says no more of right data than of wrong data."""
    right = both.host.alloc(4096)
    right[:] = secrets()[:4096]
    wrong = both.host.alloc(4096)
    wrong[:] = 1
    told = [
        both.host.queue.call(entry(Io.COMPARE, both.secret.nsid, cdw10=0), data).status & 0x7FF
        for data in (right, wrong)
    ]
    assert told == [Status.INVALID_NAMESPACE] * 2


def test_copying(both: Both) -> None:
    """A copy into the host's namespace can't have its source in another one."""
    both.mine = mine(both)
    ranges = np.zeros(1, COPY_RANGE.dtype)
    ranges["blocks"] = 7
    for form in range(4):
        for sources in (ranges.tobytes(), ranges.tobytes().replace(bytes(4), both.secret.nsid.to_bytes(4, "little"))):
            both.host.passthrough("io", Io.COPY, both.mine.nsid, data=sources, cdw12=form << 8, check=False)
            assert MARK not in both.mine.read(0, 16).tobytes()


def test_tables(both: Both) -> None:
    """A table in the private namespace can be opened and read by the engine alone, not by the handle that it has."""
    with pytest.raises(NvmeError):
        Table.open(both.host, "weights", nsid=both.secret.nsid)
    space = both.engine.create_namespace(BLOCKS, shared=False)
    rows = np.full((64, 16), 3.25, np.float32)
    try:
        with Table.create(both.engine, "weights", rows, nsid=space.nsid) as table:
            assert np.array_equal(table.lookup([1, 2], [0]), rows[:1] * 2)
            handle = table._handle().handle
            answer = both.host.passthrough(
                "admin", VendorAdmin.TABLE_STATS, length=64, cdw10=64, cdw11=handle, check=False
            )
            assert answer.status
            listed = both.host.passthrough("admin", VendorAdmin.TABLE_LIST, length=4096, cdw10=4096, check=False)
            assert not listed.data.any(), "the host is told of a table that it may not have"
            both.host.passthrough("admin", VendorAdmin.TABLE_CLOSE, cdw11=handle, check=False)
            with Table.create(both.host, "own", rows * 0, nsid=mine(both).nsid) as own:
                open_table = own._handle()
                own._open = open_table._replace(handle=handle)
                assert open_table.handle != handle
                with pytest.raises(TableClosed):
                    own.lookup([1], [0])
                own._open = open_table
            assert np.array_equal(table.lookup([1, 2], [0]), rows[:1] * 2)
    finally:
        both.engine.admin.delete_namespace(space.nsid)


def test_what_was_private_is_gone(both: Both) -> None:
    """Blocks of a private namespace that was deleted read as zeros to whoever is given them next."""
    for seed in range(2):
        space = both.engine.create_namespace(BLOCKS // 4, shared=False)
        space.write(0, np.roll(secrets(), 64 * seed)[: space.size])
        nsid = space.nsid
        both.engine.admin.delete_namespace(nsid)
        with pytest.raises(InvalidNamespace):
            both.host.namespace(nsid)
        taken = both.host.create_namespace(BLOCKS // 4, shared=False)
        assert taken.nsid == nsid, "the test is about the same blocks"
        assert not taken.read(0, taken.blocks).any()
        both.host.admin.delete_namespace(taken.nsid)


def test_kill(both: Both) -> None:
    """After kill -9 the namespace is the engine's alone still, and whole."""
    both.host.close()
    both.engine.close()
    os.kill(both.process._process.pid, signal.SIGKILL)
    both.process.stop()
    both.process = DriveProcess(profile="null", size=SIZE, store=both.store)
    both.attach()
    both.secret = both.engine.namespace(both.secret.nsid)
    assert both.intact()
    assert both.secret.nsid not in both.host.admin.active_namespaces()
    assert both.secret.nsid not in both.host.admin.allocated_namespaces()


def mine(both: Both) -> Namespace:
    """The host's own namespace; the opcodes may have deleted it."""
    active = both.host.admin.active_namespaces()
    return both.host.namespace(active[0]) if active else both.host.create_namespace(BLOCKS, shared=False)
