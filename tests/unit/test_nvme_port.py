"""Ports as transports see them: doorbells by message, guest memory, interrupts, deadlines."""

from __future__ import annotations

import os
import select

import pytest

from emucsd_firmware.errors import MemoryMapError, PortError
from emucsd_firmware.nvme.queues import VECTORS
from emucsd_firmware.port import BAR0, BAR0_BYTES, Alarm
from emucsd_wire.features import Feature
from emucsd_wire.nvme import CLOCK_WORDS_OFFSET, PAGE, Admin, Register
from tests.unit.nvme_host import DATA_AT, IOVA, MEMORY, Bench, GuestMemory, Host

TAIL = Register.DOORBELLS + 8


def with_queue(host: Host) -> None:
    host.ok(Admin.CREATE_CQ, cdw10=63 << 16 | 1, cdw11=1)
    host.ok(Admin.CREATE_SQ, cdw10=63 << 16 | 1, cdw11=1 << 16 | 1, prp1=DATA_AT + PAGE)


def readable(fd: int, seconds: float) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


def test_trapped_doorbells(bench: Bench) -> None:
    """Doorbells that come as messages land in the page that the data plane watches, and wake it."""
    bench.ports[0].trapped = True
    assert bench.records[0]["trapped"] == 1
    host = bench.hosts[0].enable()
    with_queue(host)
    kicks = bench.drive.plane.kicks
    for value in (5, 6, 3):
        host.write(TAIL, value)
        assert host.read(TAIL) == bench.queues[0].doorbells[2] == value
    assert bench.drive.plane.kicks == kicks + 3


def test_the_admin_doorbell_calls_the_control_thread(host: Host) -> None:
    """Ringing for the admin queue makes admin_fd readable; service empties it."""
    host.submit(host.sqe(Admin.KEEP_ALIVE))
    assert readable(host.port.admin_fd, 0)
    assert host.port.service() is True
    assert not readable(host.port.admin_fd, 0)


def test_two_doorbells_in_one_write(bench: Bench, host: Host) -> None:
    """An 8-byte write rings a queue's tail and its completion queue's head."""
    with_queue(host)
    host.write(TAIL, 9 << 32 | 4, 8)
    assert list(bench.queues[0].doorbells[2:4]) == [4, 9]


def test_a_late_message_does_not_turn_a_mapped_doorbell_back(bench: Bench, host: Host) -> None:
    """A client with the page mapped repeats a doorbell to wake the drive: the message may be older than the page."""
    with_queue(host)
    page = bench.queues[0].doorbells
    page[2] = 7  # the client's own stores
    kicks = bench.drive.plane.kicks
    host.write(TAIL, 5)
    assert page[2] == 7
    page[2] = 5
    host.write(TAIL, 4)
    assert page[2] == 5
    assert bench.drive.plane.kicks == kicks + 2


def test_messages_alone_ring_where_mapping_is_offered(bench: Bench, host: Host) -> None:
    """A client that could map the page but does not is served by its messages, also after a queue was made anew."""
    with_queue(host)
    for value in (1, 2, 60, 0, 1):
        host.write(TAIL, value)
        assert bench.queues[0].doorbells[2] == value
    host.ok(Admin.DELETE_SQ, cdw10=1)
    host.ok(Admin.DELETE_CQ, cdw10=1)
    with_queue(host)
    host.write(TAIL, 2)
    assert bench.queues[0].doorbells[2] == 2


def test_a_disabled_controller_hears_nothing(bench: Bench) -> None:
    """Doorbells before the controller is ready leave no value behind."""
    host = bench.hosts[0]
    host.write(Register.DOORBELLS, 3)
    assert bench.queues[0].doorbells[0] == 0
    host.enable().identify(1)


def test_words_behind_the_doorbells(bench: Bench) -> None:
    """Clock words are stored for a client that traps; one that maps the page writes them itself, and only wakes us."""
    host = bench.hosts[0]
    at = CLOCK_WORDS_OFFSET + 8
    host.write(at, 123456789, 8)
    assert host.read(at, 8) == 0
    bench.ports[0].trapped = True
    host.write(at, 123456789, 8)
    assert host.read(at, 8) == 123456789


def test_odd_doorbell_writes(bench: Bench, host: Host) -> None:
    """Bytes, words and unaligned dwords ring nothing."""
    with_queue(host)
    for offset, data in ((TAIL, b"\1"), (TAIL, b"\1\1"), (TAIL + 2, bytes(4)), (TAIL, bytes(16))):
        host.port.region_write(BAR0, offset, data)
    assert bench.queues[0].doorbells[2] == 0
    with pytest.raises(PortError):
        host.port.region_write(BAR0, BAR0_BYTES - 4, bytes(8))


def test_the_page_is_shared(host: Host) -> None:
    """The last two pages of doorbell_fd are the memory behind BAR0 + 0x1000."""
    host.submit(host.sqe(Admin.KEEP_ALIVE))
    size = os.fstat(host.port.doorbell_fd).st_size
    assert os.pread(host.port.doorbell_fd, 4, size - 2 * PAGE) == b"\1\0\0\0"


def test_memory(bench: Bench) -> None:
    """Ranges are mapped and unmapped as they were given, with the data plane standing still."""
    port, far = bench.ports[0], GuestMemory(PAGE)
    port.map(1 << 40, PAGE, far.address, writable=True)
    assert port.unmap(1 << 40, PAGE) == (far.address, PAGE)
    with pytest.raises(MemoryMapError):
        port.unmap(1 << 40, PAGE)
    with pytest.raises(MemoryMapError):
        port.map(IOVA + PAGE, PAGE, far.address, writable=True)
    with pytest.raises(MemoryMapError):
        port.unmap(IOVA, MEMORY - PAGE)
    bench.hosts[0].enable().identify(1)


def test_vectors(bench: Bench, host: Host) -> None:
    """A completion signals the eventfd of its queue's vector; without one nothing is signalled."""
    eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    bench.ports[0].set_vector(0, eventfd)
    host.identify(1)
    assert os.eventfd_read(eventfd) == 1
    bench.ports[0].set_vector(0, None)
    host.identify(1)
    assert not readable(eventfd, 0)
    os.close(eventfd)
    for vector in (-1, VECTORS):
        with pytest.raises(PortError, match="vector"):
            bench.ports[0].set_vector(vector, None)


def test_the_alarm(bench: Bench, host: Host) -> None:
    """What is due by time makes admin_fd readable; what was taken back does not."""
    port = bench.ports[0]
    host.set_feature(Feature.KEEP_ALIVE, 1000)
    assert not readable(port.admin_fd, 0)
    host.set_feature(Feature.KEEP_ALIVE, 0)
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    alarm = Alarm(fd)
    alarm.set(5_000_000, 0)
    alarm.set(5_000_000, 0)
    assert readable(fd, 10)
    assert os.eventfd_read(fd) == 1
    alarm.set(30_000_000_000, 0)
    alarm.set(None, 0)
    assert not readable(fd, 0)
    os.close(fd)
