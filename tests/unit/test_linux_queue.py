"""The way through Linux's driver, as far as it goes without one: queues, memory, nodes, and what fits a command."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emucsd import Drive
from emucsd.errors import (
    DriveNotFound,
    DriveTimeout,
    EmucsdError,
    InvalidArgument,
    NotOurDrive,
    NotPermitted,
    QueueFull,
    RingUnavailable,
)
from emucsd.linux import nodes
from emucsd.linux.ioctl import PASSTHRU_COMMAND64, namespace_id, refusal
from emucsd.linux.memory import ProcessMemory
from emucsd.linux.queue import IoctlQueue, LinuxQueue, RingQueue
from emucsd.lookup import IDS, Limits, parts
from emucsd.outcome import Columns
from emucsd.passthrough import entry
from emucsd_wire.nvme import SQE, Io
from emucsd_wire.vendor import MAX_RESULT, ids_offset

MEMORY = ProcessMemory()


@pytest.fixture(params=["io_uring", "ioctl"])
def queue(request: pytest.FixtureRequest) -> Iterator[LinuxQueue]:
    """A queue whose node is a plain file: Linux refuses every command, really."""
    fd = os.open(__file__, os.O_RDONLY)
    try:
        made = (RingQueue if request.param == "io_uring" else IoctlQueue)(1, 9, lambda _: fd, MEMORY)
    except RingUnavailable as problem:
        os.close(fd)
        pytest.skip(str(problem))
    yield made
    made.close()
    os.close(fd)


def test_structures_lie_as_the_kernel_has_them() -> None:
    """struct nvme_passthru_cmd64 and nvme_uring_cmd: offsets of <linux/nvme_ioctl.h>."""
    known = {
        "nsid": 4,
        "cdw2": 8,
        "metadata": 16,
        "address": 24,
        "length": 36,
        "cdw10": 40,
        "cdw15": 60,
        "timeout_ms": 64,
    }
    assert {name: PASSTHRU_COMMAND64.offset(name) for name in known} == known
    assert PASSTHRU_COMMAND64.size == 80
    assert PASSTHRU_COMMAND64.offset("result") == 72


def test_a_refused_command_is_an_error(queue: LinuxQueue) -> None:
    """What Linux refuses is raised to who waits, and the queue goes on: nothing of it is left."""
    for _ in range(20):
        with pytest.raises(EmucsdError):
            queue.call(entry(Io.FLUSH, 1))
    assert queue.outstanding == 0
    tokens = [queue.submit_one(entry(Io.FLUSH, 1), ring=False) for _ in range(3)]
    for _ in tokens:
        with pytest.raises(EmucsdError):
            queue.poll(1)
    assert queue.poll() == []


def test_a_refused_batch_is_an_error(queue: LinuxQueue) -> None:
    """A batch stops at what Linux refuses, and the next one is not harmed by it."""
    columns = Columns(
        entry(Io.READ, 1), lbas=np.arange(100), addresses=[MEMORY.array(512).ctypes.data] * 100, sizes=512
    )
    for _ in range(3):
        with pytest.raises(EmucsdError):
            queue.submit(columns, depth=8)
    assert queue.outstanding == 0
    assert len(queue.submit(Columns(entry(Io.FLUSH, 1), lbas=np.zeros(0, np.int64)))) == 0


def test_a_full_queue(queue: LinuxQueue) -> None:
    """As many commands as the queue is deep, taken or not; then it says so."""
    tokens = [queue.submit_one(entry(Io.FLUSH, 1)) for _ in range(8)]
    with pytest.raises(QueueFull, match="larger depth"):
        queue.submit_one(entry(Io.FLUSH, 1))
    queue.abandon(tokens[0])
    for token in tokens[1:]:
        with pytest.raises(EmucsdError):
            queue.wait(token)
    with pytest.raises(InvalidArgument, match="was it waited for"):
        queue.wait(tokens[1])
    queue.poll()
    assert queue.outstanding == 0


def test_data_must_be_reachable(queue: LinuxQueue) -> None:
    """Memory that is not contiguous, or not on a dword, is refused before anything is sent."""
    memory = MEMORY.array(4096)
    for data in (memory[::2], memory[1:513]):
        with pytest.raises(InvalidArgument, match="dword"):
            queue.submit_one(entry(Io.READ, 1), data)
    assert queue.counters["commands"] == 0


@pytest.mark.parametrize("align", [1, 64, 4096, 1 << 21])
def test_memory_is_aligned(align: int) -> None:
    """Arrays begin where they were asked to, with shape and type, and any array of the process's will do."""
    array = MEMORY.array((3, 5), np.float32, align)
    assert (array.shape, array.dtype, array.ctypes.data % align) == ((3, 5), np.dtype(np.float32), 0)
    assert MEMORY.holds(np.zeros(8, np.float32))
    with MEMORY.borrow(100) as borrowed:
        assert len(borrowed) == 100
    with pytest.raises(InvalidArgument):
        MEMORY.array(1, object)
    with pytest.raises(InvalidArgument):
        MEMORY.array(1, align=3)


