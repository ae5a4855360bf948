"""A Linux machine of a testbed: its disk, its boot, its monitor, and the ways in which it can end.

    off -> booting -> up -> off         up <-> suspended

All of it is called from one thread, the one that QEMU's life hangs on (see ``qemu.Machine.start``).
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from emucsd_femu import qemu, tsc
from emucsd_femu.accelerator import Accelerator
from emucsd_femu.errors import MonitorError, ShellError, TestbedError
from emucsd_femu.qemu import Machine
from emucsd_femu.qemu_root import Qemu
from emucsd_femu.qmp import Monitor
from emucsd_femu.server import listen
from emucsd_femu.shell import Door, Shell, Way, greets
from emucsd_images.image import Image
from emucsd_images.seed import Seed

BOOT_SECONDS = 600.0  # two Linuxes that start on a busy machine without KVM are slow; who hangs longer has failed
_READY = re.compile(r"^EMUCSD READY (\S+)", re.MULTILINE)
FORWARDED = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)")
_OFF_SECONDS = 60.0
_BUTTON_SECONDS = 20.0
_GREETING_SECONDS = 3.0
_MONITOR_SECONDS = 60.0
_A53 = "cortex-a53"


class State(StrEnum):
    """What a machine does."""

    OFF = "off"
    BOOTING = "booting"
    UP = "up"  # it answers by SSH
    SUSPENDED = "suspended"


class Plan(NamedTuple):
    """What a machine is made of."""

    name: str
    image: Image
    seed: Seed
    drives: Sequence[Path]  # vfio-user sockets
    memory: int  # bytes
    cpus: int
    host_key: str  # its public key
    key: str  # the user's private key
    address: str | None = None  # where sshd is, seen from the machine before it; None: by a forwarded port
    reachable: bool = True  # False: there is no network to it; it is up when it says so
    more: Sequence[str] = ()  # further words for QEMU


class LinuxMachine:
    """One machine, through as many boots as are asked for.

    :param folder: for console, monitor, QEMU's output
    :param disk: its root disk's overlay; made by ``prepare``
    :param image_tool: how to call qemu-img
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        disk: Path,
        emulator: Qemu,
        accelerator: Accelerator,
        image_tool: Sequence[str],
    ) -> None:
        self.plan, self.folder, self.disk = plan, folder, disk
        self.emulator, self.accelerator = emulator, accelerator
        self._image_tool = image_tool
        self.state = State.OFF
        self.port = 0  # of 127.0.0.1, where sshd is; 0 until it is known
        self.boots = 0
        self._greetings = 0  # READY lines before this boot
        self._machine: Machine | None = None
        self._monitor: Monitor | None = None

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def console(self) -> Path:
        """What it has printed, over all boots."""
        return self.folder / "console"

    @property
    def pid(self) -> int | None:
        """QEMU's process id while it runs."""
        return self._machine.pid if self._machine is not None and self._machine.status is None else None

    @property
    def running(self) -> bool:
        """Whether QEMU lives."""
        return self.pid is not None

    def door(self) -> Door:
        """Where its sshd is, seen from the machine before it."""
        address, port = (self.plan.address, 22) if self.plan.address else ("127.0.0.1", self.port)
        return Door(address, port, self.plan.key, self.plan.host_key)

    # -- beginning ---------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """A fresh disk over the image's, and the files that boot. :raises TestbedError: they can't be made"""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.disk.parent.mkdir(parents=True, exist_ok=True)
        self.disk.unlink(missing_ok=True)
        words = [*self._image_tool, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(self.plan.image.disk)]
        done = subprocess.run([*words, str(self.disk)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise TestbedError(f"{self.disk} can't be made: {done.stderr.strip()}")
        self.plan.seed.write(self.plan.image, self.folder / "initrd")
        self.console.write_bytes(b"")

    def words(self, monitor: int = 3) -> list[str]:
        """QEMU's command line."""
        image = self.plan.image
        emulated_arm = image.architecture == "aarch64" and self.accelerator.name == "tcg"
        network = qemu.network(self.port) if self.plan.address is None else []
        return qemu.command(
            self.emulator,
            kernel=image.kernel,
            initrd=self.folder / "initrd",
            append=f"{image.append} {tsc.words(image.architecture, self.accelerator.name)}".rstrip(),
            console_file=self.console,
            drives=self.plan.drives,
            memory_bytes=self.plan.memory,
            cpus=self.plan.cpus,
            accelerator=self.accelerator.argument,
            architecture=image.architecture,
            model=_A53 if emulated_arm else self.accelerator.model(image.architecture),
            more=[*qemu.disk(self.disk), *network, *qemu.chance(), *qemu.monitor(monitor), *self.plan.more],
            reboots=True,
        )

    def start(self) -> None:
        """Switch it on; ``look`` says when it is up. :raises TestbedError: it is on, or QEMU refuses"""
        if self.running:
            raise TestbedError(f"machine {self.name} runs already")
        self._greetings = self._ready_lines()
        listener = listen(self.folder / "qmp")
        try:
            listener.setblocking(True)
            words = self.words(listener.fileno())
            self._machine = Machine(words, self.folder, self.emulator.environment, [listener.fileno()])
            self._machine.start(fresh=False)
        finally:
            listener.close()
        try:
            self._monitor = Monitor.connect(self.folder / "qmp", _MONITOR_SECONDS)
            if self.plan.address is None:
                self.port = self._forwarded()
        except MonitorError as problem:
            self.cut()
            raise TestbedError(f"machine {self.name}: {problem}\n{self.last_words()}") from problem
        self.boots += 1
        self.state = State.BOOTING

    def _forwarded(self) -> int:
        """The port that QEMU took for SSH: it chose one that was free, so nobody else can have it."""
        assert self._monitor is not None
        told = self._monitor.human("info usernet")
        found = FORWARDED.search(told)
        if found is None:
            raise TestbedError(f"machine {self.name}: QEMU forwards no port: {told!r}")
        return int(found[1])

    def look(self, through: Callable[[], Way | None]) -> bool:
        """One step of waiting. :returns: whether it is up :raises TestbedError: it ended instead

        :param through: a connection to the machine that stands before this one; None: there is none to wait for
        """
        if self.state is State.UP:
            return True
        if not self.running:
            raise TestbedError(f"machine {self.name} ended while it started\n{self.last_words()}")
        if self._ready_lines() == self._greetings:
            return False
        if not self.plan.reachable:
            self.state = State.UP
            return True
        with contextlib.suppress(ShellError):
            before = through() if self.plan.address else None
            if greets(self.door(), _GREETING_SECONDS, before):
                self.state = State.UP
                return True
        return False

    @property
    def booted(self) -> bool:
        """Whether its init has said that it is done."""
        return self._ready_lines() > self._greetings

    def _ready_lines(self) -> int:
        with contextlib.suppress(OSError):
            return len(_READY.findall(self.console.read_text(errors="replace")))
        return 0

    def last_words(self) -> str:
        """The ends of its console and of QEMU's own output."""
        tails = []
        for path in (self.console, self.folder / "qemu.log"):
            with contextlib.suppress(OSError):
                tails.append(path.read_text(errors="replace")[-2000:].strip())
        return "\n".join(tail for tail in tails if tail)

    # -- what happens to it ------------------------------------------------------------------------------------------

    def suspend(self) -> None:
        """Stop its processors where they are. :raises TestbedError: it is not up"""
        self._need(State.UP)
        self._ask("stop")
        self.state = State.SUSPENDED

    def resume(self) -> None:
        """Let them go on. :raises TestbedError: it is not suspended"""
        self._need(State.SUSPENDED)
        self._ask("cont")
        self.state = State.UP

    def rebooting(self, shell: Shell) -> None:
        """Ask its Linux to reboot; ``look`` says when it is up again."""
        self._need(State.UP)
        self._greetings = self._ready_lines()
        self.state = State.BOOTING
        self.boots += 1
        with contextlib.suppress(ShellError):  # it may hang up before it has answered
            shell.run("reboot", _OFF_SECONDS)

    def cut_off(self) -> bool:
        """The machine before it went: it runs, and ``look`` says when it is reached again. :returns: whether it was"""
        if self.plan.address is None or self.state is not State.UP or not self.plan.reachable:
            return False
        self.state = State.BOOTING
        return True

    def cut(self) -> None:
        """kill -9: the power is gone, and with it all that was in memory."""
        self._hang_up()
        if self._machine is not None:
            self._machine.kill()
        self.state = State.OFF

    def power_off(self, shell: Shell | None) -> str:
        """Ask its Linux, then its power button, then kill it. :returns: which of these it took

        :param shell: a connection to it; None where there is none
        """
        if not self.running or self._machine is None:
            self.state = State.OFF
            return "was off"
        if self.state is State.SUSPENDED:
            self.resume()
        how = ""
        if shell is not None:
            with contextlib.suppress(ShellError):
                shell.run("poweroff", _GREETING_SECONDS)
            how = "powered off" if self._ends(_OFF_SECONDS) else ""
        if not how:
            with contextlib.suppress(MonitorError, TestbedError):
                self._ask("system_powerdown")
                how = "powered off by its button" if self._ends(_BUTTON_SECONDS) else ""
        self.cut()
        return how or "killed"

    def _ends(self, seconds: float) -> bool:
        assert self._machine is not None
        end = time.monotonic() + seconds
        while self._machine.status is None and time.monotonic() < end:
            time.sleep(0.05)
        return self._machine.status is not None

    def notice(self) -> bool:
        """Whether it has ended without being told to. Its state says so then."""
        if self.state is State.OFF or self.running:
            return False
        self._hang_up()
        self.state = State.OFF
        return True

    def _need(self, *states: State) -> None:
        self.notice()
        if self.state not in states:
            wanted = " or ".join(states)
            raise TestbedError(f"machine {self.name} is {self.state}; this needs one that is {wanted}")

    def _ask(self, command: str) -> None:
        try:
            if self._monitor is None:
                raise MonitorError("it has none")
            self._monitor.execute(command)
        except MonitorError as problem:
            raise TestbedError(f"machine {self.name}: {problem}") from problem

    def _hang_up(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None


@contextlib.contextmanager
def connected(machines: Sequence[LinuxMachine], seconds: float, way: Way | None = None) -> Iterator[Shell]:
    """A connection to the last of a row of machines, each reached from the one before. :raises ShellError: none

    :param way: to the first
    """
    with contextlib.ExitStack() as stack:
        shell: Shell | None = None
        for machine in machines:
            shell = stack.enter_context(Shell(machine.door(), seconds, shell or way))
        assert shell is not None, "name a machine"
        yield shell
