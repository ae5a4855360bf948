"""What FPGAs are made of, and what FP32 arithmetic takes of them.

Tags: source = read in public constants of tools for the device; recalled = vendor's figures, remembered and not checked
against a document; chosen = ours, with the reason.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class Resources:
    """Amounts of the four things that an FPGA runs out of."""

    lut: int = 0
    ff: int = 0
    bram: int = 0  # BRAM36
    dsp: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.lut + other.lut, self.ff + other.ff, self.bram + other.bram, self.dsp + other.dsp)

    def __mul__(self, count: int) -> Resources:
        return Resources(self.lut * count, self.ff * count, self.bram * count, self.dsp * count)

    def within(self, limit: Resources) -> bool:
        """No more than ``limit`` of anything."""
        fits = self.lut <= limit.lut and self.ff <= limit.ff
        return fits and self.bram <= limit.bram and self.dsp <= limit.dsp


FPGAS = {
    "XCVU9P": Resources(lut=1_182_240, ff=2_364_480, bram=2_160, dsp=6_840),  # source; AWS F1, RM-SSD's prototype
    "XC7A200T": Resources(lut=134_600, ff=269_200, bram=365, dsp=740),  # recalled; Artix-7, a low-end device
}

# Vendor-typical figures of a high-level synthesis tool for pipelined FP32 cores with full use of DSPs: recalled. That
# such an adder has up to 9 stages (a result 8 cycles later): source, the names of the cores that the tool generates.
MULTIPLIER = Resources(lut=135, ff=128, dsp=3)
ADDER = Resources(lut=214, ff=227, dsp=2)
LAYER = Resources(lut=1_500, ff=2_000)  # chosen: counters, addresses and control of one layer, whatever its kernel

# A BRAM36 has 4.5 KB: 1024 words of 36 bits, of which FP32 uses 32, or 512 of 72: it gives two words a cycle while it
# takes in others.
BRAM_WORDS = 1024
BRAM_PORT_WORDS = 2


def brams(words: int, words_a_cycle: int) -> int:
    """BRAM36 that hold so many FP32 words and give so many of them each cycle."""
    return max(-(-words // BRAM_WORDS), -(-words_a_cycle // BRAM_PORT_WORDS))


def share_of(fpga: str, share: float) -> Resources:
    """What the engine may take of an FPGA. :raises KeyError: there is no such FPGA"""
    return Resources(*(int(amount * share) for amount in astuple(FPGAS[fpga])))