def test_columns_as_commands() -> None:
    """A part of a batch in full: templates patched by columns, addresses and sizes beside them."""
    template = np.zeros(1, SQE.dtype)
    template["cdw12"] = 1 << 30
    template["nsid"] = 5
    columns = Columns(
        template,
        opcodes=[1, 2, 1, 2],
        lbas=[0, 1 << 33, 7, 8],
        blocks=[1, 2, 3, 4],
        addresses=[10, 20, 30, 40],
        sizes=512,
    )
    rows, addresses, sizes = columns.commands(1, 3)
    assert rows["opcode"].tolist() == [2, 1]
    assert list(zip(rows["cdw10"].tolist(), rows["cdw11"].tolist(), strict=True)) == [(0, 2), (7, 0)]
    assert rows["cdw12"].tolist() == [1 << 30 | 1, 1 << 30 | 2]
    assert rows["nsid"].tolist() == [5, 5]
    assert (addresses.tolist(), sizes.tolist()) == ([20, 30], [512, 512])


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        (errno.EACCES, NotPermitted, "CAP_SYS_ADMIN"),
        (errno.EPERM, NotPermitted, "CAP_SYS_ADMIN"),
        (errno.EINTR, DriveTimeout, "gave the command up"),
        (errno.ETIME, DriveTimeout, "no answer"),
        (errno.ENODEV, DriveNotFound, "gone"),
        (errno.ENOTTY, NotOurDrive, "no NVMe device"),
        (errno.EINVAL, InvalidArgument, "max_hw_sectors_kb"),
        (errno.EFAULT, InvalidArgument, "memory"),
        (errno.EIO, EmucsdError, "errno 5"),
    ],
)
def test_errnos_have_names(code: int, kind: type[EmucsdError], told: str) -> None:
    """Each errno of a passthrough command is an error of its own, which says what to do."""
    problem = refusal(code, 0x81, False, 4096)
    assert type(problem) is kind
    assert told in str(problem)
    assert "opcode 0x81" in str(problem)


# -- lookups in smaller commands


