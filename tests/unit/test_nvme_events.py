"""Asynchronous events (Base 5.1.2): limit, masking, what sends them and what takes them back."""

from __future__ import annotations

from emucsd_firmware.nvme.hardware import Health
from emucsd_wire.features import Feature
from emucsd_wire.identify import Oaes
from emucsd_wire.logs import Event, LogId
from emucsd_wire.nvme import NSID_ALL, Admin, Register, Status
from tests.unit.nvme_host import Bench, Host

SECOND = 1_000_000_000
ALL = int(Oaes.NAMESPACE_ATTRIBUTE) | 0xFF
NAMESPACE_CHANGED = 2 | 0 << 8 | LogId.CHANGED_NAMESPACES << 16


def change(host: Host, lba_format: int = 0) -> None:
    """Let namespace 1 change."""
    host.submit(host.sqe(Admin.FORMAT_NVM, 1, cdw10=lba_format))
    host.port.service()


def test_a_request_waits(bench: Bench, host: Host) -> None:
    """A request completes when something happens, not before; its dword says what, and where to read about it."""
    host.set_feature(Feature.ASYNC_EVENTS, ALL)
    cid = host.listen()
    host.identify(1)
    bench.subsystem.report(Event.NAMESPACE_ATTRIBUTE)
    event = host.event()
    assert (event.cid, event.status, event.dw0) == (cid, 0, NAMESPACE_CHANGED)


def test_an_event_waits(bench: Bench, host: Host) -> None:
    """An event without a request is kept for the next one, once."""
    host.set_feature(Feature.ASYNC_EVENTS, ALL)
    for _ in range(3):
        bench.subsystem.report(Event.NAMESPACE_ATTRIBUTE)
    host.listen()
    host.listen()
    assert [d.dw0 for d in host.reap()] == [NAMESPACE_CHANGED]


def test_limit(host: Host) -> None:
    """Four requests may wait (AERL 3); the fifth is refused, and may be tried again."""
    for _ in range(4):
        host.listen()
    done = host.command(Admin.ASYNC_EVENT_REQUEST)
    assert (done.status, done.dnr) == (Status.AER_LIMIT, False)
    assert host.identify(1)[259] == 3


def test_a_waiting_id_is_taken(host: Host) -> None:
    """A command with the id of a waiting request is a conflict."""
    cid = host.listen()
    host.cid = cid - 1
    assert host.refused(Admin.IDENTIFY, cdw10=1) == Status.CID_CONFLICT


def test_masked_until_read(bench: Bench, host: Host) -> None:
    """A type that was reported is silent until its log page is read without Retain Asynchronous Event."""
    host.set_feature(Feature.ASYNC_EVENTS, ALL)
    host.listen()
    host.listen()
    bench.subsystem.report(Event.NAMESPACE_ATTRIBUTE)
    bench.subsystem.report(Event.NAMESPACE_ATTRIBUTE)
    assert len(host.reap()) == 1
    host.log(LogId.CHANGED_NAMESPACES, 4096, rae=True)
    bench.subsystem.report(Event.NAMESPACE_ATTRIBUTE)
    assert host.reap() == []
    host.log(LogId.SMART, 512)
    bench.subsystem.report(Event.NAMESPACE_ATTRIBUTE)
    assert host.reap() == []
    host.log(LogId.CHANGED_NAMESPACES, 4096)
    bench.subsystem.report(Event.NAMESPACE_ATTRIBUTE)
    assert host.event().dw0 == NAMESPACE_CHANGED


def test_reading_first_needs_no_event(bench: Bench, host: Host) -> None:
    """An event that waits is dropped when its log page is read: it tells nothing new then."""
    host.set_feature(Feature.ASYNC_EVENTS, ALL)
    bench.subsystem.report(Event.NAMESPACE_ATTRIBUTE)
    host.log(LogId.CHANGED_NAMESPACES, 4096)
    host.listen()
    assert host.reap() == []


def test_types_are_masked_apart(bench: Bench, host: Host) -> None:
    """One type's silence does not touch another's."""
    host.set_feature(Feature.ASYNC_EVENTS, ALL)
    host.listen()
    host.listen()
    bench.subsystem.report(Event.NAMESPACE_ATTRIBUTE)
    bench.subsystem.report(Event.SANITIZE_COMPLETED)
    assert [d.dw0 for d in host.reap()] == [NAMESPACE_CHANGED, 6 | 1 << 8 | LogId.SANITIZE << 16]


def test_disabled_events(bench: Bench, host: Host) -> None:
    """Without Asynchronous Event Configuration notices and SMART events stay inside; errors and sanitize do not."""
    host.listen()
    bench.subsystem.report(Event.NAMESPACE_ATTRIBUTE)
    bench.subsystem.report(Event.TEMPERATURE)
    assert host.reap() == []
    bench.subsystem.report(Event.SANITIZE_COMPLETED)
    assert len(host.reap()) == 1


