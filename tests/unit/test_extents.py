"""A file's extents: FIEMAP's bytes, what is refused and why, and real files on file systems of this machine."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd import extents
from emucsd.extents import (
    FIEMAP_EXTENT,
    FIEMAP_HEAD,
    ExtentFlag,
    FiemapExtent,
    FileChanged,
    FileElsewhere,
    FileEncoded,
    FileExtent,
    FileFragmented,
    FileInline,
    FileJournaled,
    FilePending,
    FileRefused,
    FileShared,
    FileStacked,
    FileUnaligned,
    FileUnwritten,
    as_blocks,
    checked,
    digest,
    fiemap,
    filesystem,
    plain_extents,
)
from emucsd.linux.blocks import place_of, place_of_device

BLOCK = 4096


def run_of(*pieces: tuple[int, int, int, int]) -> list[FileExtent]:
    """(logical, physical, length, flags) in blocks."""
    return [FileExtent(a * BLOCK, b * BLOCK, c * BLOCK, flags) for a, b, c, flags in pieces]


def test_extents_lie_as_the_kernel_has_them() -> None:
    """struct fiemap_extent of a known file, byte for byte."""
    data = struct.pack("<QQQQQIIII", 8192, 1 << 40, 4096, 0, 0, ExtentFlag.LAST, 0, 0, 0)
    expected = FiemapExtent(8192, 1 << 40, 4096, bytes(16), 1, bytes(12))
    assert FIEMAP_EXTENT.unpack(data) == expected
    assert FIEMAP_EXTENT.pack(expected) == data
    assert (FIEMAP_HEAD.size, FIEMAP_HEAD.offset("mapped"), FIEMAP_HEAD.offset("room")) == (32, 20, 24)


def test_neighbours_are_joined() -> None:
    """Extents that follow each other in the file and on disk count as one; others stay apart."""
    found = checked(run_of((0, 10, 2, 0), (2, 12, 3, ExtentFlag.MERGED), (5, 20, 1, ExtentFlag.LAST)), 6 * BLOCK, "f")
    assert found == run_of((0, 10, 5, 0), (5, 20, 1, 0))


def test_what_lies_behind_the_end_does_not_count() -> None:
    """Blocks that were allocated ahead, behind the file's last byte, are nobody's business."""
    found = checked(run_of((0, 10, 2, 0), (2, 12, 9, ExtentFlag.UNWRITTEN | ExtentFlag.LAST)), 2 * BLOCK, "f")
    assert found == run_of((0, 10, 2, 0))


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (ExtentFlag.UNWRITTEN, FileUnwritten),
        (ExtentFlag.DATA_INLINE | ExtentFlag.NOT_ALIGNED, FileInline),
        (ExtentFlag.DATA_TAIL | ExtentFlag.NOT_ALIGNED, FileInline),
        (ExtentFlag.ENCODED, FileEncoded),
        (ExtentFlag.ENCODED | ExtentFlag.DATA_ENCRYPTED, FileEncoded),
        (ExtentFlag.SHARED, FileShared),
        (ExtentFlag.DELALLOC | ExtentFlag.UNKNOWN, FilePending),
        (ExtentFlag.UNKNOWN, FilePending),
        (ExtentFlag.NOT_ALIGNED, FileUnaligned),
        (0x0100_0000, FileRefused),
    ],
)
def test_every_flag_has_its_refusal(flags: int, kind: type[FileRefused]) -> None:
    """An extent that is not plain is refused by name, with the bytes that it covers."""
    with pytest.raises(FileRefused, match="bytes 4096 to 8191") as caught:
        checked(run_of((0, 10, 1, 0), (1, 11, 1, flags)), 2 * BLOCK, "/mnt/f")
    assert type(caught.value) is kind
    assert caught.value.path == Path("/mnt/f")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    "found",
    [[], run_of((0, 10, 1, 0), (2, 12, 1, 0)), run_of((1, 10, 2, 0)), run_of((0, 10, 2, 0))],
    ids=["none", "middle", "start", "end"],
)
def test_holes_are_refused(found: list[FileExtent]) -> None:
    """A file with a hole anywhere is refused: the drive would have to make its zeros up."""
    with pytest.raises(FileUnwritten, match="a hole"):
        checked(found, 3 * BLOCK, "f")


def test_too_many_pieces() -> None:
    """As many extents as a table may have are taken, one more is refused with the limit."""
    pieces = run_of(*((n, 3 * n, 1, 0) for n in range(5)))
    assert len(checked(pieces, 5 * BLOCK, "f", most=5)) == 5
    with pytest.raises(FileFragmented, match="more than 4 extents"):
        checked(pieces, 5 * BLOCK, "f", most=4)


def test_blocks_of_a_partition() -> None:
    """Extents become LBAs of the namespace: the partition's offset is added, a part of a block at the end is one."""
    pieces = [FileExtent(0, 8 * BLOCK, 2 * BLOCK), FileExtent(2 * BLOCK, 64 * BLOCK, BLOCK + 512)]
    assert as_blocks(pieces, 1 << 20, 4096, "f") == ((264, 2), (320, 2))
    assert as_blocks(pieces, 512, 512, "f") == ((65, 16), (513, 9))
    with pytest.raises(FileUnaligned, match="blocks have 4096 bytes"):
        as_blocks(pieces, 512, 4096, "f")
    with pytest.raises(FileUnaligned):
        as_blocks([FileExtent(0, 0, 1024), FileExtent(1024, 8192, 4096)], 0, 4096, "f")


