"""What the tests of the NAND model share: a small flash to submit operations to, and a slow model of the same rules.

``Reference`` looks at everything at every moment and keeps plain lists; the engine in ``nand.timing`` must come to the
same times.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from emucsd_firmware.nand import timing
from emucsd_firmware.nand.model import NandModel
from emucsd_firmware.nand.timing import BACKGROUND, BLOCK, ERASE, LOOKUP, NEVER, PROGRAM, READ
from emucsd_firmware.policies.schedule import schedule
from emucsd_firmware.profile import Profile, load

RMSSD = load("rmssd")
GEOMETRY = {"blocks": 64, "pages": 16}


def small(geometry: dict[str, Any] | None = None, **nand: Any) -> Profile:
    """RM-SSD's times on one channel of two dies with few blocks, and whatever differs."""
    shape = replace(RMSSD.geometry, **{"channels": 1, "dies": 2, **GEOMETRY, **(geometry or {})})
    return replace(RMSSD, geometry=shape, nand=replace(RMSSD.nand, **nand))


class Given(NamedTuple):
    """One operation as a test states it."""

    arrival: int
    kind: int
    die: int = 0
    block: int = 0
    nbytes: int = 4096
    traffic: int = BLOCK
    retries: int = 0


class Flash:
    """A NAND model whose every operation is a job of its own, numbered from 0 as submitted."""

    def __init__(self, profile: Profile, pool: int = 256) -> None:
        self.profile = profile
        self.model = NandModel(profile, jobs=pool, pool=pool)
        self.record = self.model.record
        self.count = 0
        self.ended: dict[int, int] = {}

    def submit(self, op: Given) -> int:
        """:returns: the operation's number"""
        job, ppn = self.count, self.profile.geometry.ppn(op.die, op.block, 3)
        self.count += 1
        timing.open_job(self.record, job)
        nbytes = 0 if op.kind == ERASE else op.nbytes
        timing.submit(self.record, op.arrival, op.kind, op.traffic, ppn, nbytes, job, op.retries)
        finish = timing.close_job(self.record, job, 0)
        if finish >= 0:
            self.ended[job] = finish
        return job

    def advance(self, until: int = NEVER) -> list[int]:
        """Run, and collect what ended. :returns: the jobs in the order in which they are reported"""
        timing.advance(self.record, until)
        done = []
        while (job := timing.pop_done(self.record)) >= 0:
            self.ended[job] = timing.job_finish(self.record, job)
            done.append(job)
        return done

    def times(self, *ops: Given) -> list[int]:
        """Submit all, run all: when each one ended."""
        numbers = [self.submit(op) for op in ops]
        self.advance()
        return [self.ended[number] for number in numbers]


def read(arrival: int, die: int = 0, **more: Any) -> Given:
    return Given(arrival, READ, die, **more)


def program(arrival: int, die: int = 0, **more: Any) -> Given:
    return Given(arrival, PROGRAM, die, **more)


def erase(arrival: int, die: int = 0, **more: Any) -> Given:
    return Given(arrival, ERASE, die, **more)


# ---- the reference ----


@dataclass(eq=False)
class SlowOp:
    given: Given
    number: int
    leaving: bool = False
    passed: int = 0
    end: int = -1


@dataclass(eq=False)
class SlowDie:
    number: int
    phase: str = "free"
    waiting: list[SlowOp] = field(default_factory=list)  # by (arrival, order of submission)
    group: list[SlowOp] = field(default_factory=list)
    end: int = NEVER
    coming: int = 0  # of the group, still on the bus
    register: int = 0  # pages on their way out
    paused: list[SlowOp] = field(default_factory=list)
    paused_left: int = 0
    served: int = BACKGROUND
    busy: list[int] = field(default_factory=lambda: [0, 0, 0])
    waited: list[int] = field(default_factory=lambda: [0, 0, 0])
    pauses: int = 0
    page: int = -1  # in the register


