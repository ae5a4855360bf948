"""Namespace Management and Attachment, Format NVM (Base 5.1.10, 5.1.20, 5.1.21), and who may know of what."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from emucsd_firmware.errors import StoreError
from emucsd_firmware.nvme.queues import NAMESPACES
from emucsd_wire.identify import IDENTIFY_CONTROLLER, IDENTIFY_NAMESPACE, Cns, IdentifyNamespace
from emucsd_wire.nvme import NSID_ALL, Admin, Status
from tests.unit.nvme_host import DATA_AT, MIB, Bench, Host

CREATE, DELETE, ATTACH, DETACH = 0, 1, 0, 1
PAGES = 64 * MIB // 4096


def create(host: Host, blocks: int = 2048, *, nsid: int = 0, cdw11: int = 0, **fields: Any) -> tuple[int, int]:
    """:returns: status, and the new namespace's id"""
    wanted = IdentifyNamespace(nsze=blocks, ncap=blocks)._replace(**fields)
    host.poke(DATA_AT, IDENTIFY_NAMESPACE.pack(wanted))
    done = host.command(Admin.NAMESPACE_MANAGEMENT, nsid, cdw10=CREATE, cdw11=cdw11)
    return done.status, done.dw0


def delete(host: Host, nsid: int) -> int:
    return host.command(Admin.NAMESPACE_MANAGEMENT, nsid, cdw10=DELETE).status


def attach(host: Host, nsid: int, *controllers: int, select: int = ATTACH, count: int | None = None) -> int:
    number = len(controllers) if count is None else count
    host.poke(DATA_AT, struct.pack(f"<{1 + len(controllers)}H", number, *controllers).ljust(4096, b"\0"))
    return host.command(Admin.NAMESPACE_ATTACHMENT, nsid, cdw10=select).status


def active(host: Host) -> list[int]:
    ids = struct.unpack("<1024I", host.identify(Cns.ACTIVE_NAMESPACES))
    return [nsid for nsid in ids if nsid]


def allocated(host: Host) -> list[int]:
    return [nsid for nsid in struct.unpack("<1024I", host.identify(Cns.ALLOCATED_NAMESPACES)) if nsid]


@pytest.fixture
def room(bench: Bench, host: Host) -> Host:
    """A host on a drive whose one namespace was deleted."""
    assert delete(host, 1) == 0
    return host


def test_life_of_a_namespace(bench: Bench, room: Host, engine: Host) -> None:
    """Create, attach to both, detach, delete; every port's data plane sees exactly what is attached to it."""
    status, nsid = create(room, 2048, flbas=1, nmic=1)
    assert (status, nsid) == (0, 1)
    assert (active(room), allocated(room)) == ([], [1])
    assert room.identify(Cns.NAMESPACE, 1) == bytes(4096)
    page = IDENTIFY_NAMESPACE.unpack(room.identify(Cns.ALLOCATED_NAMESPACE, 1))
    assert (page.nsze, page.flbas, page.nmic, page.nvmcap) == (2048, 1, 1, 8 * MIB)
    assert attach(room, 1, 1, 2) == 0
    for number, each in enumerate((room, engine)):
        assert active(each) == [1]
        view = bench.queues[number].namespaces[1]
        assert (view["attached"], view["blocks"], view["lba_shift"], view["first_lpn"]) == (1, 2048, 12, 0)
    assert attach(room, 1, 2, select=DETACH) == 0
    assert (active(room), active(engine)) == ([1], [])
    assert [int(q.namespaces[1]["attached"]) for q in bench.queues] == [1, 0]
    bench.drive.formatted.clear()
    assert delete(room, 1) == 0
    assert bench.drive.formatted == [(0, 2048)]
    assert allocated(room) == []


