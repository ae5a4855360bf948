"""Create and Delete I/O queues, Doorbell Buffer Config (Base 5.2), and queues whose memory moves."""

from __future__ import annotations

import pytest

from emucsd_wire.features import Feature
from emucsd_wire.nvme import PAGE, Admin, Register, Status
from emucsd_wire.registers import Cc
from tests.unit.nvme_host import DATA_AT, ENABLE, IOVA, MEMORY, MIB, Bench, GuestMemory, Host

CQ_MEMORY, SQ_MEMORY = DATA_AT, DATA_AT + 64 * PAGE
PC, IEN = 1, 2


def create_cq(
    host: Host, qid: int = 1, entries: int = 64, *, vector: int = 1, how: int = PC | IEN, at: int = CQ_MEMORY
) -> int:
    return host.command(Admin.CREATE_CQ, cdw10=entries - 1 << 16 | qid, cdw11=vector << 16 | how, prp1=at).status


def create_sq(host: Host, qid: int = 1, entries: int = 64, *, cqid: int = 1, how: int = PC, at: int = SQ_MEMORY) -> int:
    return host.command(Admin.CREATE_SQ, cdw10=entries - 1 << 16 | qid, cdw11=cqid << 16 | how, prp1=at).status


def delete_sq(host: Host, qid: int = 1) -> int:
    return host.command(Admin.DELETE_SQ, cdw10=qid).status


def delete_cq(host: Host, qid: int = 1) -> int:
    return host.command(Admin.DELETE_CQ, cdw10=qid).status


def test_a_pair_lives_and_dies(bench: Bench, host: Host) -> None:
    """A pair is created, polled by the data plane, deleted submission queue first, and can be made again."""
    for _ in range(2):
        assert create_cq(host, entries=1024) == 0
        assert create_sq(host, entries=1024) == 0
        assert list(bench.records[0]["live_sqs"][: bench.records[0]["live_count"]]) == [1]
        assert int(bench.queues[0].cqs[1]["vector"]) == 1
        assert delete_cq(host) == Status.INVALID_QUEUE_DELETION
        assert delete_sq(host) == 0
        assert delete_cq(host) == 0
        assert bench.records[0]["live_count"] == 0


def test_interrupts_may_be_off(bench: Bench, host: Host) -> None:
    """IEN = 0, as SPDK asks for, gives a completion queue without a vector."""
    assert create_cq(host, how=PC) == 0
    assert int(bench.queues[0].cqs[1]["vector"]) == -1


