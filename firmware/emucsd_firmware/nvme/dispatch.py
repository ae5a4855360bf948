"""From an opcode to the function that runs it."""

from __future__ import annotations

import numpy as np

from emucsd_firmware.lookup.requests import lookup_read, lookup_send
from emucsd_firmware.nvme.commands import Command
from emucsd_firmware.nvme.dataset import copy_blocks, dataset_management, write_zeroes
from emucsd_firmware.nvme.io import check_namespace, compare, flush_namespace, read, verify, write, write_uncorrectable
from emucsd_firmware.nvme.queues import PortState
from emucsd_firmware.state import DriveState
from emucsd_wire import nvme
from emucsd_wire.nvme import Sqe
from emucsd_wire.words import jit

_INVALID_OPCODE = int(nvme.Status.INVALID_OPCODE)
_INVALID_FIELD = int(nvme.Status.INVALID_FIELD)
_FLUSH, _WRITE, _READ = int(nvme.Io.FLUSH), int(nvme.Io.WRITE), int(nvme.Io.READ)
