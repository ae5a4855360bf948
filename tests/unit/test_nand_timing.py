"""Times of flash operations against schedules computed by hand. RM-SSD's flash: 14 us array, 6 us for 4 KiB."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emucsd_firmware.nand import timing
from emucsd_firmware.nand.timing import BACKGROUND, BLOCK, LOOKUP, NEVER
from tests.unit.nand_flash import RMSSD, Flash, Given, erase, program, read, small

PLAIN = small()


def test_page_read() -> None:
    """One page read alone takes the array's 14 us and the channel's 6 us."""
    assert Flash(PLAIN).times(read(0)) == [20_000]


@pytest.mark.parametrize(("nbytes", "end"), [(64, 14_094), (128, 14_188), (256, 14_375), (4096, 20_000)])
def test_vector_read(nbytes: int, end: int) -> None:
    """Only the bytes asked for cross the channel: RM-SSD's formula, in ns instead of cycles of 5 ns."""
    assert Flash(PLAIN).times(read(0, nbytes=nbytes)) == [end]


def test_two_dies_share_a_channel() -> None:
    """Two dies' arrays overlap; their transfers don't."""
    assert Flash(PLAIN).times(read(0, 0), read(0, 1)) == [20_000, 26_000]


def test_two_channels_share_nothing() -> None:
    """Dies of different channels don't hold each other up."""
    assert Flash(small({"channels": 2})).times(read(0, 0), read(0, 2)) == [20_000, 20_000]


def test_one_die_reads_in_turn() -> None:
    """Without a cache register the next array read waits until the page has left the die."""
    assert Flash(PLAIN).times(read(0), read(0)) == [20_000, 40_000]


def test_cache_read() -> None:
    """With one, the array reads on while the page leaves: one page each 14 us."""
    assert Flash(small(cache_read=True)).times(read(0), read(0), read(0)) == [20_000, 34_000, 48_000]


def test_cache_register_is_one_page() -> None:
    """Where the channel is slower than the array, a page waits in the array until the one before it has left."""
    flash = Flash(small(cache_read=True, transfer_ns_per_4k=30_000))
    assert flash.times(read(0), read(0), read(0)) == [44_000, 74_000, 104_000]


def test_program_waits_for_an_empty_register() -> None:
    """Cache read is for reads: a program behind one starts when the page has left."""
    assert Flash(small(cache_read=True)).times(read(0), program(0)) == [20_000, 226_000]


def test_program_and_erase() -> None:
    """A program's data cross the channel first; an erase has none."""
    assert Flash(PLAIN).times(program(0)) == [206_000]
    assert Flash(PLAIN).times(erase(0)) == [2_000_000]


def test_programs_overlap_transfers() -> None:
    """While one die programs, the next one's data cross the channel."""
    assert Flash(PLAIN).times(program(0, 0), program(0, 1)) == [206_000, 212_000]


def test_command_takes_the_channel() -> None:
    """Each operation's command holds the channel before its array starts, also an erase's."""
    profile = small(command_ns=500)
    assert Flash(profile).times(read(0, 0), read(0, 1)) == [20_500, 26_500]
    assert Flash(profile).times(erase(0, 0), program(0, 1)) == [2_000_500, 207_000]


def test_retries_take_die_time() -> None:
    """Each retry step is more time in the array."""
    assert Flash(small(retry_ns=1000)).times(read(0, retries=3)) == [23_000]


def test_planes_share_the_array_time() -> None:
    """Multi-plane: reads of distinct planes are read together and leave one after the other."""
    profile = small({"planes": 2}, multi_plane=True)
    assert Flash(profile).times(read(0, block=0), read(0, block=1)) == [20_000, 26_000]
    assert Flash(profile).times(read(0, block=0), read(0, block=2)) == [20_000, 40_000]
    assert Flash(profile).times(program(0, block=0), program(0, block=1)) == [212_000, 212_000]


def test_planes_of_other_kinds_do_not_mix() -> None:
    """A read and an erase on distinct planes still take turns."""
    profile = small({"planes": 2}, multi_plane=True)
    assert Flash(profile).times(read(0, block=0), erase(0, block=1)) == [20_000, 2_020_000]


def test_suspend() -> None:
    """A read pauses a program, which then has as long to go as it had: 206 us + 5 us to pause + 20 us of the read."""
    profile = small(suspend=True, suspend_ns=5_000)
    assert Flash(profile).times(program(0), read(100_000)) == [231_000, 125_000]
    assert Flash(PLAIN).times(program(0), read(100_000)) == [206_000, 226_000]


def test_suspend_is_for_hosts() -> None:
    """A read of the drive's own work waits."""
    profile = small(suspend=True, suspend_ns=5_000)
    assert Flash(profile).times(program(0), read(100_000, traffic=BACKGROUND)) == [206_000, 226_000]


