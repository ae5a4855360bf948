"""Controller registers and the state machine behind them (Base 3.1.4, 3.5 to 3.7)."""

from __future__ import annotations

import pytest

from emucsd_firmware.errors import PortError, StoreError
from emucsd_firmware.nvme.registers import REGISTER_BYTES, Registers
from emucsd_firmware.port import BAR0, BAR0_BYTES
from emucsd_wire.nvme import Admin, Register
from emucsd_wire.registers import NSSR_NVME, Cap, Cc, Crto
from tests.unit.nvme_host import CQ_AT, ENABLE, IOVA, MEMORY, SQ_AT, Bench, Host


def test_capabilities(bench: Bench) -> None:
    """CAP says: 1024 entries, contiguous queues, NVM command set, 4 KiB pages, subsystem reset; CRTO agrees with TO."""
    host = bench.hosts[0]
    cap = Cap(host.read(Register.CAP, 8))
    assert (cap.mqes, cap.cqr, cap.dstrd, cap.mpsmin, cap.mpsmax) == (1023, 1, 0, 0, 0)
    assert (cap.css, cap.nssrs, cap.crwms, cap.crims) == (1, 1, 1, 0)
    assert cap.to == Crto(host.read(Register.CRTO)).crwmt > 0
    assert host.read(Register.VS) == 0x0002_0100


def test_eight_byte_registers_read_in_halves(bench: Bench) -> None:
    """CAP read as two dwords equals CAP read at once: Linux does the one, SPDK the other."""
    host = bench.hosts[0]
    assert host.read(Register.CAP + 4) << 32 | host.read(Register.CAP) == host.read(Register.CAP, 8)


@pytest.mark.parametrize("width", [4, 8])
def test_queue_addresses_take_both_widths(bench: Bench, width: int) -> None:
    """ASQ and ACQ are written as one quadword or two dwords, and keep no offset into a page."""
    host = bench.hosts[0]
    value = 0x1234_5678_9ABC_DEF0
    for register in (Register.ASQ, Register.ACQ):
        for at in range(0, 8, width):
            host.write(register + at, value >> 8 * at & (1 << 8 * width) - 1, width)
        assert host.read(register, 8) == value & ~0xFFF


@pytest.mark.parametrize(
    "register", [Register.CAP, Register.VS, Register.CSTS, Register.CMBLOC, Register.CMBSZ, Register.CRTO, 0x50, 0xE00]
)
def test_read_only_registers(host: Host, register: int) -> None:
    """Writing a read-only or absent register changes nothing."""
    before = host.port.region_read(BAR0, 0, REGISTER_BYTES)
    host.write(register, 0xFFFF_FFFF)
    host.write(register & ~7, 0, 8)
    assert host.port.region_read(BAR0, 0, REGISTER_BYTES) == before


def test_interrupt_mask(bench: Bench) -> None:
    """INTMS sets bits, INTMC clears them, and both read the mask."""
    host = bench.hosts[0]
    host.write(Register.INTMS, 0xF0)
    host.write(Register.INTMC, 0x30)
    assert host.read(Register.INTMS) == host.read(Register.INTMC) == 0xC0


@pytest.mark.parametrize("data", [b"\x01", b"\x01\x00", b"\x01\x00\x00", bytes(12)])
def test_odd_writes_are_ignored(bench: Bench, data: bytes) -> None:
    """A write that is no dword or quadword does not enable a controller by halves."""
    host = bench.hosts[0]
    host.port.region_write(BAR0, Register.CC, data)
    host.port.region_write(BAR0, Register.CC + 1, ENABLE.to_bytes(4, "little"))
    assert host.read(Register.CC) == 0


