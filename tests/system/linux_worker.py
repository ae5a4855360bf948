"""Runs in the host machine, as root: this project's library over Linux's own nvme driver. The last line is JSON.

    linux_worker.py /dev/nvme0 [SECTION ...]

says of each section (below; default: all) what it found; one that fails says its traceback. Overwrites the drive. Needs
Python and NumPy; ends with no file system mounted.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emucsd import Drive, Namespace, Table
from emucsd.errors import EmucsdError
from emucsd.linux import ioctl, nodes
from emucsd.linux.blocks import place_of_device
from emucsd.linux.uring import Ring
from emucsd.passthrough import entry
from emucsd.table import lookup_many
from emucsd_wire.nvme import Io
from emucsd_wire.vendor import VendorAdmin

NOT_HERE = ("numba", "llvmlite", "rich", "msgspec", "paramiko")
EXT4_IOC_MOVE_EXT = 0xC028660F
PARTITIONS = ((2048, 400 << 11), (2048 + (400 << 11), 400 << 11))  # first sector and sectors: 400 MiB each, 1 MiB in
MOUNT = Path("/run/linux_worker")
ROWS = np.random.default_rng(1).standard_normal((20_000, 32)).astype(np.float32)

Found = dict[str, Any]


def shell(*words: str) -> str:
    """Run a program. :raises RuntimeError: it fails"""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.returncode} {done.stderr}")
    return done.stdout


def refusal(act: Callable[[], object]) -> str:
    """The name of the error that something ends with; its text must say more than a name."""
    try:
        made = act()
        if isinstance(made, Drive | Table):
            made.close()
    except EmucsdError as error:
        return type(error).__name__ if len(str(error)) > 20 else f"{error!r} says too little"
    return "nothing"


# -- standard library alone


def plain_ioctl(node: Path, space: Path) -> Found:
    """Identify and a read, by ioctl."""
    buffer = bytearray(4096)
    with open(node, "rb") as controller, open(space, "r+b", buffering=0) as character:
        answer = ioctl.admin(controller.fileno(), 0x06, 0, ioctl.address_of(buffer), 4096, cdw10=1)
        model = bytes(buffer[24:64]).decode().strip()
        written = bytearray(os.urandom(4096))
        wrote = ioctl.io(character.fileno(), 1, 1, ioctl.address_of(written), 4096, cdw10=8, cdw12=7)
        read = ioctl.io(character.fileno(), 2, 1, ioctl.address_of(buffer), 4096, cdw10=8, cdw12=7)
        far = ioctl.io(character.fileno(), 2, 1, ioctl.address_of(buffer), 4096, cdw10=0, cdw11=1 << 20, cdw12=7)
        return {
            "model": model,
            "statuses": [answer.status, wrote.status, read.status],
            "equal": buffer == written,
            "far": far.status & 0x7FF,
            "nsid": ioctl.namespace_id(character.fileno()),
            "other_nsid": refusal(lambda: ioctl.io(character.fileno(), 0, 7)),
        }


def plain_uring(node: Path, space: Path) -> Found:
    """Reads of 32 places at once by io_uring, an admin command, and commands that Linux refuses."""
    with Ring(32) as ring, open(node, "r+b", 0) as controller, open(space, "r+b", 0) as character:
        data = [bytearray(struct.pack("<I", place) * 1024) for place in range(32)]
        for opcode in (1, 2):
            for place, buffer in enumerate(data):
                ring.passthrough(
                    character.fileno(), opcode, 1, ioctl.address_of(buffer), 4096, place, cdw10=8 * place, cdw12=7
                )
            ring.submit()
            ended: list[tuple[int, int, int]] = []
            while len(ended) < 32:
                assert select.select([ring], [], [], 30)[0], "the eventfd told nothing"
                ended += ring.completions()
            assert sorted(ended) == [(place, 0, 0) for place in range(32)], ended
            same = [buffer == struct.pack("<I", place) * 1024 for place, buffer in enumerate(data)]
            data = [bytearray(4096) for _ in range(32)] if opcode == 1 else data
        ring.passthrough(controller.fileno(), 0x0A, token=1, cdw10=4, admin=True)  # temperature threshold
        ring.passthrough(character.fileno(), 2, 1, ioctl.address_of(data[0]), 4096, 2, cdw11=1 << 20, cdw12=7)
        ring.passthrough(character.fileno(), 0, 7, token=3)
        ring.submit(3)
        others = {token: (status, result) for token, status, result in ring.completions()}
        return {"equal": all(same), "threshold": others[1], "far": others[2][0] & 0x7FF, "refused": others[3][0] < 0}


# -- the library's own interface


def commands(node: Path, way: str) -> Found:
    """Blocks, batches, admin commands, errors and a reset, as the direct client has them."""
    random = np.random.default_rng(2)
    with Drive.open(node, way=way, queues=2, depth=64) as drive:
        space = drive.namespace(1)
        data = random.integers(0, 256, (1 << 20) + 3 * space.lba_bytes, dtype=np.uint8)
        blocks = len(data) // space.lba_bytes
        space.write(100, data, fua=True)
        space.flush()
        own = np.empty((blocks, space.lba_bytes), np.uint8)
        found: Found = {"way": drive._attachment.way, "port": drive.port, "lba": space.lba_bytes}  # type: ignore[attr-defined]
        found["equal"] = bool((space.read(100, blocks, out=own).reshape(-1) == data).all())
        space.compare(100, data)
        space.copy(100, 100_000, blocks)
        space.compare(100_000, data)
        space.deallocate(100, 8)
        space.write_zeroes(108, 8)
        found["zeros"] = not space.read(100, 16).any()
        found["errors"] = [
            refusal(lambda: space.read(space.blocks, 1)),
            refusal(lambda: space.compare(100_000, np.zeros(space.lba_bytes, np.uint8))),
            refusal(lambda: drive.namespace(7)),
            refusal(lambda: drive.passthrough("io", Io.FLUSH, 0xFFFF_FFFF)),
            refusal(lambda: drive.passthrough("admin", 0xFF)),
            refusal(lambda: drive.control.status()),
        ]
        found |= batches(drive, space, random)
        found["smart"] = drive.admin.smart().critical_warning
        drive.reset()
        found["after_reset"] = bool(
            (space.read(100_016, blocks - 16).reshape(-1) == data[16 * space.lba_bytes :]).all()
        )
        return found


def batches(drive: Drive, space: Namespace, random: np.random.Generator) -> Found:
    """Many commands at a time, and single ones that end when they like."""
    space.write(0, np.arange(256 * space.lba_bytes // 8).view(np.uint8))
    lbas = random.integers(0, 256, 500)
    rows = drive.alloc((500, space.lba_bytes))
    outcome = space.submit(Io.READ, lbas, rows, depth=32).check()
    first = rows.view(np.int64)[:, 0].tolist()
    failing = space.submit(Io.READ, [1, space.blocks + 5, 2], drive.alloc((1, space.lba_bytes)), depth=1)
    paced = space.submit(Io.FLUSH, [0] * 5, depth=4, arrivals=np.arange(5) * 2_000_000)
    tokens = {drive.queue.submit_one(entry(Io.FLUSH, 1), ring=False) for _ in range(20)}
    taken = {one.token for one in drive.queue.poll(20)}
    return {
        "batch": first == (lbas * space.lba_bytes // 8).tolist(),
        "latencies": bool((outcome.latencies > 0).all()) if outcome.latencies is not None else False,
        "failing": [failing.failed, failing.first_failed],
        "paced_ms": paced.elapsed_ns / 1e6,
        "singles": taken == tokens and drive.queue.outstanding == 0,
    }


def fallback(node: Path) -> Found:
    """Where io_uring is switched off, ioctl is taken unless io_uring was asked for."""
    switch = Path("/proc/sys/kernel/io_uring_disabled")
    before = switch.read_text()
    switch.write_text("2")
    try:
        with Drive.open(node) as drive:
            way = drive._attachment.way  # type: ignore[attr-defined]
            read = int(drive.namespace(1).read(0, 1).nbytes)
        return {"way": way, "read": read, "asked": refusal(lambda: Drive.open(node, way="io_uring"))}
    finally:
        switch.write_text(before)


def permissions(node: Path, space: Path) -> Found:
    """What a user without rights is told: nothing by closed nodes, reads by open ones, never vendor commands."""

    def closed() -> Found:
        return {"closed": refusal(lambda: Drive.open(node))}

    def opened() -> Found:
        with Drive.open(node) as drive:
            return {
                "read": int(drive.namespace(1).read(0, 1).nbytes),
                "vendor": refusal(lambda: drive.passthrough("io", Io.LOOKUP_READ, 1)),
                "table": refusal(lambda: drive.passthrough("admin", VendorAdmin.TABLE_LIST, length=4096, cdw10=4096)),
                "format": refusal(lambda: drive.admin.format(1)),
            }

    modes = {path: path.stat().st_mode for path in (node, space)}
    found = as_nobody(closed)
    try:
        for path in modes:
            path.chmod(0o666)
        return found | as_nobody(opened)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def as_nobody(act: Callable[[], Found]) -> Found:
    """Run something in a process of a user without rights."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            answer = act()
        except BaseException:
            answer = {"failed": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as said:
        found: Found = json.load(said)
    os.waitpid(child, 0)
    return found


# -- tables


def sums(rows: np.ndarray[Any, np.dtype[np.float32]], ids: Sequence[int], starts: Sequence[int]) -> Any:
    """What the drive has to give, bit for bit."""
    out = np.zeros((len(starts), rows.shape[1]), np.float32)
    for bag, (start, end) in enumerate(zip(starts, [*starts[1:], len(ids)], strict=True)):
        if end > start:
            out[bag] = np.add.accumulate(rows[list(ids[start:end])], axis=0)[-1]  # one after the other, as the drive
    return out


@contextmanager
def mounted(device: str, kind: str, *options: str) -> Iterator[Path]:
    """A fresh file system."""
    shell(f"mkfs.{kind}", "-q", "-F" if kind == "ext4" else "-f", *options, device)
    MOUNT.mkdir(exist_ok=True)
    shell("mount", "-t", kind, device, str(MOUNT))
    try:
        yield MOUNT
    finally:
        shell("umount", str(MOUNT))


def partitioned(block: Path) -> None:
    """An MBR with two partitions."""
    table = b"".join(struct.pack("<B3xB3xII", 0, 0x83, start, count) for start, count in PARTITIONS)
    with open(block, "r+b") as disk:
        disk.write(bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa")
    shell("blockdev", "--rereadpt", str(block))


def tables(folder: Path, kind: str) -> Found:
    """Rows in a file, summed by the drive, through everything that may happen to the file."""
    ids = np.random.default_rng(3).integers(0, len(ROWS), 3000).tolist()
    starts = list(range(0, 3000, 37))
    path = folder / "items"
    with Table.create_file(path, ROWS) as table:
        drive = table.drive
        found: Found = {
            "extents": len(table.info.extents),
            "created": equal(table.lookup(ids, starts), ROWS, ids, starts),
        }
        found["long_bag"] = equal(table.lookup(ids * 23, [0]), ROWS, ids * 23, [0])
        with Table.create_file(folder / "more", (500, 8), [ROWS[:250, :8], ROWS[250:500, :8]], drive=drive) as more:
            both = lookup_many([table, more], [([1], [0]), ([2, 3], [0])])
            found["two"] = bool((both[0][0] == ROWS[1]).all() and (both[1] == sums(ROWS[:, :8], [2, 3], [0])).all())
        table.write_rows(7, np.full((1, 32), 5, np.float32))
        with open(path, "r+b") as file:  # another program, without fsync
            file.seek(9 * 128)
            file.write(np.full(32, 3, np.float32).tobytes())
        found["overwritten"] = table.lookup([7, 9], [0, 1])[:, 0].tolist()
        path.rename(folder / "renamed")
        found["renamed"] = [float(table.read_rows(7, 1)[0, 0]), float(table.lookup([7], [0])[0, 0])]
    with Table.from_file(folder / "renamed") as table:
        found["again"] = [len(table), table.dim, float(table.lookup([7], [0])[0, 0])]
        os.truncate(folder / "renamed", 4096)
        found["truncated"] = refusal(lambda: table.lookup([7], [0]))
    found["truncated_again"] = refusal(lambda: Table.from_file(folder / "renamed"))
    return found | moved(folder, kind)


def moved(folder: Path, kind: str) -> Found:
    """A file whose blocks move while it keeps name, size and content; and a copy."""
    path = folder / "moved"
    with Table.create_file(path, ROWS[:4096]) as table:
        content = path.read_bytes()
        move(path, content, kind)
        assert path.read_bytes() == content
        found: Found = {"moved": refusal(lambda: table.lookup([1], [0]))}
    found["moved_again"] = refusal(lambda: Table.from_file(path))
    with Table.from_file(path, 32, renew=True) as table:
        found["renewed"] = equal(table.lookup([1, 2], [0]), ROWS, [1, 2], [0])
    shell("cp", "-a", "--reflink=never", str(path), str(folder / "copy"))
    found["copy"] = refusal(lambda: Table.from_file(folder / "copy"))
    return found


def move(path: Path, content: bytes, kind: str) -> None:
    """Another place for a file's blocks."""
    twin = path.with_name("twin")
    if kind == "xfs":  # overwriting shared blocks leaves them to the twin
        shell("cp", "--reflink=always", str(path), str(twin))
        with open(path, "r+b") as file:
            file.write(content)
            os.fsync(file.fileno())
        twin.unlink()
        return
    # as e4defrag does: content and times stay
    with open(path, "r+b") as file, open(twin, "wb") as donor:
        os.posix_fallocate(donor.fileno(), 0, len(content))
        blocks = len(content) // os.fstat(file.fileno()).st_blksize
        request = bytearray(struct.pack("<IIQQQQ", 0, donor.fileno(), 0, 0, blocks, 0))
        fcntl.ioctl(file.fileno(), EXT4_IOC_MOVE_EXT, request, True)
    twin.unlink()


def equal(got: Any, rows: Any, ids: Sequence[int], starts: Sequence[int]) -> bool:
    return bool((got == sums(rows, ids, starts)).all())


def refusals(folder: Path, kind: str) -> Found:
    """Files that the drive can't read by itself."""
    ROWS[:1000].tofile(folder / "plain")
    shell("fallocate", "-l", "1M", str(folder / "unwritten"))
    (folder / "hole").touch()
    os.truncate(folder / "hole", 1 << 20)
    (folder / "empty").touch()
    names = ("unwritten", "hole", "empty")
    found: Found = {name: refusal(partial(Table.from_file, folder / name, 32)) for name in names}
    found["no_dim"] = refusal(lambda: Table.from_file(folder / "plain"))
    found["no_rows"] = refusal(lambda: Table.from_file(folder / "plain", 7777))
    found["plain"] = refusal(lambda: Table.from_file(folder / "plain", 32).close())
    found["exists"] = refusal(lambda: Table.create_file(folder / "plain", ROWS))
    if kind == "xfs":
        shell("cp", "--reflink=always", str(folder / "plain"), str(folder / "shared"))
        found["shared"] = refusal(lambda: Table.from_file(folder / "plain", 32))
    else:
        shell("chattr", "+j", str(folder / "plain"))
        found["journaled"] = refusal(lambda: Table.from_file(folder / "plain", 32))
    left = {path.name for path in folder.iterdir() if "draft" in path.name}
    return {**found, "left": sorted(left)}


def files(block: Path) -> Found:
    """Tables as files of ext4 and xfs in two partitions."""
    partitioned(block)
    found: Found = {}
    for number, kind in enumerate(("ext4", "xfs"), 1):
        device = f"{block}p{number}"
        with mounted(device, kind) as folder:
            about = os.stat(folder).st_dev
            place = place_of_device(f"{os.major(about)}:{os.minor(about)}", folder)
            found[kind] = {"offset": place.offset, **tables(folder, kind), **refusals(folder, kind)}
    with mounted(f"{block}p1", "ext4", "-O", "inline_data", "-I", "256") as folder:
        (folder / "inline").write_bytes(bytes(64))
        found["inline"] = refusal(lambda: Table.from_file(folder / "inline", 16))
    found["elsewhere"] = [refusal(partial(Table.create_file, Path(at) / "x", ROWS)) for at in ("/root", "/run")]
    return found


def main(node: Path, wanted: Sequence[str]) -> int:
    name = node.name
    (space,) = nodes.namespaces(name)
    assert space.block is not None
    sections: dict[str, Callable[[], Found]] = {
        "nodes": lambda: {"ours": [one.name for one in nodes.ours()], "nsid": space.nsid},
        "ioctl": lambda: plain_ioctl(node, space.character),
        "uring": lambda: plain_uring(node, space.character),
        "commands io_uring": lambda: commands(space.character, "io_uring"),
        "commands ioctl": lambda: commands(node, "ioctl"),
        "fallback": lambda: fallback(node),
        "permissions": lambda: permissions(node, space.character),
        "files": lambda: files(Path(str(space.block))),
        "loaded": lambda: {name: name in sys.modules for name in NOT_HERE},
    }
    found: dict[str, Found] = {}
    for title in wanted or sections:
        section, begun = sections[title], time.monotonic()
        try:
            found[title] = section()
        except Exception:
            found[title] = {"failed": traceback.format_exc()}
        found[title]["seconds"] = round(time.monotonic() - begun, 1)
    with suppress(OSError):
        MOUNT.rmdir()
    print(json.dumps(found, default=repr))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
