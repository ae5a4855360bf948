"""GET_IRQ_INFO and SET_IRQS: eventfds reach the port, masks and triggers do what they say, nothing leaks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_wire.vfio_user import IRQ_INFO, Command, Irq, IrqAction, IrqFlag, IrqInfo
from tests.protocol.vfio_peer import Peer, Stand, open_fds

ASSIGN = IrqAction.DATA_EVENTFD | IrqAction.TRIGGER
DISABLE = IrqAction.DATA_NONE | IrqAction.TRIGGER


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


@pytest.fixture
def peer(stand: Stand) -> Peer:
    return stand.connect()


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    """Sixteen eventfds, as many as one message carries."""
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(16)]
    yield fds
    for fd in fds:
        os.close(fd)


def raised(fd: int) -> int:
    """How often an eventfd was raised since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_irq_info(peer: Peer) -> None:
    """65 MSI-X vectors that may be set one by one (no NORESIZE); no INTx, no MSI; ERR and REQ so that QEMU is calm."""
    counts = {}
    for irq in Irq:
        info = IRQ_INFO.unpack(peer.call(Command.DEVICE_GET_IRQ_INFO, IRQ_INFO.pack(IrqInfo(16, 0, irq, 0))).payload)
        assert (info.argsz, info.irq) == (16, irq)
        assert info.flags & IrqFlag.EVENTFD
        assert not info.flags & IrqFlag.NORESIZE
        counts[irq] = info.vectors
    assert counts == {Irq.INTX: 0, Irq.MSI: 0, Irq.MSIX: 65, Irq.ERR: 1, Irq.REQ: 1}
    assert peer.call(Command.DEVICE_GET_IRQ_INFO, IRQ_INFO.pack(IrqInfo(16, 0, 5, 0))).errno == errno.EINVAL
    assert peer.call(Command.DEVICE_GET_IRQ_INFO, IRQ_INFO.pack(IrqInfo(12, 0, 2, 0))).errno == errno.EINVAL
    assert peer.call(Command.DEVICE_GET_IRQ_INFO, bytes(12)).errno == errno.EINVAL


def test_qemus_way_to_enable_msix(stand: Stand, peer: Peer, eventfds: list[int]) -> None:
    """QEMU arms MSI-X with one vector and no descriptor, then sends vector after vector; each reaches the port."""
    assert peer.set_irqs(ASSIGN, Irq.MSIX, 0, 1) == 0
    assert stand.port.vectors == {}
    for vector in range(4):
        assert peer.set_irqs(ASSIGN, Irq.MSIX, vector, 1, (eventfds[vector],)) == 0
    assert sorted(stand.port.vectors) == [0, 1, 2, 3]
    for vector in range(4):
        os.eventfd_write(stand.port.vectors[vector], 1)
        assert [raised(fd) for fd in eventfds[:4]] == [int(n == vector) for n in range(4)]


def test_sixteen_vectors_in_one_message(stand: Stand, peer: Peer, eventfds: list[int]) -> None:
    """max_msg_fds descriptors travel with one SET_IRQS."""
    assert peer.set_irqs(ASSIGN, Irq.MSIX, 49, 16, tuple(eventfds)) == 0
    assert sorted(stand.port.vectors) == list(range(49, 65))


def test_reassign_and_deassign_close_the_old(stand: Stand, peer: Peer, eventfds: list[int]) -> None:
    """A vector's new eventfd replaces the old one; no descriptors at all takes the vectors away."""
    before = open_fds()
    for _ in range(5):
        assert peer.set_irqs(ASSIGN, Irq.MSIX, 0, 2, tuple(eventfds[:2])) == 0
    assert open_fds() <= before + 2
    assert peer.set_irqs(ASSIGN, Irq.MSIX, 0, 1) == 0
    assert sorted(stand.port.vectors) == [1]
    assert peer.set_irqs(DISABLE, Irq.MSIX, 0, 0) == 0
    assert stand.port.vectors == {}
    assert open_fds() <= before


def test_trigger_and_mask(stand: Stand, peer: Peer, eventfds: list[int]) -> None:
    """TRIGGER raises chosen vectors; a masked one stays silent and is raised once when it is unmasked."""
    none, bools = IrqAction.DATA_NONE, IrqAction.DATA_BOOL
    assert peer.set_irqs(ASSIGN, Irq.MSIX, 0, 3, tuple(eventfds[:3])) == 0
    assert peer.set_irqs(none | IrqAction.TRIGGER, Irq.MSIX, 1, 2) == 0
    assert [raised(fd) for fd in eventfds[:3]] == [0, 1, 1]
    assert peer.set_irqs(bools | IrqAction.TRIGGER, Irq.MSIX, 0, 3, data=b"\1\0\1") == 0
    assert [raised(fd) for fd in eventfds[:3]] == [1, 0, 1]
    assert peer.set_irqs(none | IrqAction.MASK, Irq.MSIX, 2, 1) == 0
    assert sorted(stand.port.vectors) == [0, 1]
    assert peer.set_irqs(none | IrqAction.TRIGGER, Irq.MSIX, 0, 3) == 0
    assert [raised(fd) for fd in eventfds[:3]] == [1, 1, 0]
    assert peer.set_irqs(ASSIGN, Irq.MSIX, 2, 1, (eventfds[5],)) == 0
    assert 2 not in stand.port.vectors
    assert peer.set_irqs(none | IrqAction.UNMASK, Irq.MSIX, 2, 1) == 0
    assert sorted(stand.port.vectors) == [0, 1, 2]
    assert [raised(fd) for fd in (*eventfds[:3], eventfds[5])] == [0, 0, 0, 1]


