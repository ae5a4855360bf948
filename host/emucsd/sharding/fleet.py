"""Several drives that answer together: a thread each, answers in the drives' order, one time.

In virtual time each drive has a clock of its own. Who waits for all drives waits for the slowest: after each joint step
the others' clocks are moved on to its time, so ``Fleet.now`` passes as it would for one host.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from emucsd.drive import Drive
from emucsd.errors import ConnectionLost, ControllerFailed, DriveTimeout, EmucsdError, InvalidArgument

T = TypeVar("T")

_GONE = (ConnectionLost, ControllerFailed, DriveTimeout)


class ShardLost(EmucsdError):
    """A drive no longer answers, and what it holds with it. The others serve on.

    :ivar number: of the drive in its fleet
    :ivar held: what lies on it
    """

    def __init__(self, number: int, held: Sequence[str], text: str) -> None:
        self.number, self.held = number, tuple(held)
        names = ", ".join(held) or "nothing"
        super().__init__(f"drive {number} is gone, it holds {names}: {text}; start it again and open them anew")
        self._text = text

    def __reduce__(self) -> tuple[object, ...]:
        return ShardLost, (self.number, self.held, self._text)


class Fleet:
    """Drives, each with the one thread that calls it. Close it, or use it in a ``with``; the drives stay open.

    :raises InvalidArgument: no drives, one twice, or some in virtual and some in real time
    """

    def __init__(self, drives: Sequence[Drive]) -> None:
        self.drives = list(drives)
        if not drives or len({id(drive) for drive in drives}) != len(drives):
            raise InvalidArgument(f"{len(drives)} drives; give at least one, and none twice")
        if len({drive.clock.virtual for drive in drives}) > 1:
            raise InvalidArgument("some drives run in virtual time and some in real time; choose one for all")
        self.virtual = self.drives[0].clock.virtual
        self._began = [drive.clock.now for drive in self.drives]
        self._threads = [ThreadPoolExecutor(1, f"emucsd-shard-{number}") for number in range(len(drives))]
        self._lost: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.drives)

    @property
    def now(self) -> int:
        """ns since the fleet was made: the latest of its drives."""
        return max(self._passed(number) for number in range(len(self)))

    def _passed(self, number: int) -> int:
        return self.drives[number].clock.now - self._began[number]

    def each(
        self, calls: Mapping[int, Callable[[], T]], held: Mapping[int, Sequence[str]] | None = None
    ) -> dict[int, T]:
        """Call once for each of some drives, all at the same time; wait for all.

        :param calls: by the drive's number
        :param held: what is on each drive, for the error
        :returns: what each gave, in the order of the drives
        :raises ShardLost: a drive does not answer
        :raises EmucsdError: what a call raised; the first by the drives' order
        """
        for number in sorted(calls):
            if number in self._lost:
                raise ShardLost(number, (held or {}).get(number, ()), self._lost[number])
        waiting: dict[int, Future[T]] = {n: self._threads[n].submit(calls[n]) for n in sorted(calls)}
        found: dict[int, T] = {}
        failed: list[BaseException] = []
        for number, future in waiting.items():
            error = future.exception()
            if error is None:
                found[number] = future.result()
            elif isinstance(error, _GONE):
                self._lost[number] = str(error).splitlines()[0]
                lost = ShardLost(number, (held or {}).get(number, ()), self._lost[number])
                lost.__cause__ = error
                failed.insert(0, lost)
            else:
                failed.append(error)
        if failed:
            raise failed[0]
        self.align()
        return found

    def align(self) -> None:
        """In virtual time: drives that are behind wait for the one that is furthest."""
        if not self.virtual:
            return
        latest = self.now
        for number, drive in enumerate(self.drives):
            if number not in self._lost and self._passed(number) < latest:
                self._threads[number].submit(drive.clock.think, latest - self._passed(number)).result()

    def think(self, ns: int) -> None:
        """The host is busy for ``ns``; all drives go on meanwhile."""
        for number, drive in enumerate(self.drives):
            if number not in self._lost:
                self._threads[number].submit(drive.clock.think, ns).result()

    def close(self) -> None:
        """End the threads. Harmless when repeated."""
        for thread in self._threads:
            thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def spread(loads: Sequence[float], drives: int) -> list[int]:
    """A drive for each of some tables: the heaviest first, each to the drive with the least so far.

    No drive gets more than 4/3 of what the best spread would give it (Graham, 1969).

    :param loads: lookups a sample, or whatever costs time, of each table
    """
    if drives < 1 or any(not load >= 0 for load in loads):
        raise InvalidArgument(f"loads {list(loads)} over {drives} drives; loads of 0 or more, at least one drive")
    free = [(0.0, 0, number) for number in range(drives)]
    found = [0] * len(loads)
    for table in sorted(range(len(loads)), key=lambda table: -loads[table]):
        load, tables, number = heapq.heappop(free)
        found[table] = number
        heapq.heappush(free, (load + loads[table], tables + 1, number))
    return found