def test_all_64_pairs(bench: Bench, host: Host) -> None:
    """64 pairs exist at a time, also two submission queues on one completion queue; the 65th id is refused."""
    for qid in range(1, 65):
        assert create_cq(host, qid, 2, vector=qid) == 0
        assert create_sq(host, qid, 2, cqid=1 + qid // 2) == 0
    assert bench.records[0]["live_count"] == 64
    assert create_cq(host, 65) == Status.INVALID_QUEUE_ID
    assert create_sq(host, 65, cqid=1) == Status.INVALID_QUEUE_ID
    host.disable()
    assert bench.records[0]["live_count"] == 0


@pytest.mark.parametrize("qid", [0, 65, 0xFFFF])
def test_bad_queue_ids(host: Host, qid: int) -> None:
    """Queue id 0 is the admin queue, ids above what was granted are nobody's: 1/01 everywhere."""
    assert create_cq(host) == 0
    assert create_cq(host, qid) == Status.INVALID_QUEUE_ID
    assert create_sq(host, qid) == Status.INVALID_QUEUE_ID
    assert create_sq(host, 2, cqid=qid) == Status.INVALID_QUEUE_ID
    assert delete_sq(host, qid) == Status.INVALID_QUEUE_ID
    assert delete_cq(host, qid) == Status.INVALID_QUEUE_ID


def test_duplicate_and_absent_queues(host: Host) -> None:
    """A queue can't be created or deleted twice; a submission queue needs its completion queue."""
    assert create_sq(host) == Status.CQ_INVALID
    assert create_cq(host) == 0
    assert create_cq(host) == Status.INVALID_QUEUE_ID
    assert create_sq(host) == 0
    assert create_sq(host) == Status.INVALID_QUEUE_ID
    assert delete_sq(host) == 0
    assert delete_sq(host) == Status.INVALID_QUEUE_ID
    assert delete_cq(host) == 0
    assert delete_cq(host) == Status.INVALID_QUEUE_ID


@pytest.mark.parametrize(
    ("entries", "status"),
    [
        (1, Status.INVALID_QUEUE_SIZE),
        (1025, Status.INVALID_QUEUE_SIZE),
        (65536, Status.INVALID_QUEUE_SIZE),
        (2, 0),
        (1024, 0),
    ],
)
def test_sizes(host: Host, entries: int, status: int) -> None:
    """2 to 1024 entries (CAP.MQES) are queues; fewer or more are Invalid Queue Size."""
    assert create_cq(host, 2, entries) == status
    assert create_cq(host) == 0
    assert create_sq(host, 1, entries) == status


@pytest.mark.parametrize("cc", [Cc.of(en=1, iosqes=6), Cc.of(en=1, iocqes=4), Cc.of(en=1, iosqes=7, iocqes=5)])
def test_entry_sizes_must_be_set(bench: Bench, cc: Cc) -> None:
    """Without the right entry size in CC an I/O queue is Invalid Queue Size."""
    host = bench.hosts[0].enable(cc=cc)
    assert create_cq(host) == (0 if cc.iocqes == 4 else Status.INVALID_QUEUE_SIZE)
    host.write(Register.CC, cc.replace(iocqes=4))
    create_cq(host)
    assert create_sq(host) == (0 if cc.iosqes == 6 else Status.INVALID_QUEUE_SIZE)


def test_memory_of_a_queue(host: Host) -> None:
    """Not contiguous (CAP.CQR), not page aligned, or not mapped: refused, and no queue is left behind."""
    assert create_cq(host, how=IEN) == Status.INVALID_FIELD
    assert create_cq(host, at=CQ_MEMORY + 64) == Status.PRP_OFFSET_INVALID
    for at in (0, IOVA + MEMORY - PAGE, 1 << 62, (1 << 64) - PAGE):
        assert create_cq(host, entries=1024, at=at) == Status.INVALID_FIELD
    assert create_cq(host) == 0
    assert create_sq(host, how=0) == Status.INVALID_FIELD
    assert create_sq(host, at=SQ_MEMORY + 8) == Status.PRP_OFFSET_INVALID
    assert create_sq(host, entries=1024, at=IOVA + MEMORY - PAGE) == Status.INVALID_FIELD
    assert create_sq(host) == 0


@pytest.mark.parametrize(
    ("vector", "status"), [(0, 0), (64, 0), (65, Status.INVALID_VECTOR), (0xFFFF, Status.INVALID_VECTOR)]
)
def test_vectors(host: Host, vector: int, status: int) -> None:
    """A vector past the MSI-X table is Invalid Interrupt Vector."""
    assert create_cq(host, vector=vector) == status


def test_number_of_queues_limits_ids(host: Host) -> None:
    """Set Features grants what was asked for up to 64; ids beyond the grant do not exist; later changes are refused."""
    assert host.set_feature(Feature.NUMBER_OF_QUEUES, 3 << 16 | 1).dw0 == 3 << 16 | 1
    assert host.get_feature(Feature.NUMBER_OF_QUEUES) == 3 << 16 | 1
    assert create_cq(host, 5) == Status.INVALID_QUEUE_ID
    assert create_cq(host, 4) == 0
    assert create_sq(host, 3, cqid=4) == Status.INVALID_QUEUE_ID
    assert create_sq(host, 2, cqid=4) == 0
    assert host.set_feature(Feature.NUMBER_OF_QUEUES, 0).status == Status.COMMAND_SEQUENCE_ERROR
    assert (delete_sq(host, 2), delete_cq(host, 4)) == (0, 0)
    assert host.set_feature(Feature.NUMBER_OF_QUEUES, 999 << 16 | 999).dw0 == 63 << 16 | 63


@pytest.mark.parametrize("value", [0xFFFF, 0xFFFF_0000, 0xFFFF_FFFF])
def test_too_many_queues(host: Host, value: int) -> None:
    """65536 queues are Invalid Field."""
    assert host.set_feature(Feature.NUMBER_OF_QUEUES, value).status == Status.INVALID_FIELD


def test_create_zeroes_doorbells(bench: Bench, host: Host) -> None:
    """A queue starts with doorbells of zero, whatever its last life left in the shared page: SPDK never zeroes them."""
    bench.queues[0].doorbells[2:4] = 9
    assert create_cq(host) == 0
    assert create_sq(host) == 0
    assert list(bench.queues[0].doorbells[2:4]) == [0, 0]


def test_doorbell_buffers(bench: Bench) -> None:
    """Doorbell Buffer Config copies today's doorbells into both buffers and ends with the next reset."""
    bench.ports[0].trapped = True
    host = bench.hosts[0].enable()
    create_cq(host)
    create_sq(host)
    host.write(Register.DOORBELLS + 8, 3)
    shadow, eventidx = DATA_AT + MIB, DATA_AT + MIB + PAGE
    host.ok(Admin.DOORBELL_BUFFER_CONFIG, prp1=shadow, prp2=eventidx)
    assert int.from_bytes(host.peek(shadow + 8, 4), "little") == 3
    assert int(bench.records[0]["shadow"]) == host.memory.address + shadow - IOVA
    assert int(bench.records[0]["eventidx"]) == host.memory.address + eventidx - IOVA
    host.disable()
    assert (bench.records[0]["shadow"], bench.records[0]["eventidx"]) == (0, 0)


@pytest.mark.parametrize(
    ("prp1", "prp2"), [(DATA_AT + 8, DATA_AT), (DATA_AT, DATA_AT + 8), (0, DATA_AT), (DATA_AT, 1 << 50)]
)
def test_bad_doorbell_buffers(bench: Bench, prp1: int, prp2: int) -> None:
    """Buffers that are not page aligned or not mapped are Invalid Field."""
    bench.ports[0].trapped = True
    host = bench.hosts[0].enable()
    assert host.refused(Admin.DOORBELL_BUFFER_CONFIG, prp1=prp1, prp2=prp2) == Status.INVALID_FIELD
    assert bench.records[0]["shadow"] == 0


def test_doorbell_buffers_where_doorbells_are_mapped(host: Host) -> None:
    """A port whose doorbells are mapped does not know the command."""
    assert host.refused(Admin.DOORBELL_BUFFER_CONFIG, prp2=DATA_AT) == Status.INVALID_OPCODE


def test_queues_follow_their_memory(bench: Bench, host: Host) -> None:
    """A client that unmaps and maps a queue's memory again, elsewhere in this process, finds the queue going on."""
    create_cq(host)
    create_sq(host)
    queues = bench.queues[0]
    bench.ports[0].unmap(IOVA, MEMORY)
    assert not queues.sqs["live"].any()
    assert not queues.cqs["live"].any()
    assert bench.records[0]["live_count"] == 0
    assert bench.ports[0].service() is False
    other = GuestMemory(MEMORY)  # stands for the same file, mapped again
    other.bytes[:] = host.memory.bytes
    bench.ports[0].map(IOVA, MEMORY // 2, other.address, writable=True)
    assert [int(q) for q in queues.sqs["live"][:2]] == [1, 1]
    assert int(queues.sqs[1]["address"]) == other.address + SQ_MEMORY - IOVA
    assert bench.records[0]["live_count"] == 1
    host.memory = other
    host.identify(1)


def test_suspended_queues_can_be_deleted(bench: Bench, host: Host) -> None:
    """A queue whose memory is away is still a queue: not to be created twice, but to be deleted."""
    far = IOVA + MEMORY
    page = GuestMemory(PAGE)
    bench.ports[0].map(far, PAGE, page.address, writable=True)
    assert create_cq(host, at=far) == 0
    bench.ports[0].unmap(far, PAGE)
    assert create_cq(host) == Status.INVALID_QUEUE_ID
    assert delete_cq(host) == 0
    bench.ports[0].map(far, PAGE, page.address, writable=True)
    assert not bench.queues[0].cqs[1]["live"]


def test_reset_forgets_suspended_queues(bench: Bench, host: Host) -> None:
    """Memory that comes back after a reset wakes nothing."""
    create_cq(host)
    bench.ports[0].unmap(IOVA, MEMORY)
    host.disable()
    bench.ports[0].map(IOVA, MEMORY, host.memory.address, writable=True)
    assert not bench.queues[0].cqs["live"].any()
    host.write(Register.CC, ENABLE)
    assert host.csts == 1