def test_err_and_req_are_kept_and_never_raised(stand: Stand, peer: Peer, eventfds: list[int]) -> None:
    """QEMU registers an error eventfd: accepted; it does not reach the port."""
    assert peer.set_irqs(ASSIGN, Irq.ERR, 0, 1, (eventfds[0],)) == 0
    assert peer.set_irqs(ASSIGN, Irq.REQ, 0, 1, (eventfds[1],)) == 0
    assert stand.port.vectors == {}
    assert peer.set_irqs(DISABLE, Irq.INTX, 0, 0) == 0


@pytest.mark.parametrize(
    ("flags", "irq", "start", "vectors", "fds", "data"),
    [
        (ASSIGN, Irq.MSIX, 65, 1, 1, b""),
        (ASSIGN, Irq.MSIX, 64, 2, 2, b""),
        (ASSIGN, Irq.MSIX, 0xFFFFFFFF, 2, 2, b""),
        (ASSIGN, Irq.MSIX, 0, 0xFFFFFFFF, 1, b""),
        (ASSIGN, Irq.MSIX, 0, 2, 1, b""),
        (ASSIGN, Irq.MSIX, 0, 1, 2, b""),
        (ASSIGN, Irq.INTX, 0, 1, 1, b""),
        (ASSIGN, Irq.MSI, 0, 1, 1, b""),
        (ASSIGN, 5, 0, 1, 1, b""),
        (ASSIGN, 0xFFFFFFFF, 0, 1, 1, b""),
        (IrqAction.DATA_EVENTFD | IrqAction.MASK, Irq.MSIX, 0, 1, 1, b""),
        (IrqAction.DATA_EVENTFD, Irq.MSIX, 0, 1, 1, b""),
        (IrqAction.TRIGGER, Irq.MSIX, 0, 1, 0, b""),
        (ASSIGN | IrqAction.DATA_NONE, Irq.MSIX, 0, 1, 1, b""),
        (ASSIGN | IrqAction.MASK, Irq.MSIX, 0, 1, 1, b""),
        (ASSIGN | 0x40, Irq.MSIX, 0, 1, 1, b""),
        (IrqAction.DATA_BOOL | IrqAction.TRIGGER, Irq.MSIX, 0, 3, 0, b"\1\1"),
        (0, Irq.MSIX, 0, 0, 0, b""),
    ],
)
def test_impossible_requests_change_nothing(
    stand: Stand, peer: Peer, eventfds: list[int], flags: int, irq: int, start: int, vectors: int, fds: int, data: bytes
) -> None:
    """A request that makes no sense gets EINVAL; no vector changes and no descriptor stays open."""
    before = open_fds()
    assert peer.set_irqs(flags, irq, start, vectors, tuple(eventfds[:fds]), data) == errno.EINVAL
    assert open_fds() <= before
    assert stand.port.calls == []


def test_only_eventfds_are_interrupts(stand: Stand, peer: Peer, eventfds: list[int]) -> None:
    """A pipe in place of an eventfd could block the drive for ever: refused, and so is its good neighbour."""
    reading, writing = os.pipe()
    before = open_fds()
    assert peer.set_irqs(ASSIGN, Irq.MSIX, 0, 2, (eventfds[0], writing)) == errno.EINVAL
    assert open_fds() <= before
    assert stand.port.vectors == {}
    os.close(reading)
    os.close(writing)


def test_a_full_eventfd_blocks_nobody(stand: Stand, peer: Peer) -> None:
    """A blocking eventfd whose counter is full: raising it returns at once."""
    full = os.eventfd(0)
    os.eventfd_write(full, (1 << 64) - 2)
    assert peer.set_irqs(ASSIGN, Irq.MSIX, 0, 1, (full,)) == 0
    assert not os.get_blocking(stand.port.vectors[0])
    assert peer.set_irqs(DISABLE, Irq.MSIX, 0, 1) == 0
    os.close(full)


def test_a_lost_client_takes_its_vectors(stand: Stand, eventfds: list[int]) -> None:
    """A client that vanishes leaves no vector connected and no descriptor open, masked or not."""
    before = open_fds()
    peer = stand.connect()
    assert peer.set_irqs(ASSIGN, Irq.MSIX, 0, 16, tuple(eventfds)) == 0
    assert peer.set_irqs(IrqAction.DATA_NONE | IrqAction.MASK, Irq.MSIX, 3, 1) == 0
    peer.close()
    stand.server.run_once(0)
    assert stand.port.vectors == {}
    assert open_fds() <= before
    again = stand.connect()
    assert again.set_irqs(ASSIGN, Irq.MSIX, 3, 1, (eventfds[3],)) == 0
    assert sorted(stand.port.vectors) == [3]