def test_odd_reads_give_bytes(bench: Bench) -> None:
    """Reads of any size inside BAR0 are answered, across its borders too."""
    host = bench.hosts[0]
    whole = host.port.region_read(BAR0, 0, BAR0_BYTES)
    assert len(whole) == BAR0_BYTES
    assert host.port.region_read(BAR0, 9, 1) == whole[9:10]
    assert host.port.region_read(BAR0, REGISTER_BYTES - 2, 4) == whole[REGISTER_BYTES - 2 : REGISTER_BYTES + 2]


@pytest.mark.parametrize(("region", "offset", "count"), [(1, 0, 4), (0, -4, 4), (0, BAR0_BYTES, 4), (0, 0, 0)])
def test_outside_of_bar0(bench: Bench, region: int, offset: int, count: int) -> None:
    """A transport that asks for what is not there gets a PortError, not bytes."""
    with pytest.raises(PortError):
        bench.ports[0].region_read(region, offset, count)
    with pytest.raises(PortError):
        bench.ports[0].region_write(region, offset, bytes(count))


def test_enable_and_disable(bench: Bench) -> None:
    """RDY follows EN; AQA, ASQ and ACQ survive the reset; the data plane polls only an enabled port."""
    host = bench.hosts[0].enable()
    assert host.csts == 1
    assert bench.records[0]["enabled"] == 1
    assert bench.drive.plane.kicks > 0
    host.disable()
    assert host.csts == 0
    assert bench.records[0]["enabled"] == 0
    assert host.read(Register.ASQ, 8) == SQ_AT
    assert host.read(Register.ACQ, 8) == CQ_AT
    host.start()
    host.write(Register.CC, ENABLE)
    assert host.csts == 1
    host.identify(1)


def test_entry_sizes_may_come_later(bench: Bench) -> None:
    """CC.IOSQES and IOCQES may be set after EN: only I/O queues need them."""
    host = bench.hosts[0].enable(cc=Cc.of(en=1))
    assert host.csts == 1
    host.write(Register.CC, ENABLE)
    assert host.csts == 1
    host.identify(1)


@pytest.mark.parametrize(
    "fields", [{"css": 6}, {"css": 7}, {"mps": 1}, {"ams": 1}, {"ams": 7}], ids=lambda f: "-".join(map(str, f))
)
def test_what_cap_does_not_offer_is_fatal(bench: Bench, fields: dict[str, int]) -> None:
    """Enabling with an unknown command set, page size or arbitration ends in CFS, and a reset leaves it."""
    host = bench.hosts[0].enable(cc=ENABLE.replace(**fields))
    assert (host.csts.rdy, host.csts.cfs) == (0, 1)
    host.disable()
    assert host.csts == 0
    assert host.enable().csts == 1


@pytest.mark.parametrize("aqa", [0, 0x001F_0000, 0x0000_001F])
def test_admin_queue_of_one_entry_is_fatal(bench: Bench, aqa: int) -> None:
    """AQA with a size of 0 (one entry) can't work: CFS."""
    host = bench.hosts[0]
    host.write(Register.AQA, aqa)
    host.write(Register.ASQ, SQ_AT, 8)
    host.write(Register.ACQ, CQ_AT, 8)
    host.write(Register.CC, ENABLE)
    assert (host.csts.rdy, host.csts.cfs) == (0, 1)


@pytest.mark.parametrize(("asq", "acq"), [(0, CQ_AT), (SQ_AT, 0), (1 << 63, CQ_AT), (IOVA + MEMORY, CQ_AT)])
def test_unmapped_admin_queue_is_fatal(bench: Bench, asq: int, acq: int) -> None:
    """An admin queue outside of mapped memory is CFS, and nothing is left half made."""
    host = bench.hosts[0]
    host.write(Register.AQA, 0x001F_001F)
    host.write(Register.ASQ, asq, 8)
    host.write(Register.ACQ, acq, 8)
    host.write(Register.CC, ENABLE)
    assert (host.csts.rdy, host.csts.cfs) == (0, 1)
    assert not bench.queues[0].sqs["live"].any()
    assert not bench.queues[0].cqs["live"].any()
    assert bench.ports[0].service() is False