def test_capacity_is_accounted(room: Host) -> None:
    """UNVMCAP goes down by whole flash pages and comes back; what does not fit is refused."""

    def unallocated() -> int:
        return IDENTIFY_CONTROLLER.unpack(room.identify(Cns.CONTROLLER)).unvmcap

    assert unallocated() == 64 * MIB
    assert create(room, 9) == (0, 1)
    assert unallocated() == 64 * MIB - 2 * 4096
    assert create(room, 64 * MIB // 512)[0] == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    assert create(room, 1 << 60)[0] == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    assert create(room, 64 * MIB // 512 - 16) == (0, 2)
    assert unallocated() == 0
    assert delete(room, 1) == 0
    assert unallocated() == 2 * 4096


def test_regions_do_not_meet(bench: Bench, room: Host) -> None:
    """Every namespace has its own region of logical pages, by its id."""
    for nsid in (1, 2, 3):
        assert create(room, 8) == (0, nsid)
        assert attach(room, nsid, 1) == 0
        assert int(bench.queues[0].namespaces[nsid]["first_lpn"]) == (nsid - 1) * PAGES


def test_as_many_as_there_are_ids(room: Host) -> None:
    """32 namespaces fit, the next finds no id; a freed id is used again, its identifiers are not."""
    for nsid in range(1, NAMESPACES + 1):
        assert create(room, 8) == (0, nsid)
    assert create(room, 8)[0] == Status.NAMESPACE_ID_UNAVAILABLE
    before = IDENTIFY_NAMESPACE.unpack(room.identify(Cns.ALLOCATED_NAMESPACE, 5))
    assert delete(room, 5) == 0
    assert create(room, 8) == (0, 5)
    after = IDENTIFY_NAMESPACE.unpack(room.identify(Cns.ALLOCATED_NAMESPACE, 5))
    assert before.nguid != after.nguid
    assert before.eui64 != after.eui64


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"flbas": 2}, Status.INVALID_FORMAT),
        ({"flbas": 0x10}, Status.INVALID_FORMAT),
        ({"dps": 1}, Status.INVALID_FIELD),
        ({"nmic": 2}, Status.INVALID_FIELD),
        ({"anagrpid": 1}, Status.INVALID_FIELD),
        ({"nvmsetid": 1}, Status.INVALID_FIELD),
        ({"endgid": 1}, Status.INVALID_FIELD),
        ({"lbstm": 1}, Status.INVALID_FIELD),
        ({"nsze": 0, "ncap": 0}, Status.INVALID_FIELD),
        ({"nsze": 9}, Status.THIN_PROVISIONING_NOT_SUPPORTED),
        ({"ncap": 9}, Status.INVALID_FIELD),
        ({"nsid": 1}, Status.INVALID_FIELD),
        ({"cdw11": 2 << 24}, Status.IO_COMMAND_SET_NOT_SUPPORTED),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_creates(room: Host, fields: dict[str, int], status: Status) -> None:
    """What this drive can't make is refused, and nothing is made."""
    assert create(room, 8, **fields)[0] == status
    assert allocated(room) == []


def test_bad_selects(room: Host) -> None:
    """Reserved SEL values are Invalid Field."""
    for opcode in (Admin.NAMESPACE_MANAGEMENT, Admin.NAMESPACE_ATTACHMENT):
        for select in (2, 15):
            assert room.refused(opcode, 1, cdw10=select) == Status.INVALID_FIELD


def test_bad_deletes(room: Host) -> None:
    """Deleting what can't be, or is not, there is refused."""
    for nsid, status in ((0, Status.INVALID_NAMESPACE), (33, Status.INVALID_NAMESPACE), (4, Status.INVALID_FIELD)):
        assert delete(room, nsid) == status


def test_delete_all(bench: Bench, room: Host) -> None:
    """FFFFFFFFh deletes every namespace that the controller knows of."""
    for _ in range(3):
        create(room, 8)
    assert delete(room, NSID_ALL) == 0
    assert bench.subsystem.namespaces.all() == []


def test_attachment_rules(room: Host) -> None:
    """A private namespace takes one controller; nobody is attached twice or detached before; lists are checked."""
    _, private = create(room, 8)
    _, shared = create(room, 8, nmic=1)
    assert attach(room, private, 1, 2) == Status.NAMESPACE_PRIVATE
    assert attach(room, private, 1, select=DETACH) == Status.NAMESPACE_NOT_ATTACHED
    assert attach(room, private, 1) == 0
    assert attach(room, private, 1) == Status.NAMESPACE_ALREADY_ATTACHED
    assert attach(room, private, 2) == Status.NAMESPACE_PRIVATE
    assert attach(room, shared, 1) == 0
    assert attach(room, shared, 1, 2, select=DETACH) == Status.NAMESPACE_NOT_ATTACHED
    assert attach(room, shared, 2) == 0
    for controllers, count in (((), 0), ((3,), 1), ((0,), 1), ((2, 1), 2), ((1, 1), 2), ((1,), 2048), ((1,), 0xFFFF)):
        assert attach(room, shared, *controllers, count=count) == Status.CONTROLLER_LIST_INVALID
    assert attach(room, NSID_ALL, 1) == Status.INVALID_NAMESPACE
    assert attach(room, 0, 1) == Status.INVALID_NAMESPACE
    assert attach(room, 20, 1) == Status.INVALID_FIELD


def test_private_data_does_not_exist_for_the_host(bench: Bench, room: Host, engine: Host) -> None:
    """What is attached to port 1 alone is in no list of port 0, which can't identify, attach, format or delete it."""
    assert create(engine, 2048) == (0, 1)
    assert create(engine, 1024, nmic=1) == (0, 2)
    assert attach(engine, 1, 2) == 0
    assert attach(engine, 2, 2) == 0
    assert (allocated(engine), active(engine)) == ([1, 2], [1, 2])
    assert (allocated(room), active(room)) == ([], [])
    for nsid in (1, 2):
        for cns in (Cns.NAMESPACE, Cns.ALLOCATED_NAMESPACE, Cns.INDEPENDENT_NAMESPACE, Cns.NAMESPACE_CONTROLLERS):
            room.poke(DATA_AT, b"\xff" * 4096)
            assert room.identify(cns, nsid) == bytes(4096)
        assert room.refused(Admin.IDENTIFY, nsid, cdw10=Cns.NAMESPACE_DESCRIPTORS) == Status.INVALID_FIELD
        assert attach(room, nsid, 1) == Status.INVALID_FIELD
        assert attach(room, nsid, 2, select=DETACH) == Status.INVALID_FIELD
        assert delete(room, nsid) == Status.INVALID_FIELD
        assert room.refused(Admin.FORMAT_NVM, nsid) == Status.INVALID_FIELD
        assert bench.queues[0].namespaces[nsid]["attached"] == 0
        assert bench.queues[1].namespaces[nsid]["attached"] == 1
    room.ok(Admin.FORMAT_NVM, NSID_ALL)
    assert delete(room, NSID_ALL) == 0
    assert bench.drive.formatted[1:] == []
    assert active(engine) == [1, 2]
    assert create(room, 8) == (0, 3)
    assert attach(engine, 2, 1) == 0  # the drive's own engine may give a shared one away
    assert active(room) == [2]