def test_a_digest_names_places() -> None:
    """The same places have the same digest, whatever their flags; another place has another."""
    assert digest(run_of((0, 1, 2, 0))) == digest([FileExtent(0, BLOCK, 2 * BLOCK, 0)])
    assert len({digest(run_of((0, place, 2, 0))) for place in range(10)}) == 10


# -- sysfs


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A drive of ours with two partitions under multipath, one of somebody else's, a loop device over the former."""
    files = {
        "class/nvme/nvme0/model": "emucsd computational storage drive   ",
        "class/nvme/nvme0/serial": "S1 ",
        "class/nvme/nvme0/cntlid": "1",
        "class/nvme/nvme0/nvme0c0n1/nsid": "3",
        "class/nvme/nvme1/model": "QEMU NVMe Ctrl",
        "class/nvme/nvme1/nvme1n1/nsid": "1",
        "devices/a/nvme0n1/nvme0n1p2/partition": "2",
        "devices/a/nvme0n1/nvme0n1p2/start": "2048",
        "devices/b/nvme1n1/size": "1",
        "devices/c/loop3/loop/backing_file": "/somewhere/image\n",
        "devices/d/sda/size": "1",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "class/block/nvme0n1").mkdir(parents=True)
    (tmp_path / "class/block/nvme1n1").mkdir(parents=True)
    for number, target in (
        ("259:0", "a/nvme0n1"), ("259:2", "a/nvme0n1/nvme0n1p2"), ("259:5", "b/nvme1n1"), ("7:3", "c/loop3"),
        ("8:0", "d/sda"),
    ):  # fmt: skip
        (tmp_path / "dev/block" / number).symlink_to(tmp_path / "devices" / target)
    return tmp_path


def test_devices_are_followed_to_the_namespace(sysfs: Path) -> None:
    """The namespace's id is the drive's, not the name's; a partition adds its offset in bytes."""
    assert place_of_device("259:0", "f", sysfs) == ("nvme0", 3, 0, "S1")
    assert place_of_device("259:2", "f", sysfs) == ("nvme0", 3, 1 << 20, "S1")


@pytest.mark.parametrize(
    ("number", "kind", "told"),
    [
        ("259:5", FileElsewhere, "no drive of ours"),
        ("8:0", FileElsewhere, "no NVMe device"),
        ("0:44", FileElsewhere, "no block device"),
        ("7:3", FileStacked, "above /somewhere/image"),
    ],
)
def test_other_devices_are_refused(sysfs: Path, number: str, kind: type[FileRefused], told: str) -> None:
    """Foreign, stacked and absent devices are told apart, and the error names what is there."""
    with pytest.raises(kind, match=told) as caught:
        place_of_device(number, "f", sysfs)
    assert type(caught.value) is kind


# -- real file systems


def plain(path: Path) -> list[FileExtent]:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return plain_extents(file.fileno(), path)


def test_tmpfs_has_no_extents() -> None:
    """A file in memory is refused by its file system's name, and its device is none."""
    if not os.path.ismount("/dev/shm"):
        pytest.skip("/dev/shm is no tmpfs here")
    path = Path("/dev/shm") / f"emucsd-extents-{os.getpid()}"
    path.write_bytes(bytes(BLOCK))
    try:
        with pytest.raises(FileElsewhere, match="tmpfs"):
            plain(path)
        with open(path, "rb") as file, pytest.raises(FileElsewhere, match="no block device"):
            place_of(file.fileno(), path)
    finally:
        path.unlink()


