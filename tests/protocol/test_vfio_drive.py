"""The server with a whole drive behind it, stepped by hand: SPDK's way, QEMU's way, and clients that vanish."""

from __future__ import annotations

import mmap
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emucsd_femu.server import Server
from emucsd_firmware.drive import Drive
from emucsd_firmware.profile import load
from emucsd_wire import paths
from emucsd_wire.nvme import Admin, Io, Register, Status
from emucsd_wire.rm import RM_REGISTERS_OFFSET
from emucsd_wire.vfio_user import REGION_INFO, SPARSE_MMAP, Command, Region, RegionInfo
from tests.protocol.test_vfio_fuzz import descriptors, drain, payload
from tests.protocol.vfio_nvme import ENTRIES, Host, enable
from tests.protocol.vfio_peer import OWN_JSON, QEMU_JSON, STEPS, Closed, Peer, memfd, open_fds
from tests.protocol.vfio_script import Actor, parse

BASE = 0x200000200000  # where SPDK's script maps its memory
MEMORY = 0x200000
DOORBELL_BUFFERS = 0x100  # OACS bit 8
ADMIN = "the admin queue, through the mapped page"


class Stand:
    """A drive and its server; ``run_once`` is one step of both."""

    def __init__(self, folder: Path) -> None:
        self.drive = Drive.open(folder / "store", load("null", capacity_bytes="64MiB"))
        self.path = paths.port_socket(folder, 0)
        sockets = [self.path, paths.port_socket(folder, 1)]
        self.server = Server(list(self.drive.ports), sockets)
        self.connect: Callable[[], Peer] = lambda: Peer(self, self.path)

    def run_once(self, timeout: float | None = 0) -> bool:
        worked = self.server.run_once(timeout)
        return bool(self.drive.step()) or worked

    def settle(self) -> None:
        for _ in range(STEPS):
            if not self.run_once():
                return
        raise AssertionError("the drive never becomes idle")

    def close(self) -> None:
        self.server.close()
        self.drive.close()


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    made = Stand(tmp_path_factory.mktemp("drive"))
    yield made
    made.close()


def enabled(stand: Stand, text: bytes, fd: int, memory: mmap.mmap) -> Host:
    """A client that has mapped its memory and enabled the controller, doorbells as its VERSION text brings them."""
    return enable(stand.connect(), text, BASE, fd, memory, stand.run_once)


def test_spdk_attaches_works_and_detaches(stand: Stand) -> None:
    """The recorded exchange against a whole drive, with identify, queues and I/O through the mapped page between."""
    script = parse("vfio_spdk.txt")
    border = [step.name for step in script].index(ADMIN)
    with memfd(MEMORY) as fd, mmap.mmap(fd, MEMORY) as memory:
        before = open_fds()
        for turn in range(2):
            spdk = Actor(stand.connect(), fd)
            spdk.run(script[:border])
            assert spdk.page is not None
            host = Host(spdk.peer, memory, BASE, stand.run_once, spdk.page)
            controller = host.identify(1)
            assert struct.unpack_from("<H", controller, 0) == (0x1D1D,)
            assert not struct.unpack_from("<H", controller, 256)[0] & DOORBELL_BUFFERS  # the page is mapped
            host.create_io()
            assert host.write(8 * turn, bytes([turn + 1]) * 4096) == 0
            assert host.read(8 * turn, 4096) == bytes([turn + 1]) * 4096
            spdk.run(script[border:])
            spdk.close()
            stand.settle()
        assert open_fds() <= before


def test_trapped_doorbells_and_interrupts(stand: Stand) -> None:
    """QEMU's way: posted doorbell writes, Doorbell Buffer Config offered, a completion raises its vector's eventfd."""
    with memfd(MEMORY) as fd, mmap.mmap(fd, MEMORY) as memory:
        host = enabled(stand, QEMU_JSON, fd, memory)
        event = os.eventfd(0, os.EFD_NONBLOCK)
        assert host.peer.set_irqs(36, 2, 1, 1, (event,)) == 0
        assert struct.unpack_from("<H", host.identify(1), 256)[0] & DOORBELL_BUFFERS
        host.create_io(vector=1)
        assert host.write(0, b"trapped!" * 512) == 0
        assert os.eventfd_read(event) >= 1
        assert host.read(0, 4096) == b"trapped!" * 512
        # shadow doorbells: stores to host memory, messages only when EventIdx asks for them
        shadow, eventidx = 0x20000, 0x21000
        assert host.admin.run(Admin.DOORBELL_BUFFER_CONFIG, prp1=BASE + shadow, prp2=BASE + eventidx) == 0
        by_message = host.ring

        def ring(index: int, value: int) -> None:
            memory[shadow + 4 * index : shadow + 4 * index + 4] = struct.pack("<I", value)
            if index < 2:
                by_message(index, value)

        assert host.io is not None
        host.io._ring = ring
        assert host.read(0, 4096) == b"trapped!" * 512
        host.peer.close()
        stand.settle()
        os.close(event)


