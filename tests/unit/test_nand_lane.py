"""A channel that runs as a lane shows, at every moment, exactly what the general model shows."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from emucsd_firmware.nand import lane, timing
from emucsd_firmware.nand.model import QUEUES, NandModel
from emucsd_firmware.nand.state import Due, Leave, Queue
from emucsd_firmware.nand.timing import BACKGROUND, BLOCK, ERASE, LOOKUP, NEVER, PROGRAM, READ
from emucsd_firmware.profile import Profile
from tests.unit.nand_flash import small

JOBS = 24
TIMES = (0, 1, 5, 10, 10, 14, 20, 40)  # much happens at the same moment


class Pair:
    """The same flash twice: with lanes, and without. What is done to one is done to the other, and compared."""

    def __init__(self, profile: Profile, pool: int, patience: int) -> None:
        self.profile = profile
        self.models = [NandModel(profile, JOBS, pool) for _ in range(2)]
        self.records = [model.record for model in self.models]
        assert self.records[0]["lanes"] == 1
        self.records[1]["lanes"] = 0
        self.records[0]["patience"] = patience
        self.lanes = 0  # looks at which some channel was a lane
        self.free = list(range(JOBS))
        self.open: list[int] = []
        self.now = 0

    def both(self, function: Any, *arguments: Any) -> int:
        """Call it for both. :returns: what both answer"""
        answers = [function(record, *arguments) for record in self.records]
        assert answers[0] == answers[1], function.__name__
        return int(answers[0] or 0)

    def look(self) -> None:
        """Compare all that can be seen."""
        self.lanes += int(self.models[0].channels["lane"].any())
        self.both(timing.next_event)
        self.both(timing.room)
        while (job := self.both(timing.pop_done)) >= 0:
            finish = self.both(timing.job_finish, job)
            assert all(model.jobs["soonest"][job] <= finish for model in self.models)
            self.free.append(job)
        seen, wanted = (model.jobs[["pending", "finish"]].tolist() for model in self.models)
        assert seen == wanted
        assert self.models[0].snapshot() == self.models[1].snapshot()

    def begin(self) -> None:
        if self.free:
            self.open.append(self.free.pop(0))
            self.both(timing.open_job, self.open[-1])

    def end(self) -> None:
        if self.open:
            job = self.open.pop(0)
            if self.both(timing.close_job, job, self.now) >= 0:
                self.free.append(job)

    def advance(self, until: int, stop: bool) -> None:
        if stop:
            self.now = max(self.now, min(self.both(timing.advance_until_done, until), until))
        else:
            self.both(timing.advance, until)
            self.now = max(self.now, until)


def run(random: Random, count: int) -> Pair:
    """One random flash, and ``count`` things done to it."""
    shape = {"channels": random.randint(1, 4), "dies": random.choice((1, 2, 3, 4, 8))}
    nand = {name: random.choice(TIMES) for name in ("read_ns", "program_ns", "erase_ns", "retry_ns")}
    nand["transfer_ns_per_4k"] = random.choice((0, 5, 40, 160))
    nand["read_ns"] = max(nand["read_ns"], int(not any(nand.values())))
    profile = small(shape, **nand)
    pair = Pair(profile, random.choice((8, 64, 512)), random.choice((0, 1, 5, 64)))
    others = random.choice((0.0, 0.0, 0.02, 0.3))  # how much is no vector read
    backwards = random.choice((0.0, 0.0, 0.05, 0.5))
    dies = random.choice((1, profile.geometry.die_count, profile.geometry.die_count))
    step, burst = random.choice((0, 1, 5, 30)), random.choice((1, 4, 40))
    for _ in range(count):
        action = random.random()
        if action < 0.15:
            pair.begin()
        elif action < 0.3:
            pair.end()
        elif action < 0.6:
            slice_of(pair, random, random.randint(1, burst), step, dies, others, backwards)
        elif action < 0.8 and pair.both(timing.next_event) < NEVER:
            pair.advance(pair.both(timing.next_event), random.random() < 0.5)
        else:
            pair.advance(pair.now + random.randint(0, 100), random.random() < 0.7)
        pair.look()
    while pair.open:
        pair.end()
    while pair.both(timing.next_event) < NEVER:
        pair.advance(pair.now + random.randint(1, 500), random.random() < 0.8)
        pair.look()
    return pair


def slice_of(pair: Pair, random: Random, count: int, step: int, dies: int, others: float, backwards: float) -> None:
    """Submit a slice of vector reads, with other operations among them."""
    geometry = pair.profile.geometry
    now = pair.now
    for _ in range(count):
        job = random.choice(pair.open) if pair.open and random.random() < 0.9 else -1
        ppn = geometry.ppn(random.randrange(dies), random.randrange(4), 3)
        now += random.randint(0, step)
        arrival = random.randint(max(0, pair.now - 20), now) if random.random() < backwards else now
        if random.random() < others:
            kind, traffic = random.choice((READ, READ, PROGRAM, ERASE)), random.choice((BLOCK, LOOKUP, BACKGROUND))
            nbytes = 0 if kind == ERASE else random.choice((128, 4096))
            pair.both(timing.submit, arrival, kind, traffic, ppn, nbytes, job, 0)
        elif random.random() < 0.9:
            pair.both(_submit_vector, arrival, ppn, random.choice((64, 128, 128, 4096)), job)
        else:
            pair.both(timing.submit, arrival, READ, LOOKUP, ppn, 128, job, random.choice((0, 0, 2)))


def _submit_vector(record: Any, now: int, ppn: int, nbytes: int, job: int) -> int:
    timing.submit_vector(record, now, ppn, nbytes, job)
    return 0


@given(st.integers(0, 1 << 32))
@settings(max_examples=80, phases=[Phase.generate])
def test_lane_equals_general_model(seed: int) -> None:
    """Ends, order, next events, room and all counters, over random traffic of all classes and random steps."""
    random = Random(seed)
    run(random, random.choice((20, 60, 150)))


def test_rest_makes_up_for_the_bus() -> None:
    """A read that waited for the bus holds up those behind it, but not one that arrives after it has left."""
    pair = Pair(small(None, read_ns=10, transfer_ns_per_4k=40), 64, 0)
    geometry = pair.profile.geometry
    for job, (die, arrival, nbytes) in enumerate([(1, 0, 4096), (0, 5, 64), (0, 100, 64), (0, 120, 64)]):
        pair.begin()
        pair.both(_submit_vector, arrival, geometry.ppn(die, 0, 0), nbytes, job)
        pair.end()
        pair.advance(20 if job == 2 else 0, False)
    assert pair.models[0].jobs["soonest"][:4].tolist() == [50, 16, 111, 131]
    ends = []
    while (reached := pair.both(timing.advance_until_done, NEVER - 1)) < NEVER - 1:
        ends.append(reached)
        pair.look()
    assert ends == [50, 51, 111, 131]


def test_lanes_are_tried() -> None:
    """The random traffic above keeps channels in lanes, takes them out of lanes, and back."""
    seen = [run(Random(seed), 100) for seed in range(8)]
    assert sum(pair.lanes for pair in seen) > 200
    mixed = [pair.models[0].snapshot()["classes"] for pair in seen if pair.lanes]
    assert any(classes["block"]["reads"] and classes["lookup"]["reads"] > 100 for classes in mixed)


def test_lanes_are_for_plain_flash() -> None:
    """Cache read, multi-plane, suspend and command times need the general model."""
    for extra in ({"cache_read": True}, {"multi_plane": True}, {"suspend": True}, {"command_ns": 5}):
        assert NandModel(small(None, **extra), 1).record["lanes"] == 0
    assert NandModel(small(), 1).record["lanes"] == 1


def test_lane_records() -> None:
    """A lane's rings count positions in bytes, and name a die by where its queues are."""
    assert (Due.dtype.itemsize, Leave.dtype.itemsize) == (lane.ENTRY, lane.ENTRY)
    assert Queue.dtype.itemsize == lane.QUEUE
    assert QUEUES * lane.QUEUE == 1 << lane.DIE_SHIFT
