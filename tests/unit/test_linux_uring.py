"""io_uring as passthrough uses it: entries of 128 bytes, completions of 32, an eventfd; NVMe itself is for a guest."""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from emucsd.errors import EmucsdError, InvalidArgument, QueueFull, RingUnavailable
from emucsd.linux import uring
from emucsd.linux.ioctl import PASSTHRU_COMMAND64, command
from emucsd.linux.uring import COMPLETION, ENTRY, PARAMS, Entry, Ring


@pytest.fixture
def ring() -> Iterator[Ring]:
    try:
        made = Ring(8)
    except RingUnavailable as problem:
        pytest.skip(str(problem))
    with made:
        yield made


def readable(ring: Ring, seconds: float = 0.0) -> bool:
    return bool(select.select([ring], [], [], seconds)[0])


def test_entries_lie_as_the_kernel_has_them() -> None:
    """Fields of the structures are where the kernel's headers put them."""
    assert {f.name: f.offset for f in ENTRY} | {"cmd_op": 8, "user_data": 32, "file_index": 44} == {
        f.name: f.offset for f in ENTRY
    }
    assert (ENTRY.size, COMPLETION.size, PARAMS.size) == (48, 32, 120)
    assert (PARAMS.offset("features"), PARAMS.offset("sq_head"), PARAMS.offset("cq_head")) == (20, 40, 80)
    assert (COMPLETION.offset("res"), COMPLETION.offset("result")) == (8, 16)


def test_a_passthrough_entry_byte_for_byte() -> None:
    """A read of 4096 bytes: the ring's part, then the driver's structure at byte 48."""
    head = Entry(uring.OP_URING_CMD, 0, 0, 5, uring.NVME_URING_CMD_IO, 0, 0, 0, 0, 7, 0, 0, 0)
    read = command(2, 1, 0x7000, 4096, 1000, cdw10=9)
    data = ENTRY.pack(head) + PASSTHRU_COMMAND64.pack(read)
    expected = bytearray(128)
    expected[0] = 46
    struct.pack_into("<iI", expected, 4, 5, 0xC0484E80)
    struct.pack_into("<Q", expected, 32, 7)
    struct.pack_into("<BxxxI", expected, 48, 2, 1)
    struct.pack_into("<QII", expected, 48 + 24, 0x7000, 0, 4096)
    struct.pack_into("<I", expected, 48 + 40, 9)
    struct.pack_into("<I", expected, 48 + 64, 1000)
    assert data == expected


def test_tokens_come_back_over_many_rounds(ring: Ring) -> None:
    """Every command completes once, with its token, far beyond the ring's size."""
    seen = []
    for start in range(0, 100, 5):
        for token in range(start, start + 5):
            ring.nop(token)
        assert ring.submit(wait=5) == 5
        seen += ring.completions()
    assert seen == [(token, 0, 0) for token in range(100)]
    assert (ring.outstanding, ring.room) == (0, ring.entries)


def test_the_eventfd_says_when_to_look(ring: Ring) -> None:
    """The ring's descriptor is readable from a completion until completions were taken."""
    assert not readable(ring)
    ring.nop(1 << 63)
    assert not readable(ring), "nothing was submitted yet"
    ring.submit()
    assert readable(ring, 5)
    assert ring.completions() == [(1 << 63, 0, 0)]
    assert not readable(ring)
    assert ring.completions() == []


def test_a_full_ring_refuses(ring: Ring) -> None:
    """The ninth command under way is refused and nothing of it is left; room comes back with completions."""
    for token in range(ring.entries):
        ring.nop(token)
    with pytest.raises(QueueFull, match="take completions first"):
        ring.nop(99)
    ring.submit(wait=ring.entries)
    with pytest.raises(QueueFull):
        ring.nop(99)
    assert len(ring.completions(3)) == 3
    assert ring.room == 3
    assert len(ring.completions()) == ring.entries - 3


def test_waiting_ends_in_time(ring: Ring) -> None:
    """A wait for what never comes ends after its time, and what completes later is still taken."""
    read, write = os.pipe()
    poll_add = Entry(6, 0, 0, read, 0, 0, 0, 0, select.POLLIN, 42, 0, 0, 0)
    ring.add(ENTRY.pack(poll_add) + bytes(80))
    begun = time.monotonic()
    assert ring.submit(wait=1, timeout=0.05) == 0
    assert 0.04 < time.monotonic() - begun < 5
    timer = threading.Timer(0.05, os.write, (write, b"x"))
    timer.start()
    assert ring.submit(wait=1, timeout=10) == 1
    timer.join()
    assert [(token, status > 0) for token, status, _ in ring.completions()] == [(42, True)]
    os.close(read)
    os.close(write)


def test_a_command_linux_refuses_is_a_completion(ring: Ring) -> None:
    """Passthrough on something that is no NVMe node completes with a negative errno and harms no other command."""
    with open(__file__, "rb") as node:
        ring.passthrough(node.fileno(), 2, 1, token=1)
        ring.nop(2)
        assert ring.submit(wait=2) == 2
    found = {token: status for token, status, _ in ring.completions()}
    assert found[1] < 0
    assert found[2] == 0


def test_a_ring_of_no_sensible_size() -> None:
    """Sizes that no ring has are refused with the limit."""
    for entries in (0, 5000):
        with pytest.raises(InvalidArgument, match="1 to 4096"):
            Ring(entries)


def test_closing_twice(ring: Ring) -> None:
    """A ring with nothing out closes at once, again and again, and gives its descriptors back."""
    before = len(os.listdir("/proc/self/fd"))
    other = Ring(4)
    other.nop()
    assert other.close()
    assert other.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_not_allowed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel refuses io_uring the error says why, and is one that callers can fall back on."""
    monkeypatch.setattr(uring, "_SETUP", 99_999)
    with pytest.raises(RingUnavailable, match="no io_uring"):
        Ring(8)
    assert issubclass(RingUnavailable, EmucsdError)
