"""A kernel as a machine takes it soonest: already unpacked where QEMU can start it so.

Debian's x86-64 kernel unpacks itself at boot, which is a quarter of an emulated machine's way to its sshd. QEMU starts
the unpacked one as well (by the kernel's PVH entry). The Arm kernel comes unpacked.
"""

from __future__ import annotations

import struct
from pathlib import Path

from emucsd_images.tools import Tools

# the kernel's Documentation/arch/x86/boot.rst
_SETUP_SECTORS = 0x1F1  # of 512 bytes, less one
_MAGIC = 0x202  # "HdrS"
_PAYLOAD = 0x248  # offset behind the setup code, and length
_ZSTD = b"\x28\xb5\x2f\xfd"
_SIZE = struct.calcsize("<I")  # of what is unpacked, behind it


def write(packed: Path, target: Path, tools: Tools) -> None:
    """Write what QEMU's ``-kernel`` is to take. A kernel that is packed in another way is taken as it is.

    :raises ImageMissing: it can't be unpacked
    """
    content = packed.read_bytes()
    payload = _payload(content)
    if not payload.startswith(_ZSTD):
        target.write_bytes(content)
        return
    draft = target.with_suffix(".zst")
    draft.write_bytes(payload)
    tools.run("usr/bin/zstd", "-d", "-q", str(draft), "-o", str(target))
    draft.unlink()


def _payload(content: bytes) -> bytes:
    """What an x86 kernel has packed in itself; nothing for another kernel."""
    if content[_MAGIC : _MAGIC + 4] != b"HdrS":
        return b""
    offset, size = struct.unpack_from("<II", content, _PAYLOAD)
    begin = (content[_SETUP_SECTORS] + 1) * 512 + offset
    return content[begin : begin + size - _SIZE]
