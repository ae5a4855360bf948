"""The tunnel's relay, single-stepped: batches in one port and out of the other, whatever a guest sends."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emucsd_wire.nvme import Admin, Io, Status
from emucsd_wire.tunnel import MAX_BATCH, TUNNEL_SETUP, SetupFlag, TunnelAdmin, TunnelSetup, frame_bytes
from tests.unit.nvme_host import DATA_AT
from tests.unit.tunnel_rig import MTU, SLOT, End, batch, frames, packet, two_ends

Ends = tuple[End, End]


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    with two_ends(tmp_path) as both:
        yield both


def test_a_waiting_receiver_gets_the_batch(ends: Ends) -> None:
    """A receive waits for frames, and gets them as they were sent, several in one command, both ways."""
    for sender, receiver in (ends, ends[::-1]):
        wanted = [packet(20, 1), packet(1500, 2), packet(MTU, 3), packet(61, 4)]
        receive = receiver.receive()
        assert receiver.settle() == []
        send = sender.send(batch(*wanted))
        assert sender.settle() == [(send, 0, 4)]
        count = len(batch(*wanted))
        assert receiver.settle() == [(receive, 0, count)]
        assert receiver.got(count) == wanted


def test_frames_wait_for_a_receiver(ends: Ends) -> None:
    """What was sent while no receive was out comes with the next one, several batches in one, whole frames only."""
    host, isp = ends
    isp.receive(ms=0)  # it is there
    isp.settle()
    wanted = [packet(1000 + n, n) for n in range(40)]
    for at in range(0, 40, 10):
        host.send(batch(*wanted[at : at + 10]))
        host.settle()
    got: list[bytes] = []
    while len(got) < 40:
        isp.receive(count=frame_bytes(MTU))
        ((_, status, count),) = isp.settle()
        assert status == 0
        assert 0 < count <= frame_bytes(MTU)
        got += isp.got(count)
    assert got == wanted


def test_closed_until_the_host_opens_it(tmp_path: Path) -> None:
    """Without a setup, after the host closed it and after the host's reset, both commands end with Tunnel Closed."""
    with two_ends(tmp_path) as (host, isp):
        waiting = isp.receive()
        assert isp.settle() == []
        host.setup(flags=0)
        assert isp.settle() == [(waiting, Status.TUNNEL_CLOSED, 0)]
        assert isp.status().flags == 0
        for end in (host, isp):
            send, receive = end.send(batch(packet(99))), end.receive(place=1)
            assert end.settle() == [(send, Status.TUNNEL_CLOSED, 0), (receive, Status.TUNNEL_CLOSED, 0)]
        host.setup()
        waiting = isp.receive()
        assert isp.settle() == []
        host.disable()
        assert isp.settle() == [(waiting, Status.TUNNEL_CLOSED, 0)]
        assert isp.status().host_generation >= 1


def test_the_setup_is_what_both_ports_read(ends: Ends) -> None:
    """TUNNEL_STATUS tells the setup, counters and who is there; only port 0 sets up; a bad setup changes nothing."""
    host, isp = ends
    assert (isp.status().mtu, isp.status().flags, isp.status().prefix) == (MTU, SetupFlag.OPEN, 24)
    assert isp.refused(TunnelAdmin.TUNNEL_SETUP) == Status.INVALID_OPCODE
    for bad in (TunnelSetup(2, 1, 1500, 1, 2, 24, bytes(47)), TunnelSetup(1, 3, 1500, 1, 2, 24, bytes(47)),
                TunnelSetup(1, 1, 575, 1, 2, 24, bytes(47)), TunnelSetup(1, 1, 65536, 1, 2, 24, bytes(47)),
                TunnelSetup(1, 1, 1500, 1, 2, 33, bytes(47))):  # fmt: skip
        host.poke(DATA_AT, TUNNEL_SETUP.pack(bad))
        assert host.refused(TunnelAdmin.TUNNEL_SETUP) == Status.INVALID_FIELD
    assert host.refused(TunnelAdmin.TUNNEL_STATUS, cdw11=2) == Status.INVALID_FIELD
    assert host.status().mtu == MTU
    assert host.status().isp_there == 0
    isp.receive()
    isp.settle()
    assert host.status().isp_there == 1


