"""Reads one after the other, in virtual time: the time of each is measured once, the data come many at a time.

On a drive that does nothing else every read of a written page takes as long as the next, so n of them take n times as
long: a test holds that to the nanosecond. It spares the computer a change between two processes for every single page.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emucsd.drive import Drive
from emucsd.namespace import Namespace
from emucsd_wire.nvme import Io

_TOGETHER = 64


class OneByOne:
    """Reads of equal size from one namespace of an idle drive.

    :param blocks: of a read
    """

    def __init__(self, drive: Drive, space: Namespace, blocks: int) -> None:
        self.drive, self.space, self.blocks = drive, space, blocks
        self._alone = 0

    def read(self, lbas: NDArray[np.int64], buffers: NDArray[Any]) -> None:
        """Read each into its row of ``buffers``, as if the next were sent when the one before it is there.

        :raises NvmeError: the drive can't read one
        """
        clock = self.drive.clock
        if not clock.virtual:
            self._submit(lbas, buffers, 1)
            return
        if len(lbas) and not self._alone:
            began = clock.now
            self._submit(lbas[:1], buffers[:1], 1)
            self._alone = clock.now - began
            lbas, buffers = lbas[1:], buffers[1:]
        if len(lbas):
            began = clock.now
            self._submit(lbas, buffers, _TOGETHER)
            clock.think(len(lbas) * self._alone - (clock.now - began))

    def _submit(self, lbas: NDArray[np.int64], buffers: NDArray[Any], depth: int) -> None:
        self.space.submit(Io.READ, lbas, buffers, blocks=self.blocks, depth=depth, latencies=False).check()