@pytest.mark.parametrize("text", [OWN_JSON, QEMU_JSON], ids=["mapped", "trapped"])
def test_a_client_that_vanishes_mid_command(stand: Stand, text: bytes) -> None:
    """Hundreds of reads and writes under way, then the socket closes: memory is let go, the next client is whole."""
    with memfd(MEMORY) as fd:
        for turn in range(5):
            before = open_fds()
            memory = mmap.mmap(fd, MEMORY)
            host = enabled(stand, text, fd, memory)
            queues = host.create_io()
            for n in range(ENTRIES - 2):
                opcode = Io.WRITE if n % 2 else Io.READ
                queues.submit(opcode, nsid=1, prp1=BASE + 0x10000 + 0x1000 * (n % 64), cdw10=8 * n, cdw12=0)
            for _ in range(turn):
                stand.run_once()
            host.peer.close()
            memory.close()
            stand.settle()
            assert stand.server.endpoints[0].session is None
            assert open_fds() <= before
        with mmap.mmap(fd, MEMORY) as memory:
            host = enabled(stand, text, fd, memory)
            host.create_io()
            assert host.write(0, b"healthy." * 512) == 0
            assert host.read(0, 4096) == b"healthy." * 512
            host.peer.close()
            stand.settle()


def test_unmapped_memory_is_a_status(stand: Stand) -> None:
    """Data outside of what the client mapped, or taken away meanwhile: a status, and the drive goes on."""
    with memfd(MEMORY) as fd, memfd(0x1000) as extra, mmap.mmap(fd, MEMORY) as memory:
        host = enabled(stand, OWN_JSON, fd, memory)
        queues = host.create_io()
        assert host.peer.map(0x10000000, 0x1000, extra) == 0
        assert queues.run(Io.READ, nsid=1, prp1=0x10000000, cdw12=0) == 0
        assert host.peer.unmap(0x10000000, 0x1000) == 0
        for address in (0x10000000, BASE + MEMORY, 0, 0x7FFF_FFFF_FFFF_F000):
            assert queues.run(Io.READ, nsid=1, prp1=address, cdw12=0) == Status.DATA_TRANSFER_ERROR
        assert host.write(0, b"still ok" * 512) == 0
        host.peer.close()
        stand.settle()


def test_queue_memory_taken_away(stand: Stand) -> None:
    """A client that unmaps its own queues under way gets nothing more from them, and harms nobody."""
    with memfd(MEMORY) as fd, mmap.mmap(fd, MEMORY) as memory:
        host = enabled(stand, OWN_JSON, fd, memory)
        queues = host.create_io()
        for n in range(32):
            queues.submit(Io.WRITE, nsid=1, prp1=BASE + 0x10000, cdw10=8 * n, cdw12=0)
        assert host.peer.unmap(BASE, MEMORY) == 0
        queues.submit(Io.WRITE, nsid=1, prp1=BASE + 0x10000, cdw12=0)
        host.ring(0, 5)
        stand.settle()
        host.peer.close()
        stand.settle()
        again = enabled(stand, OWN_JSON, fd, memory)
        again.create_io()
        assert again.write(0, b"next one" * 512) == 0
        again.peer.close()
        stand.settle()