def test_an_end_that_is_not_there_costs_frames_not_waiting(ends: Ends) -> None:
    """Frames for an end that never asked, or whose port was reset, are dropped and counted; the sender goes on."""
    host, isp = ends
    for _ in range(20):
        host.send(batch(*[packet(MTU)] * 20))
        ((_, status, taken),) = host.settle()
        assert (status, taken) == (0, 20)
    assert host.drive.stats()["tunnel"]["to_isp"]["unheard"] == 400
    isp.receive(ms=0)
    isp.settle()
    host.send(batch(packet(50)))
    host.settle()
    isp.disable()
    host.send(batch(packet(51)))
    host.settle()
    counters = host.drive.stats()["tunnel"]["to_isp"]
    assert (counters["unheard"], counters["delivered"], counters["queued_bytes"]) == (401, 0, 0)


def test_back_pressure(ends: Ends) -> None:
    """With the ring full a send waits; a receive makes room and lets it in; nothing is lost and order is kept."""
    host, isp = ends
    isp.receive(ms=0)
    isp.settle()
    wanted: list[bytes] = []
    while True:
        some = [packet(MTU, len(wanted) + n) for n in range(14)]
        wanted += some
        host.send(batch(*some), ms=10_000)

        if not host.settle():
            break
    got: list[bytes] = []
    isp.receive()
    ((_, _, count),) = isp.settle()
    got += isp.got(count)
    assert len(host.settle()) == 1  # the one that waited
    while len(got) < len(wanted):
        isp.receive()
        ((_, _, count),) = isp.settle()
        got += isp.got(count)
    assert got == wanted
    assert host.drive.stats()["tunnel"]["to_isp"]["waited"] == 1


def test_waiting_ends_with_time(ends: Ends) -> None:
    """A receive without frames and a send without room succeed with nothing after their milliseconds, and 0 is none."""
    host, isp = ends
    now = isp.receive(ms=0)
    assert isp.settle() == [(now, 0, 0)]
    begun = time.monotonic()
    first, second = isp.receive(ms=40), isp.receive(ms=5, place=1)
    done: list[tuple[int, int, int]] = []
    while len(done) < 2 and time.monotonic() < begun + 5:
        isp.drive.step(300)  # the clock is read once in so many rounds
        done += isp.settle()
    assert [(cid, dw0) for cid, _, dw0 in done] == [(second, 0), (first, 0)]
    assert time.monotonic() - begun >= 0.04
    big = batch(*[packet(MTU)] * 28)
    while host.send(big, ms=5) and host.settle():
        pass
    while not (done := host.settle()):
        host.drive.step(300)
    assert done[0][1:] == (0, 0)
    assert host.drive.stats()["tunnel"]["to_isp"]["expired"] == 1


def test_virtual_time_stands_still_for_waiting(tmp_path: Path) -> None:
    """On a virtual clock a parked receive neither takes time nor expires."""
    with two_ends(tmp_path, clock="virtual", profile="femu") as (host, isp):
        receive = isp.receive(ms=1)
        assert isp.settle() == []
        before = host.drive.clock_now()
        host.drive.step(1000)
        assert host.drive.clock_now() == before
        host.send(batch(packet(77)))
        host.drive.step(50)
        assert [done.status for done in host.reap_io()] == [0]
        assert isp.settle() == [(receive, 0, frame_bytes(77))]


def test_a_new_end_takes_its_place(ends: Ends) -> None:
    """JOIN ends what a dead end left waiting, so that its commands take no frames; a new setup does it on port 0."""
    host, isp = ends
    old = isp.receive()
    isp.settle()
    isp.join()
    assert isp.settle() == [(old, Status.ABORT_REQUESTED, 0)]
    theirs, ours = isp.receive(), host.receive()
    isp.settle()
    host.reap_io()
    host.setup(mtu=1500)
    assert host.settle() == [(ours, Status.ABORT_REQUESTED, 0)]
    assert isp.settle() == [(theirs, Status.TUNNEL_CLOSED, 0)]
    assert (isp.status().mtu, isp.status().setups) == (1500, 2)


def test_a_deleted_queue_takes_no_frames(ends: Ends) -> None:
    """A receive of a queue that was deleted is passed over, its memory is left alone."""
    host, isp = ends
    isp.receive(ms=60_000)
    isp.settle()
    isp.poke(DATA_AT, bytes(64))
    isp.ok(Admin.DELETE_SQ, cdw10=1)
    isp.ok(Admin.DELETE_CQ, cdw10=1)
    isp.create_queues(64)
    receive = isp.receive(place=1)
    isp.settle()
    host.send(batch(packet(30, 7)))
    host.settle()
    assert isp.settle() == [(receive, 0, frame_bytes(30))]
    assert isp.peek(DATA_AT, 64) == bytes(64)


