"""The parts of a drive that a profile describes: one frozen dataclass each, one field a setting.

Every setting has its limits and its meaning with it (``knob``, ``choice``); ``profile`` reads them from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from emucsd_firmware.mlp.budget import FPGAS

SECOND = 1_000_000_000


def knob(low: float, high: float, about: str, *, power: bool = False, default: Any = None) -> Any:
    """A field with its limits (both allowed) and its meaning; ``power``: only powers of two.

    ``default`` is for what files and stores of before it was added do not say.
    """
    return field(metadata={"low": low, "high": high, "about": about, "power": power, "default": default})


def choice(names: Iterable[str], about: str, *, default: str) -> Any:
    """A field that names one of a few things."""
    return field(metadata={"low": 0, "high": 0, "about": about, "default": default, "choices": tuple(names)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The flash array. A physical page number (ppn) is die, block and page as bit fields:

    ``ppn = die << (block_bits + page_bits) | block << page_bits | page``, where ``block`` counts within the die,
    ``plane = block % planes`` and ``channel = die // dies``. The global block is ``ppn >> page_bits``.
    """

    channels: int = knob(1, 64, "flash channels")
    dies: int = knob(1, 128, "dies on each channel (ways)")
    planes: int = knob(1, 8, "planes of a die", power=True)
    blocks: int = knob(8, 1 << 20, "blocks of a plane")
    pages: int = knob(8, 4096, "pages of a block", power=True)
    page_bytes: int = knob(4096, 32768, "bytes of a page, without its spare area", power=True)

    @property
    def page_bits(self) -> int:
        return (self.pages - 1).bit_length()

    @property
    def block_bits(self) -> int:
        return (self.blocks_per_die - 1).bit_length()

    @property
    def die_bits(self) -> int:
        return (self.die_count - 1).bit_length()

    @property
    def page_shift(self) -> int:
        """log2 of the page's bytes."""
        return (self.page_bytes - 1).bit_length()

    @property
    def die_count(self) -> int:
        return self.channels * self.dies

    @property
    def blocks_per_die(self) -> int:
        return self.blocks * self.planes

    @property
    def block_bytes(self) -> int:
        return self.pages * self.page_bytes

    @property
    def raw_pages(self) -> int:
        return self.die_count * self.blocks_per_die * self.pages

    @property
    def raw_bytes(self) -> int:
        return self.raw_pages * self.page_bytes

    @property
    def ppn_end(self) -> int:
        """One past the highest ppn. More than ``raw_pages`` where a bit field is not filled."""
        return self.ppn(self.die_count - 1, self.blocks_per_die - 1, self.pages - 1) + 1

    @property
    def block_end(self) -> int:
        """One past the highest global block."""
        return ((self.ppn_end - 1) >> self.page_bits) + 1

    def ppn(self, die: int, block: int, page: int) -> int:
        """The physical page number of a page, by die, block within the die, and page within the block."""
        return (die << (self.block_bits + self.page_bits)) | (block << self.page_bits) | page

    def die(self, ppn: int) -> int:
        return ppn >> (self.block_bits + self.page_bits)

    def block(self, ppn: int) -> int:
        """Block within its die."""
        return (ppn >> self.page_bits) & ((1 << self.block_bits) - 1)

    def channel(self, die: int) -> int:
        return die // self.dies


