"""One Linux machine on drives that somebody else runs: boot it, run commands in it, cut its power.

A testbed without supervisor, tunnel and cluster, for what wants a machine of its own: benchmarks and destructive tests.
Nothing here needs root.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from emucsd_femu import qemu_root
from emucsd_femu.accelerator import choose
from emucsd_femu.errors import ShellError, TestbedError
from emucsd_femu.keys import KeyPair
from emucsd_femu.machine import BOOT_SECONDS, LinuxMachine, Plan
from emucsd_femu.shell import Answer, Shell
from emucsd_images.image import image
from emucsd_images.seed import Seed

_CONNECT_SECONDS = 30.0
_LOOK_SECONDS = 0.05
IMAGE = "host-small"


class SingleMachine:
    """A host machine. Leaving its ``with`` ends it, whatever happened.

    :param folder: for its disk, console and QEMU's output; short: sockets lie in it
    :param drives: sockets of the drives' ports
    :param more: further words for QEMU
    :raises QemuMissing, ImageMissing: it can't be had here; the text says why
    """

    def __init__(
        self,
        folder: Path,
        drives: Sequence[Path],
        *,
        memory: int = 1 << 30,
        more: Sequence[str] = (),
        progress: Callable[[str], None] = print,
    ) -> None:
        found = image(IMAGE, progress=progress)
        self.emulator = qemu_root.find(found.architecture, progress=progress)
        self.accelerator = choose(self.emulator, found.architecture, found.kernel)
        user, own = KeyPair.make(), KeyPair.make()
        seed = Seed("host", own.private, user.public, "slirp")
        plan = Plan("host", found, seed, drives, memory, 1, own.public, user.private, more=more)
        tool = qemu_root.image_tool(progress=progress)
        self.machine = LinuxMachine(plan, folder, folder / "root.qcow2", self.emulator, self.accelerator, tool)
        self.machine.prepare()
        self._shell: Shell | None = None

    def __enter__(self) -> SingleMachine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()

    @property
    def pid(self) -> int:
        """QEMU's process id. :raises TestbedError: it does not run"""
        pid = self.machine.pid
        if pid is None:
            raise TestbedError(f"the machine does not run\n{self.machine.last_words()}")
        return pid

    def start(self) -> None:
        """Switch it on and wait until it answers. :raises TestbedError: it does not"""
        self.machine.start()
        try:
            self.wait_up()
        except BaseException:
            self.cut()
            raise

    def wait_up(self) -> None:
        """Until its SSH answers. :raises TestbedError: it ended, or took too long"""
        end = time.monotonic() + BOOT_SECONDS
        while not self.machine.look(lambda: None):
            if time.monotonic() > end:
                raise TestbedError(f"the machine did not come up in {BOOT_SECONDS:g} s\n{self.machine.last_words()}")
            time.sleep(_LOOK_SECONDS)

    def run(self, command: str, seconds: float = 60.0, *, check: bool = True) -> Answer:
        """A command by SSH, as root, its output and errors together.

        :param check: a status other than 0 is an error
        :raises ShellError: it failed, took longer, or the machine does not answer
        """
        if self._shell is None or not self._shell.alive:
            self._shell = Shell(self.machine.door(), _CONNECT_SECONDS)
        answer = self._shell.run(command, seconds)
        if check and answer.status:
            raise ShellError(f"{command!r} ended with {answer.status}: {answer.out.strip()[-2000:]}")
        return answer

    def reboot(self) -> None:
        """Its Linux reboots, and is up again on return."""
        self.run("true")
        assert self._shell is not None
        self.machine.rebooting(self._shell)
        self._hang_up()
        self.wait_up()

    def cut(self) -> None:
        """kill -9 of QEMU: a power cut."""
        self.machine.cut()
        self._hang_up()

    def _hang_up(self) -> None:
        if self._shell is not None:
            self._shell.close()
            self._shell = None
