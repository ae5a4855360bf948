"""The root of a drive's state: one record, reached by compiled code through its address."""

from __future__ import annotations

from emucsd_firmware.clock import Clock
from emucsd_firmware.ftl.state import Ftl
from emucsd_firmware.lookup.state import REQUESTS, Lookup
from emucsd_firmware.memory import Transfer
from emucsd_firmware.nand.state import Nand
from emucsd_firmware.nvme.commands import SLOTS, Commands, Costs
from emucsd_firmware.nvme.queues import PortState
from emucsd_firmware.recssd.state import PAGES, RecSsd
from emucsd_firmware.session.state import Sessions
from emucsd_firmware.tunnel.state import Tunnel
from emucsd_wire.layout import I64, State
from emucsd_wire.words import jit_inline, pointer

PORTS = 2
FIRST_RECSSD_JOB = SLOTS + REQUESTS  # NAND jobs: commands, lookups, RecSSD's page reads, then the FTL's own
FIRST_FTL_JOB = FIRST_RECSSD_JOB + PAGES


class DriveState(State):
    """Everything that the data plane touches. ``control`` is the one word by which Python calls it back."""

    control_word: I64  # address of an atomic word: 0 run, else leave compiled code
    kick_fd: I64  # eventfd that wakes the data plane
    instant: I64  # 1 when nothing in this drive takes modelled time
    scratch: I64  # address of two flash pages: Copy's data, and range lists
    batch: I64  # address of BURST slot numbers
    refused: I64  # status that every I/O command gets, 0 for none
    idle_after: I64  # the FTL's own work waits until this time
    rounds: I64
    sleeps: I64
    waiting: I64  # interrupts that are to be raised a little later
    aside: I64  # 1 when a guest was interrupted whose emulator may need the core that the data plane is on
    clock: Clock
    costs: Costs
    commands: Commands
    transfer: Transfer
    nand: Nand
    ftl: Ftl
    lookup: Lookup
    sessions: Sessions
    recssd: RecSsd
    tunnel: Tunnel
    port0: PortState
    port1: PortState


drive_at = pointer(DriveState)


@jit_inline
def port_of(drive: DriveState, number: int) -> PortState:
    """One of the drive's two ports."""
    return drive.port0 if number == 0 else drive.port1