@pytest.mark.parametrize("most", [MAX_RESULT, 127 * 4096, 65536])
@pytest.mark.parametrize("dim", [1, 32, 1024])
def test_requests_fit_commands(most: int, dim: int) -> None:
    """Whatever a command carries: every request's data and sums fit, and together they are the query, in order."""
    random = np.random.default_rng(1)
    lengths = np.concatenate([random.integers(0, 300, 3000), [3 * MAX_RESULT // 8], random.integers(0, 3, 5000)])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    bag = at = 0
    for part in parts(offsets, dim, most):
        assert ids_offset(part.bags, dim, part.carry) + 8 * part.ids <= most
        assert 4 * dim * part.bags <= most
        assert part.carry == (part.first_bag == bag - 1)
        assert (part.first_id, part.first_bag) == (at, bag - 1 if part.carry else bag)
        at, bag = at + part.ids, part.first_bag + part.bags
    assert (at, bag) == (len(np.repeat(0, offsets[-1])), len(lengths))


def test_large_commands_are_as_they_were() -> None:
    """Where a command carries a MiB, a request has up to 16384 ids; where it carries no row, that is said."""
    assert Limits.of(32, 1 << 30) == (MAX_RESULT // 128, IDS, (MAX_RESULT - ids_offset(1, 32, True)) // 8)
    with pytest.raises(InvalidArgument, match="narrower rows"):
        Limits.of(8192, 32768)


# -- nodes


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Two ports of one drive under multipath, a foreign drive without, a namespace without a block device."""
    files = {
        "nvme/nvme10/model": "emucsd computational storage drive ",
        "nvme/nvme10/cntlid": "2",
        "nvme/nvme10/nvme2c10n1/nsid": "1",
        "nvme/nvme2/model": "emucsd computational storage drive ",
        "nvme/nvme2/cntlid": "1",
        "nvme/nvme2/state": "live",
        "nvme/nvme2/device/vendor": "0x1d1d",
        "nvme/nvme2/nvme2c2n1/nsid": "1",
        "nvme/nvme2/nvme2c2n2/nsid": "9",
        "nvme/nvme2/hwmon0/name": "nvme",
        "nvme/nvme1/model": "QEMU NVMe Ctrl",
        "nvme/nvme1/nvme1n1/nsid": "1",
        "block/nvme1n1/hidden": "0",
        "block/nvme2n1/hidden": "0",
        "block/nvme2n2/hidden": "1",
    }
    for path, text in files.items():
        (tmp_path / "class" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "class" / path).write_text(f"{text}\n")
    return tmp_path


def test_controllers_and_which_are_ours(sysfs: Path) -> None:
    """By number, as they identify themselves."""
    assert [found.name for found in nodes.controllers(sysfs)] == ["nvme1", "nvme2", "nvme10"]
    assert [(found.name, found.cntlid) for found in nodes.ours(sysfs)] == [("nvme2", 1), ("nvme10", 2)]
    found = nodes.controller("nvme2", sysfs)
    assert (found.node, found.vendor, found.state) == (Path("/dev/nvme2"), nodes.VENDOR_ID, "live")


def test_namespaces_of_a_controller(sysfs: Path) -> None:
    """The drive's ids, and the nodes that commands go to: under multipath those are the subsystem's."""
    assert nodes.namespaces("nvme2", sysfs) == [
        (1, Path("/dev/ng2n1"), Path("/dev/nvme2n1")),
        (9, Path("/dev/ng2n2"), None),
    ]
    assert nodes.namespaces("nvme1", sysfs) == [(1, Path("/dev/ng1n1"), Path("/dev/nvme1n1"))]


def test_any_node_names_its_controller(sysfs: Path) -> None:
    """Controllers, block devices, partitions and character devices; what Linux does not have is told apart."""
    for node in ("/dev/nvme2", "/dev/nvme2n1", "/dev/nvme2n1p3", "/dev/ng2n1", "nvme2n2"):
        assert nodes.controller_of(node, sysfs) == "nvme2"
    assert nodes.controller_of(Path("/dev/nvme1n1"), sysfs) == "nvme1"
    for node in ("/dev/sda", "/dev/nvme", "/dev/nvme-fabrics", "/tmp/nvme0"):
        with pytest.raises(InvalidArgument, match="/dev/ng0n1"):
            nodes.controller_of(node, sysfs)
    with pytest.raises(DriveNotFound, match="it has: nvme1, nvme10, nvme2"):
        nodes.controller_of("/dev/nvme7", sysfs)
    with pytest.raises(DriveNotFound, match="nvme2n5"):
        nodes.controller_of("/dev/nvme2n5", sysfs)


def test_nodes_that_are_none(tmp_path: Path) -> None:
    """A plain file is no device, and no NVMe namespace; a node that is not there is not found."""
    with pytest.raises(NotOurDrive, match="no device"):
        nodes.open_node(Path(__file__))
    with open(__file__, "rb") as file, pytest.raises(NotOurDrive):
        namespace_id(file.fileno())
    with pytest.raises(DriveNotFound):
        nodes.open_node(tmp_path / "nvme0")


def test_opening_what_is_not_there() -> None:
    """Drive.open of a node says whether the name, the controller or an option is at fault."""
    with pytest.raises(DriveNotFound, match="no NVMe controller nvme4711"):
        Drive.open("/dev/nvme4711")
    with pytest.raises(InvalidArgument, match="name a node"):
        Drive.open("/dev/null")
    with pytest.raises(InvalidArgument, match="'io_uring'"):
        Drive.open("/dev/nvme4711", way="carrier pigeon")
    with pytest.raises(InvalidArgument, match="up to 64"):
        Drive.open("/dev/nvme4711", queues=65)
