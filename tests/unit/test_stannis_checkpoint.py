"""Checkpoints: whatever happens, at most the one that was being written is lost."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from emucsd.isp.disk import Disk
from emucsd.isp.errors import IspError
from emucsd.stannis.errors import CheckpointDamaged, CheckpointError, CheckpointFull, CheckpointMissing
from emucsd.stannis.training import checkpoint, seal
from emucsd.stannis.training.checkpoint import Folder, Slots

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 512


def state(step: int, count: int = 600) -> dict[str, Any]:
    """A state that says which one it is in every element."""
    return {"at": {"step": step}, "model": {"weight": torch.full((count,), float(step))}, "name": "x" * (step % 7)}


def step_of(found: checkpoint.Loaded) -> int:
    """Which state it is; the whole of it has to be that one."""
    assert torch.equal(found.state["model"]["weight"], state(found.state["at"]["step"])["model"]["weight"])
    return int(found.state["at"]["step"])


# -- files -----------------------------------------------------------------------------------------------------------


def test_folder(tmp_path: Path) -> None:
    """The two newest stay, the newest comes back, PyTorch itself reads the files."""
    place = checkpoint.keeper(str(tmp_path / "deep" / "folder"))
    for step in (3, 6, 9):
        report = place.save(state(step))
        assert (report.step, report.error) == (step, "")
        assert Path(report.where).stat().st_size == report.bytes
    found = checkpoint.load(str(tmp_path / "deep" / "folder"))
    assert (step_of(found), found.generation, found.passed_over) == (9, 3, ())
    assert sorted(os.listdir(tmp_path / "deep" / "folder")) == ["checkpoint-00000002.pt", "checkpoint-00000003.pt"]
    path = tmp_path / "deep" / "folder" / "checkpoint-00000002.pt"
    assert torch.load(path, weights_only=True)["at"] == {"step": 6}
    assert step_of(checkpoint.load(str(path))) == 6


def test_damaged_files(tmp_path: Path) -> None:
    """A changed byte anywhere or a lost end: the one before it is taken, and told why; if none is whole, so is that."""
    place = Folder(tmp_path)
    for step in (1, 2):
        place.save(state(step))
    newest = tmp_path / "checkpoint-00000002.pt"
    whole = newest.read_bytes()
    chance = random.Random(1)
    for at in [0, len(whole) - 1, len(whole) - seal.BYTES, *(chance.randrange(len(whole)) for _ in range(40))]:
        newest.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        found = place.load()
        assert (step_of(found), len(found.passed_over)) == (1, 1)
    for length in (0, 1, seal.BYTES, len(whole) // 2, len(whole) - 1):
        newest.write_bytes(whole[:length])
        assert step_of(place.load()) == 1
    (tmp_path / "checkpoint-00000001.pt").write_bytes(b"")
    with pytest.raises(CheckpointDamaged, match=r"none of 2.*00000002\.pt.*00000001\.pt"):
        place.load()
    place.save(state(5))
    assert step_of(place.load()) == 5


def test_nothing_is_run_while_loading(tmp_path: Path) -> None:
    """A pickle that would call something is refused, whole and sealed as it may be."""

    class Call:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "called"),)

    Folder(tmp_path).save({"at": {"step": 1}, "bad": Call()})
    with pytest.raises(CheckpointDamaged, match="UnpicklingError"):
        Folder(tmp_path).load()
    assert not (tmp_path / "called").exists()


def test_nothing_there(tmp_path: Path) -> None:
    """Missing is not damaged."""
    for where in (str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(CheckpointMissing):
            checkpoint.load(where)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"File exists|Not a directory"):
        checkpoint.keeper(str(tmp_path / "file"))


def test_full_disk(tmp_path: Path) -> None:
    """No room: said with both sizes, nothing is left behind, and what was kept is whole."""
    place = Folder(tmp_path)
    place.save(state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then write() fails as on a full disk, with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CheckpointFull, match="the one before it stays valid") as raised:
            place.save(state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert raised.value.needed > 2400
    assert raised.value.free > 0
    assert os.listdir(tmp_path) == ["checkpoint-00000001.pt"]
    assert step_of(place.load()) == 1


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from emucsd.stannis import torchstart
torch = torchstart.start()
torch.set_num_threads(1)
from emucsd.stannis.training.checkpoint import Folder
from tests.unit.test_stannis_checkpoint import state, step_of

folder, chance, last = Path(sys.argv[1]), random.Random(7), 0
for trial in range(20):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        place = Folder(folder)
        while True:
            last += 1
            place.save(state(last))
            os.write(write, last.to_bytes(4, "little"))
    os.close(write)
    acknowledged = int.from_bytes(os.read(read, 4), "little")  # it is in its next one now
    begun = time.perf_counter()
    while time.perf_counter() - begun < chance.uniform(0, 0.01):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while data := os.read(read, 4):
        acknowledged = int.from_bytes(data, "little")
    os.close(read)
    found = step_of(Folder(folder).load())
    assert acknowledged <= found <= acknowledged + 1, (trial, acknowledged, found)
    last = found
print("fine")
"""