def test_suspend_is_not_worth_it_at_the_end() -> None:
    """A program with no more left than the pause would take runs to its end."""
    profile = small(suspend=True, suspend_ns=5_000)
    assert Flash(profile).times(program(0), read(201_000)) == [206_000, 226_000]
    assert Flash(profile).times(program(0), read(200_999))[0] > 206_000


def test_suspend_reads_is_a_limit() -> None:
    """No more reads pass one program than the limit, so a stream of reads can't starve it."""
    profile = small(suspend=True, suspend_ns=5_000, suspend_reads=1)
    assert Flash(profile).times(program(0), read(100_000), read(100_000)) == [231_000, 125_000, 251_000]
    flash = Flash(profile)
    numbers = [flash.submit(program(0)), flash.submit(read(100_000))]
    flash.advance(130_000)
    numbers.append(flash.submit(read(130_000)))  # while the program runs again
    flash.advance()
    assert [flash.ended[number] for number in numbers] == [231_000, 125_000, 251_000]


def test_suspended_program_serves_reads_in_a_row() -> None:
    """Reads that wait during a pause pass too, without another pause."""
    profile = small(suspend=True, suspend_ns=5_000)
    assert Flash(profile).times(program(0), read(100_000), read(101_000)) == [251_000, 125_000, 145_000]
    assert Flash(profile).times(program(0), read(100_000), read(150_000)) == [256_000, 125_000, 175_000]


def test_reads_pass_queued_programs() -> None:
    """With suspend, a read passes the programs that wait before it in its own class's queue."""
    erasing = erase(0, traffic=BACKGROUND)
    profile = small(suspend=True, suspend_ns=0, suspend_reads=1)
    ends = Flash(profile).times(erasing, program(1, block=1), read(2, block=2), read(3, block=3))
    assert ends[2] == 20_002  # pauses the erase, which may be passed once
    assert ends[0] == 2_020_000
    assert ends[3] == 2_040_000  # then passes the program
    assert ends[1] == 2_246_000