@pytest.mark.parametrize("shn", [1, 2])
def test_shutdown_with_enable_left_on(bench: Bench, shn: int) -> None:
    """CC.SHN with EN still 1 (as SPDK detaches) flushes and ends in SHST = 10b; no queue is served after it."""
    host = bench.hosts[0].enable()
    host.write(Register.CC, ENABLE.replace(shn=shn))
    assert (host.csts.rdy, host.csts.shst) == (1, 2)
    assert ("flush", None) in bench.drive.calls
    host.submit(host.sqe(Admin.IDENTIFY, cdw10=1))
    assert host.port.service() is False
    assert host.reap() == []
    host.disable()
    assert host.csts == 0
    assert host.enable().csts == 1
    host.identify(1)


def test_shutdown_with_disable_in_one_write(bench: Bench) -> None:
    """Clearing EN and setting SHN at once resets first and still reports a complete shutdown."""
    host = bench.hosts[0].enable()
    host.write(Register.CC, ENABLE.replace(en=0, shn=1))
    assert (host.csts.rdy, host.csts.shst) == (0, 2)


def test_failing_store_at_shutdown_is_fatal(bench: Bench) -> None:
    """A shutdown that can't bring its data to flash says so with CFS, not with SHST."""
    host = bench.hosts[0].enable()
    bench.drive.broken = StoreError("disk full")
    host.write(Register.CC, ENABLE.replace(shn=1))
    assert (host.csts.cfs, host.csts.shst) == (1, 0)


def test_subsystem_reset(bench: Bench) -> None:
    """Writing "NVMe" to NSSR resets both controllers and sets NSSRO until it is cleared; other values do nothing."""
    host, engine = (h.enable() for h in bench.hosts)
    host.write(Register.NSSR, 0x1234)
    assert host.csts == engine.csts == 1
    host.write(Register.NSSR, NSSR_NVME)
    for each in (host, engine):
        assert (each.csts.rdy, each.csts.nssro) == (0, 1)
        assert each.read(Register.CC) == each.read(Register.AQA) == each.read(Register.NSSR) == 0
    host.write(Register.CC, 0)
    assert host.csts.nssro == 1
    host.write(Register.CSTS, 0x10)
    assert host.csts.nssro == 0
    assert engine.csts.nssro == 1


def test_function_level_reset(bench: Bench) -> None:
    """FLR, device reset and a lost client put every register back; mappings stay, and the next client starts clean."""
    host = bench.hosts[0].enable()
    host.submit(host.sqe(Admin.IDENTIFY, cdw10=1))
    bench.ports[0].reset()
    assert host.csts == host.read(Register.CC) == host.read(Register.AQA) == host.read(Register.ASQ, 8) == 0
    assert not bench.queues[0].doorbells[:4].any()
    assert host.port.service() is False
    assert host.reap() == []
    host.enable().identify(1)


def test_reset_tells_the_rest_of_the_drive(bench: Bench) -> None:
    """Parts that keep state of a port are told of each of its resets, while the data plane stands still."""
    depths: list[int] = []
    bench.ports[0].controller.on_reset.append(lambda: depths.append(bench.drive.plane.depth))
    host = bench.hosts[0].enable()
    host.disable()
    bench.ports[0].reset()
    assert len(depths) == 2
    assert min(depths) >= 1


def test_register_file_alone() -> None:
    """The register file reports what has consequences and nothing else."""
    registers = Registers()
    assert [c.register for c in registers.write(Register.CC, ENABLE.to_bytes(4, "little"))] == [Register.CC]
    assert registers.write(Register.AQA, bytes(4)) == []
    assert registers.write(Register.ASQ, bytes(8)) == []
    assert [c.new for c in registers.write(Register.NSSR, NSSR_NVME.to_bytes(4, "little"))] == [NSSR_NVME]
