"""What crossed a port, by namespace: every command that moves blocks counts, to the byte, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from emucsd import Drive, Table
from emucsd.cli.main import main
from emucsd_wire.nvme import (
    COPY_RANGE,
    DSM_RANGE,
    SGL_DESCRIPTOR,
    Admin,
    CopyRange,
    DsmRange,
    Io,
    SglDescriptor,
    Status,
)
from tests.protocol.io_host import IoHost, open_drive
from tests.unit.nvme_host import DATA_AT, MIB

KIB = 1024
MOVED = ("reads", "writes", "compares", "bytes_read", "bytes_written", "bytes_compared")


class Ports(NamedTuple):
    """Both ports of a drive with the namespaces SHARED (both), HOSTS and ENGINES (one's alone)."""

    host: IoHost
    engine: IoHost

    def traffic(self, port: int, nsid: int) -> dict[str, int]:
        """What is not 0."""
        found: dict[str, int] = self.host.drive.stats()["ports"][port]["namespaces"][str(nsid)]
        return {name: count for name, count in found.items() if count}


SHARED, HOSTS, ENGINES = 1, 2, 3


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Ports]:
    with open_drive(tmp_path, capacity_bytes=16 * MIB) as drive:
        found = Ports(IoHost(drive, 0), IoHost(drive, 1))
        found.host.ok(Admin.NAMESPACE_MANAGEMENT, 1, cdw10=1)
        found.host.make_namespace(4 * MIB, 1, 2)
        found.host.make_namespace(4 * MIB, 1)
        found.engine.make_namespace(4 * MIB, 2)
        yield found


def noise(count: int) -> bytes:
    return np.random.default_rng(1).integers(0, 256, count, np.uint8).tobytes()


@pytest.mark.parametrize("blocks", [1, 8, 9, 300, 2048])
def test_reads_and_writes(ports: Ports, blocks: int) -> None:
    """A read and a write count once each, with all their bytes, at their port and their namespace alone."""
    data = noise(512 * blocks)
    assert ports.host.io(Io.WRITE, SHARED, 5, blocks, data).status == 0
    assert ports.engine.io(Io.READ, SHARED, 5, blocks).status == 0
    assert ports.engine.io(Io.READ, SHARED, 0, 1).status == 0
    assert ports.traffic(0, SHARED) == {"writes": 1, "bytes_written": len(data)}
    assert ports.traffic(1, SHARED) == {"reads": 2, "bytes_read": len(data) + 512}
    assert not any(ports.traffic(port, nsid) for port in (0, 1) for nsid in (HOSTS, ENGINES))


