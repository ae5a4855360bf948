"""Servers full of drives, and what carries bytes between them: who waits for whom, and how much went where.

::

    drive -- tunnel --- host's processes --- tunnel -- drive          in one server
                              |
                             NIC --- NIC --- host's processes ...     between servers

A hop between two drives of a server goes through the host: it takes the sender's tunnel, the host's processes and the
receiver's tunnel. A tunnel is bound by its engine's processor, so that what goes out and what comes in share its rate;
the host's processes share one rate; a NIC has one each way. What has to wait is served in the order in which it comes.
A hop's later part begins once a message of it has come: a large one occupies both tunnels at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

from emucsd.stannis.errors import PlanError
from emucsd.stannis.parameters import load_parameters

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Links:
    """Rates in bytes/s, latencies in s. ``links.toml`` has what each is, and why."""

    drive_rate: float
    drive_latency: float
    message_bytes: float
    host_rate: float
    host_latency: float
    nic_rate: float
    nic_latency: float
    drive_sum_rate: float
    host_sum_rate: float

    @classmethod
    def load(cls) -> Self:
        """As the package has them."""
        known = load_parameters("emucsd.stannis.fleet", "links.toml")
        return cls(**{field.name: known[field.name].value for field in fields(cls)})


class Fabric:
    """Links of servers, and when each is free. Ranks are numbered server by server: its host, then its drives.

    :param servers: drives of each
    :ivar server: rank -> its server
    :ivar is_host: rank -> whether it is a host
    :ivar tunnel_bytes: rank -> bytes that its tunnel carried, both directions; a host has none
    :ivar host_bytes: server -> bytes that its processes carried
    :ivar nic_bytes: server -> bytes that left it for others
    :ivar tunnel_seconds: rank -> seconds that its tunnel carried something
    :raises PlanError: no server, or one of less than no drives
    """

    def __init__(self, servers: Sequence[int], links: Links) -> None:
        if not servers or min(servers) < 0:
            raise PlanError(f"servers of {list(servers)} drives; at least one server, of no drives or more")
        self.servers, self.links = tuple(servers), links
        self.server: Ints = np.repeat(np.arange(len(servers)), np.array(servers) + 1)
        starts = np.concatenate(([0], np.cumsum(np.array(servers[:-1], dtype=np.int64) + 1)))
        self.is_host = np.zeros(self.ranks, dtype=bool)
        self.is_host[starts] = True
        self.hosts: Ints = starts.astype(np.int64)
        self.tunnel_bytes = np.zeros(self.ranks)
        self.tunnel_seconds = np.zeros(self.ranks)
        self.host_bytes = np.zeros(len(servers))
        self.nic_bytes = np.zeros(len(servers))
        self._tunnel = np.zeros(self.ranks)
        self._processes = np.zeros(len(servers))
        self._out = np.zeros(len(servers))
        self._in = np.zeros(len(servers))

    @property
    def ranks(self) -> int:
        """Hosts and drives."""
        return sum(self.servers) + len(self.servers)

    @property
    def sum_rate(self) -> Floats:
        """rank -> bytes/s at which it adds what it received to its own."""
        return np.where(self.is_host, self.links.host_sum_rate, self.links.drive_sum_rate)

    def move(self, sources: Ints, targets: Ints, sizes: Floats | float, ready: Floats) -> Floats:
        """Send from rank to rank, all at once.

        :param sizes: bytes of each
        :param ready: when each may leave
        :returns: when the last byte of each has arrived
        """
        links = self.links
        size = np.broadcast_to(np.asarray(sizes, dtype=np.float64), sources.shape)
        first, last = ready, ready
        here, there = self.server[sources], self.server[targets]
        across = here != there
        first, last = self._through_tunnel(sources, size, first, last)
        first, last = self._hop(self._processes, here, first, last, size, links.host_rate, links.host_latency)
        np.add.at(self.host_bytes, here, size)
        if across.any():
            some = np.flatnonzero(across)
            a, b = first[some], last[some]
            a, b = self._hop(self._out, here[some], a, b, size[some], links.nic_rate, links.nic_latency)
            a, b = self._hop(self._in, there[some], a, b, size[some], links.nic_rate, 0.0)
            a, b = self._hop(self._processes, there[some], a, b, size[some], links.host_rate, links.host_latency)
            np.add.at(self.nic_bytes, here[some], size[some])
            np.add.at(self.host_bytes, there[some], size[some])
            first, last = first.copy(), last.copy()
            first[some], last[some] = a, b
        return self._through_tunnel(targets, size, first, last)[1]

    def _through_tunnel(self, ranks: Ints, size: Floats, first: Floats, last: Floats) -> tuple[Floats, Floats]:
        """The end of a hop at a drive; a host is there already."""
        some = np.flatnonzero(~self.is_host[ranks])
        if not len(some):
            return first, last
        links, who = self.links, ranks[some]
        np.add.at(self.tunnel_bytes, who, size[some])
        np.add.at(self.tunnel_seconds, who, size[some] / links.drive_rate)
        a, b = self._hop(self._tunnel, who, first[some], last[some], size[some], links.drive_rate, links.drive_latency)
        if len(some) == len(ranks):
            return a, b
        first, last = first.copy(), last.copy()
        first[some], last[some] = a, b
        return first, last

    def _hop(
        self, free: Floats, where: Ints, first: Floats, last: Floats, size: Floats, rate: float, latency: float
    ) -> tuple[Floats, Floats]:
        """Through one link of each: those of the same link in the order in which they come.

        :param free: link -> when it is free; changed
        :param first: when a message of each can enter; ``last``: when all of it has come
        :returns: the same at the other end
        """
        service, message = size / rate, np.minimum(self.links.message_bytes, size) / rate
        if np.bincount(where).max() == 1:  # nobody shares
            ended = np.maximum(first, free[where]) + service
            free[where] = ended
        else:
            ended = _queued(free, where, first, service)
        return ended - service + message + latency, np.maximum(ended, last + message) + latency


def _queued(free: Floats, where: Ints, first: Floats, service: Floats) -> Floats:
    """When each has been served by its link: a queue for each, all at once. :param free: changed"""
    order = np.lexsort((first, where))
    at, takes = where[order], service[order]
    head = np.concatenate(([True], at[1:] != at[:-1]))  # first of its link
    group = np.cumsum(head) - 1
    done = np.cumsum(takes)
    done -= (done - takes)[head][group]  # work of its link up to and with it
    earliest = np.maximum(first[order], free[at]) - (done - takes)
    lift = np.ptp(earliest) + 1.0  # parts the links from each other, so that one running maximum serves all
    ended = np.maximum.accumulate(earliest + group * lift) - group * lift + done
    tail = np.concatenate((at[1:] != at[:-1], [True]))
    free[at[tail]] = ended[tail]
    found = np.empty_like(first)
    found[order] = ended
    return found
