"""SPDK's initiator, without SPDK: its exact bytes in its exact order, and the ways in which it goes away."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_wire.nvme import Register
from emucsd_wire.vfio_user import HEADER
from tests.protocol.vfio_peer import RecordingPort, Stand, memfd, open_fds
from tests.protocol.vfio_script import Actor, Step, parse

SCRIPT = "vfio_spdk.txt"
MEMORY = 0x200000
ADMIN = "the admin queue, through the mapped page"


class ControllerPort(RecordingPort):
    """Just enough of a controller: CSTS follows CC as Base 3.1.4 says, shutdown with EN still 1 included."""

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        super().region_write(region, offset, data)
        if offset == Register.CC:
            (cc,) = struct.unpack("<I", data)
            self.registers[Register.CSTS] = (cc & 1) | (0x8 if cc >> 14 & 3 else 0)


def spdk_on(stand: Stand, memory: int) -> Actor:
    """SPDK, about to connect."""
    return Actor(stand.connect(None), memory)


@pytest.fixture
def script() -> list[Step]:
    return parse(SCRIPT)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path, port=ControllerPort())
    yield made
    made.close()


def test_the_script_is_whole(script: list[Step]) -> None:
    """The data file says what SPDK does: nine region queries of 4080 bytes, ids 0, no interrupts, no reset."""
    sent = [HEADER.unpack(step.request) for step in script if step.request]
    assert [header.command for header in sent] == [1, 4, *[5] * 9, 2, 9, 10, *[9] * 4, *[10] * 4, 9, 9, 10, 9, 3]
    assert {header.message_id for header in sent} == {0}
    assert all(len(step.request) == HEADER.unpack(step.request).size for step in script if step.request)
    assert [step.name for step in script if step.sends_fd][1].startswith("DMA_UNMAP")


def test_attach_and_detach_byte_for_byte(stand: Stand, script: list[Step]) -> None:
    """Every reply is what SPDK needs, twice in a row; detach reaches SHST = 10b although EN stays 1; no fd leaks."""
    with memfd(MEMORY) as memory:
        before = open_fds()
        for _ in range(2):
            spdk = spdk_on(stand, memory)
            spdk.run(script)
            assert stand.port.maps == {}
            spdk.close()
            stand.server.run_once(0)
            assert stand.port.calls[-1] == ("reset",)
        assert open_fds() <= before


@pytest.mark.parametrize("cut", range(1, 27))
def test_killed_anywhere_the_next_client_is_healthy(stand: Stand, script: list[Step], cut: int) -> None:
    """kill -9 after any message: the controller is reset, memory dropped, and the next client attaches whole."""
    messages = [step for step in script if step.request]
    with memfd(MEMORY) as memory:
        before = open_fds()
        spdk = spdk_on(stand, memory)
        spdk.run(messages[:cut])
        spdk.close()
        stand.server.run_once(0)
        assert stand.port.maps == {}
        assert stand.port.calls[-1] == ("reset",) or stand.port.calls[-2][0] == "reset"
        again = spdk_on(stand, memory)
        again.run(script)
        again.close()
        stand.server.run_once(0)
        assert open_fds() <= before


def test_doorbells_are_stores_to_the_page(stand: Stand, script: list[Step]) -> None:
    """At the point where SPDK rings its admin queue, it holds the very page that the drive watches."""
    with memfd(MEMORY) as memory:
        spdk = spdk_on(stand, memory)
        spdk.run(script[: [step.name for step in script].index(ADMIN)])
        assert spdk.page is not None
        calls = len(stand.port.calls)
        spdk.page[0:4] = struct.pack("<I", 1)
        with mmap.mmap(stand.port.doorbell_fd, 4096) as seen:
            assert seen[0:4] == struct.pack("<I", 1)
        assert len(stand.port.calls) == calls
        spdk.close()
