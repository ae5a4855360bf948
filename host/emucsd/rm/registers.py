"""A session's registers in BAR0: parameters of its next batch, and how many have ended. For the direct client alone:
Linux's driver keeps BAR0 to itself, and there everything goes by commands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emucsd.drive import Drive
from emucsd_wire.nvme import Register
from emucsd_wire.rm import MAX_SESSIONS, RM_REGISTERS, RM_REGISTERS_OFFSET
from emucsd_wire.vfio_user import Region

_PARAMETERS = 12  # bytes: samples, lookups, flags


class Registers:
    """One session's place in the page. Mapped where the page is; else each look is a message.

    :param number: the session's id
    """

    def __init__(self, link: Any, number: int) -> None:
        self._link, self._offset = link, RM_REGISTERS_OFFSET + number % MAX_SESSIONS * RM_REGISTERS.size
        self._mapped: NDArray[Any] | None = None
        page, at = link.page_view, self._offset - Register.DOORBELLS
        if page is not None and len(page) >= at + RM_REGISTERS.size:
            self._mapped = np.frombuffer(page, RM_REGISTERS.dtype, 1, at)

    @property
    def ready(self) -> int:
        """Batches that have ended, in the order in which they were sent."""
        if self._mapped is not None:
            return int(self._mapped["ready"][0])
        data = self._link.vfio.region_read(Region.BAR0, self._offset, RM_REGISTERS.size)
        return RM_REGISTERS.unpack(data).ready

    def leave(self, samples: int, lookups: int, flags: int) -> None:
        """Parameters of the next batch."""
        if self._mapped is not None:
            cell = self._mapped[0]
            cell["samples"], cell["lookups"], cell["flags"] = samples, lookups, flags
        else:
            data = np.array([samples, lookups, flags], "<u4").tobytes()
            self._link.vfio.region_write(Region.BAR0, self._offset, data[:_PARAMETERS])


def registers_of(drive: Drive, number: int) -> Registers | None:
    """A session's registers; None where they are not in reach."""
    link = getattr(drive._attachment, "link", None)
    return None if link is None else Registers(link, number)
