"""Durability "machine": nothing that a block held may be overwritten before its copies are on the disk.

Garbage collection sets emptied blocks aside (kind LIMBO, their record on flash unchanged); a barrier brings the files
to the disk and frees them. ``store.sync`` is one, and the FTL makes one itself when a die would otherwise run dry.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from emucsd_firmware.ftl.blocks import release_limbo
from emucsd_firmware.ftl.state import Ftl
from emucsd_wire.words import jit

# by name: a libc function keeps its callers cacheable. It also writes what was stored through shared mappings.
_fdatasync: Any = types.ExternalFunction("fdatasync", types.int32(types.int32))


@jit
def barrier(ftl: Ftl) -> None:
    """Bring every file of the flash to the disk, then free the blocks that waited for it."""
    _fdatasync(np.int32(ftl.data_fd))
    _fdatasync(np.int32(ftl.oob_fd))
    _fdatasync(np.int32(ftl.blocks_fd))
    _fdatasync(np.int32(ftl.trim_fd))
    ftl.barriers += 1
    release_limbo(ftl)
