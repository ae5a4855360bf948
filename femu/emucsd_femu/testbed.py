"""A testbed: drives, the host machine, a machine in each drive, started together and ended together.

Everything that starts or ends a process here runs in one thread, which lasts as long as the testbed: QEMU dies with the
thread that started it. ``status`` may be asked from any.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from emucsd_femu import femu, machine, plans, qemu_root, services
from emucsd_femu.accelerator import Accelerator, choose
from emucsd_femu.description import Description, DriveOf
from emucsd_femu.drives import DriveChild, await_all
from emucsd_femu.errors import ShellError, TestbedError
from emucsd_femu.keys import KeyPair
from emucsd_femu.machine import LinuxMachine, State
from emucsd_femu.plans import HOST
from emucsd_femu.qemu_root import Qemu
from emucsd_femu.services import Service
from emucsd_femu.shell import Proxy, Shell, Way
from emucsd_images.errors import ImagesError
from emucsd_images.image import Image, image
from emucsd_wire import paths

RECORD = "testbed.json"
SSH_SECONDS = 300.0  # from a machine's own word that it is up until it is reached
_CONNECT_SECONDS = 30.0
_LOOK_SECONDS = 0.05

Progress = Callable[[str], None]


class Testbed:
    """A testbed, by its description.

    :param runtime: its runtime folder, held by this process
    :param lifeline: the reading end of a pipe that this process holds open: the drives end with it
    :param progress: is told what happens while it starts
    :ivar cancelled: set: whatever waits gives up
    """

    __test__ = False  # no test class

    def __init__(self, description: Description, runtime: Path, lifeline: int, progress: Progress) -> None:
        self.description, self.runtime = description, runtime
        self.progress = progress
        self.cancelled = threading.Event()
        self.state = "starting"
        self.seconds: dict[str, float] = {}  # machine -> from the start until SSH answered
        self.drives = [DriveChild(drive, lifeline) for drive in description.drives]
        self.machines: dict[str, LinuxMachine] = {}
        self.reasons: dict[str, str] = {}  # why this QEMU and this accelerator, by architecture
        self.services: list[Service] = []
        self._begun = time.monotonic() - process_age()
        self._token = secrets.token_hex(16)
        self._key = KeyPair.make()
        self._disks = paths.store_folder(description.name) / "machines"

    # -- beginning ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Until SSH answers everywhere.

        :raises FemuError, ImagesError, OSError: it can't be; what runs by then is to be stopped
        """
        self._key.write(self.runtime / "id_ed25519")
        (self.runtime / "token").touch(0o600)
        (self.runtime / "token").write_text(f"{self._token}\n")
        self.write_record()
        for child in self.drives:
            child.start()
        self.progress("preparing machines")
        self._make_machines()
        self.progress("starting drives")
        await_all(self.drives, cancelled=self.cancelled, progress=self.progress)
        self._start_services()
        for one in self.machines.values():
            one.start()
            self.write_record()
        self._await_machines(list(self.machines.values()))
        self._await_engines()
        self.state = "up"
        self.write_record()

    def _start_services(self) -> None:
        """What runs here instead of in a machine."""
        isps = self.description.isps
        if HOST not in plans.wanted(self.description) and isps and self.description.tunnel.enabled:
            self.services.append(services.host_end(self.description, self.runtime))
        for number, drive in isps.items():
            if drive.isp.engine == "local":
                name = plans.isp_name(number)
                tunnel = self.description.tunnel.enabled
                self.services.append(services.local_engine(name, drive, self.runtime, tunnel=tunnel))
        for service in self.services:
            service.keep()

    def _await_engines(self) -> None:
        """Until every local engine's agent is reached. :raises TestbedError: one is not"""
        if not self.description.tunnel.enabled:
            return
        end = time.monotonic() + SSH_SECONDS
        for number, drive in self.description.isps.items():
            name = plans.isp_name(number)
            with self._bridge() as bridge:
                while drive.isp.engine == "local" and not self._engine_answers(number, bridge):
                    self.progress(f"{name}: starting")
                    self._keep_services()
                    if self.cancelled.wait(_LOOK_SECONDS):
                        raise TestbedError("stopped while it started")
                    if time.monotonic() > end:
                        words = "\n".join(service.last_words() for service in self.services)
                        raise TestbedError(f"{name}: its agent is not reached after {SSH_SECONDS:g} s\n{words}")
            if drive.isp.engine == "local":
                self.seconds[name] = round(time.monotonic() - self._begun, 3)

    def _engine_answers(self, number: int, bridge: Callable[[], Way]) -> bool:
        with contextlib.suppress(ShellError):
            bridge().channel(self.description.tunnel.address(number), services.AGENT_PORT, _CONNECT_SECONDS).close()
            return True
        return False

    def _keep_services(self) -> None:
        for service in self.services:
            service.keep()

    def _make_machines(self) -> None:
        """Their disks and seeds; the drives start meanwhile."""
        wanted = plans.wanted(self.description)
        if not wanted:
            return
        tool = qemu_root.image_tool(progress=self.progress)
        host_keys = {name: KeyPair.make() for name in wanted}
        for name, recipe in wanted.items():
            if self.cancelled.is_set():
                raise TestbedError("stopped while it started")
            found = image(recipe, progress=self.progress)
            emulator, accelerator = self._emulator(found, own=name == HOST and self.description.host.qemu == "femu")
            plan = plans.plan(self.description, name, found, self._key, host_keys[name], self._token, emulator)
            if name == HOST and self.description.host.compare == "femu":
                plan = plan._replace(more=femu.beside(self.description.drives[0], self.progress))
            made = LinuxMachine(plan, self.runtime / name, self._disks / f"{name}.qcow2", emulator, accelerator, tool)
            made.prepare()
            self.machines[name] = made

    def _emulator(self, found: Image, *, own: bool) -> tuple[Qemu, Accelerator]:
        """QEMU and accelerator for an image, with the reasons. ``own``: FEMU's binary."""
        emulator = femu.find() if own else qemu_root.find(found.architecture, progress=self.progress)
        accelerator = choose(emulator, found.architecture, found.kernel)
        self.reasons[found.architecture] = f"{emulator}; {accelerator}"
        return emulator, accelerator

    def _await_machines(self, waiting: list[LinuxMachine], *, timed: bool = True) -> None:
        """Until SSH answers on each. :raises TestbedError: one ended, or took too long"""
        end = time.monotonic() + machine.BOOT_SECONDS
        told: set[str] = set()
        booted: dict[str, float] = {}
        waiting = list(waiting)
        with self._bridge() as bridge:
            while waiting:
                for one in list(waiting):
                    if one.look(bridge):
                        waiting.remove(one)
                        seconds = round(time.monotonic() - self._begun, 3)
                        if timed:
                            self.seconds.setdefault(one.name, seconds)
                        self.progress(f"{one.name}: answers by SSH after {seconds:.1f} s")
                    elif one.booted and time.monotonic() - booted.setdefault(one.name, time.monotonic()) > SSH_SECONDS:
                        raise TestbedError(
                            f"machine {one.name} is up but can't be reached for {SSH_SECONDS:g} s; its tunnel's log is "
                            f"in it (/var/log), its console says:\n{one.last_words()}"
                        )
                    elif one.name not in told:
                        told.add(one.name)
                        self.progress(f"{one.name}: booting ({one.accelerator.name.upper()})")
                if self.cancelled.wait(_LOOK_SECONDS):
                    raise TestbedError("stopped while it started")
                if time.monotonic() > end:
                    names = ", ".join(one.name for one in waiting)
                    raise TestbedError(f"{names}: no SSH after {machine.BOOT_SECONDS:g} s\n{waiting[0].last_words()}")

    @contextlib.contextmanager
    def _bridge(self) -> Iterator[Callable[[], Way]]:
        """A connection to the host machine, made when it is first needed and again when it broke; else the proxy."""
        held: list[Shell] = []

        def bridge() -> Way:
            if HOST not in self.machines:
                return self._proxy()
            host = self.machines[HOST]
            if host.state is not State.UP:
                raise ShellError("the host machine is not up")
            if not held or not held[0].alive:
                held[:] = [Shell(host.door(), _CONNECT_SECONDS)]
            return held[0]

        try:
            yield bridge
        finally:
            for shell in held:
                shell.close()

    # -- what can be done to it --------------------------------------------------------------------------------------

    def act(self, name: str, action: str) -> dict[str, Any]:
        """Something that happens to a machine. :raises TestbedError: no such machine, or it can't be now"""
        if name not in self.machines:
            raise TestbedError(f"no machine {name!r}; there are {', '.join(self.machines) or 'none'}")
        one = self.machines[name]
        begun = time.monotonic()
        how = {
            "reboot": self._reboot, "power-cut": self._power_cut, "kill": self._kill, "stop": self._power_off,
            "start": self._switch_on, "suspend": self._suspend, "resume": self._resume,
        }[action](one)  # fmt: skip
        self.write_record()
        return {"machine": name, "how": how, "state": one.state, "seconds": round(time.monotonic() - begun, 3)}

    def _reboot(self, one: LinuxMachine) -> str:
        with self._connected(one) as shell:
            one.rebooting(shell)
        self._await_again(one)
        return "rebooted"

    def _power_cut(self, one: LinuxMachine) -> str:
        one.cut()
        one.start()
        self._await_again(one)
        return "power was cut, then came back"

    def _await_again(self, one: LinuxMachine) -> None:
        """Until a machine answers again, and with the host machine those that are reached through it."""
        behind = [other for other in self.machines.values() if other.cut_off()] if one.name == HOST else []
        self._await_machines([one, *behind], timed=False)

    def _kill(self, one: LinuxMachine) -> str:
        one.cut()
        return "power was cut"

    def _power_off(self, one: LinuxMachine) -> str:
        with contextlib.ExitStack() as stack:
            shell = None
            with contextlib.suppress(ShellError):
                if one.state is State.UP and one.plan.reachable:
                    shell = stack.enter_context(self._connected(one))
            return one.power_off(shell)

    def _switch_on(self, one: LinuxMachine) -> str:
        one.start()
        self._await_again(one)
        return "started"

    def _suspend(self, one: LinuxMachine) -> str:
        one.suspend()
        return "suspended"

    def _resume(self, one: LinuxMachine) -> str:
        one.resume()
        return "goes on"

    def _connected(self, one: LinuxMachine) -> contextlib.AbstractContextManager[Shell]:
        """A connection to a machine, through the host machine or the proxy where it has no other network."""
        if one.plan.address is None:
            return machine.connected([one], _CONNECT_SECONDS)
        if HOST in self.machines:
            return machine.connected([self.machines[HOST], one], _CONNECT_SECONDS)
        return machine.connected([one], _CONNECT_SECONDS, self._proxy())

    def _proxy(self) -> Proxy:
        return Proxy(services.proxy_socket(self.runtime))

    def act_on_drive(self, name: str, action: str) -> dict[str, Any]:
        """Something that happens to a drive. :raises TestbedError: no such drive, or it can't be now"""
        found = [child for child in self.drives if child.drive.name == name]
        if not found:
            names = ", ".join(child.drive.name for child in self.drives)
            raise TestbedError(f"no drive {name!r}; there are {names}")
        begun = time.monotonic()
        if action in ("kill", "restart"):
            found[0].kill()
        if action in ("start", "restart"):
            found[0].start()
            await_all(found, cancelled=self.cancelled, progress=self.progress)
        self.write_record()
        return {"drive": name, "how": action, "pid": found[0].pid, "seconds": round(time.monotonic() - begun, 3)}

    # -- end ---------------------------------------------------------------------------------------------------------

    def stop(self, *, ordered: bool) -> dict[str, Any]:
        """End all of it. :param ordered: machines are asked first; else their power is cut :returns: how each went"""
        self.state = "stopping"
        how: dict[str, str] = {}
        for name, one in reversed(self.machines.items()):  # the host is the way to the others
            self.progress(f"stopping {name}")
            try:
                how[name] = self._power_off(one) if ordered else self._cut(one)
            except Exception as problem:  # whatever it is, the others are to be stopped too
                one.cut()
                how[name] = f"killed ({problem})"
            one.disk.unlink(missing_ok=True)
        for service in reversed(self.services):
            service.stop()
        for child in self.drives:
            child.ask_to_stop()
        for child in self.drives:
            child.stop()
        with contextlib.suppress(OSError):
            self._disks.rmdir()
            self._disks.parent.rmdir()
        (self.runtime / RECORD).unlink(missing_ok=True)
        return how

    def _cut(self, one: LinuxMachine) -> str:
        ran = one.running
        one.cut()
        return "killed" if ran else "was off"

    def remove_folder(self) -> None:
        """The very last step: nobody looks for anything here any more."""
        shutil.rmtree(self.runtime, ignore_errors=True)

    # -- what is known about it --------------------------------------------------------------------------------------

    def notice(self) -> None:
        """See which machines have ended of themselves, and start services again that have."""
        if self.state == "up":
            self._keep_services()
        ended = [one for one in self.machines.values() if one.notice()]
        if ended and self.state == "up":
            self.write_record()

    def status(self) -> dict[str, Any]:
        """What ``testbed.json`` and the control socket tell."""
        network = self.description.tunnel
        return {
            "name": self.description.name,
            "pid": os.getpid(),
            "state": self.state,
            "drives": [
                {"name": child.drive.name, "runtime": str(child.runtime), "running": child.running, "pid": child.pid}
                for child in self.drives
            ],
            "machines": {name: self._about(one) for name, one in self.machines.items()},
            "tunnel": {
                "enabled": network.enabled,
                "network": network.network,
                "host": network.address(None),
                "isps": {f"isp{number}": network.address(number) for number in self.description.isps},
                "mtu": network.mtu,
                **({} if HOST in self.machines else {"proxy": str(services.proxy_socket(self.runtime))}),
            },
            "services": {service.name: {"pid": service.pid, "log": str(service.log)} for service in self.services},
            "token": str(self.runtime / "token"),
            "seconds": self.seconds,
            "reasons": self.reasons,
            "description": self.description.public(),
        }

    def _about(self, one: LinuxMachine) -> dict[str, Any]:
        door = one.door()
        via = {"via": HOST} if HOST in self.machines else {"proxy": str(services.proxy_socket(self.runtime))}
        ssh = {
            "address": door.address, "port": door.port, "user": "root", "key": str(self.runtime / "id_ed25519"),
            "host_key": door.host_key, **(via if one.plan.address else {}),
        }  # fmt: skip
        return {
            "state": str(one.state), "pid": one.pid, "boots": one.boots, "console": str(one.console),
            "image": str(one.plan.image.folder), "accelerator": one.accelerator.name, "disk": str(one.disk), "ssh": ssh,
        }  # fmt: skip

    def write_record(self) -> None:
        """``testbed.json``, whole or not at all."""
        draft = self.runtime / f"{RECORD}.new"
        draft.write_text(json.dumps(self.status(), indent=2) + "\n")
        draft.replace(self.runtime / RECORD)


def process_age() -> float:
    """Seconds since this process began: what a user waits for includes the start of Python."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def describe_plan(description: Description) -> dict[str, Any]:
    """What would be started, without making anything: the dry run. :raises FemuError: it can't be known"""
    machines: dict[str, Any] = {}
    for name, recipe in plans.wanted(description).items():
        try:
            found = image(recipe, build=False)
        except ImagesError as problem:
            machines[name] = {"image": recipe, "missing": str(problem)}
            continue
        machines[name] = {"image": recipe, "kernel": str(found.kernel), "disk": str(found.disk)}
    drives = [_drive_words(drive) for drive in description.drives]
    return {"description": description.public(), "drives": drives, "machines": machines}


def _drive_words(drive: DriveOf) -> list[str]:
    from emucsd_femu.drives import command

    return command(drive)
