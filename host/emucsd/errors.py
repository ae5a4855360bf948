"""Errors of the client library.

    EmucsdError                     base: catch this one to catch them all
    ├── InvalidArgument             the caller's: a shape, dtype, range or option that cannot be used (a ValueError)
    ├── BufferExhausted             the drive's buffer memory is used up (a MemoryError)
    ├── QueueFull                   submit_one found no free command identifier
    ├── DriveNotFound               nobody serves a drive of that name or folder
    ├── DriveBusy                   another client is attached to that port
    ├── NotOurDrive                 a device of Linux's that is no drive of this project
    ├── NotPermitted                Linux wants more rights for it (a PermissionError)
    ├── RingUnavailable             io_uring can't be used here
    ├── StartFailed                 a drive process could not be started, or died before it was ready
    ├── ConnectionLost              the drive closed the connection
    │   └── DriveDied               ... because its process ended
    ├── DriveTimeout                the drive did not answer in time (a TimeoutError)
    ├── ControllerFailed            the controller reports a fatal status or did not become ready
    ├── ProtocolError               an answer that breaks vfio-user or NVMe: a bug of the drive
    │   └── RequestRefused          a vfio-user error reply; ``errno`` says which
    ├── TestbedNotFound             no testbed of that name runs
    ├── MachineNotFound             a testbed has no machine of that name
    ├── MachineUnreachable          a machine does not answer by SSH, or not as the machine that it should be
    ├── CommandFailed               a command in a machine ended with another code than 0; ``run`` holds what it said
    ├── ControlError                the control API refused a request; ``kind`` names the drive's error
    └── NvmeError                   a command completed with a status other than 0
        ├── InvalidCommand          0/01 opcode, 0/02 field, ...: the command was malformed
        ├── InvalidNamespace        0/0B, 1/1A: no such namespace for this controller
        ├── LbaOutOfRange           0/80
        ├── CapacityExceeded        0/81: the drive is full
        ├── WriteProtected          0/20, 1/82
        ├── WriteFault              2/80
        ├── UnrecoveredRead         2/81
        ├── CompareFailure          2/85
        ├── LookupRefused           7/C0 .. 7/CF, this drive's own
        └── SessionRefused          7/E0 .. 7/EF, likewise

Parts of the library have theirs beside them; each is found here by its name as well (``errors.VolumeFull``):

- volume: VolumeError, of which VolumeMissing, VolumeDamaged, VolumeFull, NameTaken and NameUnknown (a KeyError)
- rows: TableError, of which TableShapeError (a ValueError), NotATable, TableClosed and TableOpen; rights: NoRight
- lookup: IndexOutOfRange (an IndexError), RowUnreadable, TableChanging
- traces.errors: TraceError, of which TraceFormat (a ValueError) and TraceNeedsTorch
- rm.errors: RmError, of which ModelError, InputError, SessionClosed and others
- torch.errors: NoGradient, NotOffloadable
- placement: PlacementError; sharding: ShardLost
- extents: FileRefused, a file that can't be a table, with a class for each reason
- mount.errors: MountError, of which MountUnavailable, MountTaken, MountMissing and MountBusy
- isp.errors: IspError, of which IspUnreachable, IspRefused, IspLost, IspUnavailable and JobFailed
- stannis.errors: StannisError, of which SpecError, PlanError, DoesNotFit, PeerLost, DataError, CheckpointError,
  PrivacyBroken and others
- tunnel.errors: TunnelError; demo: DemoFailed; reproduce.rm_ssd.stand: WrongAnswer; bench.mount: FioMissing

Every text carries the value at fault, its limit where there is one, and the next step.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from emucsd_wire.nvme import DNR, Status


class EmucsdError(Exception):
    """Base of everything that this package raises on purpose."""


class InvalidArgument(EmucsdError, ValueError):
    """The caller's mistake, found before anything was sent."""


class BufferExhausted(EmucsdError, MemoryError):
    """The memory shared with the drive has no free range of the size asked for."""


class QueueFull(EmucsdError):
    """Every command identifier of the queue is in use."""


class DriveNotFound(EmucsdError):
    """Nothing listens where the drive should."""


class DriveBusy(EmucsdError):
    """A port serves one client at a time."""


class NotOurDrive(EmucsdError):
    """A device node or file system that does not belong to a drive of this project."""


class NotPermitted(EmucsdError, PermissionError):
    """Linux refused for want of rights: a node's mode, or CAP_SYS_ADMIN."""


class RingUnavailable(EmucsdError):
    """This kernel has no io_uring with 128-byte entries, or does not let this process use it."""


