"""The drive process: one drive, its sockets, its control API, from the first lock to the last byte.

Everything here runs in the control thread. It sleeps in one ``select`` until a client, an admin queue, the control API
or a signal has something for it; a glance a second sees whether the data plane still lives.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import logging
import logging.handlers
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import IO, Any

from emucsd_femu import control
from emucsd_femu.control import ControlServer, Later
from emucsd_femu.errors import DriveRunning, FemuError, SettingsError
from emucsd_femu.memory_guard import MemoryGuard
from emucsd_femu.port import Device
from emucsd_femu.server import Loop, Server
from emucsd_femu.settings import Settings, parse, ready_fd
from emucsd_firmware import build
from emucsd_firmware.build import Build
from emucsd_firmware.errors import FirmwareError
from emucsd_wire import paths
from emucsd_wire.paths import PathError

log = logging.getLogger(__name__)

EXIT_CLEAN, EXIT_FAILED, EXIT_USAGE, EXIT_HURRIED = 0, 1, 2, 3
_GLANCE = 1.0  # s
_LOG_BYTES = 4 << 20


def prepare_folder(runtime: Path) -> None:
    """Make the runtime folder, its owner's only. :raises SettingsError: it is somebody else's, or can't be made"""
    try:
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = runtime.stat()
        if found.st_uid != os.geteuid():
            raise SettingsError(f"{runtime} belongs to user {found.st_uid}; choose another runtime folder (--runtime)")
        if found.st_mode & 0o077:
            runtime.chmod(0o700)
    except OSError as problem:
        raise SettingsError(f"runtime folder {runtime}: {problem.strerror}; choose another (--runtime)") from problem


