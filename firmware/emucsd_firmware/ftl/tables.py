"""The drive's DRAM behind an ``Ftl`` record: allocation, and the settings that follow from a profile."""

from __future__ import annotations

from typing import Any

import numpy as np

from emucsd_firmware.ftl.buffer import LIST_HEADS
from emucsd_firmware.ftl.state import CHUNK, CHUNK_BITS, REGIONS, RESERVE, STREAMS, WORDS, Die, Place, Slot
from emucsd_firmware.profile import Profile

WINDOW = 4096  # blocks that one choice of a victim looks at
DESTAGE_NS = 2_000_000  # a dirty page goes to flash after this long even if nothing presses
CLAIM_BYTES = 65_536  # of a fresh block's pages are claimed together; not less than a page
FLIGHTS_MORE = 4096  # programs that may end out of order, beyond twice the buffer's pages
TRIM_SLOTS = 1 << 20
WORKING_BLOCKS = RESERVE + 1  # of each die, without which it can't be written: one open, one to collect into


def region_pages(profile: Profile) -> int:
    """Logical pages of one namespace's stretch: the whole capacity, in whole map chunks."""
    return -(-capacity_pages(profile) // CHUNK) * CHUNK


def capacity_pages(profile: Profile) -> int:
    return -(-profile.capacity_bytes // profile.geometry.page_bytes)


class Tables:
    """Owns every table of the FTL that dies with the process."""

    def __init__(self, profile: Profile) -> None:
        g = profile.geometry
        planes = g.die_count * g.planes
        slots = profile.buffer.pages
        self.profile = profile
        self.lpn_end = REGIONS * region_pages(profile)
        self.flights_size = 1 << (2 * slots + FLIGHTS_MORE - 1).bit_length() if slots else 1
        chunks = self.lpn_end >> CHUNK_BITS
        blocks = g.die_count << g.block_bits
        self.dirty = np.zeros(chunks, np.uint8)
        self.chunk_pages = np.zeros(chunks, np.uint16)
        self.kinds = np.zeros(blocks, np.uint8)
        self.seen = np.zeros(blocks, np.uint8)
        self.valid = np.zeros(blocks, np.uint32)
        self.erases = np.zeros(blocks, np.uint32)
        self.reads = np.zeros(blocks, np.uint32)
        self.stamps = np.zeros(blocks, np.int64)
        self.heaps = np.zeros(planes * g.blocks, np.int64)
        self.limbo = np.zeros(blocks, np.int64)
        self.heap_counts = np.zeros(planes, np.int64)
        self.die_table = np.zeros(g.die_count, Die.dtype)
        self.places = np.zeros(planes * STREAMS, Place.dtype)
        self.stripes = stripes(g.channels, g.dies, g.planes)
        self.turns = np.zeros(STREAMS, np.int64)
        self.words = np.zeros(WORDS, np.int64)
        self.zero_page = np.zeros(CLAIM_BYTES, np.uint8)
        self.images = np.zeros(max(slots, 1) * g.page_bytes, np.uint8)
        self.slots = np.zeros(slots + LIST_HEADS, Slot.dtype)
        self.flights = np.zeros(self.flights_size, np.int64)
        self.waits = np.zeros(2, np.int64)

    @property
    def jobs(self) -> int:
        """NAND jobs that the FTL needs: one a die for its background work, one a program from the buffer."""
        return self.profile.geometry.die_count + self.flights_size

    def fill(self, record: Any) -> None:
        """Addresses and settings into an empty ``Ftl`` record; files and state are the store's."""
        for name in (
            *("dirty", "chunk_pages", "kinds", "seen", "valid", "erases", "reads", "stamps", "heaps", "limbo"),
            *("heap_counts", "die_table", "places", "stripes", "turns", "words", "zero_page", "images", "slots"),
            *("flights", "waits"),
        ):
            record[name] = getattr(self, name).ctypes.data
        self._geometry(record)
        self._settings(record)
        self.die_table["victim"] = -1
        for name in ("image_slot", "held_slot", "image_place"):
            record[name] = -1

    def _geometry(self, record: Any) -> None:
        g = self.profile.geometry
        for name in ("page_bytes", "page_shift", "page_bits", "block_bits", "pages"):
            record[name] = getattr(g, name)
        record["plane_bits"] = (g.planes - 1).bit_length()
        record["die_shift"] = g.page_bits + g.block_bits
        record["blocks"], record["plane_blocks"] = g.blocks_per_die, g.blocks
        record["planes"], record["dies"] = g.die_count * g.planes, g.die_count
        record["block_end"] = g.die_count << g.block_bits
        record["lpn_end"], record["region_pages"] = self.lpn_end, region_pages(self.profile)
        record["capacity_pages"] = capacity_pages(self.profile)

    def _settings(self, record: Any) -> None:
        ftl, buffer, rel = self.profile.ftl, self.profile.buffer, self.profile.reliability
        record["streams"], record["gc_stream"] = ftl.streams, ftl.streams - 1
        record["wear_gap"], record["trim_ns"] = ftl.wear_gap, ftl.trim_ns
        record["window"] = WINDOW
        record["claim_pages"] = min(CLAIM_BYTES // self.profile.geometry.page_bytes, self.profile.geometry.pages)
        record["limbo_limit"] = max(4, self.profile.geometry.die_count)
        record["trim_slots"] = TRIM_SLOTS
        faults = (rel.rber_base, rel.rber_per_erase, rel.rber_per_read, rel.rber_per_day, rel.read_fail_ppm)
        wears = (rel.program_fail_ppm, rel.erase_fail_ppm, rel.endurance)
        record["unreliable"] = int(any(faults) or any(wears))
        record["buffer_pages"], record["buffer_write_ns"] = buffer.pages, buffer.write_ns
        record["write_cache"] = int(buffer.pages > 0)
        record["dirty_high"] = max(1, buffer.pages // 2)
        record["destage_ns"] = DESTAGE_NS
        record["flight_mask"] = self.flights_size - 1

    def set_spare(self, record: Any, usable: int) -> None:
        """What follows from the number of blocks that are not bad: spare blocks, and marks that can be reached."""
        g, ftl = self.profile.geometry, self.profile.ftl
        needed = -(-capacity_pages(self.profile) // g.pages)
        record["spare_blocks"] = usable - needed - WORKING_BLOCKS * g.die_count
        per_die = (usable - needed) // g.die_count
        high = min(round(ftl.gc_high * g.blocks_per_die), per_die * 3 // 4)
        record["gc_high"] = max(high, RESERVE + 2)
        low = min(round(ftl.gc_low * g.blocks_per_die), int(record["gc_high"]) - 1)
        record["gc_low"] = max(low, RESERVE + 1)
        slack = min(REGIONS - 1, max(int(record["spare_blocks"]), 0) * g.pages // 8)
        record["mapped_limit"] = capacity_pages(self.profile) + slack  # namespaces may end within a page


def stripes(channels: int, dies: int, planes: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """Planes (drive-wide numbers) in the order in which pages are striped: channels, then dies, then planes."""
    order = [
        (channel * dies + die) * planes + plane
        for plane in range(planes)
        for die in range(dies)
        for channel in range(channels)
    ]
    return np.array(order, np.uint32)