def test_private_data_of_the_host(room: Host, engine: Host) -> None:
    """The drive's own engine knows of the host's namespaces, but has them not."""
    create(room, 8)
    attach(room, 1, 1)
    assert (allocated(engine), active(engine)) == ([1], [])
    assert engine.refused(Admin.FORMAT_NVM, 1) == Status.INVALID_FIELD


@pytest.mark.parametrize("ses", [0, 1])
def test_format_changes_the_block_size(bench: Bench, host: Host, ses: int) -> None:
    """Format forgets the data and changes the block size for both ports; a second one changes it back."""
    for lba_format, shift in ((1, 12), (0, 9)):
        bench.drive.formatted.clear()
        host.ok(Admin.FORMAT_NVM, 1, cdw10=lba_format | ses << 9)
        assert bench.drive.formatted == [(0, PAGES)]
        page = IDENTIFY_NAMESPACE.unpack(host.identify(Cns.NAMESPACE, 1))
        assert (page.nsze, page.flbas) == (64 * MIB >> shift, lba_format)
        for queues in bench.queues:
            view = queues.namespaces[1]
            assert (view["blocks"], view["lba_shift"]) == (64 * MIB >> shift, shift)


def test_format_survives_power(bench: Bench, host: Host) -> None:
    """The block size is the namespace's, not the session's."""
    host.ok(Admin.FORMAT_NVM, 1, cdw10=1)
    again = Bench(bench.folder)
    assert IDENTIFY_NAMESPACE.unpack(again.hosts[0].enable().identify(Cns.NAMESPACE, 1)).flbas == 1
    again.close()


def test_format_tells_who_kept_something_of_it(bench: Bench, host: Host) -> None:
    """Parts of the drive that refer to a namespace's blocks are told when these are gone, and for which port."""
    gone: list[tuple[int, int | None]] = []
    bench.subsystem.namespace_gone.append(lambda nsid, port: gone.append((nsid, port)))
    host.ok(Admin.FORMAT_NVM, 1)
    attach(host, 1, 2, select=DETACH)
    delete(host, 1)
    assert gone == [(1, None), (1, 1), (1, None)]


@pytest.mark.parametrize(
    ("cdw10", "status"),
    [
        (2, Status.INVALID_FORMAT),
        (1 << 12, Status.INVALID_FORMAT),
        (1 << 4, Status.INVALID_FORMAT),
        (1 << 5, Status.INVALID_FORMAT),
        (2 << 9, Status.INVALID_FIELD),
        (7 << 9, Status.INVALID_FIELD),
    ],
)
def test_bad_formats(bench: Bench, host: Host, cdw10: int, status: Status) -> None:
    """Formats with metadata, protection, or cryptographic erase do not exist; nothing is lost by asking."""
    assert host.refused(Admin.FORMAT_NVM, 1, cdw10=cdw10) == status
    assert bench.drive.formatted == []


@pytest.mark.parametrize(
    ("nsid", "status"), [(0, Status.INVALID_NAMESPACE), (33, Status.INVALID_NAMESPACE), (2, Status.INVALID_FIELD)]
)
def test_format_of_nothing(host: Host, nsid: int, status: Status) -> None:
    """Formatting what can't be, or is not, there is refused."""
    assert host.refused(Admin.FORMAT_NVM, nsid) == status


def test_format_of_less_than_a_block(room: Host) -> None:
    """A namespace of one 512-byte block can't become one of 4096-byte blocks."""
    create(room, 1)
    attach(room, 1, 1)
    assert room.refused(Admin.FORMAT_NVM, 1, cdw10=1) == Status.INVALID_FORMAT
    room.ok(Admin.FORMAT_NVM, 1)


def test_a_store_that_fails_is_an_internal_error(bench: Bench, host: Host) -> None:
    """Trouble below is Internal Error without Do Not Retry; the drive goes on."""
    bench.drive.broken = StoreError("disk full")
    done = host.command(Admin.FORMAT_NVM, 1)
    assert (done.status, done.dnr) == (Status.INTERNAL_ERROR, False)
    bench.drive.broken = None
    host.ok(Admin.FORMAT_NVM, 1)
