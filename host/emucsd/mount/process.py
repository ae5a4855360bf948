"""The program of a mount: attach to the drive, mount, serve until the mount is taken away or a signal comes.

``python -m emucsd.mount.process JSON`` is what ``launch`` starts in the background; ``serve`` does the work.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from emucsd.errors import ConnectionLost, DriveTimeout, EmucsdError
from emucsd.mount.errors import MountError, MountTaken
from emucsd.mount.mounts import KIND, Mounted, mount_at, read_ahead
from emucsd.process import environment

log = logging.getLogger("emucsd.mount")

START_TIMEOUT_S = 120.0  # the first mount compiles its loop
_SLICE_MS = 1000
_DEPTH = 64


class Options(NamedTuple):
    """What is mounted where, and how.

    :ivar drive: its name, for people
    :ivar runtime: its runtime folder
    """

    drive: str
    runtime: str
    directory: str
    port: int = 0
    read_only: bool = False
    allow_other: bool = False
    cache: bool = False


def log_path(options: Options) -> Path:
    """Where a mount in the background writes what happens."""
    return Path(options.runtime) / f"mount-port{options.port}.log"


def check_folder(directory: Path) -> None:
    """:raises MountTaken: it can't take a mount"""
    if mount_at(directory) is not None:
        raise MountTaken(f"a drive is mounted on {directory} already; emucsd umount {directory} takes it away")
    try:
        entries = os.listdir(directory)
    except FileNotFoundError as exc:
        raise MountTaken(f"{directory} does not exist; make it first: mkdir -p {directory}") from exc
    except NotADirectoryError as exc:
        raise MountTaken(f"{directory} is no folder") from exc
    if entries:
        raise MountTaken(f"{directory} is not empty ({entries[0]} …): a mount would hide that; choose an empty folder")


# ---- serving


def serve(options: Options, ready: Callable[[dict[str, Any]], None], *, stop: Callable[[], bool]) -> dict[str, Any]:
    """Mount and serve until the mount is gone or ``stop`` says so.

    :param ready: called once the kernel has the mount, with what is mounted
    :returns: what was served
    :raises DriveNotFound, DriveBusy: the drive can't be attached to
    :raises MountError: the mount can't be made
    """
    from emucsd.direct import Direct
    from emucsd.drive import Drive
    from emucsd.mount.loop import Loop
    from emucsd.mount.tree import Tree

    directory = Path(options.directory)
    check_folder(directory)
    runtime = Path(options.runtime)
    attachment = Direct(runtime, port=options.port, queues=2, depth=_DEPTH)
    with contextlib.closing(attachment):
        drive = Drive(attachment, runtime, options.port)
        server: _Server | None = None
        loop = Loop(drive, attachment)
        tree = Tree(
            drive,
            lambda: server.status() if server is not None else {},
            writable=not options.read_only,
            shared=options.allow_other,
            cached=options.cache,
        )
        server = _Server(options, loop, tree)
        with server.mounted():
            server.run(ready, stop)
        return loop.counters