def test_abort(host: Host) -> None:
    """Abort takes a waiting request back: it completes as aborted, then Abort says that it did."""
    cid = host.listen()
    abort = host.submit(host.sqe(Admin.ABORT, cdw10=cid << 16))
    host.port.service()
    first, second = host.reap()
    assert (first.cid, first.status) == (cid, Status.ABORT_REQUESTED)
    assert (second.cid, second.status, second.dw0 & 1) == (abort, 0, 0)


def test_abort_of_nothing(host: Host) -> None:
    """A command that is not there was not aborted; a queue that is not there is Invalid Field."""
    assert host.ok(Admin.ABORT, cdw10=0x1234 << 16) & 1 == 1
    assert host.refused(Admin.ABORT, cdw10=0x1234 << 16 | 9) == Status.INVALID_FIELD


def test_reset_ends_requests(bench: Bench, host: Host) -> None:
    """A reset ends requests without completions, and old events do not reach the next host."""
    host.set_feature(Feature.ASYNC_EVENTS, ALL)
    bench.subsystem.report(Event.NAMESPACE_ATTRIBUTE)
    for _ in range(4):
        host.listen()
    host.reap()
    host.disable()
    host.enable()
    for _ in range(4):
        host.listen()
    assert host.reap() == []


def test_temperature(bench: Bench, host: Host) -> None:
    """Crossing the host's threshold is an event, once for each time it crosses; so is a threshold set below."""
    host.set_feature(Feature.ASYNC_EVENTS, ALL)
    host.listen()
    bench.drive.wear = Health(100, 0, 350)
    bench.wall.ns += 2 * SECOND
    assert host.event().dw0 == 1 | 1 << 8 | LogId.SMART << 16
    host.log(LogId.SMART, 512)
    host.listen()
    bench.wall.ns += 2 * SECOND
    host.port.service()
    assert host.reap() == []
    bench.drive.wear = Health(100, 0, 310)
    bench.wall.ns += 2 * SECOND
    host.port.service()
    host.submit(host.sqe(Admin.SET_FEATURES, cdw10=Feature.TEMPERATURE_THRESHOLD, cdw11=300))
    host.port.service()
    assert sorted(d.dw0 for d in host.reap()) == [0, 1 | 1 << 8 | LogId.SMART << 16]


def test_spare(bench: Bench, host: Host) -> None:
    """Spare below its threshold is an event."""
    host.set_feature(Feature.ASYNC_EVENTS, ALL)
    host.listen()
    bench.drive.wear = Health(5, 0, 310)
    bench.wall.ns += 2 * SECOND
    assert host.event().dw0 == 1 | 2 << 8 | LogId.SMART << 16


def test_changed_namespaces(bench: Bench, host: Host, engine: Host) -> None:
    """A format is told to every controller that has the namespace; the log page has its id until it is read."""
    for each in (host, engine):
        each.set_feature(Feature.ASYNC_EVENTS, ALL)
        each.listen()
    change(engine)
    assert sorted(d.dw0 for d in engine.reap()) == [0, NAMESPACE_CHANGED]
    assert host.event().dw0 == NAMESPACE_CHANGED
    for each in (host, engine):
        assert each.log(LogId.CHANGED_NAMESPACES, 4096, rae=True)[:8] == bytes((1, 0, 0, 0, 0, 0, 0, 0))
        each.log(LogId.CHANGED_NAMESPACES, 4096)
        assert not any(each.log(LogId.CHANGED_NAMESPACES, 4096))


def test_a_host_that_comes_later_hears_nothing_old(bench: Bench, engine: Host) -> None:
    """Changes before a controller was enabled are no changes for its host."""
    change(engine)
    host = bench.hosts[0].enable()
    host.set_feature(Feature.ASYNC_EVENTS, ALL)
    host.listen()
    assert host.reap() == []
    assert not any(host.log(LogId.CHANGED_NAMESPACES, 4096, nsid=NSID_ALL))


def test_bad_doorbell_value(host: Host) -> None:
    """A tail past the queue's end is an error event, and the queue goes on with the next good one."""
    host.listen()
    good = host.tail
    host.write(Register.DOORBELLS, 999)
    host.port.service()
    host.write(Register.DOORBELLS, good)
    event = host.event()
    assert event.dw0 == 0 | 1 << 8 | LogId.ERROR << 16
    host.identify(1)


def test_doorbell_of_no_queue(bench: Bench, host: Host) -> None:
    """Ringing for a queue that does not exist is an error event and leaves no value behind."""
    host.listen()
    host.write(Register.DOORBELLS + 8 * 5, 3)
    assert host.event().dw0 == 0 | 0 << 8 | LogId.ERROR << 16
    assert bench.queues[0].doorbells[10] == 0
