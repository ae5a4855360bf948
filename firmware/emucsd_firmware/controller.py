"""One NVMe controller: registers and their state machine (Base 3.5, 3.6, 3.7), and the admin queue's service.

Everything here runs in the control thread. The data plane is held out of compiled code where shared state changes.
"""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from emucsd_firmware.errors import FirmwareError, MemoryMapError
from emucsd_firmware.nvme import admin
from emucsd_firmware.nvme.admin_queues import IoQueues
from emucsd_firmware.nvme.events import Events
from emucsd_firmware.nvme.features import Features
from emucsd_firmware.nvme.keep_alive import KeepAlive
from emucsd_firmware.nvme.logs import ErrorLog, critical_warning
from emucsd_firmware.nvme.queues import QueueSet, port_at, refresh_tail
from emucsd_firmware.nvme.registers import Change, Registers
from emucsd_firmware.nvme.request import HostData, Refused, Request, with_flags
from emucsd_wire.features import Feature, Queues
from emucsd_wire.logs import CriticalWarning, Effect, Event
from emucsd_wire.nvme import SQE, Admin, Register, Sqe, Status
from emucsd_wire.registers import NSSR_NVME, SHN_NONE, SHST_COMPLETE, Cc
from emucsd_wire.words import jit

if TYPE_CHECKING:
    from emucsd_firmware.nvme.hardware import DriveBorder
    from emucsd_firmware.subsystem import Subsystem

log = logging.getLogger(__name__)

HEALTH_NS = 1_000_000_000  # how often the drive's health is looked at while admin commands come
RETRY_NS = 1_000_000  # how soon a completion is tried again when the admin completion queue was full
_EVENT_OF = {CriticalWarning.SPARE: Event.SPARE, CriticalWarning.TEMPERATURE: Event.TEMPERATURE}


class Completion(NamedTuple):
    """An admin completion that waits for room."""

    cid: int
    status: int
    dw0: int


@jit
def admin_waiting(address: int) -> int:
    """Entries that wait in the admin queue of the port at ``address``."""
    return refresh_tail(port_at(address, 0), 0)


