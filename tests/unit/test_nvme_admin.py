"""Admin commands in general: what is refused before a handler sees it, small commands, and a fuzzed queue."""

from __future__ import annotations

import random
import struct

import pytest

from emucsd_firmware.controller import Controller
from emucsd_firmware.nvme.request import Refused, Request
from emucsd_wire.features import Feature
from emucsd_wire.logs import ERROR_ENTRY, Effect, LogId
from emucsd_wire.nvme import MAX_TRANSFER, PAGE, SQE, Admin, Register, Sqe, Status
from tests.unit.nvme_host import CQ_AT, DATA_AT, ENABLE, ENTRIES, IOVA, LIST_AT, MEMORY, SQ_AT, Bench, Host

SECOND = 1_000_000_000


def test_unknown_opcodes(host: Host) -> None:
    """What this drive does not know is Invalid Command Opcode, with Do Not Retry."""
    for opcode in set(range(256)) - set(Admin):
        done = host.command(opcode)
        assert (done.status, done.dnr) == (Status.INVALID_OPCODE, True), f"opcode {opcode:#x}"


@pytest.mark.parametrize("flags", [1, 2, 0x40, 0x80, 0xC0])
def test_fused_and_sgl(bench: Bench, flags: int) -> None:
    """No admin command may be fused or use SGLs."""
    bench.ports[0].trapped = True
    host = bench.hosts[0].enable()
    for opcode in Admin:
        assert host.refused(opcode, flags=flags) == Status.INVALID_FIELD, opcode.name


def test_queue_wraps(host: Host) -> None:
    """The admin queue goes round many times: phase, head and command ids stay right."""
    for number in range(5 * ENTRIES):
        assert host.command(Admin.KEEP_ALIVE).sqhd == (number + 1) % ENTRIES


def test_many_at_once(host: Host) -> None:
    """One ring for many entries: all are run, in order."""
    cids = [host.submit(host.sqe(Admin.KEEP_ALIVE)) for _ in range(ENTRIES - 1)]
    assert host.port.service() is True
    assert [d.cid for d in host.reap()] == cids
    assert host.port.service() is False


def test_smallest_and_largest_queues(bench: Bench) -> None:
    """Admin queues of 2 and of 1024 entries work."""
    host = bench.hosts[0]
    for entries in (2, 64):
        host.disable()
        host.enable(entries)
        for _ in range(2 * entries):
            host.command(Admin.KEEP_ALIVE)


def test_full_completion_queue(bench: Bench, host: Host) -> None:
    """When the completion queue is full commands wait, and go on by themselves once the host has read."""
    host.disable()
    host.write(Register.AQA, 3 << 16 | ENTRIES - 1)
    host.start()
    host.poke(CQ_AT, bytes(PAGE))
    host.write(Register.CC, ENABLE)
    cids = [host.submit(host.sqe(Admin.KEEP_ALIVE)) for _ in range(8)]
    host.port.service()
    assert host.port.controller.deadline is not None
    seen = []
    host.entries = 4
    for _ in range(4):
        seen += [d.cid for d in host.reap()]
        host.port.service()
    assert seen == cids
    assert host.port.controller.deadline is None


def test_keep_alive_expires(bench: Bench, host: Host) -> None:
    """A host that asked for Keep Alive and is not heard from in time meets Controller Fatal Status until a reset."""

    def deadline() -> int | None:
        return bench.ports[0].controller.deadline

    host.set_feature(Feature.KEEP_ALIVE, 2000)
    assert deadline() == bench.wall.ns + 2 * SECOND
    for _ in range(3):
        bench.wall.ns += SECOND
        host.ok(Admin.KEEP_ALIVE)
    bench.wall.ns += 2 * SECOND
    host.port.service()
    assert host.csts.cfs == 1
    assert host.port.service() is False
    host.disable()
    host.enable()
    assert deadline() is None
    entry = ERROR_ENTRY.unpack(host.log(LogId.ERROR, 64))
    assert (entry.sqid, entry.status >> 1) == (0xFFFF, Status.KEEP_ALIVE_EXPIRED)


def test_keep_alive_stops(bench: Bench, host: Host) -> None:
    """KATO 0 stops the timer."""
    host.set_feature(Feature.KEEP_ALIVE, 1000)
    host.set_feature(Feature.KEEP_ALIVE, 0)
    bench.wall.ns += 10 * SECOND
    host.identify(1)


@pytest.mark.parametrize(
    ("cdw10", "call"),
    [
        (1, ("gc_delay", True)),
        (2, ("gc_delay", False)),
        (3, ("delays", True)),
        (4, ("delays", False)),
        (5, ("reset_statistics", None)),
        (6, ("log", True)),
        (7, ("log", False)),
    ],
)
def test_femu_flip(bench: Bench, host: Host, cdw10: int, call: tuple[str, object]) -> None:
    """FEMU's EFh means here what it means there."""
    host.ok(Admin.FEMU_FLIP, cdw10=cdw10)
    assert bench.drive.calls == [call]


@pytest.mark.parametrize("cdw10", [0, 8, 0xFFFF_FFFF])
def test_femu_flip_of_nothing(bench: Bench, host: Host, cdw10: int) -> None:
    """Other values of EFh are Invalid Field."""
    assert host.refused(Admin.FEMU_FLIP, cdw10=cdw10) == Status.INVALID_FIELD
    assert bench.drive.calls == []


