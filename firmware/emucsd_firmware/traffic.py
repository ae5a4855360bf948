"""What crossed a port, for people: all in all, and by namespace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from emucsd_firmware.nvme.namespaces import Namespace
from emucsd_firmware.nvme.queues import NAMESPACES, QueueSet, Traffic

Rows = Mapping[tuple[int, int], tuple[int, int]]  # (port, namespace) -> rows read, rows stored


def port_figures(queues: QueueSet, spaces: Iterable[Namespace], rows: Rows) -> dict[str, Any]:
    """A port's counters since the drive's start: plain values. Controller resets leave them alone.

    ``namespaces`` has every namespace that there is, by its id as a string, and those of ids that came up before.

    :param rows: of the tables of every port
    """
    number, counters = int(queues.record["number"]), queues.record["counters"]
    figures: dict[str, Any] = {name: int(counters[name]) for name in counters.dtype.names}
    figures["vectors"] = sum(read for (port, _), (read, _) in rows.items() if port == number)
    there = {space.nsid for space in spaces}
    found = {}
    for nsid in range(1, NAMESPACES + 1):
        traffic = _traffic(queues.namespaces[nsid]["traffic"], *rows.get((number, nsid), (0, 0)))
        if nsid in there or any(traffic.values()):
            found[str(nsid)] = traffic
    figures["namespaces"] = found
    return figures


def _traffic(record: Any, read: int, stored: int) -> dict[str, int]:
    figures = {name: int(record[name]) for name in Traffic.dtype.names or () if name != "rows"}
    return {**figures, "lookup_rows": int(record["rows"]) + read, "updated_rows": stored}
