"""QEMU's start-up, replayed from a recording: connection, realize, reset, and the firmware's first steps."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from emucsd_wire.vfio_user import HEADER, Command
from tests.protocol.vfio_peer import Stand, memfd, open_fds
from tests.protocol.vfio_script import Actor, parse

GUEST_MEMORY = 512 << 20


def test_start_up_byte_for_byte(tmp_path: Path) -> None:
    """Every reply is the recorded one: no region to map, a reset, ranges mapped and unmapped, RAM left at the end."""
    stand = Stand(tmp_path)
    script = parse("vfio_qemu.txt")
    event = os.eventfd(0, os.EFD_NONBLOCK)
    with memfd(GUEST_MEMORY) as memory:
        before = open_fds()
        for _ in range(2):
            qemu = Actor(stand.connect(None), memory, event)
            qemu.run(script)
            assert stand.port.trapped
            assert list(stand.port.maps) == [0]
            assert ("reset",) in stand.port.calls
            qemu.close()
            stand.server.run_once(0)
            assert stand.port.maps == {}
        assert open_fds() <= before
    os.close(event)
    stand.close()


def test_the_recording_is_whole() -> None:
    """Ids count up from 0, every size is right, and what QEMU is known to ask is asked."""
    sent = [HEADER.unpack(step.request) for step in parse("vfio_qemu.txt")]
    assert [header.message_id for header in sent] == list(range(len(sent)))
    asked = Counter(Command(header.command) for header in sent)
    assert asked[Command.VERSION] == asked[Command.DEVICE_GET_INFO] == asked[Command.DEVICE_RESET] == 1
    assert asked[Command.DEVICE_GET_REGION_INFO] == 7
    assert asked[Command.DEVICE_GET_IRQ_INFO] == 2
    assert asked[Command.DMA_MAP] - asked[Command.DMA_UNMAP] in (1, 2)
