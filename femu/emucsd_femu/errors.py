"""Errors of the package that attaches drives and runs machines.

    FemuError                   base: catch this one to catch them all
    ├── SettingsError           the user's: settings that a drive process cannot be started with
    │   └── DescriptionError    ... or a testbed's description: names the key, its value and its limit
    ├── DriveRunning            another process already serves this runtime folder
    ├── RequestError            a control request is not one: unknown, malformed, too long; its sender is told
    ├── QemuMissing             no QEMU that can attach a drive, and none could be had; says why
    ├── MachineError            a virtual machine failed; carries its command, exit code and console
    │   └── MachineTimeout      it did not do what was waited for in time
    ├── MonitorError            a machine's monitor does not answer, or not in QMP
    │   └── MonitorRefused      it does, and refuses a command
    ├── ShellError              a machine can't be reached by SSH
    ├── TestbedError            a testbed can't be started, or can't do what was asked; says which part of it, and why
    ├── MessageError            a vfio-user client's: its message is answered with this errno
    └── ConnectionLost          a vfio-user client's: it closed, or its stream can't be followed any further

MessageError and ConnectionLost never leave a session: the first becomes an error reply, the second ends the
connection and resets the port. Nothing that a client sends ends the drive.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence


class FemuError(Exception):
    """Base of everything that this package raises on purpose."""


class SettingsError(FemuError):
    """A setting is missing, unknown or outside its limit. The user's."""


class DescriptionError(SettingsError):
    """A testbed's description can't be followed. The user's."""


class DriveRunning(FemuError):
    """The runtime folder belongs to a live drive process."""


class RequestError(FemuError):
    """A line on the control socket is no request. The sender's; the drive goes on."""


class QemuMissing(FemuError):
    """No usable QEMU: none is installed that is new enough, and a private one could not be made."""


class MachineError(FemuError):
    """A virtual machine failed.

    :param message: what was expected of it
    :param command: its command line
    :param status: its exit code, None while it ran
    :param console: the end of what it printed
    """

    def __init__(self, message: str, command: Sequence[str], status: int | None, console: str) -> None:
        super().__init__(message)
        self.command = tuple(command)
        self.status = status
        self.console = console

    def __str__(self) -> str:
        state = "still running" if self.status is None else f"exit code {self.status}"
        return f"{self.args[0]} ({state})\ncommand: {shlex.join(self.command)}\nconsole:\n{self.console}"


class MachineTimeout(MachineError):
    """A virtual machine did not get there in time."""


class MonitorError(FemuError):
    """QEMU's monitor is gone, silent, or no monitor."""


class MonitorRefused(MonitorError):
    """QEMU understood and said no."""


class ShellError(FemuError):
    """A machine does not answer by SSH, or not as the machine that it should be."""


class TestbedError(FemuError):
    """A part of a testbed failed."""

    __test__ = False  # no test class, whatever pytest takes its name for


class MessageError(FemuError):
    """The client's message is wrong: it gets ``errno`` back."""

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message)
        self.errno = errno


class ConnectionLost(FemuError):
    """The connection is over: closed by the client, or out of step. ``clean``: it ended between two messages."""

    def __init__(self, message: str, *, clean: bool = False) -> None:
        super().__init__(message)
        self.clean = clean
