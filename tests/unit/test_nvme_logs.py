"""Get Log Page (Base 5.1.12): every page's content, offsets and lengths, and what is refused."""

from __future__ import annotations

import struct

import pytest

from emucsd_firmware.nvme.features import KINDS
from emucsd_firmware.nvme.hardware import Health
from emucsd_firmware.nvme.queues import ERROR_RING
from emucsd_wire.features import Feature
from emucsd_wire.logs import ERROR_ENTRY, SANITIZE_LOG, SMART_LOG, CriticalWarning, Effect, LogId
from emucsd_wire.nvme import DNR, NSID_ALL, SQE, Admin, Io, Status
from tests.unit.nvme_host import DATA_AT, Bench, Host

HOUR = 3600_000_000_000
SIZES = {
    LogId.SUPPORTED_PAGES: 1024,
    LogId.ERROR: 64 * ERROR_RING,
    LogId.SMART: 512,
    LogId.FIRMWARE_SLOT: 512,
    LogId.CHANGED_NAMESPACES: 4096,
    LogId.EFFECTS: 4096,
    LogId.FEATURES: 1024,
    LogId.MI_COMMANDS: 4096,
    LogId.SANITIZE: 512,
}


@pytest.mark.parametrize("lid", LogId)
def test_lengths_and_offsets(host: Host, lid: LogId) -> None:
    """A part of a page equals that part; nothing past the page's end is written; an offset past it is refused."""
    size = SIZES[lid]
    whole = host.log(lid, 4096, rae=True)
    assert host.log(lid, 8, offset=size - 8, rae=True) == whole[size - 8 : size]
    assert host.log(lid, 64, offset=32, rae=True) == whole[32:96]
    host.poke(DATA_AT, b"\xee" * 4096)
    host.ok(Admin.GET_LOG_PAGE, cdw10=lid | 0x3FF << 16, cdw12=size - 16)
    assert host.peek(DATA_AT + 16, 4080) == b"\xee" * 4080
    for low, high in ((size, 0), (size + 4096, 0), (0, 1)):
        refused = host.refused(Admin.GET_LOG_PAGE, cdw10=lid | 0x7F << 16, cdw12=low, cdw13=high)
        assert refused == Status.INVALID_FIELD


def test_offsets_are_dwords(host: Host) -> None:
    """A log page offset that is no multiple of 4 is refused."""
    assert host.refused(Admin.GET_LOG_PAGE, cdw10=LogId.SMART | 0x7F << 16, cdw12=2) == Status.INVALID_FIELD


def test_length_is_32_bits(host: Host) -> None:
    """NUMDU counts: a host that asks for 4 GiB gets the page, and only as much memory as the page has is touched."""
    host.ok(Admin.GET_LOG_PAGE, cdw10=LogId.SMART | 0xFFFF << 16, cdw11=0xFFFF)


def test_log_past_a_short_prp(host: Host) -> None:
    """A page that the PRPs have no room for is refused before a byte is written."""
    at = DATA_AT + 4096 - 256
    host.poke(DATA_AT, b"\xee" * 8192)
    assert host.refused(Admin.GET_LOG_PAGE, cdw10=LogId.SMART | 0x7F << 16, prp1=at) == Status.INVALID_FIELD
    assert host.peek(DATA_AT, 8192) == b"\xee" * 8192


@pytest.mark.parametrize("lid", [0x06, 0x07, 0x0C, 0x0D, 0x70, 0x80, 0x82, 0xC0, 0xFF])
def test_unknown_pages(host: Host, lid: int) -> None:
    """A page that is not there is Invalid Log Page."""
    assert host.refused(Admin.GET_LOG_PAGE, cdw10=lid) == Status.INVALID_LOG_PAGE


@pytest.mark.parametrize("cdw14", [1 << 23, 2 << 24, 5])
def test_index_offsets_command_sets_and_uuids(host: Host, cdw14: int) -> None:
    """Offsets by index, other command sets and UUID lists do not exist here."""
    assert host.refused(Admin.GET_LOG_PAGE, cdw10=LogId.EFFECTS, cdw14=cdw14) == Status.INVALID_FIELD


def test_supported_pages(host: Host) -> None:
    """Log page 00h names exactly the pages that can be read."""
    words = struct.unpack("<256I", host.log(LogId.SUPPORTED_PAGES, 1024))
    assert {lid for lid, word in enumerate(words) if word & 1} == set(LogId)


def test_firmware_slot(host: Host) -> None:
    """One slot, active, with the revision that Identify tells."""
    page = host.log(LogId.FIRMWARE_SLOT, 512)
    assert page[0] == 1
    assert page[8:16] == host.identify(1)[64:72]
    assert not any(page[16:])


def test_effects(bench: Bench, host: Host) -> None:
    """Supported commands have CSUPP; what changes data says so; I/O commands say no more than that."""
    words = struct.unpack("<512I", host.log(LogId.EFFECTS, 4096)[:2048])
    admin, io = words[:256], words[256:]
    assert {opcode for opcode, word in enumerate(admin) if word} == set(Admin) - {Admin.DOORBELL_BUFFER_CONFIG}
    assert {opcode for opcode, word in enumerate(io) if word} == set(Io)
    assert all(word & Effect.SUPPORTED for word in words if word)
    assert all(word & ~0x3 == 0 for word in io)
    assert io[Io.WRITE] & io[Io.DATASET_MANAGEMENT] & io[Io.COPY] & Effect.CHANGES_DATA
    assert admin[Admin.FORMAT_NVM] & Effect.CHANGES_NAMESPACE
    assert admin[Admin.NAMESPACE_ATTACHMENT] & Effect.CHANGES_INVENTORY
    bench.ports[0].trapped = True
    assert struct.unpack_from("<I", host.log(LogId.EFFECTS, 4096), 4 * Admin.DOORBELL_BUFFER_CONFIG)[0] == 1


