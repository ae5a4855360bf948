"""Format NVM (Base 5.1.10): forget a namespace's data and choose the size of its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emucsd_firmware.nvme.namespaces import LBA_SHIFTS
from emucsd_firmware.nvme.request import Refused, Request
from emucsd_wire.nvme import Status
from emucsd_wire.registers import Bits, Word

if TYPE_CHECKING:
    from emucsd_firmware.controller import Controller

NO_ERASE, USER_DATA_ERASE = 0, 1


class FormatDword(Word):
    """CDW10."""

    lbafl = Bits(3, 0)
    mset = Bits(4)
    pi = Bits(7, 5)
    pil = Bits(8)
    ses = Bits(11, 9)
    lbafu = Bits(13, 12)

    @property
    def lba_format(self) -> int:
        return self.lbafu << 4 | self.lbafl


def format_nvm(controller: Controller, request: Request) -> None:
    """Format NVM (80h). Without secure erase data is forgotten all the same: blocks of another size have none."""
    dword = FormatDword(request.sqe.cdw10)
    if dword.lba_format >= len(LBA_SHIFTS) or dword.pi or dword.mset:
        raise Refused(Status.INVALID_FORMAT, "cdw10")
    if dword.ses not in (NO_ERASE, USER_DATA_ERASE):
        raise Refused(Status.INVALID_FIELD, "cdw10")
    shift = LBA_SHIFTS[dword.lba_format]
    targets = controller.subsystem.namespaces.targets(request.nsid, controller.cntlid)
    if any(namespace.size >> shift == 0 for namespace in targets):
        raise Refused(Status.INVALID_FORMAT, "cdw10")
    for namespace in targets:
        controller.subsystem.format(namespace, shift)
