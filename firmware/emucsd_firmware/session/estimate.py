"""How long the lookups of a sample take, as the kernel search sees them: RM-SSD's T_emb, from the profile alone."""

from __future__ import annotations

from collections.abc import Sequence

from emucsd_firmware.profile import Profile


def lookup_ns(
    profile: Profile, dims: Sequence[int], row_bytes: Sequence[int], lookups: int, *, whole_pages: bool
) -> int:
    """Time of a sample's lookups when samples follow each other without a gap.

    What is slowest says it: the dies (array, then transfer), the channels, the translator, or the adders. Vectors lie
    evenly over dies and channels; none is cached.

    :param dims: of each table, in elements, with ``row_bytes`` the bytes of its rows in flash
    :param lookups: ids of a sample over all tables, taken to be spread evenly
    :param whole_pages: pages leave the dies, not vectors
    """
    nand, geometry, engine = profile.nand, profile.geometry, profile.lookup
    page = geometry.page_bytes
    sizes = [page if whole_pages else bytes_ for bytes_ in row_bytes]
    bus = sum(-(-size * nand.transfer_ns_per_4k // 4096) + nand.command_ns for size in sizes) / len(sizes)
    die = nand.read_ns + bus
    flash = max(die / geometry.dies, bus) / geometry.channels
    passes = sum(-(-dim // engine.sum_lanes) for dim in dims) / len(dims)
    cycles = max(engine.translate_cycles, engine.sum_cycles * passes)
    return round(lookups * max(flash, cycles * 1000 / engine.clock_mhz))