@dataclass(frozen=True, slots=True, kw_only=True)
class Nand:
    """Times and abilities of the flash."""

    read_ns: int = knob(0, SECOND, "array to page register")
    program_ns: int = knob(0, SECOND, "page register to array")
    erase_ns: int = knob(0, 2 * SECOND, "one block")
    transfer_ns_per_4k: int = knob(0, SECOND // 10, "channel time for 4096 bytes; others in proportion, rounded up")
    command_ns: int = knob(0, SECOND, "channel time for the command and address of each operation")
    cache_read: bool = knob(0, 1, "the array reads the next page while the last one leaves the cache register")
    multi_plane: bool = knob(0, 1, "operations of one kind on distinct planes share one array time")
    suspend: bool = knob(0, 1, "a host's read passes programs and erases, also one that is running")
    suspend_ns: int = knob(0, SECOND, "die time to suspend a running program or erase")
    suspend_reads: int = knob(1, 32767, "array reads that may pass any one program or erase")
    retry_ns: int = knob(0, SECOND // 100, "die time of one read-retry step")
    max_retries: int = knob(0, 64, "read-retry steps before a page is given up")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How often the flash errs. All zero: it never does, and nothing is spent on asking."""

    rber_base: float = knob(0, 0.1, "bit errors per bit of a fresh page")
    rber_per_erase: float = knob(0, 0.1, "added for each erase of the block")
    rber_per_read: float = knob(0, 0.1, "added for each read of the block since its erase (read disturb)")
    rber_per_day: float = knob(0, 0.1, "added for each day since the page was programmed (retention)")
    ecc_bits: int = knob(0, 1024, "bits that the ECC corrects in each KiB")
    read_fail_ppm: int = knob(0, 1_000_000, "reads per million that no retry recovers, whatever the bit errors")
    factory_bad_ppm: int = knob(0, 500_000, "blocks per million that are bad from the factory")
    program_fail_ppm: int = knob(0, 1_000_000, "programs per million that fail")
    erase_fail_ppm: int = knob(0, 1_000_000, "erases per million that fail")
    endurance: int = knob(0, 1 << 31, "erases that a block survives; 0: any number")
    seed: int = knob(0, (1 << 63) - 1, "every draw is a hash of this seed and of the place and wear it is about")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The PCIe link of port 0."""

    bytes_per_us: int = knob(0, 1_000_000, "bandwidth of each direction; 0: infinite")
    delay_ns: int = knob(0, SECOND, "one way")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEnd:
    """The controller's front end: one server, commands in turn."""

    command_ns: int = knob(0, SECOND, "each command")
    per_page_ns: int = knob(0, SECOND, "each flash page that a command touches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ftl:
    """The flash translation layer."""

    over_provision: float = knob(0.01, 0.98, "fraction of the raw capacity that is kept back")
    gc_low: float = knob(0.0, 0.9, "garbage collection starts when a die has this fraction of its blocks free")
    gc_high: float = knob(0.0, 0.95, "and stops at this one")
    streams: int = knob(1, 3, "open blocks by temperature: 1 all together, 2 host and GC apart, 3 hot, cold and GC")
    wear_gap: int = knob(1, 1 << 31, "spread of erase counts within a die that starts wear levelling")
    trim_ns: int = knob(0, SECOND, "each Dataset Management range")


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """The DRAM write buffer. With it the drive has a volatile write cache."""

    pages: int = knob(0, 1 << 20, "flash pages that it holds; 0: every write waits for its program")
    write_ns: int = knob(0, SECOND, "each page taken in")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """The embedding lookup engine."""

    clock_mhz: int = knob(1, 10_000, "engine clock")
    translate_cycles: int = knob(0, 1 << 20, "EV translator: cycles for each index")
    sum_lanes: int = knob(1, 4096, "EV sum: FP32 adders side by side")
    sum_cycles: int = knob(0, 1 << 20, "EV sum: cycles for each pass of a vector over the lanes")
    path_buffer: int = knob(1, 65535, "EV-FMC: vector reads in flight for each die")
    cache_rows: int = knob(0, 1 << 26, "hot cache: rows that the drive's DRAM holds; 0: none", default=0)
    cache_ways: int = knob(1, 64, "hot cache: places that a row may be in", power=True, default=8)
    cache_cycles: int = knob(0, 1 << 20, "hot cache: engine cycles for a row out of it", default=4)
    page_register: bool = knob(
        0,
        1,
        "vectors of a page that is in a die's register, or on its way there, share one array read",
        default=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecSsd:
    """RecSSD's firmware: its commands, and what they cost the controller's processor."""

    enabled: bool = knob(0, 1, "take RecSSD's commands (bit 16 of CDW12 of Read and Write)", default=False)
    cpu_mhz: int = knob(1, 10_000, "the controller's processor", default=1000)
    request_cycles: int = knob(0, 1 << 20, "its cycles for a request", default=3000)
    pair_cycles: int = knob(0, 1 << 20, "for each pair of a configuration", default=540)
    page_cycles: int = knob(0, 1 << 20, "for each page: page buffer, translation, issue, completion", default=1200)
    vector_cycles: int = knob(0, 1 << 20, "for each row that it takes out of a page", default=540)
    element_cycles: int = knob(0, 1 << 16, "for each element that it adds", default=180)
    copy_cycles: int = knob(0, 1 << 16, "for each element that it copies into the row cache", default=120)
    sector_cycles: int = knob(0, 1 << 20, "for each sector of 4 KiB of results", default=400)
    page_buffer: int = knob(0, 1024, "pages that the page buffer holds for each die", default=10)
    cache_entries: int = knob(0, 1 << 26, "places of 128 bytes in the row cache; 0: none", default=1 << 20)
    queue_depth: int = knob(1, 65535, "page reads in flight for each die", default=256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Isp:
    """The Linux computer inside the drive, as the ``local`` engine stands for it: see docs/isp.md."""

    cores: int = knob(1, 1024, "cores of the ISP engine", default=4)
    memory_bytes: int = knob(1 << 26, 1 << 40, "memory that its jobs may use together", default=6_000_000_000)
    cpu_share: float = knob(
        0.001, 1.0, "part of a core of this machine that each is worth; 1: no throttle", default=1.0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """The MLP engine: an FPGA's arithmetic beside the flash. ``mlp.budget`` has what the FPGAs are made of."""

    clock_mhz: int = knob(1, 10_000, "engine clock", default=200)
    fpga: str = choice(FPGAS, "the FPGA whose LUT, FF, BRAM and DSP bound the engine", default="XCVU9P")
    share: float = knob(0.001, 1.0, "part of the FPGA that the engine may take", default=0.75)
    ii: int = knob(1, 1024, "cycles until an FP32 accumulator takes its next value (initiation interval)", default=8)
    dram_bytes: int = knob(0, 1 << 44, "DRAM for weights that BRAM does not hold", default=64 << 30)
    dram_bytes_per_us: int = knob(1, 10_000_000, "its read bandwidth", default=12_800)