def test_resets_under_load(stand: Stand) -> None:
    """Device reset, function level reset and disable with commands under way: each leaves a controller that enables."""
    resets: list[Callable[[Peer], object]] = [
        lambda peer: peer.call(13),
        lambda peer: peer.write(7, 0x68, b"\0\x80"),
        lambda peer: peer.write(0, Register.CC, struct.pack("<I", 0x00460000)),
        lambda peer: peer.write(0, Register.NSSR, struct.pack("<I", 0x4E564D65)),
    ]
    with memfd(MEMORY) as fd, mmap.mmap(fd, MEMORY) as memory:
        for reset in resets:
            host = enabled(stand, OWN_JSON, fd, memory)
            queues = host.create_io()
            for n in range(64):
                queues.submit(Io.WRITE, nsid=1, prp1=BASE + 0x10000, cdw10=8 * n, cdw12=0)
            reset(host.peer)
            assert host.peer.read(0, Register.CSTS, 4)[0] & 1 == 0
            host.peer.close()
            stand.settle()


@pytest.mark.parametrize("seed", range(4))
def test_nonsense_with_a_drive_behind(stand: Stand, seed: int) -> None:
    """Random messages on an enabled controller, random registers, doorbells and entries: the next client is served."""
    chance = random.Random(seed)
    end = time.monotonic() + 2.0
    with memfd(MEMORY) as fd, mmap.mmap(fd, MEMORY) as memory:
        before = open_fds()
        for _ in range(20):
            host = enabled(stand, chance.choice([OWN_JSON, QEMU_JSON]), fd, memory)
            queues = host.create_io()
            memory[:0xB000] = chance.randbytes(0xB000)
            try:
                for _ in range(60):
                    nonsense(chance, host, fd)
                    if chance.random() < 0.3:
                        stand.run_once()
                        drain(host.peer)
                queues.submit(
                    chance.randrange(256), nsid=1, prp1=chance.randrange(1 << 63), cdw12=chance.randrange(1 << 32)
                )
            except (BlockingIOError, BrokenPipeError, ConnectionResetError, Closed):
                pass
            host.peer.close()
            stand.settle()
            assert open_fds() <= before
            if time.monotonic() > end:
                break
        host = enabled(stand, OWN_JSON, fd, memory)
        assert host.identify(1)[:2] == b"\x1d\x1d"
        host.peer.close()
        stand.settle()


def nonsense(chance: random.Random, host: Host, fd: int) -> None:
    """One unexpected thing."""
    kind = chance.randrange(4)
    if kind == 0:
        command = chance.choice([2, 3, 8, 9, 10, 13, 15])
        host.peer.send(command, payload(chance, command), descriptors(chance, [fd]), flags=chance.choice([0, 0x10]))
    elif kind == 1:
        host.peer.post(0, chance.randrange(0, 0x60, 4), chance.randbytes(chance.choice([1, 2, 4, 8])))
    elif kind == 2:
        host.peer.post(0, 0x1000 + chance.randrange(0, 0x1000, 4), struct.pack("<I", chance.randrange(300)))
    else:
        at = chance.randrange(0xB000)
        host.memory[at : at + 8] = chance.randbytes(8)


def test_registers_of_sessions(stand: Stand) -> None:
    """The page behind the doorbells is one memory, mapped or by messages; what is the drive's stays the drive's."""
    peer = stand.connect()
    peer.negotiate(OWN_JSON)
    request = REGION_INFO.pack(RegionInfo(64, 0, Region.BAR0, 0, 0, 0))
    answer = peer.call(Command.DEVICE_GET_REGION_INFO, request)
    info = REGION_INFO.unpack(answer.payload)
    area = SPARSE_MMAP.unpack(answer.payload, info.cap_offset)
    with mmap.mmap(answer.fds[0], area.size, offset=info.offset + area.offset) as pages:
        pages[0x1040:0x104C] = struct.pack("<3I", 7, 8, 9)  # samples, lookups and flags of the second session
        assert peer.read(Region.BAR0, RM_REGISTERS_OFFSET + 0x40, 12) == struct.pack("<3I", 7, 8, 9)
        assert peer.write(Region.BAR0, RM_REGISTERS_OFFSET + 0x48, struct.pack("<2I", 10, 11)) == 0
        assert pages[0x1040:0x1050] == struct.pack("<4I", 7, 8, 10, 0)
        stand.drive.queues[0].sessions[0x10] = 5
        assert pages[0x1010] == 5
        pages[0x1000:0x2000] = bytes(0x1000)
    os.close(answer.fds[0])
    peer.close()
    stand.settle()