def test_killed_while_saving(tmp_path: Path) -> None:
    """kill -9 at twenty random instants: the newest that was acknowledged, or the one after it, comes back whole."""
    path = os.pathsep.join(str(ROOT / home) for home in ("", "firmware", "host"))
    argv = [sys.executable, "-c", KILLED, str(tmp_path / "kept")]
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "fine\n", done.stderr


# -- a raw namespace -------------------------------------------------------------------------------------------------


class Memory(Disk):
    """A namespace in memory that remembers what was written between flushes, block by block."""

    def __init__(self, size: int = 64 * BLOCK, image: bytes | None = None) -> None:
        self.size, self.block_bytes = size, BLOCK
        self.image = bytearray(image if image is not None else size)
        self.log: list[list[tuple[int, bytes]]] = [[]]
        self.fails: IspError | None = None

    def _read(self, offset: int, size: int) -> memoryview:
        return memoryview(bytes(self.image[offset : offset + size]))

    def _write(self, offset: int, data: memoryview) -> None:
        if self.fails is not None:
            raise self.fails
        self.image[offset : offset + len(data)] = data
        self.log[-1] += [(offset + at, bytes(data[at : at + BLOCK])) for at in range(0, len(data), BLOCK)]

    def flush(self) -> None:
        self.log.append([])

    def trim(self, offset: int, size: int) -> None:
        raise AssertionError("nothing is to be trimmed")

    def close(self) -> None:
        pass


def crashes(before: bytes, log: list[list[tuple[int, bytes]]]) -> Iterator[tuple[bool, bytes]]:
    """Every image that a crash may leave: each prefix of the blocks, and between two flushes any of them lost.

    :return: whether all was flushed, image
    """
    chance = random.Random(3)
    image = bytearray(before)
    for between in log:
        orders = [between[:count] for count in range(len(between))]
        orders += [[block for block in between if chance.random() < 0.5] for _ in range(len(between))]
        for some in orders:
            torn = bytearray(image)
            for offset, data in some:
                torn[offset : offset + BLOCK] = data
            yield False, bytes(torn)
        for offset, data in between:
            image[offset : offset + BLOCK] = data
    yield True, bytes(image)


def test_slots_survive_every_crash() -> None:
    """A crash at any block of any of five saves leaves the state before it or the new one, never none; after the last
    flush the new one."""
    disk = Memory()
    place = Slots(disk)
    images = 0
    for step in range(1, 6):
        before, disk.log = bytes(disk.image), [[]]
        report = place.save(state(step))
        assert report.where == f"disk, slot {(step + 1) % 2}"
        for flushed, image in crashes(before, disk.log):
            images += 1
            again = Slots(Memory(image=image))
            try:
                found = step_of(again.load())
            except (CheckpointMissing, CheckpointDamaged):
                found = 0
            assert found == step if flushed else found in (step - 1, step)
            if images % 16 == 0:  # and it can be written on
                again.save(state(9))
                assert step_of(again.load()) == 9
    assert images > 80


def test_damaged_slots() -> None:
    """A changed byte in the newer slot: the older one, and why; then the damaged one is the one to overwrite."""
    disk = Memory()
    place = Slots(disk)
    place.save(state(1))
    place.save(state(2))
    half = disk.size // 2
    for at in (half, half + 20, half + BLOCK, half + BLOCK + 1000):
        disk.image[at] ^= 1
        found = Slots(disk).load()
        assert (step_of(found), len(found.passed_over)) == (1, 0 if at < half + BLOCK else 1)
        disk.image[at] ^= 1
    disk.image[half + BLOCK] ^= 1
    again = Slots(disk)
    assert again.save(state(3)).where == "disk, slot 1"
    assert step_of(again.load()) == 3


def test_slot_without_room() -> None:
    """A state larger than half of the namespace: said with sizes, and what there was stays; so on a full drive."""
    disk = Memory()
    place = Slots(disk)
    place.save(state(1))
    with pytest.raises(CheckpointFull, match=r"namespace of \d+ bytes") as raised:
        place.save(state(2, 5000))
    assert raised.value.needed > 20000 > raised.value.free == disk.size // 2 - BLOCK
    disk.fails = IspError(f"write at offset 0: {os.strerror(errno.ENOSPC)}")
    with pytest.raises(CheckpointFull, match="no room"):
        place.save(state(2))
    disk.fails = IspError("write at offset 0: the drive is gone")
    with pytest.raises(CheckpointError, match="the drive is gone"):
        place.save(state(2))
    disk.fails = None
    assert step_of(Slots(disk).load()) == 1
    with pytest.raises(CheckpointFull):
        Slots(Memory(BLOCK))


def test_somebody_else_s_namespace() -> None:
    """A namespace that holds something is not touched, even where it begins with zeros."""
    for at in (0, 1080):
        disk = Memory()
        disk.image[at] = 1
        with pytest.raises(CheckpointError, match="something else"):
            Slots(disk)
        assert disk.log == [[]]


def test_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ns:3`` outside of a job says what is missing."""
    monkeypatch.delenv("EMUCSD_DISK", raising=False)
    with pytest.raises(CheckpointError, match="EMUCSD_DISK"):
        checkpoint.keeper("ns:3")
