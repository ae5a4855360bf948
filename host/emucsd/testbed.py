"""A testbed from a program: drives, the host machine, the machines in the drives.

with Testbed.start(small=True) as testbed:
    testbed.host.put("job.fio", "/root/job.fio")
    print(testbed.host.run("fio /root/job.fio", check=True).out)
    testbed.host.power_cut()
    print(testbed.isp(0).run("nproc").out)
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from emucsd.control import Control
from emucsd.errors import DriveNotFound, EmucsdError, InvalidArgument, MachineNotFound, TestbedNotFound
from emucsd.process import launch
from emucsd.ssh import Run, Ssh, connect
from emucsd_wire import paths

DEFAULT_NAME = "testbed"
RECORD = "testbed.json"
START_SECONDS = 3600.0  # the very first one makes images and compiles firmware
ACT_SECONDS = 1200.0  # a reboot of an emulated machine, behind whatever else is in hand
_STOP_SECONDS = 300.0
_END_SECONDS = 60.0  # from its answer, or its owner's end, to the end of its process


class Machine:
    """One machine of a testbed. Its SSH connection is made when it is needed, and again after it broke."""

    def __init__(self, testbed: Testbed, name: str) -> None:
        self.testbed, self.name = testbed, name
        self._ssh: Ssh | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What the testbed knows about it now: state, process, boots, where its console and sshd are."""
        return dict(self.testbed.status()["machines"][self.name])

    @property
    def ssh(self) -> Ssh:
        """A connection to it. :raises MachineUnreachable: it does not answer"""
        if self._ssh is None or not self._ssh.alive:
            self.hang_up()
            self._ssh = connect(self.testbed.status(), self.name)
        return self._ssh

    def hang_up(self) -> None:
        """Close the connection, if there is one."""
        if self._ssh is not None:
            self._ssh.close()
            self._ssh = None

    def run(self, command: str | Sequence[str], **options: Any) -> Run:
        """One command; see ``Ssh.run`` for options and errors."""
        return self.ssh.run(command, **options)

    def put(self, source: str | Path | bytes, target: str) -> None:
        """A file, folder or bytes to the machine."""
        self.ssh.put(source, target)

    def get(self, source: str, target: str | Path | None = None) -> bytes:
        """A file from the machine: its bytes, and with ``target`` a file here."""
        return self.ssh.get(source, target)

    def console(self) -> str:
        """All that it has printed on its console, over all boots."""
        return Path(self.about["console"]).read_text(errors="replace")

    # each returns {"how", "state", "seconds"} and raises ControlError when it can't be done in the state it is in

    def reboot(self) -> dict[str, Any]:
        """Its Linux reboots; back when SSH answers again."""
        return self._act("reboot")

    def power_cut(self) -> dict[str, Any]:
        """Its power goes, with all that was not written, and comes back; back when SSH answers again."""
        return self._act("power-cut")

    def kill(self) -> dict[str, Any]:
        """Its power goes and stays away."""
        return self._act("kill")

    def stop(self) -> dict[str, Any]:
        """It is shut down in order and stays off."""
        return self._act("stop")

    def start(self) -> dict[str, Any]:
        """It is switched on; back when SSH answers."""
        return self._act("start")

    def suspend(self) -> dict[str, Any]:
        """Its processors stop where they are."""
        return self._act("suspend", hang_up=False)

    def resume(self) -> dict[str, Any]:
        """They go on."""
        return self._act("resume", hang_up=False)

    def _act(self, action: str, *, hang_up: bool = True) -> dict[str, Any]:
        if hang_up:
            self.hang_up()
        return self.testbed.control.call("machine", name=self.name, action=action)


class TestbedDrive:
    """One drive of a testbed: its control API, and what can happen to its process."""

    __test__ = False  # no test class, whatever pytest takes its name for

    def __init__(self, testbed: Testbed, name: str, runtime: Path) -> None:
        self.testbed, self.name, self.runtime = testbed, name, runtime
        self.control = Control(runtime)

    def kill(self) -> None:
        """kill -9."""
        self._act("kill")

    def start(self) -> None:
        """Start it again. A machine that was attached sees it at its next boot (``power_cut``, not ``reboot``)."""
        self._act("start")

    def restart(self) -> None:
        """kill -9, then start."""
        self._act("restart")

    def _act(self, action: str) -> None:
        self.testbed.control.call("drive", name=self.name, action=action)


