"""Steps of synchronous training in virtual time: each rank computes its batch, then all wait for the sum.

A rank's step is: samples (read ahead while the step before runs, so that they cost time only where flash is slower than
the engine), forward and backward with a jitter of its own, all-reduce. Seeded: the same again, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from emucsd.stannis.energy import Use
from emucsd.stannis.errors import PlanError
from emucsd.stannis.fleet import profiles
from emucsd.stannis.fleet.allreduce import Algorithm, all_reduce
from emucsd.stannis.fleet.fabric import Fabric, Floats, Links

STEPS = 20  # of a figure, where nothing else is said


@dataclass(frozen=True)
class Flash:
    """What samples cost to read. :ivar seconds: rank's time for one; 0 leaves it out"""

    newport: float = 0.0
    host: float = 0.0


@dataclass(frozen=True)
class Trained:
    """Steps, measured in virtual time. Times in s; arrays by rank.

    :ivar steps: how many
    :ivar images: of all ranks, all steps
    :ivar seconds: of all steps
    :ivar step_seconds: of each
    :ivar computing: seconds, all steps
    :ivar communicating: seconds that a drive's tunnel carried something, or that a host's last transfers took
    :ivar loading: seconds that samples took to read, overlapped or not
    :ivar sync_seconds: of a step, from the last rank's gradients to the last rank's sum; mean
    :ivar batches: images a step
    :ivar tunnel_bytes: of a step
    :ivar host_bytes: server by server, of a step
    :ivar nic_bytes: server by server, of a step
    """

    steps: int
    images: int
    seconds: float
    step_seconds: Floats
    computing: Floats
    communicating: Floats
    loading: Floats
    sync_seconds: float
    batches: tuple[int, ...]
    is_host: Any
    tunnel_bytes: Floats
    host_bytes: Floats
    nic_bytes: Floats

    @property
    def rate(self) -> float:
        """Images/s, all ranks."""
        return self.images / self.seconds

    def rate_of(self, rank: int) -> float:
        """Images/s of one."""
        return self.batches[rank] * self.steps / self.seconds

    @property
    def step(self) -> float:
        """Seconds of one, mean."""
        return self.seconds / self.steps

    @property
    def waiting(self) -> Floats:
        """Share of the time in which each neither computes nor communicates."""
        found: Floats = np.maximum(0.0, 1 - (self.computing + self.communicating) / self.seconds)
        return found

    @property
    def use(self) -> Use:
        """How time is used, for the energy model: means over hosts, and over drives."""
        working = 1 - self.waiting
        drives = ~self.is_host
        if not drives.any():
            return Use(host=float(working[self.is_host].mean()))
        return Use(
            host=float(working[self.is_host].mean()),
            csd=float(working[drives].mean()),
            link=float(self.communicating[drives].mean() / self.seconds),
        )


@dataclass(frozen=True)
class Fleet:
    """Servers with drives that train a network.

    :ivar servers: drives of each
    :ivar links: rates and latencies
    :ivar algorithm: of the all-reduce
    :ivar group_slowdown: a step's computing on a drive of a group over one alone
    :ivar jitter: standard deviation of a step's computing, a share of it
    :ivar flash: what samples cost to read
    """

    network: profiles.Network
    servers: tuple[int, ...]
    links: Links
    algorithm: Algorithm = "ring"
    group_slowdown: float = 1.0
    jitter: float = 0.0
    flash: Flash = Flash()

    @classmethod
    def of(
        cls, network: profiles.Network, servers: Sequence[int], algorithm: Algorithm = "ring", **other: Any
    ) -> Fleet:
        """With everything else as the package has it."""
        values = profiles.values()
        usual = cls(
            network, tuple(servers), Links.load(), algorithm, values["group_slowdown"], values["jitter"], Flash()
        )
        return replace(usual, **other)

    @property
    def ranks(self) -> int:
        """Hosts and drives; each server's host, then its drives."""
        return sum(self.servers) + len(self.servers)

    def batches(self, host: int, newport: int) -> tuple[int, ...]:
        """The same for all hosts, and for all drives."""
        return tuple(batch for drives in self.servers for batch in (host, *[newport] * drives))

    def computing(self, batches: Sequence[int]) -> Floats:
        """Seconds of each rank's step, nobody interfering."""
        fabric = Fabric(self.servers, self.links)
        kinds = profiles.newport(self.network), profiles.host(self.network)
        slow = self.group_slowdown if self.ranks > 1 else 1.0
        seconds = [
            kinds[int(host)].seconds(b) * (1.0 if host else slow)
            for host, b in zip(fabric.is_host, batches, strict=True)
        ]
        return np.array(seconds)

    def reduce_seconds(self) -> float:
        """An all-reduce by itself: everybody's gradients are there at the same moment."""
        fabric = Fabric(self.servers, self.links)
        finished = all_reduce(fabric, self.algorithm, self.network.gradient_bytes, np.zeros(self.ranks))
        return float(finished.max())

    def train(
        self,
        batches: Sequence[int],
        *,
        steps: int = STEPS,
        seed: int = 1,
        slower: Floats | None = None,
    ) -> Trained:
        """Run steps.

        :param batches: rank -> images a step; 0 takes part in the all-reduce and computes nothing
        :param slower: rank -> factor on its computing (interference); None: nobody is
        :raises PlanError: as many batches as ranks are needed, one above 0, and a step
        """
        if len(batches) != self.ranks or min(batches) < 0 or not sum(batches) or steps < 1:
            raise PlanError(f"{len(batches)} batches, {steps} steps for {self.ranks} ranks: one each from 0, a step")
        fabric = Fabric(self.servers, self.links)
        compute = self.computing(batches) * (1.0 if slower is None else slower)
        load = np.array(batches) * np.where(fabric.is_host, self.flash.host, self.flash.newport)
        random = np.random.PCG64(seed)
        begin, loaded = np.zeros(self.ranks), load.copy()
        ends, synced, computed, host_link = [], [], np.zeros(self.ranks), np.zeros(self.ranks)
        for _ in range(steps):
            spent = compute * np.maximum(_jitter(random, self.jitter, self.ranks), 0.0)
            begin = np.maximum(begin, loaded)
            loaded = begin + load
            ready = begin + spent
            begin = all_reduce(fabric, self.algorithm, self.network.gradient_bytes, ready)
            ends.append(begin.max())
            synced.append(ends[-1] - ready.max())
            computed += spent
            host_link += np.where(fabric.is_host, np.maximum(begin - ready.max(), 0.0), 0.0)
        return Trained(
            steps=steps,
            images=steps * sum(batches),
            seconds=float(ends[-1]),
            step_seconds=np.diff(np.array([0.0, *ends])),
            computing=computed,
            communicating=fabric.tunnel_seconds + host_link,
            loading=load * steps,
            sync_seconds=float(np.mean(synced)),
            batches=tuple(batches),
            is_host=fabric.is_host,
            tunnel_bytes=fabric.tunnel_bytes / steps,
            host_bytes=fabric.host_bytes / steps,
            nic_bytes=fabric.nic_bytes / steps,
        )


_UNIFORMS = 12  # their sum has a variance of 1 and is nearly normal


def _jitter(random: np.random.PCG64, share: float, ranks: int) -> Floats:
    """Factors of mean 1 and of this standard deviation.

    Made by additions of raw output alone: what logarithms and exponentials give differs in the last bit from machine
    to machine, and NumPy promises no more of its distributions.
    """
    found = np.full(ranks, -_UNIFORMS / 2)
    for _ in range(_UNIFORMS):
        found += (random.random_raw(ranks) >> np.uint64(11)) * 2.0**-53
    return 1 + share * found