def test_resets_free_everything(ends: Ends) -> None:
    """After many resets with commands waiting, no slot is lost and the tunnel still works."""
    host, isp = ends
    free = int(host.drive.state[0]["commands"]["free_count"])
    for _ in range(20):
        isp.receive(ms=60_000)
        isp.receive(ms=60_000, place=1)
        isp.settle()
        isp.disable()
        isp.enable()
        isp.create_queues(64)
    assert int(host.drive.state[0]["commands"]["free_count"]) == free
    assert int(isp.port.queues.record["outstanding"]) == 0
    receive = isp.receive()
    isp.settle()
    host.send(batch(packet(40)))
    host.settle()
    assert isp.settle() == [(receive, 0, frame_bytes(40))]


def test_waiting_is_no_work(ends: Ends) -> None:
    """A parked command does not keep the controller busy."""
    _, isp = ends
    isp.receive()
    isp.settle()
    assert int(isp.port.queues.record["outstanding"]) == 0


@pytest.mark.parametrize(
    ("count", "status"),
    [(0, Status.INVALID_FIELD), (16, Status.INVALID_FIELD), (28, Status.INVALID_FIELD),
     (MAX_BATCH + 8, Status.COMMAND_SIZE_LIMIT), (0xFFFF_FFF8, Status.COMMAND_SIZE_LIMIT)],
)  # fmt: skip
def test_sizes(ends: Ends, count: int, status: Status) -> None:
    """Batches too small, odd or too large are refused by their size; so is a receive without room for a frame."""
    host, _ = ends
    cid = host.send(b"", count=count)
    assert host.settle() == [(cid, status, 0)]
    cid = host.receive(count=frame_bytes(MTU) - 8)
    assert host.settle() == [(cid, Status.COMMAND_SIZE_LIMIT, 0)]


def bad_batches() -> list[tuple[bytes, int]]:
    """A batch, and the offset of its first bad frame."""
    good = batch(packet(100))
    v6 = struct.pack(">IHBBQQQQ", 6 << 28, 10, 59, 64, 1, 2, 3, 4) + bytes(10)
    assert len(frames(batch(v6))[0]) == 50
    wrong_v6 = bytearray(v6)
    wrong_v6[5] += 1
    short = bytearray(batch(packet(100)))
    short[0] = 99
    return [
        (good + bytes(24), len(good)),
        (good + batch(packet(MTU + 1)), len(good)),
        (struct.pack("<I", 19) + bytes(20), 0),
        (struct.pack("<I", 0xFFFF_FFFF) + bytes(20), 0),
        (good + good[:-8], len(good)),
        (bytes(short), 0),
        (batch(b"\x44" + packet(40)[1:]), 0),  # a header of 16 bytes
        (batch(b"\x55" + packet(40)[1:]), 0),
        (batch(bytes(wrong_v6)), 0),
        (batch(v6, b"\x65" + packet(30)[1:]), frame_bytes(50)),
    ]


@pytest.mark.parametrize(("data", "offset"), bad_batches())
def test_a_garbage_batch_is_a_status(ends: Ends, data: bytes, offset: int) -> None:
    """A bad frame refuses its whole batch, says where, is counted, and nothing of it reaches the other side."""
    host, isp = ends
    isp.receive(ms=10_000)
    isp.settle()
    send = host.send(data)
    assert host.settle() == [(send, Status.TUNNEL_BATCH, offset)]
    assert isp.settle() == []
    assert host.drive.stats()["tunnel"]["to_isp"]["refused"] == 1


def test_memory_that_is_not_there(ends: Ends) -> None:
    """Data outside of mapped memory is an error of that command; frames wait for the next receive."""
    host, isp = ends
    sqe = host.sqe(Io.TUNNEL_SEND, prp1=1 << 40, cdw12=24, cdw13=1000)
    host.submit_io(sqe)
    assert [d[1] for d in host.settle()] == [Status.DATA_TRANSFER_ERROR]
    isp.submit_io(isp.sqe(Io.TUNNEL_RECEIVE, prp1=1 << 40, prp2=1 << 40, cdw12=2 * MTU, cdw13=1000))
    isp.settle()
    host.send(batch(packet(70)))
    host.settle()
    assert [d[1] for d in isp.settle()] == [Status.DATA_TRANSFER_ERROR]
    isp.receive()
    assert [d[2] for d in isp.settle()] == [frame_bytes(70)]


