"""Random I/O queue entries with fixed seeds: each gets a completion, and none harms the drive."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from emucsd_wire.nvme import Io, Sqe
from tests.protocol.io_host import IoHost, open_drive
from tests.unit.nvme_host import DATA_AT, IOVA, LIST_AT, MEMORY, MIB

ENTRIES = 3000
OPCODES = [*Io, 0x0D, 0x7F, 0x83, 0xFF]


def address(chance: random.Random) -> int:
    """Somewhere in the host's memory, but not in its queues; at the memory's end; or nowhere."""
    return chance.choice(
        [
            DATA_AT,
            LIST_AT,
            DATA_AT + chance.randrange(MEMORY - MIB),
            IOVA + MEMORY - chance.randrange(8192),
            chance.getrandbits(64),
            0,
        ]
    )


def entry(chance: random.Random, cid: int) -> Sqe:
    """An entry that is likely to get past the first check, and unlikely to get past all."""
    small = chance.random() < 0.7
    words = [chance.getrandbits(32) if chance.random() < 0.1 else chance.randrange(64) for _ in range(6)]
    return Sqe(
        opcode=chance.choice(OPCODES) if chance.random() < 0.95 else chance.getrandbits(8),
        flags=chance.choice([0, 0, 0, 0x40, 0x40, 0x80, 0xC0, 1]),
        cid=cid,
        nsid=1 if small else chance.choice([0, 2, 0xFFFF_FFFF, chance.getrandbits(32)]),
        cdw2=0,
        cdw3=0,
        mptr=0,
        prp1=address(chance),
        prp2=address(chance) if chance.random() < 0.7 else chance.getrandbits(64),
        cdw10=words[0],
        cdw11=words[1] if chance.random() < 0.2 else 0,
        cdw12=words[2],
        cdw13=words[3],
        cdw14=words[4],
        cdw15=words[5],
    )


@pytest.mark.parametrize("seed", range(3))
def test_random_entries_complete_and_do_no_harm(tmp_path: Path, seed: int) -> None:
    """Whatever lies in a queue entry, it completes with a status, and the queue, memory guards and data stay whole."""
    chance = random.Random(seed)
    with open_drive(tmp_path) as drive:
        host = IoHost(drive)
        fresh = int(drive.state[0]["commands"]["free_count"])
        for cid in range(ENTRIES):
            if chance.random() < 0.05:  # random PRP lists and SGLs for the next ones
                host.poke(LIST_AT, chance.randbytes(4096))
            host.submit_io(entry(chance, cid))
            (done,) = host.wait_io(1)
            assert done.cid == cid
        assert int(drive.state[0]["commands"]["free_count"]) == fresh
        drive.store.audit()
        host.disable()
        host.enable()
        host.create_queues(64)
        data = chance.randbytes(65536)
        assert host.put(64, data) == 0
        assert host.get(64, 128) == data
