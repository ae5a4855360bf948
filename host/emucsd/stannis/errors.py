"""What can go wrong while a network is trained on a host and the engines in its drives.

    StannisError (an EmucsdError)
    ├── SpecError               the caller's: a run described wrongly, or a file that describes none (a ValueError)
    ├── FactoryFailed           the model's author's: the factory, loss or transform can't be loaded, or raised
    ├── PlanError               the caller's: engines, samples and batch that make no plan (a ValueError)
    │   └── NoRanks             no engine is left that can train
    ├── MemoryExceeded          a batch needs more memory than an engine has: the planner takes a smaller one
    │   └── DoesNotFit          ... and one sample does too: the model is too large for that engine
    ├── VersionMismatch         the installation's: two ranks run different programs
    ├── GroupError              the ranks' connection
    │   ├── PeerLost            a rank is gone: its process, machine, drive or the way to it
    │   ├── NotAdmitted         a worker without the run's token, or one that the run does not expect
    │   └── GroupViolation      a message that breaks the protocol: a bug, or a stranger
    ├── NodeFailed              a command on a node ended otherwise than it should
    ├── NonFinite               the model's or the learning rate's: a loss or gradient of infinity or NaN
    ├── DataError               samples that can't be had
    │   ├── DataFormat          the caller's: a location that holds no data set, or one of another kind (a ValueError)
    │   ├── ShardMissing        a file, namespace or device of a pool is not there
    │   └── ShardDamaged        a sample or shard can't be read or decoded
    ├── CheckpointError         a state that can't be kept or taken up
    │   ├── CheckpointFull      no room for it; the one before stays valid
    │   ├── CheckpointDamaged   none of the copies is whole
    │   ├── CheckpointMissing   there is none to resume from
    │   └── CheckpointMismatch  it is of another model or optimizer
    └── PrivacyBroken           private bytes crossed port 0 or the tunnel: a bug, or a namespace attached to the host

Every text carries the value at fault, its limit where there is one, and the next step. None carries a sample, the name
of its file or its label: a private pool is told of by its name, indices and counts. Standard library alone.
"""

from __future__ import annotations

from emucsd.errors import EmucsdError, InvalidArgument


class StannisError(EmucsdError):
    """Base of everything that training on a fleet raises on purpose."""


class SpecError(StannisError, InvalidArgument):
    """The caller's: a field of the run's description is unknown, of another type, or out of its range."""


class FactoryFailed(StannisError):
    """The model's author's: their function can't be found, or raised.

    :ivar where: ``file:line`` in the author's code, or empty where it was never reached
    """

    def __init__(self, text: str, where: str = "") -> None:
        super().__init__(text)
        self.where = where


class PlanError(StannisError, InvalidArgument):
    """The caller's: these engines, samples and batch can't be brought together as asked."""


class NoRanks(PlanError):
    """No engine is left: all were lost, none has samples, or the model fits none."""


class MemoryExceeded(StannisError):
    """Nobody's fault: a batch passes an engine's memory. Raised by a benchmark, which the tuner takes as the cap.

    :ivar batch: samples of the batch that did not fit
    :ivar needed: bytes, as far as is known (0: unknown)
    :ivar limit: bytes that there are (0: unknown)
    :ivar node: the engine, where it is known
    """

    def __init__(self, text: str, batch: int = 0, needed: int = 0, limit: int = 0, node: str = "") -> None:
        super().__init__(text)
        self.batch, self.needed, self.limit, self.node = batch, needed, limit, node

    @property
    def missing(self) -> int:
        """Bytes that are lacking; 0 where it isn't known."""
        return max(self.needed - self.limit, 0) if self.needed else 0


class DoesNotFit(MemoryExceeded):
    """The model and one sample pass an engine's memory: leave that engine out, or take a smaller model."""


class VersionMismatch(StannisError):
    """The installation's: ranks of different releases would not compute the same. ``ours`` and ``theirs`` say which."""

    def __init__(self, text: str, ours: str = "", theirs: str = "") -> None:
        super().__init__(text)
        self.ours, self.theirs = ours, theirs


class GroupError(StannisError):
    """The connection between the ranks, or to their coordinator."""


class PeerLost(GroupError):
    """A rank is gone. The others stop waiting for it, and go on without.

    :ivar node: its name, or empty where only that *somebody* is gone is known
    """

    def __init__(self, text: str, node: str = "") -> None:
        super().__init__(text)
        self.node = node


class NotAdmitted(GroupError):
    """The worker's, or a stranger's: a wrong token, or a node that has no place in this run."""


class GroupViolation(GroupError):
    """A message too long, out of order or of no known kind: a bug of the sender, or a stranger."""


class NodeFailed(StannisError):
    """A node's command could not be started, or ended badly.

    :ivar node: its name
    :ivar log: the end of what it printed
    """

    def __init__(self, text: str, node: str = "", log: str = "") -> None:
        super().__init__(text)
        self.node, self.log = node, log


class NonFinite(StannisError):
    """The model's, or a learning rate too high: a loss or gradient is infinite or NaN.

    :ivar parameter: the first parameter whose gradient is, or empty for the loss
    :ivar step: at which step of the epoch, or -1
    """

    def __init__(self, text: str, parameter: str = "", step: int = -1) -> None:
        super().__init__(text)
        self.parameter, self.step = parameter, step


class DataError(StannisError):
    """Samples can't be had.

    :ivar pool: the pool's name
    :ivar index: the sample's place in it, or -1 where it is about all of it
    """

    def __init__(self, text: str, pool: str = "", index: int = -1) -> None:
        super().__init__(text)
        self.pool, self.index = pool, index


class DataFormat(DataError, InvalidArgument):
    """The caller's: a location that is no data set, or classes or shapes that differ between pools."""


class ShardMissing(DataError):
    """The node's: a file, namespace or device that the pool names is not there."""


class ShardDamaged(DataError):
    """The medium's, or the writer's: bytes are there, but no sample can be made of them."""


class CheckpointError(StannisError):
    """A training state can't be kept or taken up."""


class CheckpointFull(CheckpointError):
    """The medium's: there is no room. Training goes on; the checkpoint before this one stays valid.

    :ivar needed: bytes of the checkpoint
    :ivar free: bytes that were left
    """

    def __init__(self, text: str, needed: int = 0, free: int = 0) -> None:
        super().__init__(text)
        self.needed, self.free = needed, free


class CheckpointDamaged(CheckpointError):
    """The medium's: no copy has a valid checksum."""


class CheckpointMissing(CheckpointError):
    """The caller's: nothing was ever saved there."""


class CheckpointMismatch(CheckpointError, InvalidArgument):
    """The caller's: it was saved by another model, optimizer or spec."""


class PrivacyBroken(StannisError):
    """The drive counted private bytes where none may be.

    :ivar drive: its name
    :ivar bytes_seen: private bytes that crossed
    """

    def __init__(self, text: str, drive: str = "", bytes_seen: int = 0) -> None:
        super().__init__(text)
        self.drive, self.bytes_seen = drive, bytes_seen