class Controller:
    """The controller behind one port."""

    def __init__(self, number: int, drive: DriveBorder, subsystem: Subsystem, queues: QueueSet) -> None:
        self.number = number
        self.cntlid = number + 1
        self.drive = drive
        self.subsystem = subsystem
        self.queues = queues
        self.trapped = False  # doorbell writes come as messages, so shadow doorbells are worth offering
        self.registers = Registers()
        self.io_queues = IoQueues(queues)
        self.events = Events()
        self.features = Features(self)
        self.keep_alive = KeepAlive(subsystem.now)
        self.errors = ErrorLog(subsystem.nvram.errors.get(str(self.cntlid), 0))
        self.changed_namespaces: set[int] = set()
        self.admin_commands = dict(admin.COMMANDS)
        self.in_use = False  # a host enabled this controller and has not shut it down
        self.on_reset: list[Callable[[], None]] = []
        self._io_effects = dict(admin.IO_EFFECTS)
        self._data = HostData(queues.record["memory"])
        self._held: deque[Completion] = deque()
        self._warnings = CriticalWarning(0)
        self._health_due = 0
        self._bad_doorbells = 0
        self._counted: dict[str, int] = {}
        subsystem.add(self)

    # extension points

    def register_admin(self, opcode: int, handler: admin.Handler, effects: Effect = Effect.SUPPORTED) -> None:
        """Add a vendor admin command. ``handler(controller, request)`` returns DW0 (None: 0) or raises ``Refused``.

        :raises ValueError: the opcode is no vendor's, or taken
        """
        if opcode not in admin.VENDOR_OPCODES or opcode in self.admin_commands:
            raise ValueError(f"admin opcode {opcode:#x} is taken or outside C0h..FFh; choose another")
        self.admin_commands[opcode] = admin.Command(handler, effects)

    def register_io(self, opcode: int, effects: Effect = Effect.SUPPORTED) -> None:
        """Tell hosts of an I/O command that the data plane runs."""
        self._io_effects[opcode] = effects

    def admin_effects(self) -> dict[int, Effect]:
        """Opcode -> effects of every admin command that works now."""
        hidden = set() if self.trapped else {Admin.DOORBELL_BUFFER_CONFIG}
        return {opcode: command.effects for opcode, command in self.admin_commands.items() if opcode not in hidden}

    def io_effects(self) -> dict[int, Effect]:
        return self._io_effects

    # registers

    @property
    def ready(self) -> bool:
        return bool(self.registers.csts.rdy)

    @property
    def granted_queues(self) -> Queues:
        """How many I/O queues the host may create, 0-based."""
        return Queues(self.features.value(Feature.NUMBER_OF_QUEUES))

    def write_register(self, offset: int, data: bytes) -> None:
        """A host's write below the doorbells. Trouble of the drive itself shows as Controller Fatal Status."""
        for change in self.registers.write(offset, data):
            try:
                if change.register == Register.CC:
                    self._configure(change)
                elif change.new == NSSR_NVME:
                    self.subsystem.reset()
            except (FirmwareError, OSError) as problem:
                log.exception("controller %d: a register write failed inside", self.cntlid)
                self._fail(str(problem))

    def _configure(self, change: Change) -> None:
        """CC was written: enable or disable first, then shut down; one write may ask for both."""
        old, new = Cc(change.old), Cc(change.new)
        if new.en and not old.en:
            self._enable(new)
        elif old.en and not new.en:
            self._stop(keep_admin=True)
            self.registers.cc = new
        if new.shn != SHN_NONE and new.shn != old.shn:
            self._shut_down()

    def _enable(self, cc: Cc) -> None:
        aqa = self.registers.aqa
        self.registers.csts = self.registers.csts.replace(shst=0, cfs=0)
        if cc.css or cc.mps or cc.ams:
            self._fail(f"CC {cc!r} asks for what CAP does not offer")
            return
        if not aqa.asqs or not aqa.acqs:
            self._fail(f"{aqa!r} makes an admin queue of one entry")
            return
        with self.drive.plane.paused():
            try:
                self.queues.create_cq(0, self.registers.acq, aqa.acqs + 1, 0)
                self.queues.create_sq(0, self.registers.asq, aqa.asqs + 1, 0)
            except MemoryMapError as problem:
                self._fail(f"an admin queue has no memory: {problem}")
                return
            self.features.apply_coalescing()
            self.subsystem.host_came()
            self.queues.record["enabled"] = 1
        self.registers.csts = self.registers.csts.replace(rdy=1)
        self.in_use = True
        self.drive.plane.kick()

    def _shut_down(self) -> None:
        """CC.SHN, normal or abrupt: all is on flash before CSTS says so. No command is taken until the next reset."""
        with self.drive.plane.paused():
            self._quiet()
            self.drive.flush()
        self.registers.csts = self.registers.csts.replace(shst=SHST_COMPLETE)
        if self.in_use:
            self.in_use = False
            self.subsystem.host_left()

    def _quiet(self) -> None:
        """No queue is left, nothing waits."""
        self.io_queues.reset()
        self.events.reset()
        self._held.clear()
        self.keep_alive.start(0)
        self._bad_doorbells = 0
        for hook in self.on_reset:
            hook()

    def _stop(self, *, keep_admin: bool, nssro: bool = False) -> None:
        """Controller level reset (Base 3.7.2)."""
        with self.drive.plane.paused():
            self._quiet()
        cache = self.features.write_cache
        self.features.reset()
        self.changed_namespaces.clear()
        self._warnings = CriticalWarning(0)
        nssro = nssro or (keep_admin and bool(self.registers.csts.nssro))
        self.registers.reset(keep_admin=keep_admin, nssro=nssro)
        if cache != self.features.write_cache:
            self.subsystem.apply_write_cache()

    def reset(self, *, nssro: bool = False) -> None:
        """Function level reset, device reset, lost client, or subsystem reset: every register too."""
        self._stop(keep_admin=False, nssro=nssro)

    def _fail(self, reason: str) -> None:
        """Controller fatal status: only a reset helps."""
        log.warning("controller %d: fatal: %s", self.cntlid, reason)
        with self.drive.plane.paused():
            self._quiet()
        self.registers.csts = self.registers.csts.replace(cfs=1)

    # memory

    def suspend(self, iova: int, size: int) -> None:
        """Guest memory is about to go; call it with the data plane out of compiled code."""
        self.io_queues.suspend(iova, size)

    def resume(self) -> None:
        """Guest memory was mapped; call it with the data plane out of compiled code."""
        if self.io_queues.suspended:
            self.io_queues.resume()
        self.queues.resume_shadow()

    # counters

    def counted(self, name: str) -> int:
        """What the data plane has counted on this port since ``forget_counters``."""
        return int(self.queues.record["counters"][name]) - self._counted.get(name, 0)

    def forget_counters(self) -> None:
        """They were added to the drive's life."""
        counters = self.queues.record["counters"]
        self._counted = {name: int(counters[name]) for name in counters.dtype.names}

    def collect_errors(self) -> None:
        """Take over the failed I/O commands that the data plane noted."""
        self.errors.collect(self.queues)

    # the admin queue

    @property
    def holds(self) -> bool:
        """Whether completions wait for room in the admin completion queue."""
        return bool(self._held)

    @property
    def deadline(self) -> int | None:
        """When ``service`` has something to do though nothing was rung, on the subsystem's clock."""
        times = [self.keep_alive.deadline, self.subsystem.sanitizer.deadline]
        times += [self.subsystem.now() + RETRY_NS] if self._held else []
        return min((time for time in times if time is not None), default=None)

    def service(self) -> bool:
        """Run what waits in the admin queue, and what is due. :returns: whether there was anything"""
        self.subsystem.sanitizer.advance()
        if not self.ready or not self.queues.sqs[0]["live"] or not self.queues.cqs[0]["live"]:
            return False
        if self.keep_alive.expired:
            self.errors.add(Status.KEEP_ALIVE_EXPIRED)
            self._fail("the host's Keep Alive did not come in time")
            return True
        self._check_doorbells()
        if self.subsystem.now() >= self._health_due:
            self.check_health()
            self.subsystem.keep()
        worked = self._flush_held()
        while not self._held and self.ready and admin_waiting(self.queues.address):
            self._run(self._fetch())
            worked = True
        return self._deliver_events() or worked

    def post(self, cid: int, status: int, dw0: int = 0) -> None:
        """Complete an admin command, now or when its queue has room."""
        # plain ints: compiled code would be specialized anew for every enum
        self._held.append(Completion(cid, with_flags(status), int(dw0)))
        self._flush_held()

    def _fetch(self) -> Sqe:
        sq = self.queues.sqs[0]
        head = int(sq["head"])
        data = ctypes.string_at(int(sq["address"]) + SQE.size * head, SQE.size)
        sq["head"] = (head + 1) % int(sq["entries"])
        return SQE.unpack(data)

    def _run(self, sqe: Sqe) -> None:
        try:
            dw0 = admin.execute(self, Request(sqe, self._data))
        except Refused as refused:
            self._refuse(sqe, refused)
        except (FirmwareError, OSError):
            log.exception("controller %d: admin command %#x failed inside", self.cntlid, sqe.opcode)
            self._refuse(sqe, Refused(Status.INTERNAL_ERROR))
        else:
            if dw0 != admin.PENDING:
                self.post(sqe.cid, Status.SUCCESS, dw0)

    def _refuse(self, sqe: Sqe, refused: Refused) -> None:
        log.debug("controller %d: %r refused: %s", self.cntlid, sqe, refused)
        status = with_flags(refused.status)
        location = refused.location
        self.errors.add(status, sqid=0, cid=sqe.cid, nsid=sqe.nsid, opcode=sqe.opcode, location=location)
        self.post(sqe.cid, refused.status, refused.dw0)

    def _flush_held(self) -> bool:
        worked = False
        while self._held and self.queues.post(0, *self._held[0]):
            self._held.popleft()
            worked = True
        return worked

    # events

    def report(self, event: Event) -> None:
        """Tell the host, when it wants to know and has a request waiting for it."""
        if self.ready:
            self.events.report(event, self.features.value(Feature.ASYNC_EVENTS))
            self._deliver_events()

    def namespace_changed(self, nsid: int) -> None:
        """A namespace came, went or was formatted."""
        if self.ready:
            self.changed_namespaces.add(nsid)
            self.report(Event.NAMESPACE_ATTRIBUTE)

    def check_health(self) -> None:
        """Report what has become critical since the last look."""
        self._health_due = self.subsystem.now() + HEALTH_NS
        warnings = critical_warning(self, self.drive.health())
        for bit, event in _EVENT_OF.items():
            if bit in warnings & ~self._warnings:
                self.report(event)
        self._warnings = warnings

    def _deliver_events(self) -> bool:
        if not self.queues.cqs[0]["live"]:
            return False
        deliveries = self.events.deliver()
        for delivery in deliveries:
            self.post(delivery.cid, Status.SUCCESS, delivery.dw0)
        return bool(deliveries)

    def _check_doorbells(self) -> None:
        bad = int(self.queues.sqs["bad_doorbells"].sum() + self.queues.cqs["bad_doorbells"].sum())
        if bad > self._bad_doorbells:
            self.report(Event.INVALID_DOORBELL_VALUE)
        self._bad_doorbells = bad
