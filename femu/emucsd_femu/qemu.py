"""A virtual machine with drives: its command line, its life, its console.

    with Machine(command(qemu, kernel=..., drives=[socket]), folder) as machine:
        machine.wait_for("login:", 30)

The command line is a list made of small lists, one function a device. A machine's console and QEMU's own words go to
files in its folder. Leaving the ``with`` block ends it, whatever happened: asked, then killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from emucsd_femu.errors import MachineError, MachineTimeout
from emucsd_femu.qemu_root import OLDEST, Qemu

MESSAGE_TIMEOUT_MS = 60_000  # QEMU gives a drive 5 s by default, real time; on a loaded machine that is little
FIRST_DRIVE_SLOT = 0x10  # drive n is PCI function 00:(10 + n).0 in the guest
MOST_DRIVES = 8
_MACHINES = {"x86_64": "q35", "aarch64": "virt,gic-version=3"}
_ASK_SECONDS = 5.0
_LOOK_SECONDS = 0.02
_TAIL = 4000


def memory(size: int, architecture: str = "x86_64") -> list[str]:
    """Guest memory that a drive can map: an anonymous file, shared. Without it the drive sees none of it."""
    return [
        "-object", f"memory-backend-memfd,id=mem,size={size},share=on",
        "-machine", f"{_MACHINES[architecture]},memory-backend=mem",
    ]  # fmt: skip


def processor(cpus: int, accelerator: str, model: str = "max") -> list[str]:
    """Virtual CPUs. Every one is a busy thread: on two cores one leaves room for the drive."""
    return ["-accel", accelerator, "-smp", str(cpus), "-cpu", model]


def boot(kernel: Path, initrd: Path, append: str) -> list[str]:
    """Boot a kernel directly."""
    return ["-kernel", str(kernel), "-initrd", str(initrd), "-append", append]


def console(path: Path) -> list[str]:
    """The serial port, to the end of a file."""
    return ["-chardev", f"file,id=console,path={_value(path)},append=on", "-serial", "chardev:console"]


def drive(socket: Path, *, slot: int | None = None, rombar: bool = True) -> list[str]:
    """A drive by one of its vfio-user sockets. The nested socket address needs JSON.

    :param slot: where on the root bus, so that guests can tell drives apart; QEMU's choice where not given
    :param rombar: False: QEMU does not look for an option ROM (FEMU's binary must not)
    """
    device: dict[str, Any] = {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": str(socket)},
        "x-msg-timeout": MESSAGE_TIMEOUT_MS,
    }
    if slot is not None:
        device["addr"] = f"{slot:x}"
    if not rombar:
        device["rombar"] = 0
    return ["-device", json.dumps(device)]


def disk(path: Path) -> list[str]:
    """A qcow2 file as a virtio disk. Flushes reach the file, not the platter: it dies with its testbed anyway."""
    return [
        "-drive", f"if=none,id=root,file={_value(path)},format=qcow2,cache=unsafe,discard=unmap",
        "-device", "virtio-blk-pci,drive=root,addr=2",
    ]  # fmt: skip


def network(port: int = 0) -> list[str]:
    """A network card behind QEMU's own address translation; SSH is reached by a port of 127.0.0.1 alone.

    :param port: 0: QEMU takes a free one, and its monitor tells which
    """
    return [
        "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device", "virtio-net-pci,netdev=net,addr=3,romfile=",
    ]  # fmt: skip


def chance() -> list[str]:
    """Random numbers from this machine: without them a guest's sshd waits for its own."""
    return ["-device", "virtio-rng-pci,addr=4"]


def monitor(descriptor: int) -> list[str]:
    """QMP on a listening socket that QEMU inherits: there is no moment when it is not there."""
    return ["-chardev", f"socket,id=qmp,fd={descriptor},server=on,wait=off", "-qmp", "chardev:qmp"]


def _value(path: Path) -> str:
    """A file name inside of an option list: commas are doubled."""
    return str(path).replace(",", ",,")


def command(
    qemu: Qemu,
    *,
    kernel: Path,
    initrd: Path,
    append: str,
    console_file: Path,
    drives: Sequence[Path] = (),
    memory_bytes: int = 512 << 20,
    cpus: int = 1,
    accelerator: str = "tcg,thread=multi",
    architecture: str = "x86_64",
    model: str = "max",
    more: Sequence[str] = (),
    reboots: bool = False,
) -> list[str]:
    """The whole command line of a machine without a screen, a network or anything else it was not given.

    :param more: further words: root disk, network card, monitor, whatever a fork of QEMU has of its own
    :param reboots: a guest's reboot boots it again; else it ends QEMU
    """
    old = qemu.version < OLDEST  # FEMU's base: it reads a ROM that is not there
    drive_words = [
        word
        for number, socket in enumerate(drives)
        for word in drive(socket, slot=FIRST_DRIVE_SLOT + number, rombar=not old)
    ]
    return [
        *qemu.command,
        "-no-user-config", "-nodefaults", "-display", "none", *([] if reboots else ["-no-reboot"]),
        *memory(memory_bytes, architecture),
        *processor(cpus, accelerator, model),
        *boot(kernel, initrd, append),
        *console(console_file),
        *drive_words,
        *more,
    ]  # fmt: skip


class Machine:
    """A running QEMU.

    :param words: its command line
    :param folder: where its console (``console``) and QEMU's output (``qemu.log``) are
    :param fds: descriptors that QEMU inherits
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        environment: dict[str, str] | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        self.words = list(words)
        self.console_file = folder / "console"
        self._output = folder / "qemu.log"
        self._environment = {**{k: os.environ[k] for k in ("PATH", "TMPDIR") if k in os.environ}, **(environment or {})}
        self._fds = tuple(fds)
        self._process: subprocess.Popen[bytes] | None = None
        self.ended = ""  # how: of itself, asked, or killed
        self.asked_seconds = _ASK_SECONDS  # how long it may take to end when asked

    def __enter__(self) -> Machine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *, fresh: bool = True) -> None:
        """Run QEMU. It ends with the thread that calls this: that must be one that lasts.

        :param fresh: False: what an earlier machine in this folder printed is kept
        :raises OSError: QEMU can't be run at all
        """
        if fresh:
            self.console_file.write_bytes(b"")
        # if this process is killed so is the machine; the end of the calling thread counts as such
        guard = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with open(self._output, "wb") as output:
            self._process = subprocess.Popen(
                [*guard, *self.words], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment,
                start_new_session=True, pass_fds=self._fds,
            )  # fmt: skip

    @property
    def pid(self) -> int | None:
        """QEMU's process id, None before its start."""
        return None if self._process is None else self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit code, None while it runs."""
        return None if self._process is None else self._process.poll()

    def text(self) -> str:
        """What the guest has printed so far."""
        return self.console_file.read_text(errors="replace")

    def wait_for(self, wanted: str, seconds: float) -> str:
        """Wait until the guest has printed ``wanted``. :returns: the console up to its line's end

        :raises MachineError: it ended without
        :raises MachineTimeout: it did not get there in time
        """
        end = time.monotonic() + seconds
        while True:
            ended = self.status is not None
            text = self.text()
            at = text.find(wanted)
            if at >= 0 and (line_end := text.find("\n", at)) >= 0:
                return text[:line_end]
            if ended:
                raise self._error(MachineError, f"the machine ended before it printed {wanted!r}")
            if time.monotonic() > end:
                raise self._error(MachineTimeout, f"the machine did not print {wanted!r} in {seconds:g} s")
            time.sleep(_LOOK_SECONDS)

    def wait(self, seconds: float) -> int:
        """Wait for its end. :returns: its exit code :raises MachineTimeout: it still runs"""
        assert self._process is not None, "start it first"
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired as problem:
            raise self._error(MachineTimeout, f"the machine did not end in {seconds:g} s") from problem
        self.ended = self.ended or "of itself"
        return status

    def stop(self) -> None:
        """End it: ask QEMU, wait a little, then kill. Harmless when it has ended."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self.ended = "asked"
            self._process.terminate()
            try:
                self._process.wait(self.asked_seconds)
            except subprocess.TimeoutExpired:
                self.ended = "killed"
                self._process.kill()
                self._process.wait()
        self.ended = self.ended or "of itself"

    def kill(self) -> None:
        """End it as a crash would: no goodbye to the drive."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self.ended = "killed"

    def _error(self, kind: type[MachineError], message: str) -> MachineError:
        seen = self.text()[-_TAIL:] + "\n" + self._output.read_text(errors="replace")[-_TAIL:]
        return kind(message, self.words, self.status, seen)
