"""Controller registers as values with named bits (Base 3.1.4): drive and host decode with the same classes.

A ``Word`` is an int that knows its fields: ``Cc(0x460001).iosqes == 6``, ``Csts(0).replace(rdy=1)``; its ``repr`` is a
decoded register, so traces need nothing else.
"""

from __future__ import annotations

from typing import Any, Self


class Bits:
    """Bits ``high`` to ``low`` of a Word, read as an attribute."""

    def __init__(self, high: int, low: int | None = None) -> None:
        self.high = high
        self.low = high if low is None else low
        self.mask = (1 << (self.high - self.low + 1)) - 1
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, word: int, owner: type | None = None) -> int:
        return int(word) >> self.low & self.mask


class Word(int):
    """Base of registers and of command dwords with bit fields."""

    @classmethod
    def fields(cls) -> dict[str, Bits]:
        """Name -> bits, in order of declaration."""
        return {name: bits for name, bits in vars(cls).items() if isinstance(bits, Bits)}

    @classmethod
    def of(cls, **values: int) -> Self:
        """A word with these fields and zeros elsewhere."""
        return cls(0).replace(**values)

    def replace(self, **values: int) -> Self:
        """A copy with some fields changed. :raises ValueError: a value is too wide for its field"""
        word, fields = int(self), self.fields()
        for name, value in values.items():
            bits = fields[name]
            if not 0 <= value <= bits.mask:
                raise ValueError(f"{type(self).__name__}.{name} = {value:#x} does not fit {bits.mask:#x}")
            word = word & ~(bits.mask << bits.low) | value << bits.low
        return type(self)(word)

    def __repr__(self) -> str:
        named = (f"{name}={bits.__get__(self):#x}" for name, bits in self.fields().items() if bits.__get__(self))
        return f"{type(self).__name__}({int(self):#x}: {' '.join(named)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (int(self),)


class Cap(Word):
    """Controller Capabilities (00h)."""

    mqes = Bits(15, 0)  # 0-based
    cqr = Bits(16)
    ams = Bits(18, 17)
    to = Bits(31, 24)  # units of 500 ms
    dstrd = Bits(35, 32)
    nssrs = Bits(36)
    css = Bits(44, 37)
    bps = Bits(45)
    mpsmin = Bits(51, 48)
    mpsmax = Bits(55, 52)
    pmrs = Bits(56)
    cmbs = Bits(57)
    nsss = Bits(58)
    crwms = Bits(59)
    crims = Bits(60)


class Vs(Word):
    """Version (08h)."""

    ter = Bits(7, 0)
    mnr = Bits(15, 8)
    mjr = Bits(31, 16)


class Cc(Word):
    """Controller Configuration (14h)."""

    en = Bits(0)
    css = Bits(6, 4)
    mps = Bits(10, 7)
    ams = Bits(13, 11)
    shn = Bits(15, 14)
    iosqes = Bits(19, 16)
    iocqes = Bits(23, 20)
    crime = Bits(24)


class Csts(Word):
    """Controller Status (1Ch)."""

    rdy = Bits(0)
    cfs = Bits(1)
    shst = Bits(3, 2)
    nssro = Bits(4)
    pp = Bits(5)
    st = Bits(6)


class Aqa(Word):
    """Admin Queue Attributes (24h), sizes 0-based."""

    asqs = Bits(11, 0)
    acqs = Bits(27, 16)


class Crto(Word):
    """Controller Ready Timeouts (68h), units of 500 ms."""

    crwmt = Bits(15, 0)
    crimt = Bits(31, 16)


VERSION_2_1 = Vs.of(mjr=2, mnr=1)
NSSR_NVME = 0x4E564D65  # "NVMe": resets the subsystem
CSS_NVM = 0x01  # bit of CAP.CSS: the NVM command set
SHST_NORMAL, SHST_OCCURRING, SHST_COMPLETE = 0, 1, 2
SHN_NONE, SHN_NORMAL, SHN_ABRUPT = 0, 1, 2
