"""``python -m emucsd_femu testbed``: the process that starts a testbed, answers for it, and ends it.

The main thread sleeps in one ``select`` until the control socket, a signal or its owner's end has something for it. One
other thread does all that takes long, in order. Whatever kills this process ends machines and drives too: QEMU by the
kernel's parent-death signal, drives by the end of a pipe.

    {"do": "status"}                                        what runs, and where
    {"do": "machine", "name": "host", "action": "reboot"}   also power-cut, kill, start, stop, suspend, resume
    {"do": "drive", "name": "csd", "action": "kill"}        also start, restart; machines see it at their next boot
    {"do": "stop", "force": false}                          end it; answered when machines and drives have ended
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

from emucsd_femu import control, description, sweep
from emucsd_femu.control import Answer, ControlServer, Later, Request, failure
from emucsd_femu.description import Description
from emucsd_femu.errors import FemuError, SettingsError, TestbedError
from emucsd_femu.process import (
    EXIT_CLEAN,
    EXIT_FAILED,
    EXIT_USAGE,
    Signals,
    Waiting,
    locked,
    logging_to,
    prepare_folder,
)
from emucsd_femu.server import Loop
from emucsd_femu.settings import ready_fd
from emucsd_femu.testbed import Testbed, describe_plan
from emucsd_images.errors import ImagesError
from emucsd_wire import paths
from emucsd_wire.paths import PathError

log = logging.getLogger(__name__)

_GLANCE = 1.0  # s
_DRIVE_FIELDS = ("profile", "size", "clock", "store", "firmware")


class Machine(Request, tag="machine"):
    """Something happens to a machine."""

    name: str
    action: Literal["reboot", "power-cut", "kill", "start", "stop", "suspend", "resume"]


class Drive(Request, tag="drive"):
    """Something happens to a drive's process."""

    name: str
    action: Literal["kill", "start", "restart"]


class Down(Request, tag="stop"):
    """End all of it. ``force``: machines are not asked first."""

    force: bool = False


class Settings(NamedTuple):
    """How the supervisor was called."""

    description: Description
    runtime: Path
    plan: bool
    ready_fd: int | None
    lifeline_fd: int | None