class _Server:
    """The loop around the loop."""

    def __init__(self, options: Options, loop: Any, tree: Any) -> None:
        self.options, self.loop, self.tree = options, loop, tree
        self._session: Any = None
        self._told_lost = False

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """The mount, taken away in the end, in use or not."""
        from emucsd.mount.session import Session

        directory = Path(self.options.directory)
        source = Mounted(directory, os.getpid(), self.options.port, Path(self.options.runtime)).source
        chosen = {"allow_other": self.options.allow_other, "ro": self.options.read_only}
        escaped = source.replace("\\", "\\\\").replace(",", "\\,")
        options = [
            f"fsname={escaped}",
            f"subtype={KIND}",
            "default_permissions",
            *(o for o, on in chosen.items() if on),
        ]
        options += ["big_writes", "attr_timeout=1", "entry_timeout=1"]
        self._session = Session(self.tree, directory, options)
        try:
            self.loop.attach(self._session.fd)
            yield
        finally:
            self._session.unmount()

    def run(self, ready: Callable[[dict[str, Any]], None], stop: Callable[[], bool]) -> None:
        """Serve."""
        from emucsd.mount import serve as hot
        from emucsd.mount.session import MOST

        told, spaces = False, None
        while not stop() and not self._session.exited:
            if self.tree.lost is not None:
                self._lost(self.tree.lost)
            elif spaces is not self.tree.spaces:
                spaces = self.tree.spaces
                self.loop.follow(spaces, writable=self.tree.writable)
            why = self.loop.run(_SLICE_MS)
            try:
                if why == hot.GONE:
                    return
                if why == hot.SLOW:
                    self._session.feed(*self.loop.request)
                    if self._session.ready and not told:
                        told = True
                        read_ahead(Path(self.options.directory), MOST >> 10)
                        ready(self.about())
                elif why in (hot.STALLED, hot.IDLE):
                    self._look()
                elif why == hot.CORRUPT:
                    raise ConnectionLost("the drive completed a command that was not out: a bug of the drive")
                else:
                    number = int(self.loop.server["fault"])
                    raise MountError(f"reading /dev/fuse failed: {os.strerror(number)}; unmount and mount again")
            except ConnectionLost as exc:
                self._lost(exc)

    def _look(self) -> None:
        """:raises ConnectionLost: the drive has gone"""
        if self.tree.lost is None:
            self.loop.queue.link.vfio.check()

    def _lost(self, error: ConnectionLost) -> None:
        """From here on every access fails, and status.json says why. Told once."""
        if self._told_lost:
            return
        self._told_lost = True
        self.tree.lost = error
        self.loop.lose(errno.EIO)
        log.error("%s. Every access fails with EIO from now on. Next: %s", error, "; ".join(self._steps()))

    def _steps(self) -> list[str]:
        """Out of a mount whose drive has gone."""
        drive, directory = self.options.drive, self.options.directory
        return [f"emucsd umount {directory}", f"emucsd up {drive} --drive-only", f"emucsd mount {drive} {directory}"]

    def about(self) -> dict[str, Any]:
        """What is mounted."""
        spaces = [{"nsid": s.nsid, "bytes": s.size, "lba_bytes": s.lba_bytes} for s in self.tree.spaces.values()]
        return {
            "drive": self.options.drive,
            "directory": self.options.directory,
            "port": self.options.port,
            "pid": os.getpid(),
            "read_only": self.options.read_only,
            "cache": self.options.cache,
            "namespaces": spaces,
        }

    def status(self) -> dict[str, Any]:
        """status.json: the drive's, and the mount's. Also when the drive has gone."""
        mount = {**self.about(), "served": self.loop.counters}
        if self.tree.lost is None:
            with contextlib.suppress(EmucsdError):
                return {**self.tree.drive.control.status(), "mount": mount}
        told = str(self.tree.lost or "the drive does not answer")
        return {"error": told, "next": self._steps(), "mount": mount}


class Stop:
    """SIGTERM and SIGINT as a flag; the handlers that were there come back in the end."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


# ---- in the background


def launch(options: Options, *, tell: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Mount in a process that goes on, and come back once the mount answers.

    :param tell: is given the newest line of its log while it starts
    :returns: what is mounted, and ``log``
    :raises MountError: (or what the drive raises) with the process's own words
    """
    check_folder(Path(options.directory))
    path = log_path(options)
    ready, theirs = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, ready)
        with open(theirs, "wb"), path.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "emucsd.mount.process", json.dumps(options._asdict()), str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                env=environment(),
                start_new_session=True,
                cwd="/",  # it must not hold the folder that it was started in
            )
        try:
            answer = _answer(process, ready, path, tell)
            os.listdir(options.directory)
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10.0)
            raise
    threading.Thread(
        target=process.wait, daemon=True
    ).start()  # it goes on without us; where we go on too, it is reaped
    return {**answer, "log": str(path)}


def _answer(
    process: subprocess.Popen[bytes], ready: int, path: Path, tell: Callable[[str], None] | None
) -> dict[str, Any]:
    """What the process says once it serves, or why it does not."""
    deadline = time.monotonic() + START_TIMEOUT_S
    poller = select.poll()
    poller.register(ready, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not poller.poll(200):
            if time.monotonic() > deadline:
                raise DriveTimeout(f"the mount was not ready in {START_TIMEOUT_S:g} s\n{_tail(path)}")
            if tell is not None:
                tell(_tail(path).rpartition("\n")[2])
            continue
        if not (part := os.read(ready, 4096)):
            raise MountError(f"the mount's process ended with {process.wait(5.0)}\n{_tail(path)}")
        line += part
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise _typed(answer["error"], _tail(path))
    return answer


def _typed(error: dict[str, str], tail: str) -> EmucsdError:
    """The error that the process had, as itself."""
    from emucsd import errors
    from emucsd.mount import errors as ours

    kind = getattr(ours, error["kind"], None) or getattr(errors, error["kind"], MountError)
    text = error["message"] if not tail else f"{error['message']}\n{tail}"
    return kind(text) if isinstance(kind, type) and issubclass(kind, EmucsdError) else MountError(text)


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")[-2000:].strip()
    return ""


def main(argv: list[str]) -> int:
    """The process in the background."""
    options, ready = Options(**json.loads(argv[0])), int(argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)

    said = False

    def say(what: dict[str, Any]) -> None:
        nonlocal said
        said = True
        os.write(ready, json.dumps(what).encode() + b"\n")
        os.close(ready)

    with Stop() as stop:
        try:
            served = serve(options, say, stop=stop)
        except EmucsdError as exc:
            if said:
                log.error("%s", exc)
            else:
                say({"error": {"kind": type(exc).__name__, "message": str(exc)}})
            return 1
    log.info("%s is no longer mounted; served %s", options.directory, served)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