@contextlib.contextmanager
def locked(runtime: Path) -> Iterator[IO[str]]:
    """Hold the runtime folder. :raises DriveRunning: a live process has it"""
    with open(runtime / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise DriveRunning(
                f"{runtime} is served by process {owner} already; stop it, or choose another name"
            ) from problem
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file


@contextlib.contextmanager
def logging_to(runtime: Path, level: int) -> Iterator[None]:
    """Everything that is logged goes to ``log`` in the runtime folder; a native crash leaves its stacks there too."""
    path = runtime / "log"
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    with open(path, "a") as crash:  # its own descriptor: the handler closes its one when it starts a new file
        faulthandler.enable(crash, all_threads=True)
        try:
            yield
        finally:
            faulthandler.disable()
            root.removeHandler(handler)
            handler.close()


def choose_build(settings: Settings) -> Build:
    """Which policies, and where compiled firmware is kept: before anything imports numba."""
    chosen = build.use_cache(settings.firmware)
    if not chosen.warm:
        log.info("compiling the data plane into %s: the first start takes longer", chosen.folder)
    return chosen


def open_drive(settings: Settings) -> Device:
    """Put the drive together; the firmware is imported here. :raises FirmwareError: profile, policies or store"""
    from emucsd_firmware.drive import Drive
    from emucsd_firmware.profile import load

    size = {} if settings.size is None else {"capacity_bytes": settings.size}
    profile = load(settings.profile, **size, **settings.overrides)
    drive: Device = Drive.open(settings.store, profile, clock=settings.clock, durability=settings.durability)
    return drive


class Signals:
    """SIGTERM, SIGINT and SIGHUP stop the drive cleanly; a second one stops it at once, as kill -9 would."""

    def __init__(self, loop: Loop) -> None:
        self.received = 0
        self._loop = loop
        self._wake, self._waking = socket.socketpair()
        for end in (self._wake, self._waking):
            end.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        self._old = {n: signal.signal(n, self._handle) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        loop.add(self._wake.fileno(), self._drain)

    def close(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._loop.remove(self._wake.fileno())
        self._wake.close()
        self._waking.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received += 1
        if self.received > 1:
            log.warning("signal %d again: stopping at once; the store recovers on its next start", number)
            logging.shutdown()
            os._exit(EXIT_HURRIED)
        log.info("signal %d: stopping", number)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(64)


class DriveProcess:
    """A drive with its sockets, ready to run. Everything is undone by ``stack``."""

    def __init__(self, settings: Settings, drive: Device, loop: Loop, signals: Signals, stack: ExitStack) -> None:
        self.settings = settings
        self.drive = drive
        self.stopping = False
        self._started = time.time()
        self._loop = loop
        self._signals = signals
        runtime = settings.runtime
        answers: dict[type[control.Request], control.Answer] = {
            control.Status: lambda _: self.status(),
            control.Stats: lambda _: drive.stats(),
            control.Checkpoint: lambda _: Later(self.checkpoint),  # seconds on a large drive, and QEMU waits for 5
            control.Tunnel: self.disturb_tunnel,
            control.TunnelWatch: lambda asked: Later(lambda: self.watch_tunnel(asked)),  # reads all that is private
            control.RecSsd: self.set_recssd,
            control.Stop: lambda _: self.stop(),
        }
        sockets = [paths.port_socket(runtime, port.number) for port in drive.ports]
        guard = MemoryGuard()
        stack.callback(guard.close)
        self._server = Server(list(drive.ports), sockets, settings.doorbells, loop, guard)
        stack.callback(self._server.close)
        stack.callback(ControlServer(loop, paths.control_socket(runtime), answers).close)
        if settings.lifeline_fd is not None:
            loop.add(settings.lifeline_fd, self._lifeline)

    def status(self) -> dict[str, Any]:
        """What the control API tells."""
        return {
            "name": self.settings.name,
            "pid": os.getpid(),
            "uptime_s": round(time.time() - self._started, 3),
            "settings": self.settings.public(),
            "ports": [endpoint.status() for endpoint in self._server.endpoints],
            "drive": self.drive.status(),
        }

    def checkpoint(self) -> dict[str, Any]:
        """Write the map now. :raises FirmwareError: it can't be"""
        begun = time.monotonic()
        self.drive.checkpoint()
        return {"seconds": round(time.monotonic() - begun, 6)}

    def set_recssd(self, request: control.RecSsd) -> dict[str, Any]:
        return self.drive.set_recssd(request.enabled, clear=request.clear)

    def disturb_tunnel(self, request: control.Tunnel) -> dict[str, Any]:
        """Faults of the tunnel. :raises FirmwareError: out of range"""
        self.drive.set_tunnel_faults(request.loss, request.reorder, request.duplicate, request.seed)
        return {}

    def watch_tunnel(self, request: control.TunnelWatch) -> dict[str, Any]:
        """The tunnel's watch. :raises FirmwareError: the data plane has died"""
        return self.drive.set_tunnel_watch(request.on, refresh=request.refresh, check=request.check)

    def stop(self) -> dict[str, Any]:
        """Leave the loop after what is in hand."""
        self.stopping = True
        return {}

    def run(self) -> int:
        """Serve until told to stop. :returns: the exit code"""
        while not (self.stopping or self._signals.received):
            self._loop.run_once(_GLANCE)
            if self.drive.failure is not None:
                log.critical("the data plane has died: %r; stopping without a checkpoint", self.drive.failure)
                return EXIT_FAILED
        return EXIT_CLEAN

    def _lifeline(self) -> None:
        if self.settings.lifeline_fd is not None and not os.read(self.settings.lifeline_fd, 64):
            log.info("the owner has died: stopping")
            self._loop.remove(self.settings.lifeline_fd)
            self.stop()


def write_record(settings: Settings) -> None:
    """``drive.json``, whole or not at all."""
    content = {"name": settings.name, "pid": os.getpid(), "started": time.time(), "settings": settings.public()}
    draft = settings.runtime / "drive.json.new"
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(settings.runtime / "drive.json")


class Waiting:
    """Whoever waits, on a descriptor, for this process to serve. Told once, one line; may be gone."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def tell(self, content: dict[str, Any]) -> None:
        """One line, then end of file."""
        fd, self._fd = self._fd, None  # the number may be another file's as soon as it is closed
        if fd is not None:
            with contextlib.suppress(OSError):
                os.write(fd, json.dumps(content).encode() + b"\n")
            with contextlib.suppress(OSError):
                os.close(fd)


def serve(settings: Settings, waiting: Waiting) -> int:
    """Run a drive to its end. :returns: the exit code :raises FemuError, FirmwareError, OSError: it never served"""
    os.umask(0o077)
    prepare_folder(settings.runtime)
    with ExitStack() as stack:
        stack.enter_context(locked(settings.runtime))
        stack.enter_context(logging_to(settings.runtime, settings.log_level))
        log.info("drive %s, process %d: %s", settings.name, os.getpid(), settings.public())
        loop = Loop()
        stack.callback(loop.close)
        signals = Signals(loop)  # from here to the very end: a second one during the last checkpoint counts too
        stack.callback(signals.close)
        try:
            return _serve(settings, loop, signals, waiting)
        except Exception:
            log.exception("drive %s ends", settings.name)
            raise


def _serve(settings: Settings, loop: Loop, signals: Signals, waiting: Waiting) -> int:
    begun = time.monotonic()
    chosen = choose_build(settings)
    drive = open_drive(settings)
    clean = False
    try:
        with ExitStack() as stack:
            process = DriveProcess(settings, drive, loop, signals, stack)
            drive.start()
            chosen.mark_warm()
            write_record(settings)
            stack.callback((settings.runtime / "drive.json").unlink, missing_ok=True)
            log.info("ready after %.2f s", time.monotonic() - begun)
            waiting.tell({"ok": True, "pid": os.getpid(), "name": settings.name})
            status = process.run()
            clean = status == EXIT_CLEAN
    finally:
        drive.close(clean=clean)
    log.info("stopped")
    return status


def main(arguments: Sequence[str]) -> int:
    """``serve``: exit 0 after a clean stop, 1 when it failed, 2 for settings that can't be used."""
    waiting = Waiting(ready_fd(arguments))
    try:
        return serve(parse(arguments), waiting)
    except (FemuError, FirmwareError, PathError, OSError) as problem:
        print(f"emucsd_femu serve: {problem}", file=sys.stderr)
        waiting.tell(control.failure(problem))
        return EXIT_USAGE if isinstance(problem, SettingsError | PathError) else EXIT_FAILED
    except Exception as problem:  # our own bug: the trace goes to stderr, and nobody is kept waiting
        waiting.tell(control.failure(problem))
        raise