class StartFailed(EmucsdError):
    """A drive process could not be started, or ended before it was ready."""


class ConnectionLost(EmucsdError):
    """The vfio-user connection is gone; commands that were out have no known outcome."""


class DriveDied(ConnectionLost):
    """The drive's process ended; ``exit_status`` as subprocess gives it (negative: a signal)."""

    def __init__(self, text: str, exit_status: int) -> None:
        super().__init__(text)
        self.exit_status = exit_status


class DriveTimeout(EmucsdError, TimeoutError):
    """The drive is connected but made no progress for the time allowed."""


class ControllerFailed(EmucsdError):
    """CSTS.CFS is set, or the controller did not enter the state asked for within CAP.TO."""


class ProtocolError(EmucsdError):
    """The drive sent what no drive may send. The text says what; it is a bug of the drive."""


class RequestRefused(ProtocolError):
    """A vfio-user request was answered with an error."""

    def __init__(self, request: str, errno: int) -> None:
        super().__init__(f"{request} was refused: {os.strerror(errno)} (errno {errno}); the drive's log says why")
        self.errno = errno


class ControlError(EmucsdError):
    """The control API answered ``ok: false``; ``kind`` is the name of the drive's error."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class TestbedNotFound(EmucsdError):
    """No supervisor answers for a testbed of that name."""

    __test__ = False  # no test class, whatever pytest takes its name for


class MachineNotFound(EmucsdError):
    """The testbed has machines of other names."""


class MachineUnreachable(EmucsdError):
    """No SSH connection can be had, or the one there was broke."""


class CommandFailed(EmucsdError):
    """A command in a machine failed; ``run`` is its exit code and what it printed."""

    def __init__(self, text: str, run: Any) -> None:
        super().__init__(text)
        self.run = run


def status_name(status: int) -> str:
    """The specification's name of SCT << 8 | SC, or its two numbers."""
    try:
        return Status(status).name
    except ValueError:
        return f"SCT {status >> 8:#x} SC {status & 0xFF:#04x}"


_NEXT_STEPS = {
    Status.INVALID_OPCODE: "the drive does not know this command; see log page 5 (commands supported)",
    Status.INVALID_FIELD: "a field of the command has a value that the drive does not take",
    Status.CID_CONFLICT: "the command identifier is in use",
    Status.DATA_TRANSFER_ERROR: "the data buffer is not in memory that the drive can reach; use drive.alloc",
    Status.INTERNAL_ERROR: "a bug of the firmware; its log has the traceback",
    Status.ABORTED_SQ_DELETION: "its queue was deleted",
    Status.ABORT_REQUESTED: "it was aborted",
    Status.INVALID_NAMESPACE: "drive.namespaces lists those attached to this port",
    Status.LBA_OUT_OF_RANGE: "namespace.blocks is the number of LBAs",
    Status.CAPACITY_EXCEEDED: "the drive is full: deallocate or use fewer LBAs",
    Status.NAMESPACE_WRITE_PROTECTED: "the namespace takes no writes",
    Status.UNRECOVERED_READ: "the data are lost; a write of those LBAs makes them readable again",
    Status.COMPARE_FAILURE: "the data on the drive differ",
    Status.INVALID_QUEUE_ID: "it is in use, 0, or above the number of queues granted",
    Status.INVALID_QUEUE_SIZE: "CAP.MQES + 1 entries are the most",
    Status.INVALID_LOG_PAGE: "the drive has no such log page",
    Status.INVALID_FORMAT: "namespace.formats lists the LBA formats",
    Status.NAMESPACE_PRIVATE: "the namespace belongs to the other port alone",
    Status.LOOKUP_NO_TABLE: "open the table first",
    Status.LOOKUP_INDEX_RANGE: "dw0 is the position of the first id out of range",
    Status.LOOKUP_OFFSETS: "dw0 is the position of the first offset that falls or passes the ids",
    Status.LOOKUP_BUSY: "every request tag is in use; read an answer first",
}


