"""Private namespaces (docs/namespaces.md): no command of port 0 shows or changes what belongs to the drive's engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from emucsd import Drive, Namespace
from emucsd.errors import InvalidNamespace, NvmeError
from emucsd_wire.identify import Cns
from emucsd_wire.nvme import NSID_ALL, Admin, Io
from emucsd_wire.vendor import (
    TABLE_EXTENT,
    TABLE_HEADER,
    TABLE_LIST_BYTES,
    TABLE_STATS,
    TABLE_VERSION,
    Dtype,
    TableExtent,
    TableHeader,
    VendorAdmin,
    name_hash,
)

SECRET = b"what only the engine may know ++"
MIB = 1 << 20
BLOCKS = 1024
HOST, ENGINE = 1, 2
QUEUES_AND_POWER = {
    Admin.CREATE_CQ, Admin.CREATE_SQ, Admin.DELETE_CQ, Admin.DELETE_SQ, Admin.ABORT, Admin.ASYNC_EVENT_REQUEST,
    Admin.KEEP_ALIVE, Admin.DOORBELL_BUFFER_CONFIG,
}  # fmt: skip
PARKED = {Io.TUNNEL_SEND, Io.TUNNEL_RECEIVE}  # of no namespace


class Stand(NamedTuple):
    """Both ports of a drive, the private namespace's id, and every name by which it is known."""

    near: Drive
    inside: Drive
    nsid: int
    names: tuple[bytes, ...]

    def held(self) -> Namespace:
        return self.inside.namespace(self.nsid)

    def intact(self) -> None:
        """The engine has what it wrote."""
        assert self.held().read(0, BLOCKS).tobytes() == SECRET * (BLOCKS * 512 // len(SECRET))

    def silent(self, shown: bytes) -> None:
        """An answer says nothing of it."""
        assert SECRET not in shown
        assert not any(name in shown for name in self.names)


def _make_private(inside: Drive, *, shared: bool = True) -> int:
    nsid = inside.admin.create_namespace(BLOCKS, 512, shared=shared)
    inside.admin.attach(nsid, ENGINE)
    inside.namespace(nsid).write(0, np.frombuffer(SECRET * (BLOCKS * 512 // len(SECRET)), np.uint8))
    return nsid


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with Drive.start("null", size=64 * MIB, memory=16 * MIB) as near:
        near.admin.delete_namespace(1)
        first = near.admin.create_namespace(16 * MIB // 512, 512)
        near.admin.attach(first, HOST, ENGINE)
        with Drive.open(near.folder, port=1, memory=16 * MIB) as inside:
            nsid = _make_private(inside)
            found = inside.admin.namespace(nsid)
            descriptors = inside.admin.identify(Cns.NAMESPACE_DESCRIPTORS, nsid)
            uuid = descriptors[descriptors.index(b"\x03\x10\0\0") + 4 :][:16]
            yield Stand(near, inside, nsid, (found.eui64, found.nguid, uuid))


def test_the_engine_knows_it(stand: Stand) -> None:
    """What the other tests look for is there to be seen: the engine's own Identify shows it."""
    shown = b"".join(stand.inside.admin.identify(cns, stand.nsid) for cns in (Cns.NAMESPACE, Cns.NAMESPACE_DESCRIPTORS))
    assert all(name in shown for name in stand.names)
    assert stand.inside.admin.active_namespaces() == [1, stand.nsid]
    stand.intact()


@pytest.mark.parametrize("nsid", [0, 1, 2, NSID_ALL])
def test_identify(stand: Stand, nsid: int) -> None:
    """No Identify structure of any kind shows it, and no list has its id."""
    for cns in range(256):
        for selector in (0, 1 << 16, 2 << 16):
            answer = stand.near.passthrough(
                "admin", Admin.IDENTIFY, nsid, length=4096, cdw10=cns | selector, check=False
            )
            stand.silent(answer.data.tobytes())
            if nsid == stand.nsid and cns in (0x00, 0x03, 0x08, 0x11, 0x12):
                assert not answer.data.any()
    for cns in (
        Cns.ACTIVE_NAMESPACES,
        Cns.ALLOCATED_NAMESPACES,
        Cns.CSI_ACTIVE_NAMESPACES,
        Cns.CSI_ALLOCATED_NAMESPACES,
    ):
        ids = np.frombuffer(stand.near.admin.identify(cns), "<u4")
        assert stand.nsid not in ids


def test_logs(stand: Stand) -> None:
    """No log page shows it, whichever namespace is asked for."""
    for page in range(256):
        for nsid in (0, stand.nsid, NSID_ALL):
            answer = stand.near.passthrough(
                "admin", Admin.GET_LOG_PAGE, nsid, length=4096, cdw10=page | 1023 << 16, check=False
            )
            stand.silent(answer.data.tobytes())
    assert stand.nsid not in stand.near.admin.changed_namespaces()


@pytest.mark.parametrize("how", ["from the drive", "to the drive"])
def test_io_commands(stand: Stand, how: str) -> None:
    """Every I/O opcode on it is refused; nothing comes out, nothing goes in."""
    for opcode in sorted(set(range(256)) - PARKED):
        for cdw12 in (0, 7, 1 << 25, 512):
            data = {"length": 4096} if how == "from the drive" else {"data": b"\xee" * 4096}
            answer = stand.near.passthrough("io", opcode, stand.nsid, check=False, cdw12=cdw12, **data)
            assert answer.status != 0, f"opcode {opcode:#x}"
            stand.silent(answer.data.tobytes())
    stand.intact()


def test_broadcast(stand: Stand) -> None:
    """A flush of all namespaces is no way to it, and other commands know no such id."""
    for opcode in (Io.READ, Io.WRITE, Io.WRITE_ZEROES, Io.DATASET_MANAGEMENT, Io.COMPARE, Io.VERIFY, Io.COPY):
        answer = stand.near.passthrough("io", opcode, NSID_ALL, length=4096, cdw12=7, check=False)
        assert answer.status != 0
        stand.silent(answer.data.tobytes())
    stand.near.passthrough("io", Io.FLUSH, NSID_ALL)
    stand.intact()


def test_admin_commands(stand: Stand) -> None:
    """No admin opcode changes it or tells of it: features, format, management, attachment, vendor commands."""
    lists = (1).to_bytes(2, "little") + HOST.to_bytes(2, "little")
    for opcode in sorted(set(range(256)) - QUEUES_AND_POWER - {Admin.SANITIZE}):
        for cdw10 in (0, 1, 5, 64, 0x200):
            data = {"data": lists.ljust(4096, b"\0")} if opcode & 1 else {"length": 4096}
            answer = stand.near.passthrough("admin", opcode, stand.nsid, cdw10=cdw10, check=False, **data)
            stand.silent(answer.data.tobytes())
    assert stand.inside.admin.active_namespaces() == [1, stand.nsid]
    stand.intact()


def test_format_of_all(stand: Stand) -> None:
    """Formatting every namespace formats those that the host has."""
    stand.near.namespace(1).write(0, np.full(512, 7, np.uint8))
    stand.near.admin.run(Admin.FORMAT_NVM, NSID_ALL, cdw10=0)
    assert not stand.near.namespace(1).read(0, 1).any()
    stand.intact()


def test_tables(stand: Stand) -> None:
    """A table over its blocks can't be opened from port 0, and the engine's own tables are not listed there."""
    with pytest.raises(NvmeError):
        stand.near.passthrough("admin", VendorAdmin.TABLE_OPEN, stand.nsid, data=_table(stand.nsid), cdw10=88)
    handle = stand.inside.passthrough("admin", VendorAdmin.TABLE_OPEN, data=_table(stand.nsid), cdw10=88).dw0
    try:
        for opcode, size in ((VendorAdmin.TABLE_LIST, TABLE_LIST_BYTES), (VendorAdmin.TABLE_STATS, TABLE_STATS.size)):
            answer = stand.near.passthrough("admin", opcode, length=size, cdw10=size, cdw11=handle, check=False)
            assert not answer.data.any()
    finally:
        stand.inside.passthrough("admin", VendorAdmin.TABLE_CLOSE, cdw11=handle)


def test_attachment(stand: Stand) -> None:
    """The host can't attach it to itself, nor detach or delete it: for the host it does not exist."""
    admin = stand.near.admin
    steps: tuple[Callable[[], object], ...] = (
        lambda: admin.attach(stand.nsid, HOST),
        lambda: admin.detach(stand.nsid, ENGINE),
        lambda: admin.delete_namespace(stand.nsid),
        lambda: admin.run(Admin.FORMAT_NVM, stand.nsid, cdw10=0),
    )
    for step in steps:
        with pytest.raises((NvmeError, InvalidNamespace)):
            step()
    stand.intact()


def test_it_stays_private(stand: Stand) -> None:
    """Detached from everyone it still does not exist for the host: not even a moment between two owners shows it."""
    stand.inside.admin.detach(stand.nsid, ENGINE)
    try:
        assert stand.near.admin.allocated_namespaces() == [1]
        assert not any(stand.near.admin.identify(Cns.ALLOCATED_NAMESPACE, stand.nsid))
        with pytest.raises(NvmeError):
            stand.near.admin.attach(stand.nsid, HOST)
        with pytest.raises(NvmeError):
            stand.near.admin.delete_namespace(stand.nsid)
    finally:
        stand.inside.admin.attach(stand.nsid, ENGINE)
    stand.intact()


def test_the_engine_gives_it_away(stand: Stand) -> None:
    """The engine may attach its namespace to the host: then the host has it, data and all; and may be rid of it."""
    nsid = _make_private(stand.inside)
    assert nsid not in stand.near.admin.allocated_namespaces()
    stand.inside.admin.attach(nsid, HOST)
    assert stand.near.namespace(nsid).read(0, 1).tobytes() == SECRET * 16
    stand.near.admin.detach(nsid, ENGINE)
    stand.near.admin.delete_namespace(nsid)
    assert nsid not in stand.inside.admin.allocated_namespaces()


def test_delete_all(stand: Stand) -> None:
    """Deleting every namespace from port 0 leaves the private one."""
    stand.near.admin.delete_namespace(NSID_ALL)
    try:
        assert stand.inside.admin.allocated_namespaces() == [stand.nsid]
        stand.intact()
    finally:
        stand.near.admin.create_namespace(16 * MIB // 512, 512)
        stand.near.admin.attach(1, HOST, ENGINE)


def test_over_a_restart(tmp_path: Path) -> None:
    """It is private in the drive's next life, detached or not."""
    with Drive.start("null", size=64 * MIB, store=tmp_path / "store") as near:
        near.admin.delete_namespace(1)
        with Drive.open(near.folder, port=1) as inside:
            nsid = _make_private(inside)
            inside.admin.detach(nsid, ENGINE)
    with Drive.start("null", size=64 * MIB, store=tmp_path / "store") as near:
        assert near.admin.allocated_namespaces() == []
        with pytest.raises(NvmeError):
            near.admin.attach(nsid, HOST)
        with Drive.open(near.folder, port=1) as inside:
            inside.admin.attach(nsid, ENGINE)
            assert inside.namespace(nsid).read(0, 1).tobytes() == SECRET * 16


def _table(nsid: int) -> bytes:
    """TABLE_OPEN's data for a table of 32 rows of 16 elements at the start of a namespace."""
    header = TableHeader(TABLE_VERSION, Dtype.FP32, nsid, 32, 16, 1, name_hash("stolen"))
    return TABLE_HEADER.pack(header) + TABLE_EXTENT.pack(TableExtent(0, 0, 4, 0))
