"""What the host's own work costs in the baselines: ``costs.toml``, every parameter once, and the sums made of them.

All times are in ns of the host of the paper; the baselines hand them to ``drive.clock.think``.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from emucsd.errors import InvalidArgument

SURE = ("published", "recalled", "measured", "chosen")


class Parameter(NamedTuple):
    """One value, and why it is that."""

    name: str
    value: float
    unit: str
    what: str
    reason: str
    sure: str


@dataclass(frozen=True)
class Costs:
    """The parameters by name; see ``costs.toml`` for units and reasons."""

    crossing: float
    read_call: float
    seek_call: float
    page_cache_hit: float
    file_system: float
    page_fill: float
    block_layer: float
    nvme_driver: float
    wakeup: float
    mmio_read: float
    mmio_width: float
    mmio_write: float
    dma_setup: float
    row_latency: float
    row_bytes_per_ns: float
    adds_per_ns: float
    mac_rate: float
    weight_bytes_per_ns: float
    threads: float
    operator: float

    # -- file reads

    @property
    def vector_read(self) -> float:
        """lseek and read of a vector whose page is in the page cache."""
        return 2 * self.crossing + self.seek_call + self.read_call + self.page_cache_hit

    @property
    def miss(self) -> float:
        """What a miss in the page cache costs the host on top of ``vector_read``; the drive's time is extra."""
        return self.file_system + self.page_fill + self.block_layer + self.nvme_driver + self.wakeup

    # -- the drive without files

    def mmio_rows(self, row_bytes: int) -> float:
        """Ask for a page by a register and load one row of it from the drive's window."""
        return self.mmio_write + self.mmio_read * -(-row_bytes // self.mmio_width)

    @property
    def send(self) -> float:
        """Hand a batch to the drive: parameter registers, and the DMA of its indices and inputs."""
        return self.crossing + self.nvme_driver + self.mmio_write + self.dma_setup

    @property
    def receive(self) -> float:
        """Take a result: the last poll of the status register, and its DMA."""
        return self.mmio_read + self.dma_setup

    # -- memory and processor

    def gather(self, rows: int, row_bytes: int) -> float:
        """Read rows at random places of DRAM and add them, on all threads."""
        each = self.row_latency + row_bytes / self.row_bytes_per_ns + self.add(row_bytes // 4)
        return rows * each / self.threads

    def add(self, elements: int) -> float:
        """Add as many FP32 numbers, on one thread."""
        return elements / self.adds_per_ns

    def layer(self, samples: int, macs: int, weight_bytes: int) -> float:
        """A layer on a batch, on all threads: bound by arithmetic or by the weights' way to the cores.

        :param macs: of one sample
        """
        return max(samples * macs / (self.mac_rate * self.threads), weight_bytes / self.weight_bytes_per_ns)


@cache
def parameters() -> tuple[Parameter, ...]:
    """All parameters as ``costs.toml`` has them. :raises InvalidArgument: it says something else than it must"""
    text = files("emucsd.baselines").joinpath("costs.toml").read_text(encoding="utf-8")
    return parse(tomllib.loads(text))


def parse(found: dict[str, Any]) -> tuple[Parameter, ...]:
    """:raises InvalidArgument: a name missing or unknown, a value that is not above 0, no reason"""
    wanted = set(Costs.__annotations__)
    if set(found) != wanted:
        raise InvalidArgument(
            f"costs: missing {sorted(wanted - set(found))}, unknown {sorted(set(found) - wanted)}; each parameter once"
        )
    for name, about in found.items():
        if set(about) != {"value", "unit", "what", "reason", "sure"} or about["sure"] not in SURE:
            raise InvalidArgument(f"costs: {name} needs value, unit, what, reason and sure (one of {', '.join(SURE)})")
        if not about["value"] > 0 or not about["reason"]:
            raise InvalidArgument(f"costs: {name} is {about['value']}; a value above 0, with its reason")
    return tuple(Parameter(name, **about) for name, about in found.items())


@cache
def load_costs() -> Costs:
    """The costs that every baseline uses."""
    return Costs(**{parameter.name: float(parameter.value) for parameter in parameters()})
