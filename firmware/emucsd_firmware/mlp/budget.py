"""What FPGAs are made of, and what FP32 arithmetic takes of them.

Tags: source = read in public constants of tools for the device; recalled = vendor data, remembered and not checked;
chosen = ours, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

BRAM36_BYTES = 4608  # 36 Kbit: 1024 words of 36 bits. FP32 uses it as 1024 x 36, see WORDS_PER_BRAM


@dataclass(frozen=True, slots=True)
class Resources:
    """Amounts of the four things that an FPGA runs out of."""

    lut: int = 0
    ff: int = 0
    bram: int = 0  # BRAM36
    dsp: int = 0


FPGAS = {
    "XCVU9P": Resources(lut=1_182_240, ff=2_364_480, bram=2_160, dsp=6_840),  # source; AWS F1, RM-SSD's prototype
    "XC7A200T": Resources(lut=134_600, ff=269_200, bram=365, dsp=740),  # recalled: a low-end device (Artix-7)
}