class Reference:
    """The rules of ``nand.timing``, said slowly."""

    def __init__(self, profile: Profile, ops: list[Given]) -> None:
        self.nand, self.geometry = profile.nand, profile.geometry
        self.page_register = profile.lookup.page_register
        self.dies = [SlowDie(number) for number in range(self.geometry.die_count)]
        self.bus: list[list[SlowOp]] = [[] for _ in range(self.geometry.channels)]
        self.bus_end = [NEVER] * self.geometry.channels
        self.bus_busy = [0] * self.geometry.channels
        self.ops = [SlowOp(given, number) for number, given in enumerate(ops)]
        for op in sorted(self.ops, key=lambda o: o.given.arrival):
            self.dies[op.given.die].waiting.append(op)
        self.now = -1

    def run(self) -> list[int]:
        """When each operation ends."""
        while (now := self._next()) < NEVER:
            self.now = now
            for channel in range(self.geometry.channels):
                while self._step(channel):
                    pass
        return [op.end for op in self.ops]

    def _next(self) -> int:
        arrivals = [op.given.arrival for die in self.dies for op in die.waiting]
        times = [*self.bus_end, *(die.end for die in self.dies), *arrivals]
        return min((time for time in times if time > self.now), default=NEVER)

    def _step(self, channel: int) -> bool:
        """One thing that happens now on this channel; False: nothing does any more."""
        if self.bus_end[channel] == self.now:
            self._transferred(channel)
            return True
        for die in self.dies[channel * self.geometry.dies : (channel + 1) * self.geometry.dies]:
            if die.end == self.now:
                self._array_done(die)
                return True
            if die.phase == "free" and self._arrived(die):
                self._serve(die)
                return True
            if self._pausable(die):
                self._pause(die)
                return True
        return False

    def _arrived(self, die: SlowDie) -> list[SlowOp]:
        return [op for op in die.waiting if op.given.arrival <= self.now]

    def _host_reads(self, die: SlowDie) -> list[SlowOp]:
        return [op for op in self._arrived(die) if op.given.kind == READ and op.given.traffic != BACKGROUND]

    # the bus

    def _onto_bus(self, die: SlowDie, ops: list[SlowOp]) -> None:
        channel = die.number // self.geometry.dies
        self.bus[channel] += ops
        if self.bus_end[channel] == NEVER:
            self._next_transfer(channel)

    def _next_transfer(self, channel: int) -> None:
        self.bus_end[channel] = NEVER
        if self.bus[channel]:
            op = self.bus[channel][0]
            data = -(-op.given.nbytes * self.nand.transfer_ns_per_4k // 4096)
            time = data if op.leaving else self.nand.command_ns + (data if op.given.kind == PROGRAM else 0)
            self.bus_busy[channel] += time
            self.bus_end[channel] = self.now + time

    def _transferred(self, channel: int) -> None:
        op = self.bus[channel].pop(0)
        self._next_transfer(channel)
        die = self.dies[op.given.die]
        if not op.leaving:
            die.coming -= 1
            if die.coming == 0:
                self._work(die, max(self._array_time(o) for o in die.group))
            return
        op.end = self.now
        die.register -= 1
        if die.register == 0 and die.phase == "stalled":
            self._send(die)
            self._serve(die)
        elif die.register == 0 and die.phase == "draining":
            self._serve(die)

    def _send(self, die: SlowDie) -> None:
        for op in die.group:
            op.leaving = True
        die.register = len(die.group)
        self._onto_bus(die, die.group)

    # the array

    def _array_time(self, op: SlowOp) -> int:
        times = {READ: self.nand.read_ns, PROGRAM: self.nand.program_ns, ERASE: self.nand.erase_ns}
        return times[op.given.kind] + op.given.retries * self.nand.retry_ns

    def _work(self, die: SlowDie, time: int) -> None:
        die.phase, die.end = "busy", self.now + time

    def _array_done(self, die: SlowDie) -> None:
        die.end = NEVER
        if die.phase == "busy" and die.group[0].given.kind == READ:
            if die.register:
                die.phase = "stalled"
                return
            self._send(die)
            if not self.nand.cache_read:
                die.phase = "draining"
                return
        elif die.phase == "busy":
            for op in die.group:
                op.end = self.now
        self._serve(die)

    def _pausable(self, die: SlowDie) -> bool:
        running = die.phase == "busy" and die.group[0].given.kind != READ
        return bool(
            self.nand.suspend
            and running
            and die.group[0].passed < self.nand.suspend_reads
            and die.end - self.now > self.nand.suspend_ns
            and self._host_reads(die)
        )

    def _pause(self, die: SlowDie) -> None:
        die.paused, die.paused_left = die.group, die.end - self.now
        die.phase, die.end = "pausing", self.now + self.nand.suspend_ns
        die.busy[die.group[0].given.traffic] += self.nand.suspend_ns
        die.pauses += 1

    # what comes next

    def _serve(self, die: SlowDie) -> None:
        die.phase = "free"
        if die.paused:
            reads = self._host_reads(die) if die.paused[0].passed < self.nand.suspend_reads else []
            if reads:
                die.paused[0].passed += 1
                self._start(die, self._oldest(die, reads))
            elif die.register:
                die.phase = "draining"
            else:
                die.group, die.paused = die.paused, []
                self._work(die, die.paused_left)
            return
        arrived = self._arrived(die)
        if not arrived:
            return
        op = self._oldest(die, arrived)
        if op.given.kind != READ:
            passing = [o for o in self._host_reads(die) if o.given.traffic == op.given.traffic]
            if self.nand.suspend and passing and op.passed < self.nand.suspend_reads:
                op.passed += 1
                op = passing[0]
            elif die.register:
                die.phase = "draining"
                return
        self._start(die, op)

    def _oldest(self, die: SlowDie, among: list[SlowOp]) -> SlowOp:
        """The first one of the class that the policy chooses."""
        first = {op.given.traffic: op for op in reversed(among)}
        if len(first) == 1:
            return among[0]
        ages = [self.now - first[c].given.arrival if c in first else -1 for c in (BLOCK, LOOKUP, BACKGROUND)]
        chosen = schedule(die.served, *ages, *die.busy)
        return first.get(chosen) or first[min(first)]

    def _start(self, die: SlowDie, op: SlowOp) -> None:
        traffic, kind = op.given.traffic, op.given.kind
        queue = [o for o in die.waiting if o.given.traffic == traffic]
        group = [op]
        if self.nand.multi_plane:
            for other in queue[queue.index(op) + 1 :][:16]:
                same = other.given.kind == kind and other.given.arrival <= self.now
                if not same or len(group) == self.geometry.planes:
                    break
                planes = {o.given.block % self.geometry.planes for o in group}
                if other.given.block % self.geometry.planes not in planes:
                    group.append(other)
        for taken in group:
            die.waiting.remove(taken)
            die.waited[traffic] += self.now - taken.given.arrival
        die.served, die.group = traffic, group
        time = max(self._array_time(o) for o in group)
        if self.page_register:
            page = op.given.block if kind == READ else -1
            if page == die.page and kind == READ and traffic == LOOKUP:
                time = 0
            die.page = page
        die.busy[traffic] += time
        if kind == PROGRAM or self.nand.command_ns:
            die.phase, die.coming = "loading", len(group)
            self._onto_bus(die, group)
        else:
            self._work(die, time)
