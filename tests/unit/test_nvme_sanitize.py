"""Sanitize (Base 5.1.22): start, progress, what is allowed meanwhile, failure, and power loss in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_firmware.errors import StoreError
from emucsd_firmware.nvme.sanitize import Action, SanitizeDword
from emucsd_firmware.profile import load
from emucsd_wire.features import Feature
from emucsd_wire.logs import SANITIZE_LOG, Event, LogId, SanitizeLog, SanitizeStatus
from emucsd_wire.nvme import Admin, Status
from tests.unit.nvme_host import DATA_AT, MIB, Bench, Host

SECOND = 1_000_000_000
ACTIONS = [Action.BLOCK_ERASE, Action.OVERWRITE, Action.CRYPTO_ERASE]
EVENT = 6 | 1 << 8 | LogId.SANITIZE << 16


@pytest.fixture
def bench(folder: Path) -> Iterator[Bench]:
    """A drive whose flash takes time: FEMU's erase of 2 ms and program of 200 us."""
    bench = Bench(folder, load("femu", capacity_bytes=64 * MIB))
    yield bench
    bench.close()


def page(host: Host) -> SanitizeLog:
    return SANITIZE_LOG.unpack(host.log(LogId.SANITIZE, 512, rae=True))


def start(host: Host, action: Action, cdw11: int = 0, **fields: int) -> int:
    return host.command(Admin.SANITIZE, cdw10=SanitizeDword.of(sanact=action, **fields), cdw11=cdw11).status


def finish(bench: Bench, host: Host) -> None:
    bench.wall.ns += 3600 * SECOND
    host.port.service()


