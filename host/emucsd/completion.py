"""How a command ended, whichever way it went."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from emucsd.errors import error_for
from emucsd_wire.nvme import Sqe

Command = Sqe | NDArray[Any]


class Completion(NamedTuple):
    """How a command ended.

    :ivar token: what ``submit_one`` returned
    :ivar status: SCT << 8 | SC, and DNR (14) where set; 0 is success
    :ivar result: completion dword 0 and, above it, dword 1
    :ivar submitted: ns on the drive's clock; ``finished`` is when this client saw the completion
    """

    token: int
    status: int
    result: int
    submitted: int
    finished: int

    @property
    def latency(self) -> int:
        """ns from submission to seeing the completion."""
        return self.finished - self.submitted

    def check(self, command: str) -> Completion:
        """:raises NvmeError: the status is not 0; ``command`` names what was asked"""
        if self.status & 0x7FF:
            raise error_for(command, self.status, self.result & 0xFFFF_FFFF)
        return self
