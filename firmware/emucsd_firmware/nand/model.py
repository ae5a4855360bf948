"""The NAND model's Python side: it owns the memory, fills the ``Nand`` record, and reads the counters."""

from __future__ import annotations

from typing import Any

import numpy as np

from emucsd_firmware.nand import reliability
from emucsd_firmware.nand.lane import ARRIVAL, DIE_SHIFT, ENTRY
from emucsd_firmware.nand.state import LOOKUP, MEMO, NEVER, Channel, Die, Due, Job, Leave, Nand, Op, Queue
from emucsd_firmware.profile import Profile

POOL = 65_536  # operations in flight or waiting: 2 MiB, of which only what is in use is warm
QUEUES = 4  # a die's: one a traffic class, and one unused to keep the index a shift
CLASSES = ("block", "lookup", "background")
PATIENCE = 64  # by then the general model has cost more than the change to a lane does
LINE = 64


def _table(dtype: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
    """Zeroed records that begin on a cache line."""
    memory = np.zeros(count * dtype.itemsize + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + count * dtype.itemsize].view(dtype)


class NandModel:
    """The flash of one drive.

    :param profile: geometry, times and reliability
    :param jobs: how many jobs there are; their numbers are 0 to jobs - 1
    :param pool: operations that can be in flight or wait; see ``timing.room``

    The record that ``fill`` fills is used by compiled code through addresses of this object's tables: it must live as
    long as the record is used. Nothing here may run while the data plane does, except ``snapshot``.
    """

    def __init__(self, profile: Profile, jobs: int, pool: int = POOL) -> None:
        self.profile = profile
        geometry = profile.geometry
        self.ops = _table(Op.dtype, pool)
        self.jobs = _table(Job.dtype, jobs)
        self.queues = _table(Queue.dtype, geometry.die_count * QUEUES)
        self.dies = _table(Die.dtype, geometry.die_count)
        self.channels = _table(Channel.dtype, geometry.channels)
        self.nexts = _table(np.dtype(np.int64), geometry.channels)
        self.pages = _table(np.dtype(np.uint32), pool)
        self.memo = _table(np.dtype(np.uint32), MEMO)
        ring = 1 << geometry.dies.bit_length()  # more than dies, of which each is in a ring at most once
        self.dues = _table(Due.dtype, geometry.channels * ring).reshape(geometry.channels, ring)
        self.leaves = _table(Leave.dtype, geometry.channels * ring).reshape(geometry.channels, ring)
        self.record: Any = _table(Nand.dtype, 1)[0]
        self.fill(self.record)

    def fill(self, record: Any) -> None:
        """Fill a ``Nand`` record (an np.void view of one, nested or not) and start afresh: nothing is in flight."""
        self.record = record
        for table in (self.ops, self.jobs, self.queues, self.dies, self.channels, self.nexts, self.pages, self.memo):
            table[:] = np.zeros((), table.dtype)
        self._tables(record)
        self._settings(record)
        self._reliability(record["reliability"])

    def _settings(self, record: Any) -> None:
        geometry, nand = self.profile.geometry, self.profile.nand
        record["transfer_ns"] = nand.transfer_ns_per_4k
        for name in ("command_ns", "retry_ns", "max_retries", "suspend_ns", "suspend_reads"):
            record[name] = getattr(nand, name)
        for name in ("suspend", "cache_read", "multi_plane"):
            record[name] = int(getattr(nand, name))
        record["planes"] = geometry.planes
        record["page_bits"] = geometry.page_bits
        record["die_shift"] = geometry.block_bits + geometry.page_bits
        record["instant_background"] = 0
        plain = not (nand.cache_read or nand.multi_plane or nand.suspend or nand.command_ns)
        register = plain and self.profile.lookup.page_register
        record["page_register"] = int(register)
        record["lanes"] = int(plain and not register)
        record["patience"] = PATIENCE
        self.set_latencies(nand.read_ns, nand.program_ns, nand.erase_ns)

    def set_latencies(self, read_ns: int, program_ns: int, erase_ns: int) -> None:
        """Change the array times of operations that are submitted from now on (FEMU's vendor command does this)."""
        record, nand = self.record, self.profile.nand
        record["read_ns"], record["program_ns"], record["erase_ns"] = read_ns, program_ns, erase_ns
        rest = (nand.transfer_ns_per_4k, nand.command_ns, nand.retry_ns * nand.max_retries)
        record["instant"] = int(not any((read_ns, program_ns, erase_ns, *rest)))

    def set_delays(self, enabled: bool) -> None:
        """Whether operations submitted from now on take time: those of the profile, or none."""
        nand = self.profile.nand
        self.record["transfer_ns"] = nand.transfer_ns_per_4k if enabled else 0
        self.record["command_ns"] = nand.command_ns if enabled else 0
        self.set_latencies(*((nand.read_ns, nand.program_ns, nand.erase_ns) if enabled else (0, 0, 0)))
        if not enabled:
            self.record["instant"] = 1

    def _tables(self, record: Any) -> None:
        geometry = self.profile.geometry
        record["channel_count"], record["die_count"] = geometry.channels, geometry.die_count
        record["job_count"], record["pool"] = len(self.jobs), len(self.ops)
        for name in ("ops", "jobs", "queues", "dies", "channels", "nexts", "pages", "memo"):
            record[name] = getattr(self, name).ctypes.data
        self.ops["next"] = np.arange(1, len(self.ops) + 1)
        self.ops["next"][-1] = -1
        for name in ("head", "tail"):
            self.queues[name] = -1
        for name in ("before", "after", "group", "group_last", "paused", "paused_last"):
            self.dies[name] = -1
        self.dies["channel"] = np.arange(geometry.die_count) // geometry.dies
        self.dies["served"] = 2  # so that round robin begins with block I/O
        for name in ("due", "end", "wake"):
            self.dies[name] = NEVER
        for name in ("first", "last", "bus_head", "bus_tail"):
            self.channels[name] = -1
        for name in ("due", "bus_end"):
            self.channels[name] = NEVER
        self.nexts[:] = NEVER
        record["next"] = NEVER
        record["free"], record["room"], record["overflows"] = 0, len(self.ops), 0
        record["ring_mask"] = self.dues[0].nbytes - 1
        for name in ("dues", "leaves"):
            table = getattr(self, name)
            self.channels[name] = table.ctypes.data + np.arange(geometry.channels) * table[0].nbytes
        record["merged"], record["register_hits"] = 0, 0
        for name in ("done_first", "done_last", "done_hint", "closed_first", "closed_last"):
            record[name] = -1

    def _reliability(self, record: Any) -> None:
        knobs = self.profile.reliability
        codewords = max(1, self.profile.geometry.page_bytes * 8 // reliability.CODEWORD_BITS)
        rates = ("base", "per_erase", "per_read", "per_day")
        for name in rates:
            record[name] = getattr(knobs, f"rber_{name}")
        for name in ("read_fail", "program_fail", "erase_fail", "factory_bad"):
            record[name] = getattr(knobs, f"{name}_ppm") / 1e6
        for name in ("ecc_bits", "endurance", "seed"):
            record[name] = getattr(knobs, name)
        record["codewords"] = codewords
        record["max_retries"] = self.profile.nand.max_retries
        record["reads_err"] = int(knobs.read_fail_ppm > 0 or any(record[name] > 0 for name in rates))
        record["safe_rate"] = reliability.safe_rate(knobs.ecc_bits, codewords) if record["reads_err"] else 0.0

    def snapshot(self) -> dict[str, Any]:
        """The counters so far, as plain values: by channel, by die (each with its channel) and by traffic class.

        An operation is counted, with all of its array time, when its die takes it; its bytes when it is submitted.
        """
        queues, busy = self._counters()
        names = ("reads", "programs", "erases", "nbytes", "busy_ns", "wait_ns")
        by_die = {name: queues[name].sum(axis=1).tolist() for name in names}
        dies = [
            {"channel": channel, "suspensions": pauses} | {name: by_die[name][number] for name in names}
            for number, (channel, pauses) in enumerate(
                zip(self.dies["channel"].tolist(), self.dies["pauses"].tolist(), strict=True)
            )
        ]
        classes = {
            label: {name: int(queues[name][:, index].sum()) for name in names} for index, label in enumerate(CLASSES)
        }
        return {
            "channels": [{"busy_ns": time} for time in busy.tolist()],
            "dies": dies,
            "classes": classes,
            "in_flight": len(self.ops) - int(self.record["room"]),
            "overflows": int(self.record["overflows"]),
            "page_register": {name: int(self.record[name]) for name in ("register_hits", "merged")},
        }

    def _counters(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Queues by (die, class), and the channels' busy times. A lane counts a read when the array has read, and all
        transfers that it foresees: here, as everywhere else, the reads that arrays work on and no transfer to come."""
        queues, busy = self.queues.reshape(-1, QUEUES)[:, : len(CLASSES)].copy(), self.channels["busy_ns"].copy()
        for number in np.flatnonzero(self.channels["lane"]):
            channel = self.channels[number]
            first, beyond = int(channel["leave_first"]), int(channel["leave_beyond"])
            for position in range(first + ENTRY, beyond, ENTRY):
                busy[number] -= self.ops["bus_ns"][self.leaves["op"][number, self._place(position)]]
            for position in range(int(channel["due_first"]), int(channel["due_beyond"]), ENTRY):
                due = self.dues[number, self._place(position)]
                queue = queues[due["die"] >> DIE_SHIFT, LOOKUP]
                op = self.ops[queue["head"]]
                begun = due["time"] - op["array_ns"]
                if due["die"] & ARRIVAL == 0 and begun <= channel["now"]:
                    queue["reads"] += 1
                    queue["busy_ns"] += op["array_ns"]
                    queue["wait_ns"] += begun - op["arrival"]
        return queues, busy

    def _place(self, position: int) -> int:
        """Where in a lane's ring a position is."""
        return position // ENTRY % self.dues.shape[1]