@pytest.mark.parametrize("action", ACTIONS)
def test_from_start_to_end(bench: Bench, host: Host, engine: Host, action: Action) -> None:
    """The command completes at once; data is gone, I/O refused, progress counts; the end is an event on both ports."""
    for each in (host, engine):
        each.listen()
    assert start(host, action, 0xDEADBEEF, owpass=2) == 0
    assert bench.drive.formatted == [(0, 64 * MIB // 4096)]
    assert bench.drive.refused == Status.SANITIZE_IN_PROGRESS
    before = page(host)
    assert (before.sprog, before.sstat & 7) == (0, SanitizeStatus.IN_PROGRESS)
    assert before.scdw10 & 7 == action
    duration = bench.subsystem.sanitizer.duration_ns(SanitizeDword(before.scdw10))
    bench.wall.ns += duration // 2
    assert abs(page(host).sprog - 0x8000) < 0x100
    assert page(engine) == page(host)
    bench.wall.ns += duration // 2 + 1
    assert host.event().dw0 == EVENT
    assert engine.event().dw0 == EVENT
    after = page(host)
    assert (after.sprog, after.sstat & 7) == (0xFFFF, SanitizeStatus.COMPLETED)
    assert after.sstat & 0x100
    assert after.sstat >> 3 & 0x1F == (2 if action == Action.OVERWRITE else 0)
    assert bench.drive.refused == 0


def test_the_alarm_rings(bench: Bench, host: Host) -> None:
    """The port's own deadline is the end of the operation: nobody has to poll."""
    assert bench.ports[0].controller.deadline is None
    start(host, Action.CRYPTO_ERASE)
    assert bench.ports[0].controller.deadline == bench.wall.ns + 1_000_000


def test_estimates(bench: Bench, host: Host) -> None:
    """The log page's estimates come from the flash's own times; overwriting takes longest."""
    found = page(host)
    assert 0 < found.etbe <= found.eto
    assert (found.etce, found.etond, found.etbend) == (1, 0, 0)


def test_a_virtual_clock_does_not_wait(bench: Bench, host: Host) -> None:
    """With a virtual clock, which nobody moves for admin commands, the operation ends at once."""
    bench.drive.clock = "virtual"
    assert start(host, Action.OVERWRITE) == 0
    host.port.service()
    assert page(host).sstat & 7 == SanitizeStatus.COMPLETED


@pytest.mark.parametrize(
    "opcode",
    [Admin.FORMAT_NVM, Admin.NAMESPACE_MANAGEMENT, Admin.NAMESPACE_ATTACHMENT, Admin.SANITIZE, Admin.FEMU_FLIP],
)
def test_what_must_wait(bench: Bench, host: Host, opcode: Admin) -> None:
    """Commands that touch media or namespaces are refused meanwhile, and may be tried again."""
    start(host, Action.BLOCK_ERASE)
    done = host.command(opcode, 1, cdw10=2)
    assert (done.status, done.dnr) == (Status.SANITIZE_IN_PROGRESS, False)
    finish(bench, host)
    assert host.command(opcode, 1, cdw10=2).status != Status.SANITIZE_IN_PROGRESS


def test_what_goes_on(bench: Bench, host: Host) -> None:
    """Identify, logs, features, queues, events and Keep Alive work meanwhile."""
    start(host, Action.BLOCK_ERASE)
    host.identify(1)
    host.log(LogId.SMART, 512)
    host.get_feature(Feature.ARBITRATION)
    host.set_feature(Feature.ARBITRATION, 1)
    host.ok(Admin.CREATE_CQ, cdw10=1 << 16 | 1, cdw11=1)
    host.ok(Admin.DELETE_CQ, cdw10=1)
    host.ok(Admin.KEEP_ALIVE)
    host.ok(Admin.ABORT)


@pytest.mark.parametrize("cdw10", [0, 5, 6, 7])
def test_reserved_actions(host: Host, cdw10: int) -> None:
    """Unknown actions are Invalid Field."""
    assert host.refused(Admin.SANITIZE, cdw10=cdw10) == Status.INVALID_FIELD


def test_data_that_must_not_be_deallocated(bench: Bench, host: Host) -> None:
    """NDAS is refused (SANICAP.NDI), unless Sanitize Config asks for a warning: then it is done and says so."""
    assert start(host, Action.BLOCK_ERASE, ndas=1) == Status.INVALID_FIELD
    host.set_feature(Feature.SANITIZE_CONFIG, 1)
    assert start(host, Action.BLOCK_ERASE, ndas=1) == 0
    finish(bench, host)
    assert page(host).sstat & 7 == SanitizeStatus.COMPLETED_NO_DEALLOCATE


def test_writes_end_global_data_erased(bench: Bench, host: Host) -> None:
    """The Global Data Erased bit goes with the first write, comes with a sanitize, and survives a checkpoint."""
    counters = bench.records[0]["counters"]
    assert page(host).sstat & 0x100
    counters["blocks_written"] = 8
    assert not page(host).sstat & 0x100
    start(host, Action.CRYPTO_ERASE)
    finish(bench, host)
    assert page(host).sstat & 0x100
    bench.subsystem.checkpoint()
    assert page(host).sstat & 0x100
    counters["blocks_written"] = 16
    assert not page(host).sstat & 0x100


def test_power_loss_in_between(bench: Bench, host: Host) -> None:
    """A drive that loses power during a sanitize begins it anew, refusing I/O from its first moment."""
    start(host, Action.OVERWRITE, 0x55, owpass=1, ause=1)
    bench.wall.ns += SECOND // 100
    again = Bench(bench.folder, bench.drive.profile)
    assert again.drive.refused == Status.SANITIZE_IN_PROGRESS
    assert again.drive.formatted == [(0, 64 * MIB // 4096)]
    other = again.hosts[1].enable()
    assert page(other).sstat & 7 == SanitizeStatus.IN_PROGRESS
    other.listen()
    finish(again, other)
    assert [d.dw0 for d in other.reap()] == [EVENT]
    assert again.drive.refused == 0
    again.close()
    third = Bench(bench.folder, bench.drive.profile)
    assert page(third.hosts[0].enable()).sstat & 7 == SanitizeStatus.COMPLETED
    third.close()


@pytest.mark.parametrize("unrestricted", [0, 1])
def test_failure(bench: Bench, host: Host, unrestricted: int) -> None:
    """A failed operation refuses I/O until another succeeds; only an unrestricted one may be exited."""
    host.listen()
    bench.drive.broken = StoreError("disk full")
    assert start(host, Action.BLOCK_ERASE, ause=unrestricted) == 0
    assert host.event().dw0 == EVENT
    assert page(host).sstat & 7 == SanitizeStatus.FAILED
    assert bench.drive.refused == Status.SANITIZE_FAILED
    assert host.refused(Admin.FORMAT_NVM, 1) == Status.SANITIZE_FAILED
    bench.drive.broken = None
    leave = host.command(Admin.SANITIZE, cdw10=Action.EXIT_FAILURE).status
    assert leave == (0 if unrestricted else Status.SANITIZE_FAILED)
    if not unrestricted:
        assert start(host, Action.BLOCK_ERASE, ause=1) == Status.SANITIZE_FAILED
        assert start(host, Action.BLOCK_ERASE) == 0
        finish(bench, host)
    assert bench.drive.refused == 0
    host.ok(Admin.FORMAT_NVM, 1)


def test_exit_failure_without_one(bench: Bench, host: Host) -> None:
    """Exit Failure Mode has nothing to do on a healthy drive; during an operation it must wait."""
    host.ok(Admin.SANITIZE, cdw10=Action.EXIT_FAILURE)
    start(host, Action.BLOCK_ERASE)
    assert host.refused(Admin.SANITIZE, cdw10=Action.EXIT_FAILURE) == Status.SANITIZE_IN_PROGRESS


def test_reset_does_not_stop_it(bench: Bench, host: Host) -> None:
    """A controller reset leaves the operation running; the host finds it in the log page."""
    start(host, Action.BLOCK_ERASE)
    host.disable()
    host.enable()
    assert page(host).sstat & 7 == SanitizeStatus.IN_PROGRESS
    bench.subsystem.report(Event.NAMESPACE_ATTRIBUTE)
    finish(bench, host)
    assert page(host).sstat & 7 == SanitizeStatus.COMPLETED
    assert host.peek(DATA_AT, 2) == b"\xff\xff"
