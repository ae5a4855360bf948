"""A machine's disk: one ext4 filesystem in a raw, sparse file, made without root rights."""

from __future__ import annotations

from pathlib import Path
from subprocess import Popen
from typing import IO, cast

from emucsd_images.root import EPOCH, Root
from emucsd_images.tools import Tools, failed

_UUID = "656d7563-7364-4000-8000-000000000001"  # fixed, as everything else: the same recipe makes the same bytes
# no checksums: they are the emulated processor's work. A small journal stays: a machine whose power was cut must come
# back, and the disk's writes go to a file of the computer that runs it anyway.
_FEATURES = "^metadata_csum,^orphan_file,^64bit"
_JOURNAL_MIB = 8


def write(root: Root, path: Path, size_mib: int, tools: Tools) -> None:
    """Make ``path``. :raises ImageMissing: mke2fs failed"""
    words = [
        "-t", "ext4", "-q", "-F", "-m", "0", "-L", "emucsd", "-U", _UUID,
        "-O", _FEATURES, "-J", f"size={_JOURNAL_MIB}",
        # the file is made of holes: saying that they are zeros spares the guest to write inode tables
        "-E", f"root_owner=0:0,hash_seed={_UUID},assume_storage_prezeroed=1,nodiscard",
        "-d", "-", str(path), f"{size_mib}M",
    ]  # fmt: skip
    with tools.start("usr/sbin/mke2fs", words, {"SOURCE_DATE_EPOCH": str(EPOCH)}) as process:
        _feed(root, process)
        status = process.wait()
        if status:
            raise failed("mke2fs", status, cast(IO[bytes], process.stderr))


def _feed(root: Root, process: Popen[bytes]) -> None:
    stream = cast(IO[bytes], process.stdin)
    try:
        root.archive(stream)
        stream.close()
    except BrokenPipeError:
        pass  # it ended: its exit code and last words say why
