"""QEMU's monitor as the real one speaks it, and the trial that tells KVM from TCG, with the real kernels."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_femu import accelerator, qemu, qemu_root
from emucsd_femu.errors import MonitorError, MonitorRefused
from emucsd_femu.machine import FORWARDED
from emucsd_femu.qmp import Monitor
from emucsd_femu.server import listen
from emucsd_images.image import image
from tests.system.conftest import require_machines

pytestmark = pytest.mark.vm


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A machine without a disk whose processor has not begun, and its monitor's socket."""
    require_machines()
    emulator = qemu_root.find()
    path = tmp_path / "qmp"
    listener = listen(path)
    listener.setblocking(True)
    words = ["-nodefaults", "-display", "none", "-S", "-machine", "q35", "-accel", "tcg", "-m", "64M"]
    words += [*qemu.network(), *qemu.monitor(listener.fileno())]
    with subprocess.Popen([*emulator.command, *words], pass_fds=[listener.fileno()], start_new_session=True) as process:
        listener.close()
        try:
            yield process, path
        finally:
            process.kill()


def test_a_machine_is_stopped_and_goes_on(idle: tuple[subprocess.Popen[bytes], Path]) -> None:
    """stop and cont change its state and are told as events; a second connection finds it as the first left it."""
    _, path = idle
    with Monitor.connect(path) as monitor:
        assert monitor.version >= (10, 1, 0)
        monitor.execute("cont")
        assert monitor.status() == "running"
        monitor.execute("stop")
        assert monitor.status() == "paused"
        assert monitor.wait_event("STOP", 10)["event"] == "STOP"
    with Monitor.connect(path) as monitor:
        assert monitor.status() == "paused"


def test_what_qemu_refuses(idle: tuple[subprocess.Popen[bytes], Path]) -> None:
    """Its own words arrive, and the monitor goes on."""
    with Monitor.connect(idle[1]) as monitor:
        with pytest.raises(MonitorRefused, match="no-such-command"):
            monitor.execute("no-such-command")
        with pytest.raises(MonitorRefused, match="device_del"):
            monitor.execute("device_del", id="nothing")
        assert monitor.status() == "prelaunch"


def test_qemu_tells_the_port_that_it_took(idle: tuple[subprocess.Popen[bytes], Path]) -> None:
    """A forwarded port of 0 is a free one, on 127.0.0.1 alone."""
    with Monitor.connect(idle[1]) as monitor:
        told = monitor.human("info usernet")
    found = FORWARDED.search(told)
    assert found is not None, told
    socket.create_connection(("127.0.0.1", int(found[1])), 10).close()


def test_a_machine_that_dies_is_noticed(idle: tuple[subprocess.Popen[bytes], Path]) -> None:
    """The next command says that it is gone; so does a new connection."""
    process, path = idle
    with Monitor.connect(path) as monitor:
        process.kill()
        process.wait()
        with pytest.raises(MonitorError, match=r"gone|hung up"):
            monitor.execute("query-status")
    with pytest.raises(MonitorError, match="has the machine ended"):
        Monitor.connect(path)


@pytest.mark.parametrize("name", ["host-small", "isp-small"])
def test_the_trial_boots_a_kernel(name: str) -> None:
    """The hand-made program runs as the first one of a real kernel, on either architecture."""
    require_machines()
    found = image(name)
    emulator = qemu_root.find(found.architecture)
    tried = accelerator.trial(emulator, found.architecture, found.kernel, "tcg")
    assert tried.name == "tcg"
    assert "booted" in tried.reason, tried.reason
