"""When the data plane has something to do next, and how it sleeps until then."""

from __future__ import annotations

from emucsd_firmware.clock import REAL, due
from emucsd_firmware.ftl.gc import next_background
from emucsd_firmware.grants import ASLEEP, ATTACHED, GRANTED, WAIT, attached_ports, clock_word
from emucsd_firmware.nand.timing import next_event
from emucsd_firmware.nvme.queues import arm, read_tail, sq_at
from emucsd_firmware.state import DriveState, port_of
from emucsd_wire.words import fence, jit, jit_inline, jit_unit, load_i64, monotonic, store_i64, wait

NEVER = 1 << 62
UNKNOWN_HOST_POLL_NS = 500_000  # a host that cannot wake us rings a mapped page: look at it this often
INTERRUPT_POLL_NS = 50_000  # interrupts wait to be raised: look at them this often
LINGER_NS = 500_000  # how long to look on where waking takes a trap of an emulated processor and a message
IDLE_NS = 1_000_000_000
STEP_NS = 5_000  # enough for another thread to get the core
WAKE_EARLY_NS = 80_000  # a sleep ends this much before the next event is due


@jit_inline
def next_due(drive: DriveState) -> int:
    """When anything happens next, NEVER if nothing will; now where there is something to compute."""
    if drive.sessions.work != 0:
        return drive.clock.now
    return min(next_command(drive), next_event(drive.nand), idle_due(drive))


@jit_inline
def next_command(drive: DriveState) -> int:
    """When commands, the lookup engine or sessions go on."""
    return min(due(drive.clock), drive.lookup.wake, drive.sessions.wake, drive.recssd.wake)


@jit_inline
def idle_due(drive: DriveState) -> int:
    """When the FTL wants to work by itself; not at once again after a time when it could not."""
    return max(next_background(drive.ftl), drive.idle_after)


@jit
def _rung(drive: DriveState) -> bool:
    """Whether any doorbell has moved since it was last taken over."""
    for number in range(2):
        port = port_of(drive, number)
        if port.enabled == 0:
            continue
        if read_tail(port, 0) != port.admin_seen:
            return True
        for index in range(port.live_count):
            qid = port.live_sqs[index]
            if read_tail(port, qid) != sq_at(port.sqs, qid).tail:
                return True
        if clock_word(port, WAIT) != clock_word(port, GRANTED):
            return True
    return False


@jit
def _set_asleep(drive: DriveState, asleep: int) -> None:
    for number in range(2):
        port = port_of(drive, number)
        store_i64(port.words, ASLEEP, asleep)
        if port.shadow != 0:
            for index in range(port.live_count):
                arm(port, port.live_sqs[index], asleep)


@jit
def _patience(drive: DriveState) -> int:
    """How long the drive may sleep: to the next event, and shortly where a host rings without waking anyone."""
    timeout = IDLE_NS
    for number in range(2):
        port = port_of(drive, number)
        if port.enabled != 0 and port.trapped == 0 and clock_word(port, ATTACHED) == 0:
            timeout = UNKNOWN_HOST_POLL_NS
    if drive.waiting != 0:
        timeout = min(timeout, INTERRUPT_POLL_NS)
    if drive.clock.mode == REAL:
        when = min(next_due(drive), drive.tunnel.wake)
        if when != NEVER:
            timeout = min(timeout, when - monotonic() - WAKE_EARLY_NS)
    elif next_due(drive) != NEVER and attached_ports(drive) == 0:
        timeout = 0
    return timeout


@jit_unit
def sleep(drive: DriveState) -> None:
    """Sleep until a doorbell, the control thread, or the next event. Say so first, then look once more."""
    timeout = _patience(drive)
    if timeout <= 0:
        return
    _set_asleep(drive, 1)
    fence()  # our 'asleep' before our look at the doorbells; the host's doorbell before its look at 'asleep'
    if not _rung(drive) and load_i64(drive.control_word, 0) == 0 and drive.commands.syncing == 0:
        drive.sleeps += 1
        wait(drive.kick_fd, timeout)
    _set_asleep(drive, 0)


@jit_inline
def lingers(drive: DriveState, since: int) -> bool:
    """Whether a host with shadow doorbells may ring again soon: the one that finds us asleep costs it dearly."""
    if drive.port0.shadow == 0 and drive.port1.shadow == 0:
        return False
    return monotonic() - since < LINGER_NS


@jit
def step_aside(drive: DriveState) -> None:
    """Leave the core to the emulator that delivers our interrupt. ``yield_core`` is not enough: between processes of
    different sessions or control groups it has no effect, and the emulator would wait for the end of our time slice."""
    drive.aside = 0
    wait(drive.kick_fd, STEP_NS)