def test_scattered_data(ports: Ports) -> None:
    """By SGL, in pieces, the same bytes count."""
    pieces = [(DATA_AT + 3 * 8192, 700), (DATA_AT, 1000), (DATA_AT + 8192, 2396)]
    table = b"".join(SGL_DESCRIPTOR.pack(SglDescriptor(at, size, bytes(3), 0)) for at, size in pieces)
    ports.host.poke(DATA_AT + MIB // 2, table)
    words: dict[str, Any] = {"prp1": DATA_AT + MIB // 2, "prp2": len(table) | 0x30 << 56, "flags": 0x40}
    for opcode in (Io.WRITE, Io.READ, Io.COMPARE):
        assert ports.host.io(opcode, HOSTS, 7, 8, **words).status == 0
    assert ports.traffic(0, HOSTS) == {name: 4096 if "bytes" in name else 1 for name in MOVED}


def test_what_moves_no_blocks(ports: Ports) -> None:
    """Commands that move blocks within the drive, or only lists of them, cross no port with a namespace's data."""
    host = ports.host
    ranges = DSM_RANGE.pack(DsmRange(0, 4, 64))
    copied = COPY_RANGE.pack(CopyRange(0, 0, 7, bytes(14)))
    assert host.io(Io.VERIFY, HOSTS, 0, 16).status == 0
    assert host.io(Io.WRITE_ZEROES, HOSTS, 0, 16).status == 0
    assert host.io(Io.WRITE_UNCORRECTABLE, HOSTS, 100, 1).status == 0
    assert host.io(Io.FLUSH, HOSTS).status == 0
    assert host.io(Io.DATASET_MANAGEMENT, HOSTS, data=ranges, cdw10=0, cdw11=4).status == 0
    assert host.io(Io.COPY, HOSTS, 200, data=copied, cdw12=0).status == 0
    assert ports.traffic(0, HOSTS) == {}


def test_failures(ports: Ports) -> None:
    """A command that fails counts as failed; its bytes never as read, written or compared, and apart if some moved."""
    host = ports.host
    host.io(Io.WRITE, HOSTS, 0, 16, noise(8192))
    assert host.io(Io.WRITE_UNCORRECTABLE, HOSTS, 12, 1).status == 0
    failures = [
        (host.io(Io.READ, HOSTS, 8192, 1), Status.LBA_OUT_OF_RANGE),
        (host.io(Io.WRITE, HOSTS, 8190, 8, noise(4096)), Status.LBA_OUT_OF_RANGE),
        (host.io(Io.READ, HOSTS, 0, 8, prp1=DATA_AT + 1), Status.PRP_OFFSET_INVALID),
        (host.io(Io.WRITE, HOSTS, 0, 8, prp1=0x9999_0000), Status.DATA_TRANSFER_ERROR),
        (host.io(Io.READ, HOSTS, 0, 8, flags=1), Status.INVALID_FIELD),
    ]
    assert [done.status for done, _ in failures] == [status for _, status in failures]
    assert ports.traffic(0, HOSTS) == {"writes": 1, "bytes_written": 8192, "failed": 5}
    assert host.io(Io.READ, HOSTS, 0, 16).status == Status.UNRECOVERED_READ
    assert host.io(Io.COMPARE, HOSTS, 0, 8, bytes(4096)).status == Status.COMPARE_FAILURE
    expected = {"writes": 1, "bytes_written": 8192, "failed": 7, "bytes_failed": 8192 + 4096}
    assert ports.traffic(0, HOSTS) == expected


def test_a_private_namespace(ports: Ports) -> None:
    """What the engine reads of its own is seen at its port; the host's tries are seen as failures without a byte."""
    ports.engine.io(Io.WRITE, ENGINES, 0, 64, noise(32 * KIB))
    for opcode in (Io.READ, Io.COMPARE, Io.WRITE, Io.VERIFY):
        assert ports.host.io(opcode, ENGINES, 0, 64, noise(32 * KIB)).status == Status.INVALID_NAMESPACE
    ports.engine.io(Io.READ, ENGINES, 0, 64)
    assert ports.traffic(0, ENGINES) == {"failed": 4}
    assert ports.traffic(1, ENGINES) == {"reads": 1, "writes": 1, "bytes_read": 32 * KIB, "bytes_written": 32 * KIB}


def test_resets(ports: Ports, tmp_path: Path) -> None:
    """Counters outlive a controller's reset, another attachment and a format; a drive that starts anew starts at 0."""
    host = ports.host
    host.io(Io.WRITE, SHARED, 0, 8, noise(4096))
    host.ok(Admin.FORMAT_NVM, SHARED)
    host.disable()
    ports.host.port.reset()
    host.enable()
    host.create_queues(64)
    host.io(Io.READ, SHARED, 0, 8)
    counted = {"reads": 1, "writes": 1, "bytes_read": 4096, "bytes_written": 4096}
    assert ports.traffic(0, SHARED) == counted
    host.make_namespace(MIB, 1)
    assert ports.traffic(0, SHARED) == counted
    with open_drive(tmp_path / "other") as drive:
        assert not any(drive.stats()["ports"][0]["namespaces"]["1"].values())


def test_queues_that_go(ports: Ports) -> None:
    """Blocks that were handed over count, though the queue is deleted before anybody was told."""
    host = ports.host
    host.ok(Admin.DELETE_SQ, cdw10=1)
    host.ok(Admin.DELETE_CQ, cdw10=1)
    host.create_queues(2)  # room for one completion at a time
    for _ in range(2):
        prp1, prp2 = host.prps(4096)
        host.submit_io(host.sqe(Io.READ, SHARED, prp1=prp1, prp2=prp2, cdw12=7))
        host.drive.step(4)
    host.ok(Admin.DELETE_SQ, cdw10=1)
    assert ports.traffic(0, SHARED) == {"reads": 2, "bytes_read": 8192}


def test_rows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that lookups read, and updates store, count for their namespace, also after their table was closed; the
    port's own line has them, and `status` shows it all."""
    with Drive.start("null", size=32 * MIB, memory=16 * MIB) as drive:
        rows = np.ones((512, 16), np.float32)
        before = drive.control.stats()["ports"][0]["namespaces"]["1"]
        for turn in (1, 2):
            with Table.create(drive, f"rows{turn}", rows) as table:
                assert table.lookup([1, 2, 3, 500], [0, 2]).shape == (2, 16)
                table.update([7, 8], rows[:2] * turn)
            figures = drive.control.stats()["ports"][0]
            counted = {
                name: figures["namespaces"]["1"][name] - before[name] for name in ("lookup_rows", "updated_rows")
            }
            assert counted == {"lookup_rows": 4 * turn, "updated_rows": 2 * turn}
            assert figures["vectors"] == figures["namespaces"]["1"]["lookup_rows"]
        read = drive.control.stats()["ports"][0]["namespaces"]["1"]["bytes_read"]
        drive.namespace(1).read(0, 16)
        after = drive.control.stats()["ports"][0]["namespaces"]["1"]["bytes_read"]
        assert after - read == 16 * drive.namespace(1).lba_bytes
        monkeypatch.setenv("EMUCSD_RUNTIME", str(drive.folder.parent))
        assert main(["status", drive.folder.name]) == 0
    shown = capsys.readouterr().out
    assert "namespace 1: " in shown
    assert "8 rows looked up" in shown