def test_vendor_commands(bench: Bench, host: Host) -> None:
    """A registered opcode reaches its handler with data both ways, is told of in the effects log, and may refuse."""

    def echo(controller: Controller, request: Request) -> int:
        assert controller is bench.ports[0].controller
        if request.sqe.cdw11:
            raise Refused(Status.LOOKUP_NO_TABLE, "cdw11", dw0=77)
        data = request.read(request.sqe.cdw10)
        request.write(data[::-1])
        return len(data)

    controller = bench.ports[0].controller
    controller.register_admin(0xC1, echo, Effect.SUPPORTED | Effect.CHANGES_DATA)
    controller.register_io(0x91)
    host.poke(DATA_AT, bytes(range(200)))
    assert host.ok(0xC1, cdw10=200) == 200
    assert host.peek(DATA_AT, 200) == bytes(range(200))[::-1]
    done = host.command(0xC1, cdw11=1)
    assert (done.status, done.dw0) == (Status.LOOKUP_NO_TABLE, 77)
    words = struct.unpack("<512I", host.log(LogId.EFFECTS, 2048))
    assert (words[0xC1], words[256 + 0x91]) == (3, 1)
    for taken in (0xC1, Admin.IDENTIFY, 0xBF, Admin.FEMU_FLIP):
        with pytest.raises(ValueError, match="choose another"):
            controller.register_admin(taken, echo)


def test_transfers_of_a_megabyte(bench: Bench, host: Host) -> None:
    """Admin data goes through PRP lists, chained ones too, up to MDTS and not beyond."""
    moved: list[bytes] = []

    def take(controller: Controller, request: Request) -> None:
        moved.append(request.read(request.sqe.cdw10))

    bench.ports[0].controller.register_admin(0xC0, take)
    data = random.Random(1).randbytes(MAX_TRANSFER)
    base = DATA_AT + PAGE
    host.poke(base, data)
    pages = [base + PAGE * n for n in range(1, MAX_TRANSFER // PAGE)]
    second = LIST_AT + PAGE
    first = [*pages[:1], second]  # a list that ends after two entries of its page: the last one chains
    host.poke(LIST_AT + PAGE - 16, struct.pack("<2Q", *first))
    host.poke(second, struct.pack(f"<{len(pages) - 1}Q", *pages[1:]))
    host.ok(0xC0, cdw10=MAX_TRANSFER, prp1=base, prp2=LIST_AT + PAGE - 16)
    assert moved == [data]
    refused = host.refused(0xC0, cdw10=MAX_TRANSFER + 4, prp1=base, prp2=LIST_AT + PAGE - 16)
    assert refused == Status.INVALID_FIELD
    host.poke(second, struct.pack("<Q", pages[1] + 8))
    refused = host.refused(0xC0, cdw10=MAX_TRANSFER, prp1=base, prp2=LIST_AT + PAGE - 16)
    assert refused == Status.PRP_OFFSET_INVALID


def test_read_only_memory(bench: Bench, host: Host) -> None:
    """Memory that the host mapped read-only is not written to: Data Transfer Error."""
    bench.ports[0].map(IOVA + MEMORY, PAGE, host.memory.address + MEMORY - PAGE, writable=False)
    assert host.refused(Admin.IDENTIFY, cdw10=1, prp1=IOVA + MEMORY) == Status.DATA_TRANSFER_ERROR


@pytest.mark.parametrize("seed", range(6))
def test_fuzz(bench: Bench, seed: int) -> None:
    """Random entries never end the controller or leave a command without its one completion, with a known status."""
    chance = random.Random(seed)
    bench.ports[0].trapped = bool(seed & 1)
    host = bench.hosts[0].enable()
    addresses = [0, DATA_AT, DATA_AT + 4, DATA_AT + 2048, SQ_AT - PAGE + MEMORY, 1 << 63, (1 << 64) - PAGE]
    words = [0, 1, 2, 3, 6, 0x1F, 0xFF, 0x100, 0xFFFF, 0x1_0000, 0x8000_0000, 0xFFFF_FFFF]
    waiting: set[int] = set()
    for number in range(1, 400):
        opcode = chance.choice([*Admin]) if chance.random() < 0.9 else chance.randrange(256)
        host.poke(DATA_AT, chance.randbytes(64) + bytes(4032))
        cdw = [chance.choice(words) if chance.random() < 0.7 else chance.getrandbits(32) for _ in range(8)]
        flags = chance.choice([0, 0, 0, 0, 0, 1, 0x40])
        nsid = chance.choice([0, 1, 1, 2, 33, 0xFFFF_FFFF])
        prp1, prp2 = chance.choice(addresses), chance.choice(addresses)
        host.submit(Sqe(opcode, flags, number, nsid, cdw[0], cdw[1], cdw[2] << 32, prp1, prp2, *cdw[2:]))
        host.port.service()
        if not host.csts.rdy:
            raise AssertionError(f"command {number} ended the controller")
        if opcode == Admin.ASYNC_EVENT_REQUEST and not flags:
            waiting.add(number)
        done = host.reap()
        for each in done:
            Status(each.status)
            assert each.status != Status.INTERNAL_ERROR
        finished = {d.cid for d in done}
        assert number in finished or number in waiting
        assert finished <= waiting | {number}
        waiting -= finished
    bench.wall.ns += 3600 * SECOND
    host.port.service()
    host.reap()
    host.identify(1) if host.csts.rdy and not host.csts.cfs else host.enable()


def test_random_bytes(host: Host) -> None:
    """Entries of pure noise are completed too."""
    chance = random.Random(7)
    for number in range(200):
        sqe = SQE.unpack(chance.randbytes(64))._replace(cid=number)
        if sqe.opcode == Admin.ASYNC_EVENT_REQUEST:
            continue
        host.submit(sqe)
        host.port.service()
        assert [d.cid for d in host.reap()] == [number]
