"""VERSION: what each client is answered, and which way its doorbells go."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_femu.session import Doorbells
from emucsd_wire.vfio_user import REGION_INFO, VERSION, Command, RegionFlag, RegionInfo, Version
from tests.protocol.vfio_peer import OWN_JSON, QEMU_JSON, Peer, Stand


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


def mappable(peer: Peer) -> bool:
    """Whether BAR0 may be mapped."""
    answer = peer.call(Command.DEVICE_GET_REGION_INFO, REGION_INFO.pack(RegionInfo(64, 0, 0, 0, 0, 0)))
    for fd in answer.fds:
        os.close(fd)
    return bool(REGION_INFO.unpack(answer.payload).flags & RegionFlag.MMAP)


def test_reply_fits_qemus_buffer(stand: Stand) -> None:
    """QEMU receives into a buffer of its request's size: the reply is no larger, minor 0, its JSON NUL-terminated."""
    answer = stand.connect(None).negotiate(QEMU_JSON)
    assert len(answer.payload) <= VERSION.size + len(QEMU_JSON)
    assert VERSION.unpack(answer.payload) == Version(0, 0)
    assert answer.payload[-1] == 0
    capabilities = json.loads(answer.payload[VERSION.size : -1])["capabilities"]
    assert capabilities["max_msg_fds"] <= 16
    assert capabilities["max_data_xfer_size"] <= 64 << 20
    assert capabilities["pgsizes"] % 4096 == 0
    assert capabilities["max_dma_maps"] <= 65535
    assert "write_multiple" not in capabilities


def test_spdk_gets_a_version_without_text(stand: Stand) -> None:
    """SPDK asks for 0.1 with no JSON in 20 bytes, and is answered 0.0 in 20 bytes."""
    answer = stand.connect(None).call(Command.VERSION, VERSION.pack(Version(0, 1)))
    assert answer.errno == 0
    assert answer.header.size == 20
    assert VERSION.unpack(answer.payload) == Version(0, 0)


def test_short_text_gets_a_short_answer(stand: Stand) -> None:
    """A client whose JSON has no room for our capabilities is answered within the room that it has."""
    answer = stand.connect(None).negotiate(b"{}\0")
    assert answer.payload[VERSION.size :] == b"{}\0"


@pytest.mark.parametrize(
    ("text", "mapped"),
    [(QEMU_JSON, False), (OWN_JSON, True), (b"", True), (b"{}\0", False), (b'{"capabilities":{"emucsd":0}}\0', False)],
    ids=["qemu", "own", "spdk", "empty", "denies"],
)
def test_doorbells_follow_the_client(stand: Stand, text: bytes, mapped: bool) -> None:
    """auto: QEMU's doorbells are trapped (posted writes), SPDK's and our own client's are mapped."""
    assert mappable(stand.connect(text)) is mapped
    assert stand.port.trapped is not mapped


@pytest.mark.parametrize(("choice", "mapped"), [(Doorbells.MAPPED, True), (Doorbells.TRAPPED, False)])
@pytest.mark.parametrize("text", [QEMU_JSON, OWN_JSON, b""], ids=["qemu", "own", "spdk"])
def test_doorbells_can_be_forced(tmp_path: Path, choice: Doorbells, mapped: bool, text: bytes) -> None:
    """A setting overrides what VERSION says."""
    stand = Stand(tmp_path, choice)
    assert mappable(stand.connect(text)) is mapped
    stand.close()


def test_auto_chooses_anew_for_each_client(stand: Stand) -> None:
    """The next client is not bound to what the last one was given."""
    for text, mapped in ((QEMU_JSON, False), (b"", True), (QEMU_JSON, False)):
        peer = stand.connect(text)
        assert mappable(peer) is mapped
        peer.close()
        stand.server.run_once(0)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        VERSION.pack(Version(1, 0)),
        VERSION.pack(Version(0, 0)) + b"{}",
        VERSION.pack(Version(0, 0)) + b"{\0",
        VERSION.pack(Version(0, 0)) + b"[]\0",
        VERSION.pack(Version(0, 0)) + b'{"capabilities":[]}\0',
        VERSION.pack(Version(0, 0)) + b"\xff\xfe\0",
        VERSION.pack(Version(0, 0)) + b"[" * 4000 + b"\0",
        VERSION.pack(Version(0, 0)) + b" " * 60000 + b"\0",
    ],
    ids=["empty", "short", "major", "no-nul", "broken", "array", "capabilities", "utf8", "deep", "long"],
)
def test_bad_version_is_refused_and_may_be_mended(stand: Stand, payload: bytes) -> None:
    """A VERSION that can't be understood gets EINVAL; the same connection may then send a good one."""
    peer = stand.connect(None)
    assert peer.call(Command.VERSION, payload).errno == errno.EINVAL
    assert peer.negotiate().errno == 0


def test_nothing_before_version_and_version_once(stand: Stand) -> None:
    """Commands before VERSION, and a second VERSION, get EINVAL and change nothing."""
    peer = stand.connect(None)
    for command in (Command.DEVICE_RESET, Command.DEVICE_GET_INFO, Command.REGION_READ, Command.DMA_MAP):
        assert peer.call(command, bytes(32)).errno == errno.EINVAL
    assert stand.port.calls == []
    assert peer.negotiate().errno == 0
    assert peer.negotiate().errno == errno.EINVAL
    assert peer.call(Command.DEVICE_RESET).errno == 0
