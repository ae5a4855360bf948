"""Random clients with fixed seeds: whatever they send, the server answers or hangs up, leaks nothing, and lives."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_wire.vfio_user import HEADER, VERSION, Command, Header, Version
from tests.protocol.vfio_peer import OWN_JSON, QEMU_JSON, Closed, Peer, Stand, open_fds

SEEDS = range(8)
CLIENTS = 300
MESSAGES = 40
SECONDS = 2.0  # for each seed; what a slow machine does not reach is left out
EDGES = [0, 1, 2, 3, 4, 7, 8, 15, 16, 24, 31, 32, 0x40, 0xFF, 0x1000, 0x3FFC, 0x4000, 0xFFFF, 0x10000]
EDGES += [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 0x1000, 1 << 63, (1 << 64) - 0x1000, (1 << 64) - 1]
VALID: dict[int, str] = {  # the fields of each payload
    Command.DMA_MAP: "<IIQQQ",
    Command.DMA_UNMAP: "<IIQQ",
    Command.DEVICE_GET_INFO: "<IIII",
    Command.DEVICE_GET_REGION_INFO: "<IIIIQQ",
    Command.DEVICE_GET_IRQ_INFO: "<IIII",
    Command.DEVICE_SET_IRQS: "<IIIII",
    Command.REGION_READ: "<QII",
    Command.REGION_WRITE: "<QII",
    Command.REGION_WRITE_MULTI: "<QQIIQ",
}


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


def payload(chance: random.Random, command: int) -> bytes:
    """Plausible fields of a command with edge values in them, now and then cut, stretched or pure noise."""
    layout = VALID.get(command)
    if layout is None or chance.random() < 0.1:
        return chance.randbytes(chance.choice([0, 1, 4, 16, 20, 32, 64, 4064]))
    fields = []
    for kind in layout[1:]:
        limit = (1 << 32 if kind == "I" else 1 << 64) - 1
        usual = chance.choice([0, 1, 2, 3, 4, 7, 8, 16, 32, 36, 64, 0x1000, 0x10000, 0x1014])
        fields.append((usual if chance.random() < 0.7 else chance.choice(EDGES)) & limit)
    data = struct.pack(layout, *fields) + chance.randbytes(chance.choice([0, 0, 0, 1, 2, 4, 8, 200]))
    return data[: chance.randrange(len(data))] if chance.random() < 0.1 else data


def descriptors(chance: random.Random, pool: list[int]) -> tuple[int, ...]:
    return tuple(chance.choices(pool, k=chance.choice([0, 0, 0, 1, 1, 2, 5, 16, 17, 40])))


def one_client(chance: random.Random, stand: Stand, pool: list[int]) -> None:
    """Connect, perhaps negotiate, send nonsense for a while, read some answers, vanish or say goodbye."""
    peer = Peer(stand.server, stand.path)
    try:
        if chance.random() < 0.9:
            peer.send(Command.VERSION, VERSION.pack(Version(0, 0)) + chance.choice([b"", QEMU_JSON, OWN_JSON]))
        for _ in range(chance.randrange(MESSAGES)):
            command = chance.choice([*Command, chance.randrange(1 << 16)])
            flags = chance.choice([0, 0, 0, 0, 0, 0x10, 0x10, 0x20, 0x100]) if chance.random() < 0.98 else 1
            data = payload(chance, command)
            size = None if chance.random() < 0.97 else chance.choice(EDGES) & 0xFFFFFFFF
            peer.send(command, data, descriptors(chance, pool), flags=flags, size=size)
            if chance.random() < 0.5:
                stand.server.run_once(0)
            if chance.random() < 0.3:
                drain(peer)
        if chance.random() < 0.3:
            peer.send_raw(HEADER.pack(Header(1, Command.DMA_MAP, 48, 0, 0))[: chance.randrange(16)] or b"\0")
    except (BlockingIOError, BrokenPipeError, ConnectionResetError, Closed):
        pass  # full or hung up on: both are fair answers
    finally:
        peer.close()
        peer.settle()


def drain(peer: Peer) -> None:
    """Take what has come, descriptors included."""
    while True:
        try:
            _, ancillary, _, _ = peer.socket.recvmsg(65536, 1024)
        except BlockingIOError:
            return
        for _, _, content in ancillary:
            for (fd,) in struct.iter_unpack("i", content):
                os.close(fd)
        if not ancillary:
            return


@pytest.mark.parametrize("seed", SEEDS)
def test_nonsense_is_survived(stand: Stand, seed: int) -> None:
    """After each random client the port is empty, no descriptor is left over, and an honest client is served."""
    chance = random.Random(seed)
    guest = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(guest, 0x20000)
    reading, writing = os.pipe()
    pool = [guest, guest, guest, os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0), reading, writing]
    before = open_fds()
    end = time.monotonic() + SECONDS
    for _ in range(CLIENTS):
        one_client(chance, stand, pool)
        assert stand.port.maps == {}
        assert stand.port.vectors == {}
        assert open_fds() <= before
        if time.monotonic() > end:
            break
    honest = stand.connect()
    assert honest.map(0x10000, 0x1000, guest) == 0
    assert honest.read(0, 0, 4) == bytes(4)
    honest.close()
    for fd in pool[2:]:
        os.close(fd)