class Told:
    """Whoever started us: hears what happens, one JSON object a line, until the testbed is up. May be gone."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._last = Waiting(fd)
        self._told = ""

    def progress(self, text: str) -> None:
        """One more line of what it is at; the same again is no news."""
        if text == self._told:
            return
        self._told = text
        log.info("%s", text)
        if self._fd is not None:
            try:
                os.write(self._fd, json.dumps({"progress": text}).encode() + b"\n")
            except OSError:
                self._fd = None

    def end(self, content: Mapping[str, Any]) -> None:
        """How it went; then the end of the file."""
        self._fd = None
        self._last.tell(dict(content))


class Supervisor:
    """A testbed and its control socket, on a loop. Undone by ``stack``."""

    def __init__(self, testbed: Testbed, settings: Settings, loop: Loop, signals: Signals, stack: ExitStack) -> None:
        self.testbed = testbed
        self.failure: Exception | None = None
        self.ended: dict[str, Any] | None = None  # how each machine ended, once all of it has
        self._loop, self._signals, self._settings = loop, signals, settings
        self._abandoned = False
        self._worker = ThreadPoolExecutor(1, "emucsd-testbed")
        self._looking: Future[None] | None = None
        answers: dict[type[Request], Answer] = {
            control.Status: lambda _: testbed.status(),
            Machine: lambda asked: Later(lambda: testbed.act(asked.name, asked.action)),
            Drive: lambda asked: Later(lambda: testbed.act_on_drive(asked.name, asked.action)),
            Down: self._down,
        }
        # closing waits for the worker: machines live no longer than its thread
        stack.callback(ControlServer(loop, paths.control_socket(testbed.runtime), answers, self._worker).close)
        if settings.lifeline_fd is not None:
            loop.add(settings.lifeline_fd, self._lifeline)

    def run(self, told: Told) -> int:
        """Until it is to end. :returns: the exit code"""
        started = self._worker.submit(self.testbed.start)
        told_so = False
        while not (self._signals.received or self._abandoned or self.ended is not None):
            self._loop.run_once(_GLANCE if told_so else 0.1)
            if told_so:
                self._look()
            elif started.done():
                told_so = True
                problem = started.exception()
                if problem is not None:
                    self.testbed.cancelled.set()
                    self._finish(ordered=False)
                    log.error("the testbed could not be started: %s", problem, exc_info=_bug(problem))
                    told.end(failure(problem) if isinstance(problem, Exception) else {})
                    return EXIT_FAILED
                log.info("up: %s", self.testbed.seconds)
                told.end({"ok": True, **self.testbed.status()})
        if self.ended is None:
            self.testbed.cancelled.set()
            self._finish(ordered=False)
            told.end(failure(TestbedError("the testbed was stopped while it started")))
        return EXIT_CLEAN

    def _finish(self, *, ordered: bool) -> None:
        self.ended = self._worker.submit(lambda: self.testbed.stop(ordered=ordered)).result()

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = self._worker.submit(self.testbed.notice)

    def _down(self, asked: Down) -> Later:
        self.testbed.cancelled.set()  # what still starts, or waits for a boot, gives up

        def work() -> dict[str, Any]:
            self.testbed.cancelled.clear()
            how = self.testbed.stop(ordered=not asked.force)
            self.ended = how
            return {"how": how}

        return Later(work)

    def _lifeline(self) -> None:
        if self._settings.lifeline_fd is not None and not os.read(self._settings.lifeline_fd, 64):
            log.info("the owner has died: stopping")
            self._loop.remove(self._settings.lifeline_fd)
            self._abandoned = True


def _bug(problem: BaseException) -> BaseException | None:
    """A traceback is for our own mistakes."""
    return None if isinstance(problem, FemuError | ImagesError | OSError) else problem


def serve(settings: Settings, told: Told) -> int:
    """Run a testbed to its end. :returns: the exit code :raises FemuError, OSError: it never began"""
    os.umask(0o077)
    sweep.sweep(paths.runtime_root())
    prepare_folder(settings.runtime)
    with ExitStack() as stack:
        stack.enter_context(locked(settings.runtime))
        _clear(settings.runtime)
        stack.enter_context(logging_to(settings.runtime, logging.INFO))
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it logs every connection that was not ready yet
        log.info("testbed %s, process %d: %s", settings.description.name, os.getpid(), settings.description.public())
        loop = Loop()
        stack.callback(loop.close)
        signals = Signals(loop)
        stack.callback(signals.close)
        alive, lifeline = os.pipe()
        stack.callback(os.close, lifeline)
        stack.callback(os.close, alive)
        testbed = Testbed(settings.description, settings.runtime, alive, told.progress)
        with ExitStack() as inner:
            status = Supervisor(testbed, settings, loop, signals, inner).run(told)
        log.info("ended")
        if status == EXIT_CLEAN:
            testbed.remove_folder()
    return status


def _clear(runtime: Path) -> None:
    """What a testbed that failed left for its user to read is in the way of the next."""
    for path in runtime.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("lock", "output"):  # held by us, and by whoever started us
            path.unlink()


def parse(arguments: Sequence[str]) -> Settings:
    """:raises SettingsError: an option or the description can't be used"""
    parser = argparse.ArgumentParser(prog="python -m emucsd_femu testbed", description="Run a testbed.")
    parser.add_argument("--file", type=Path, metavar="TOML", help="its description (default: one drive, two machines)")
    parser.add_argument("--name", help="its name, instead of the description's")
    parser.add_argument("--small", action="store_true", help="the small images, without torch")
    for field in _DRIVE_FIELDS:
        parser.add_argument(f"--{field}", help="of the only drive, as for serve")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the only drive's profile")
    parser.add_argument("--runtime", type=Path, metavar="DIR", help="folder for sockets, consoles, keys")
    parser.add_argument("--plan", action="store_true", help="print what would be started, as JSON, and do nothing")
    parser.add_argument("--ready-fd", type=int, metavar="FD", help="descriptor that is told what happens")
    parser.add_argument("--lifeline-fd", type=int, metavar="FD", help="descriptor whose end of file stops all of it")
    given = parser.parse_args(arguments)
    drive: dict[str, Any] = {field: value for field in _DRIVE_FIELDS if (value := getattr(given, field)) is not None}
    if given.set:
        pairs = [text.partition("=") for text in given.set]
        if bad := [text for text, (_, equals, value) in zip(given.set, pairs, strict=True) if not (equals and value)]:
            raise SettingsError(f"--set {bad[0]}: must be KEY=VALUE, as in nand.read_ns=50000")
        drive["set"] = tuple((key, value) for key, _, value in pairs)
    found = description.with_options(description.read(given.file), name=given.name, small=given.small, drive=drive)
    runtime = given.runtime.absolute() if given.runtime else paths.runtime_folder(found.name)
    return Settings(found, runtime, given.plan, given.ready_fd, given.lifeline_fd)


def main(arguments: Sequence[str]) -> int:
    """``testbed``: exit 0 after a clean stop, 1 when it failed, 2 for a description that can't be used."""
    told = Told(ready_fd(arguments))
    try:
        settings = parse(arguments)
        if settings.plan:
            print(json.dumps(describe_plan(settings.description), indent=2))
            return EXIT_CLEAN
        return serve(settings, told)
    except (FemuError, ImagesError, PathError, OSError) as problem:
        print(f"emucsd_femu testbed: {problem}", file=sys.stderr)
        told.end(failure(problem))
        return EXIT_USAGE if isinstance(problem, SettingsError | PathError) else EXIT_FAILED
    except Exception as problem:  # our own bug: the trace goes to stderr, and nobody is kept waiting
        told.end(failure(problem))
        raise
