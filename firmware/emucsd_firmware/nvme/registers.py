"""Controller registers (Base 3.1.4): what a host may write and reads back. What follows is the controller's."""

from __future__ import annotations

from typing import NamedTuple

from emucsd_wire.nvme import Register
from emucsd_wire.registers import CSS_NVM, VERSION_2_1, Aqa, Cap, Cc, Crto, Csts

MQES = 1023  # 0-based: queues of up to 1024 entries
READY_TIMEOUT = 20  # units of 500 ms
REGISTER_BYTES = 0x1000

CAP = Cap.of(mqes=MQES, cqr=1, to=READY_TIMEOUT, nssrs=1, css=CSS_NVM, crwms=1)
CRTO = Crto.of(crwmt=READY_TIMEOUT)

_CC_WRITABLE = 0x01FF_FFF1
_AQA_WRITABLE = 0x0FFF_0FFF
_QUEUE_LOW = 0xFFFF_F000  # queue base addresses are page aligned; the rest reads as zero
_NSSRO = Csts.of(nssro=1)


class Change(NamedTuple):
    """A dword that a host wrote, where writing it has a consequence."""

    register: Register
    old: int
    new: int


class Registers:
    """The register file. Reads of any size give bytes; writes count as aligned dwords, one or two at a time."""

    def __init__(self) -> None:
        self._image = bytearray(REGISTER_BYTES)
        self._mask = 0
        self.reset()

    def reset(self, *, keep_admin: bool = False, nssro: bool = False) -> None:
        """To their initial values.

        :param keep_admin: AQA, ASQ and ACQ survive: a reset by CC.EN
        :param nssro: note in CSTS that a subsystem reset did it
        """
        admin = bytes(self._image[Register.AQA : Register.CMBLOC])
        self._image[:] = bytes(REGISTER_BYTES)
        self._mask = 0
        self._put(Register.CAP, CAP, 8)
        self._put(Register.VS, VERSION_2_1)
        self._put(Register.CRTO, CRTO)
        if keep_admin:
            self._image[Register.AQA : Register.CMBLOC] = admin
        if nssro:
            self.csts = _NSSRO

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes at ``offset``; the caller has checked that they lie inside."""
        return bytes(self._image[offset : offset + count])

    def write(self, offset: int, data: bytes) -> list[Change]:
        """Take a host's write. Odd sizes and read-only or reserved registers are ignored.

        :returns: what the controller must act on, in order
        """
        if offset % 4 or len(data) not in (4, 8):
            return []
        changes = []
        for at in range(0, len(data), 4):
            change = self._store(offset + at, int.from_bytes(data[at : at + 4], "little"))
            changes += [change] if change is not None else []
        return changes

    def _store(self, offset: int, value: int) -> Change | None:
        match offset:
            case Register.INTMS:
                self._set_mask(self._mask | value)
            case Register.INTMC:
                self._set_mask(self._mask & ~value)
            case Register.CC:
                old = self.cc
                self.cc = Cc(value & _CC_WRITABLE)
                return Change(Register.CC, old, self.cc)
            case Register.CSTS if value & _NSSRO:
                self.csts = self.csts.replace(nssro=0)
            case Register.NSSR:
                return Change(Register.NSSR, 0, value)
            case Register.AQA:
                self._put(offset, value & _AQA_WRITABLE)
            case Register.ASQ | Register.ACQ:
                self._put(offset, value & _QUEUE_LOW)
            case 0x2C | 0x34:  # their upper halves
                self._put(offset, value)
        return None

    def _set_mask(self, mask: int) -> None:
        self._mask = mask & 0xFFFF_FFFF
        self._put(Register.INTMS, self._mask)
        self._put(Register.INTMC, self._mask)

    def _put(self, offset: int, value: int, count: int = 4) -> None:
        self._image[offset : offset + count] = int(value).to_bytes(count, "little")

    def _get(self, offset: int, count: int = 4) -> int:
        return int.from_bytes(self._image[offset : offset + count], "little")

    @property
    def cc(self) -> Cc:
        return Cc(self._get(Register.CC))

    @cc.setter
    def cc(self, value: Cc) -> None:
        self._put(Register.CC, value)

    @property
    def csts(self) -> Csts:
        return Csts(self._get(Register.CSTS))

    @csts.setter
    def csts(self, value: Csts) -> None:
        self._put(Register.CSTS, value)

    @property
    def aqa(self) -> Aqa:
        return Aqa(self._get(Register.AQA))

    @property
    def asq(self) -> int:
        return self._get(Register.ASQ, 8)

    @property
    def acq(self) -> int:
        return self._get(Register.ACQ, 8)