def test_faults_lose_reorder_and_double(ends: Ends) -> None:
    """Faults change which frames come, how often and in which order, as counted; no frame is ever changed."""
    host, isp = ends
    host.drive.set_tunnel_faults(100_000, 100_000, 100_000, seed=5)
    isp.receive(ms=0)
    isp.settle()
    got: list[bytes] = []
    for turn in range(100):
        host.send(batch(*[packet(100, 10 * turn + n) for n in range(10)]))
        host.settle()
        isp.receive(ms=0)
        got += isp.got(isp.settle()[0][2])
    host.drive.set_tunnel_faults(0, 0, 0, seed=5)
    host.send(batch(packet(100, 1000)))
    host.settle()
    isp.receive(ms=0)
    got += isp.got(isp.settle()[0][2])
    counters = host.drive.stats()["tunnel"]["to_isp"]
    assert all(counters[name] > 50 for name in ("lost", "reordered", "duplicated"))
    assert len(got) == 1001 - counters["lost"] + counters["duplicated"]
    marks = [struct.unpack_from(">H", p, 4)[0] for p in got]
    assert all(p == packet(100, mark) for p, mark in zip(got, marks, strict=True))
    assert len(set(marks)) == 1001 - counters["lost"]
    assert marks != sorted(marks)


def test_a_held_frame_goes_on_alone(ends: Ends) -> None:
    """A frame that is to be overtaken waits shortly when nothing follows it."""
    host, isp = ends
    host.drive.set_tunnel_faults(0, 1_000_000, 0, seed=1)
    receive = isp.receive(ms=10_000)
    isp.settle()
    host.send(batch(packet(64)))
    host.settle()
    deadline = time.monotonic() + 5
    while not (done := isp.settle()) and time.monotonic() < deadline:
        isp.drive.step(300)
    assert done == [(receive, 0, frame_bytes(64))]


@settings(max_examples=200)
@given(data=st.binary(min_size=24, max_size=400), lengths=st.lists(st.integers(0, 2**32 - 1), max_size=4))
def test_any_bytes_are_answered(shared: Ends, data: bytes, lengths: list[int]) -> None:
    """Whatever bytes a guest sends, the answer is success with whole checked frames, or Tunnel Batch and an offset."""
    host, isp = shared
    data = data[: len(data) // 8 * 8]
    for n, length in enumerate(lengths):
        at = 48 * n
        if at + 8 <= len(data):
            version = b"\x45" if length & 1 else b"\x60"
            data = data[:at] + struct.pack("<I", length % 500) + version + data[at + 5 :]
    send = host.send(data)
    ((cid, status, dw0),) = host.settle()
    assert cid == send
    if status:
        assert status == Status.TUNNEL_BATCH
        assert dw0 < len(data)
        assert dw0 % 8 == 0
        return
    isp.receive(ms=0)
    ((_, _, count),) = isp.settle()
    got = isp.got(count)
    assert len(got) == dw0
    assert count == len(data)
    assert got == frames(data)


def test_any_command_is_answered(shared: Ends) -> None:
    """Commands with any dwords complete or wait; the drive stays usable and loses no slot."""
    host, isp = shared
    draw = random.Random(3)
    for _ in range(400):
        end = draw.choice([host, isp])
        words = {f"cdw{n}": draw.choice([0, 1, 24, 4096, SLOT, MAX_BATCH, draw.getrandbits(32)]) for n in (10, 12)}
        sqe = end.sqe(draw.choice([Io.TUNNEL_SEND, Io.TUNNEL_RECEIVE]), draw.getrandbits(32),
                      prp1=draw.choice([0, DATA_AT, DATA_AT + 4, draw.getrandbits(64)]),
                      prp2=draw.choice([0, DATA_AT, draw.getrandbits(64)]), flags=draw.choice([0, 0, 1, 0x40, 0xC0]),
                      cdw13=draw.choice([0, 1]), **words)  # fmt: skip
        end.submit_io(sqe)
        end.settle()
        if draw.random() < 0.1:
            end.drive.step(600)
            end.settle()
    host.setup()
    host.settle()
    isp.settle()
    receive = isp.receive()
    isp.settle()
    host.send(batch(packet(44)))
    host.settle()
    assert (receive, 0, frame_bytes(44)) in isp.settle()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    """One drive for tests that send anything."""
    with two_ends(tmp_path_factory.mktemp("tunnel")) as both:
        both[1].receive(ms=0)
        both[1].settle()
        yield both