def test_feature_effects(host: Host) -> None:
    """Log page 12h names the features, with the scope of each."""
    words = struct.unpack("<256I", host.log(LogId.FEATURES, 1024))
    assert {fid for fid, word in enumerate(words) if word} == set(KINDS) - {Feature.VOLATILE_WRITE_CACHE}
    assert all(word & 1 for word in words if word)
    assert all((word >> 20).bit_count() == 1 for word in words if word)


def test_smart(bench: Bench, host: Host) -> None:
    """SMART adds both ports' counters, in its own units, and tells the drive's wear and temperature."""
    for record, blocks in zip(bench.records, (1000, 1), strict=True):
        counters = record["counters"]
        counters["reads"], counters["writes"] = 3, 4
        counters["blocks_read"], counters["blocks_written"] = blocks, 2 * blocks
        counters["busy_ns"], counters["media_errors"] = 60_000_000_000, 1
    bench.drive.wear = Health(available_spare=97, percentage_used=300, temperature=315)
    bench.wall.ns += 2 * HOUR
    page = SMART_LOG.unpack(host.log(LogId.SMART, 512, nsid=NSID_ALL))
    assert (page.data_units_read, page.data_units_written) == (2, 3)  # 1001 and 2002 blocks, in thousands, rounded up
    assert (page.host_reads, page.host_writes, page.busy_minutes, page.media_errors) == (6, 8, 2, 2)
    assert (page.available_spare, page.percentage_used, page.critical_warning) == (97, 255, 0)
    assert int.from_bytes(page.temperature, "little") == 315
    assert (page.power_cycles, page.power_on_hours, page.unsafe_shutdowns) == (1, 2, 0)


def test_smart_of_a_namespace(host: Host) -> None:
    """There is one SMART page for the subsystem, none for a namespace."""
    assert host.refused(Admin.GET_LOG_PAGE, 1, cdw10=LogId.SMART) == Status.INVALID_FIELD


@pytest.mark.parametrize(
    ("health", "warning"),
    [
        (Health(9, 0, 310), CriticalWarning.SPARE),
        (Health(100, 0, 343), CriticalWarning.TEMPERATURE),
        (Health(0, 0, 400), CriticalWarning.SPARE | CriticalWarning.TEMPERATURE),
    ],
)
def test_critical_warnings(bench: Bench, host: Host, health: Health, warning: CriticalWarning) -> None:
    """Little spare, and a temperature at its threshold, are critical warnings."""
    bench.drive.wear = health
    assert SMART_LOG.unpack(host.log(LogId.SMART, 512)).critical_warning == warning


def test_error_log_of_admin_commands(host: Host) -> None:
    """A refused command leaves an entry: newest first, with status, command and the field at fault."""
    assert host.log(LogId.ERROR, 64) == bytes(64)
    first = host.command(0x7F, 5)
    second = host.command(Admin.IDENTIFY, cdw10=0xEE)
    page = host.log(LogId.ERROR, 64 * ERROR_RING)
    newest, older, none = (ERROR_ENTRY.unpack(page, 64 * n) for n in range(3))
    assert (newest.error_count, newest.sqid, newest.cid, newest.opcode) == (2, 0, second.cid, Admin.IDENTIFY)
    assert newest.status >> 1 == Status.INVALID_FIELD | DNR
    assert newest.location == SQE.offset("cdw10")
    assert (older.error_count, older.cid, older.nsid, older.opcode, older.location) == (1, first.cid, 5, 0x7F, 0)
    assert older.status >> 1 == Status.INVALID_OPCODE | DNR
    assert none.error_count == 0
    assert SMART_LOG.unpack(host.log(LogId.SMART, 512)).error_entries == 2


def test_error_log_of_io_commands(bench: Bench, host: Host) -> None:
    """Failed I/O commands that the data plane noted are entries too; those its ring has lost are counted."""
    queues = bench.queues[0]
    for number in range(70):
        queues.errors[number % ERROR_RING] = (3, number, Status.LBA_OUT_OF_RANGE, 1 << 40, 1)
    queues.record["error_count"] = 70
    page = host.log(LogId.ERROR, 64 * ERROR_RING)
    newest, oldest = ERROR_ENTRY.unpack(page), ERROR_ENTRY.unpack(page, 63 * 64)
    assert (newest.error_count, newest.sqid, newest.cid, newest.nsid, newest.lba) == (70, 3, 69, 1, 1 << 40)
    assert newest.status >> 1 == Status.LBA_OUT_OF_RANGE
    assert (oldest.error_count, oldest.cid) == (7, 6)
    assert host.log(LogId.ERROR, 64) == page[:64]


def test_error_count_survives_power(bench: Bench, host: Host) -> None:
    """Entries are gone after a power cycle, their number is not."""
    for _ in range(3):
        host.command(0x7F)
    bench.subsystem.checkpoint()
    again = Bench(bench.folder)
    other = again.hosts[0].enable()
    assert other.log(LogId.ERROR, 64) == bytes(64)
    other.command(0x7F)
    assert ERROR_ENTRY.unpack(other.log(LogId.ERROR, 64)).error_count == 4
    again.close()


def test_sanitize_page_of_a_new_drive(host: Host) -> None:
    """Nothing was ever sanitized, and nothing was ever written."""
    page = SANITIZE_LOG.unpack(host.log(LogId.SANITIZE, 512))
    assert (page.sprog, page.sstat, page.scdw10) == (0xFFFF, 0x100, 0)