def test_round_robin() -> None:
    """Classes that wait at one die are served in turn: the MUX that RM-SSD publishes."""
    classes = [BLOCK, BLOCK, LOOKUP, LOOKUP, BACKGROUND, BACKGROUND]
    ends = Flash(PLAIN).times(*(read(0, traffic=traffic) for traffic in classes))
    assert [end // 20_000 for end in ends] == [1, 4, 2, 5, 3, 6]


def test_round_robin_skips_who_does_not_wait() -> None:
    """With two classes they alternate."""
    ends = Flash(PLAIN).times(*(read(0, traffic=traffic) for traffic in (BLOCK, BLOCK, BLOCK, BACKGROUND)))
    assert [end // 20_000 for end in ends] == [1, 3, 4, 2]


def test_future_arrivals_compete_when_they_arrive() -> None:
    """What is submitted first but arrives later does not hold up what arrives earlier."""
    assert Flash(PLAIN).times(read(50_000), read(0), read(45_000)) == [85_000, 20_000, 65_000]


def test_arrival_is_never_before_the_past() -> None:
    """An operation that comes late counts as arriving at its channel's last event, and changes nothing before it."""
    flash = Flash(PLAIN)
    flash.submit(read(0, 0))
    flash.advance(20_000)
    late = flash.submit(read(3, 1))
    flash.advance()
    assert flash.ended[late] == 40_000


@pytest.mark.parametrize(
    ("shape", "nand", "rate"),
    [({"dies": 1}, {}, 0.8192), ({"dies": 1}, {"cache_read": True}, 1.170), ({"dies": 4}, {}, 2.731)],
)
def test_sequential_rate_of_rmssd(shape: dict[str, int], nand: dict[str, bool], rate: float) -> None:
    """The bounds in GB/s by which profiles/rmssd.toml argues for its dies."""
    profile = small({**shape, "channels": 4}, **nand)
    pages = 25 * profile.geometry.die_count
    ends = Flash(profile, pool=512).times(*(read(0, page % profile.geometry.die_count) for page in range(pages)))
    assert pages * 4096 / max(ends) == pytest.approx(rate, rel=0.03)


# ---- jobs ----


def test_job_ends_with_its_last_operation() -> None:
    """A job's end is the latest of its operations' ends, whatever channel they are on."""
    profile = small({"channels": 2})
    flash, geometry = Flash(profile), profile.geometry
    timing.open_job(flash.record, 5)
    for die, nbytes in ((0, 128), (2, 4096)):
        timing.submit(flash.record, 0, timing.READ, BLOCK, geometry.ppn(die, 0, 0), nbytes, 5, 0)
    assert timing.close_job(flash.record, 5, 0) == -1
    assert timing.advance_until_done(flash.record, NEVER) == 20_000
    assert timing.pop_done(flash.record) == 5
    assert timing.job_finish(flash.record, 5) == 20_000
    assert timing.pop_done(flash.record) == -1


def test_open_job_does_not_end() -> None:
    """Operations may end before all are submitted: the job waits for close_job, which then says when it ended."""
    flash = Flash(PLAIN)
    timing.open_job(flash.record, 1)
    timing.submit(flash.record, 0, timing.READ, BLOCK, 0, 4096, 1, 0)
    timing.advance(flash.record, 30_000)
    assert timing.pop_done(flash.record) == -1
    assert timing.close_job(flash.record, 1, 30_000) == 30_000
    timing.open_job(flash.record, 1)
    assert timing.close_job(flash.record, 1, 40_000) == 40_000  # nothing to wait for


def test_done_jobs_come_in_order_of_time() -> None:
    """Whatever channel ends them, jobs are reported by (finish, number)."""
    flash = Flash(small({"channels": 3, "dies": 1}))
    for die, nbytes in ((2, 128), (0, 4096), (1, 1024), (0, 128), (2, 4096), (1, 4096)):
        flash.submit(read(0, die, nbytes=nbytes))
    assert flash.advance() == [0, 2, 1, 3, 4, 5]
    assert [flash.ended[job] for job in (3, 4, 5)] == [34_188, 34_188, 35_500]


def test_abandoned_job_is_free() -> None:
    """A job that nobody waits for is never reported; its operations still take the flash's time."""
    flash = Flash(PLAIN)
    for job in range(3):
        flash.submit(read(0, 0))
        timing.advance(flash.record, 25_000 * job)
    timing.abandon_job(flash.record, 0)  # it has ended, but was not popped
    timing.abandon_job(flash.record, 2)  # it is waiting
    assert flash.advance() == [1]
    assert flash.times(read(0, 0))[-1] == 80_000


def test_next_event() -> None:
    """The next event is an arrival, an array's end or a transfer's end; NEVER when the flash is idle."""
    flash, seen = Flash(PLAIN), []
    assert timing.next_event(flash.record) == NEVER
    flash.submit(read(7))
    while (now := timing.next_event(flash.record)) < NEVER:
        seen.append(now)
        flash.advance(now)
    assert seen == [7, 14_007, 20_007]


def test_full_pool_breaks_nothing() -> None:
    """Past the pool's room an operation takes the time that it would take alone, and is counted."""
    flash = Flash(PLAIN, pool=2)
    assert timing.room(flash.record) == 2
    numbers = [flash.submit(read(0)), flash.submit(read(0))]
    assert timing.room(flash.record) == 0
    timing.open_job(flash.record, 0)
    timing.submit(flash.record, 5, timing.READ, BLOCK, 0, 4096, -1, 0)
    flash.advance()
    assert [flash.ended[number] for number in numbers] == [20_000, 40_000]
    assert flash.model.snapshot()["overflows"] == 1
    assert timing.room(flash.record) == 2


# ---- no time at all ----


def test_instant_flash() -> None:
    """Where nothing takes time nothing waits: close_job knows the end at once. Operations are counted still."""
    profile = small(read_ns=0, program_ns=0, erase_ns=0, transfer_ns_per_4k=0, retry_ns=0)
    flash = Flash(profile)
    for op in (read(5), read(5), program(9), erase(11)):
        flash.submit(op)
    assert flash.ended == {0: 5, 1: 5, 2: 9, 3: 11}
    assert timing.next_event(flash.record) == NEVER
    counted = flash.model.snapshot()["classes"]["block"]
    assert (counted["reads"], counted["programs"], counted["erases"], counted["nbytes"]) == (2, 1, 1, 12288)


def test_background_can_be_free() -> None:
    """FEMU's switch: the drive's own operations take no time, the host's do."""
    flash = Flash(PLAIN)
    flash.record["instant_background"] = 1
    assert flash.times(erase(0, traffic=BACKGROUND), read(0)) == [0, 20_000]


def test_latencies_change_while_running() -> None:
    """New array times hold for what is submitted from then on."""
    flash = Flash(PLAIN)
    first = flash.submit(read(0, 0))
    flash.model.set_latencies(1_000, 0, 0)
    second = flash.submit(read(0, 1))
    flash.advance()
    assert (flash.ended[first], flash.ended[second]) == (20_000, 7_000)


def test_classes_are_counted_apart() -> None:
    """Waiting and array time are kept for each class: lookups behind a page of block I/O."""
    flash = Flash(replace(PLAIN, nand=RMSSD.nand))
    flash.times(read(0), Given(0, timing.READ, nbytes=128, traffic=LOOKUP))
    classes = flash.model.snapshot()["classes"]
    assert (classes["block"]["wait_ns"], classes["lookup"]["wait_ns"]) == (0, 20_000)
    assert (classes["block"]["busy_ns"], classes["lookup"]["busy_ns"]) == (14_000, 14_000)
    assert (classes["lookup"]["reads"], classes["lookup"]["nbytes"]) == (1, 128)
