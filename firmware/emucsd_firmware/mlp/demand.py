"""How long a sample's lookups take: what the MLPs must keep up with.

A channel gives a vector every ``max((array + transfer) / dies, transfer)``: the dies' array reads overlap, their
transfers do not. The translator and the adders are pipelined beside that. For RM-SSD's prototype this is the published
C_EV: (14 us + 6 us EV / 4096 B) over 4 dies and 4 channels, 0.887 us for 128 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from emucsd_firmware.parts import Geometry, Lookup, Nand


class Flash(Protocol):
    """The parts of a profile that lookups depend on."""

    @property
    def geometry(self) -> Geometry: ...

    @property
    def nand(self) -> Nand: ...

    @property
    def lookup(self) -> Lookup: ...


def vector_ns(flash: Flash, row_bytes: int, dim: int, *, page_grain: bool = False) -> float:
    """Average ns from one vector to the next, all channels and dies busy.

    :param row_bytes: what a row takes in the flash
    :param page_grain: whole pages leave the dies
    """
    nand, geometry, lookup = flash.nand, flash.geometry, flash.lookup
    nbytes = geometry.page_bytes if page_grain else row_bytes
    transfer = -(-nbytes * nand.transfer_ns_per_4k // 4096) + nand.command_ns
    die = max(nand.read_ns, transfer) if nand.cache_read else nand.read_ns + transfer
    cycle = 1000 / lookup.clock_mhz
    adders = -(-dim // lookup.sum_lanes) * lookup.sum_cycles * cycle
    return max(max(die / geometry.dies, transfer) / geometry.channels, lookup.translate_cycles * cycle, adders)


def embedding_ns(flash: Flash, dims: Sequence[int], lookups: float, *, page_grain: bool = False) -> float:
    """Average ns that the lookups of a sample take.

    :param dims: each table's vector, FP32
    :param lookups: of a sample, over all tables, spread evenly over them
    """
    if not dims:
        return 0.0
    each = lookups / len(dims)
    return sum(each * vector_ns(flash, 4 * dim, dim, page_grain=page_grain) for dim in dims)