class NvmeError(EmucsdError):
    """A command completed with a status. ``error_for`` makes the right subclass.

    :ivar status: SCT << 8 | SC; ``sct`` and ``sc`` are its halves, ``name`` the specification's name
    :ivar dw0: completion dword 0
    :ivar dnr: Do Not Retry was set
    :ivar index: which command of a batch it was, or None
    """

    def __init__(self, command: str, status: int, dw0: int = 0, *, dnr: bool = False, index: int | None = None) -> None:
        self.command, self.status, self.dw0, self.dnr, self.index = command, status, dw0, dnr, index
        self.sct, self.sc = status >> 8, status & 0xFF
        self.name = status_name(status)
        step = _NEXT_STEPS.get(Status(status), "") if status in Status._value2member_map_ else ""
        where = "" if index is None else f" (command {index} of the batch)"
        told = f", dw0 {dw0:#x}" if dw0 else ""
        super().__init__(
            f"{command}{where}: {self.name} (SCT {self.sct:#x}, SC {self.sc:#04x}{told})"
            + (f"; {step}" if step else "")
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.command, self.status, self.dw0, self.dnr, self.index)


def _rebuild(kind: type[NvmeError], command: str, status: int, dw0: int, dnr: bool, index: int | None) -> NvmeError:
    return kind(command, status, dw0, dnr=dnr, index=index)


class InvalidCommand(NvmeError):
    """The command, not the drive or its data, is at fault."""


class InvalidNamespace(NvmeError):
    """The namespace does not exist, or not for this controller."""


class LbaOutOfRange(NvmeError):
    """The LBAs pass the namespace's end."""


class CapacityExceeded(NvmeError):
    """No flash page is left."""


class WriteProtected(NvmeError):
    """The namespace takes no writes."""


class WriteFault(NvmeError):
    """The flash refused the data."""


class UnrecoveredRead(NvmeError):
    """More bit errors than the ECC corrects, or LBAs marked by Write Uncorrectable."""


class CompareFailure(NvmeError):
    """Compare found a difference."""


class LookupRefused(NvmeError):
    """A lookup command's own status."""


class SessionRefused(NvmeError):
    """An inference session's own status."""


_KINDS: dict[int, type[NvmeError]] = {
    Status.INVALID_OPCODE: InvalidCommand,
    Status.INVALID_FIELD: InvalidCommand,
    Status.DATA_TRANSFER_ERROR: InvalidCommand,
    Status.PRP_OFFSET_INVALID: InvalidCommand,
    Status.INVALID_QUEUE_ID: InvalidCommand,
    Status.INVALID_QUEUE_SIZE: InvalidCommand,
    Status.INVALID_LOG_PAGE: InvalidCommand,
    Status.INVALID_FORMAT: InvalidCommand,
    Status.COMMAND_SIZE_LIMIT: InvalidCommand,
    Status.INVALID_NAMESPACE: InvalidNamespace,
    Status.NAMESPACE_NOT_ATTACHED: InvalidNamespace,
    Status.LBA_OUT_OF_RANGE: LbaOutOfRange,
    Status.CAPACITY_EXCEEDED: CapacityExceeded,
    Status.NAMESPACE_WRITE_PROTECTED: WriteProtected,
    Status.WRITE_TO_READ_ONLY: WriteProtected,
    Status.WRITE_FAULT: WriteFault,
    Status.UNRECOVERED_READ: UnrecoveredRead,
    Status.COMPARE_FAILURE: CompareFailure,
}


_OURS: dict[int, type[NvmeError]] = {0x7C0: LookupRefused, 0x7E0: SessionRefused}


def error_for(command: str, status: int, dw0: int = 0, index: int | None = None) -> NvmeError:
    """The typed error of a completion.

    :param command: what was asked, for the text: ``READ lba 5, 8 blocks``
    :param status: the completion's status without its phase (SC 7:0, SCT 10:8, CRD, More, DNR 14)
    """
    code = status & 0x7FF
    kind = _KINDS.get(code, _OURS.get(code & ~0xF, NvmeError))
    return kind(command, code, dw0, dnr=bool(status & DNR), index=index)


_PARTS = (
    "volume",
    "rows",
    "rights",
    "lookup",
    "extents",
    "traces.errors",
    "placement",
    "sharding",
    "demo",
    "reproduce.rm_ssd.stand",
    "tunnel.errors",
    "isp.errors",
    "mount.errors",
    "bench.mount",
    "rm.errors",
    "torch.errors",
    "stannis.errors",
    "stannis.data.errors",
    "stannis.training.errors",
    "stannis.group.failures",
    "stannis.launch.errors",
    "stannis.energy",
)


if not TYPE_CHECKING:  # type checkers are to find typing errors in names from here

    def __getattr__(name: str) -> Any:
        """A part's error by its name. The part is loaded when it is asked for: it needs what is above."""
        if name[:1].isupper():
            for part in _PARTS:
                found = getattr(importlib.import_module(f"emucsd.{part}"), name, None)
                if isinstance(found, type) and issubclass(found, EmucsdError):
                    return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