class Testbed:
    """A running testbed. Leaving its ``with`` ends one that ``start`` made, and lets go of one that ``open`` found.

    :ivar control: its supervisor's control socket
    """

    __test__ = False  # no test class

    def __init__(self, runtime: Path, lifeline: int = -1, process: subprocess.Popen[bytes] | None = None) -> None:
        self.runtime = runtime
        self._process = process  # the supervisor, where it is ours
        self.control = Control(runtime, timeout=ACT_SECONDS)
        self._lifeline = lifeline
        self._machines: dict[str, Machine] = {}
        if lifeline >= 0:
            atexit.register(self.close)

    @classmethod
    def open(cls, name: str = DEFAULT_NAME) -> Testbed:
        """One that ``emucsd up`` started. :raises TestbedNotFound: none of that name runs"""
        found = cls(paths.runtime_folder(name))
        found.status()
        return found

    @classmethod
    def start(
        cls,
        file: str | Path | None = None,
        *,
        name: str | None = None,
        small: bool = False,
        drive: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> Testbed:
        """One of this program's own: it ends with it, however that comes.

        :param file: its description (docs/testbed.md); None: a drive, a host machine, a machine in the drive
        :param name: instead of the description's
        :param small: the small images
        :param drive: ``profile``, ``size``, ``clock``, ``store``, ``firmware``, ``set`` of its only drive
        :param tell: is told what happens meanwhile
        :raises StartFailed: it could not be started; says why
        """
        argv, runtime = command(file, name=name, small=small, drive=drive)
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        alive, lifeline = os.pipe()
        try:
            with open(alive, "rb"):
                process = launch(argv, runtime, lifeline=alive, tell=tell, timeout=START_SECONDS, what="testbed")
        except BaseException:
            os.close(lifeline)
            raise
        return cls(runtime, lifeline, process)

    def __enter__(self) -> Testbed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go; one that ``start`` made ends (machines without being asked: ``stop`` asks them)."""
        atexit.unregister(self.close)
        for machine in self._machines.values():
            machine.hang_up()
        if self._lifeline >= 0:
            with contextlib.suppress(EmucsdError):
                self.control.call("stop", force=True)
            os.close(self._lifeline)
            self._lifeline = -1
            assert self._process is not None
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:  # machines and drives end with it
                self._process.kill()
                self._process.wait()

    def stop(self, *, force: bool = False) -> dict[str, str]:
        """End it, machines in order, or with ``force`` by their power. :returns: machine -> how it went"""
        for machine in self._machines.values():
            machine.hang_up()
        with contextlib.ExitStack() as stack:
            supervisor = os.pidfd_open(int(self.status()["pid"]))
            stack.callback(os.close, supervisor)
            how: dict[str, str] = Control(self.runtime, timeout=_STOP_SECONDS).call("stop", force=force)["how"]
            poller = select.poll()
            poller.register(supervisor, select.POLLIN)
            poller.poll(_END_SECONDS * 1000)  # it removes its folder last
        return how

    def status(self) -> dict[str, Any]:
        """What ``testbed.json`` holds, as of now. :raises TestbedNotFound: it does not run"""
        try:
            return self.control.call("status")
        except DriveNotFound as exc:
            known = ", ".join(names()) or "none"
            raise TestbedNotFound(f"no testbed answers in {self.runtime}; there are: {known}; emucsd up") from exc

    def machine(self, name: str) -> Machine:
        """One of its machines. :raises MachineNotFound: there is none of that name"""
        if name not in self._machines:
            if name not in (there := self.status()["machines"]):
                raise MachineNotFound(f"no machine {name!r}; there are {', '.join(there) or 'none'}")
            self._machines[name] = Machine(self, name)
        return self._machines[name]

    @property
    def host(self) -> Machine:
        """The host machine."""
        return self.machine("host")

    def isp(self, number: int = 0) -> Machine:
        """The machine in drive ``number``."""
        return self.machine(f"isp{number}")

    def drive(self, number: int = 0) -> TestbedDrive:
        """Drive ``number``. :raises InvalidArgument: there are fewer"""
        drives = self.status()["drives"]
        if not 0 <= number < len(drives):
            raise InvalidArgument(f"drive {number}: this testbed has {len(drives)}, from 0 on")
        return TestbedDrive(self, drives[number]["name"], Path(drives[number]["runtime"]))

    @property
    def token(self) -> str:
        """What the agents want to hear."""
        return Path(self.status()["token"]).read_text().strip()


def command(
    file: str | Path | None = None,
    *,
    name: str | None = None,
    small: bool = False,
    drive: Mapping[str, Any] | None = None,
) -> tuple[list[str], Path]:
    """The supervisor's command line, and its runtime folder. :raises InvalidArgument: the file can't be read"""
    runtime = paths.runtime_folder(name or _named(file))
    paths.control_socket(runtime)
    words = [sys.executable, "-m", "emucsd_femu", "testbed", "--runtime", str(runtime)]
    words += ["--file", str(Path(file).absolute())] if file is not None else []
    words += ["--name", name] if name is not None else []
    words += ["--small"] if small else []
    for field, value in (drive or {}).items():
        if field == "set":
            pairs = [f"{key}={one}" for key, one in value.items()] if isinstance(value, Mapping) else list(value)
            words += [word for pair in pairs for word in ("--set", pair)]
        elif value is not None:
            words += [f"--{field}", str(value)]
    return words, runtime


def _named(file: str | Path | None) -> str:
    """What a description calls its testbed; all else in it is the supervisor's to check."""
    if file is None:
        return DEFAULT_NAME
    try:
        about = tomllib.loads(Path(file).read_text()).get("testbed", {})
    except OSError as exc:
        raise InvalidArgument(f"{file}: {exc.strerror}") from exc
    except ValueError as exc:
        raise InvalidArgument(f"{file}: no TOML: {exc}") from exc
    name = about.get("name", DEFAULT_NAME) if isinstance(about, dict) else DEFAULT_NAME
    return name if isinstance(name, str) else DEFAULT_NAME


def names() -> list[str]:
    """Testbeds that have a runtime folder, running or not."""
    root = paths.runtime_root()
    return sorted(path.parent.name for path in root.glob(f"*/{RECORD}")) if root.is_dir() else []


def described(name: str) -> dict[str, Any] | None:
    """What a testbed last wrote about itself; None: there is none of that name."""
    try:
        return dict(json.loads((paths.runtime_folder(name) / RECORD).read_text()))
    except (OSError, ValueError):
        return None


def owner(drive: str) -> str | None:
    """The running testbed that a drive belongs to."""
    for name in names():
        about = described(name)
        if about and drive in [one["name"] for one in about["drives"]] and _alive(int(about["pid"])):
            return name
    return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_dead(name: str) -> None:
    """The folder of a testbed whose supervisor is gone; what else it left is swept when the next one starts."""
    shutil.rmtree(paths.runtime_folder(name), ignore_errors=True)