class Loop:
    """A file system on a loop device, and the image below it."""

    def __init__(self, folder: Path, kind: str, *options: str) -> None:
        self.image, self.mount = folder / f"{kind}.img", folder / kind
        with open(self.image, "wb") as file:
            file.truncate(320 << 20)
        self.mount.mkdir()
        for words in (
            [f"mkfs.{kind}", "-q", *options, str(self.image)],
            ["mount", "-o", "loop", str(self.image), str(self.mount)],
        ):
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"{' '.join(words)}: {done.stderr.strip()}")

    def close(self) -> None:
        subprocess.run(["umount", str(self.mount)], check=True)

    def holds(self, path: Path) -> bool:
        """Whether the image has the file's bytes where its extents say."""
        os.sync()
        content = path.read_bytes()
        with open(self.image, "rb") as image:
            for extent in plain(path):
                piece = content[extent.logical : extent.end]
                if os.pread(image.fileno(), len(piece), extent.physical) != piece:
                    return False
        return True


@pytest.fixture(params=["ext4", "xfs"])
def loop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Loop]:
    if os.geteuid() != 0 or shutil.which(f"mkfs.{request.param}") is None:
        pytest.skip(f"needs root and mkfs.{request.param}")
    made = Loop(tmp_path, request.param)
    yield made
    made.close()


def test_real_extents_are_where_they_say(loop: Loop) -> None:
    """The bytes of files, small and large, written over and appended, lie in the image where FIEMAP says."""
    path = loop.mount / "file"
    path.write_bytes(os.urandom(5 << 20))
    assert loop.holds(path)
    before = digest(plain(path))
    with open(path, "r+b") as file:
        file.seek(1 << 20)
        file.write(os.urandom(1 << 20))
    assert loop.holds(path)
    assert digest(plain(path)) == before, "overwriting moves nothing"
    small = loop.mount / "small"
    small.write_bytes(b"odd size" * 99)
    assert loop.holds(small)
    with open(path, "rb") as file:
        assert filesystem(file.fileno()).kind == loop.mount.name
        with pytest.raises(FileStacked, match="loop"):
            place_of(file.fileno(), path)


def test_real_refusals(loop: Loop) -> None:
    """fallocate, holes, emptiness, journaled data and reflinks are found on real files."""
    path = loop.mount / "file"
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
    with pytest.raises(FileUnwritten, match="fallocate"):
        plain(path)
    (loop.mount / "hole").touch()
    with pytest.raises(FileUnwritten, match="empty"):
        plain(loop.mount / "hole")
    os.truncate(loop.mount / "hole", 1 << 20)
    with pytest.raises(FileUnwritten, match="hole"):
        plain(loop.mount / "hole")
    if loop.mount.name == "ext4":
        path.write_bytes(os.urandom(1 << 20))
        plain(path)
        if subprocess.run(["chattr", "+j", str(path)], capture_output=True).returncode == 0:  # takes CAP_SYS_RESOURCE
            with pytest.raises(FileJournaled, match="chattr -j"):
                plain(path)
    else:
        path.write_bytes(os.urandom(1 << 20))
        plain(path)
        subprocess.run(["cp", "--reflink=always", str(path), str(loop.mount / "twin")], check=True)
        with pytest.raises(FileShared, match="reflink=never"):
            plain(path)


def test_many_real_extents(loop: Loop) -> None:
    """A file in more pieces than one answer of the kernel holds is read whole, and too many pieces are refused."""
    path, other = loop.mount / "file", loop.mount / "other"
    count = 1300
    with open(path, "wb") as file, open(other, "wb") as between:
        for _ in range(count):  # take turns, so that neither grows in one piece
            for target in (file, between):
                os.posix_fallocate(target.fileno(), os.fstat(target.fileno()).st_size, BLOCK)
        os.pwrite(file.fileno(), os.urandom(count * BLOCK), 0)
        os.fsync(file.fileno())
        raw = fiemap(file.fileno(), count * BLOCK)
        if len(raw) < 600:
            pytest.skip(f"this file system kept the file in {len(raw)} pieces")
        assert sum(extent.length for extent in raw) == count * BLOCK
        assert [a.end for a in raw[:-1]] == [b.logical for b in raw[1:]]
        with pytest.raises(FileFragmented):
            plain_extents(file.fileno(), path, most=len(raw) // 2)
    assert loop.holds(path)


def test_inline_data(tmp_path: Path) -> None:
    """A file that ext4 keeps in its inode is refused as such."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root and mkfs.ext4")
    made = Loop(tmp_path, "ext4", "-O", "inline_data", "-I", "256")
    try:
        (made.mount / "tiny").write_bytes(b"tiny")
        with pytest.raises(FileInline, match="inode"):
            plain(made.mount / "tiny")
    finally:
        made.close()


def test_the_tree_of_refusals_is_as_documented() -> None:
    """Every class of the module's docstring exists, and every class is in it."""
    classes = {name for name, item in vars(extents).items() if isinstance(item, type) and issubclass(item, FileRefused)}
    named = {word for word in (extents.__doc__ or "").split() if word.startswith("File")}
    assert classes == named
    assert issubclass(FileChanged, FileRefused)
