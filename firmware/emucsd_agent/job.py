"""One job: its folder, its log, its life from accepted to ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from emucsd.isp.protocol import Limits, RunRequest
from emucsd_agent.cgroup import Group
from emucsd_agent.errors import AgentError, Refused
from emucsd_agent.governor import SLACK, Governor, Subject
from emucsd_agent.spawn import KILL, TERM, Spawner

GRACE = 3.0  # seconds between asking a job to end and ending it
OUTPUT_BYTES = 1 << 30  # of a log, and of each file, where the request names no limit
_PIECE = 1 << 16
_LINE_LIMIT = 4096


class Result(NamedTuple):
    """How a job ended.

    :ivar reason: exited, signal, or what ended it: cancelled, disconnected, seconds, memory, output; failed: it could
        not be started
    :ivar status: exit status of its first process, negative for a signal, None where it never ran
    :ivar text: more about the reason
    :ivar cpu_seconds: of all its processes; ``peak_bytes`` their resident memory as sampled
    """

    reason: str
    status: int | None
    text: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


class Machinery(NamedTuple):
    """What all jobs share."""

    spawner: Spawner
    governor: Governor
    group: Group | None
    environment: Callable[[], Mapping[str, str]]  # of a job that starts now
    affinity: list[int]  # numbers of the processors that the engine has


class Job:
    """A job. States: receiving, running, ended; its folder is there until ``remove``.

    :param folder: made here: the job's working folder; its log lies beside it
    """

    def __init__(self, number: str, request: RunRequest, folder: Path, machinery: Machinery) -> None:
        self.id, self.request, self.folder = number, request, folder
        self.state = "receiving"
        self.result: Result | None = None
        self.log_bytes = 0
        self._machinery = machinery
        self._log = folder.with_suffix(".log")
        self._lock = threading.Lock()
        self._followers: list[int] = []  # eventfds: something is new
        self._line: socket.socket | None = None
        self._ending: tuple[str, str] | None = None
        self._deadline = float("inf")
        self._begun = time.monotonic()
        self._subject: Subject | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        folder.mkdir(mode=0o700)
        self._log.touch(mode=0o600)

    # -- what others ask ---------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Plain values, for ``list``."""
        found: dict[str, Any] = {
            "job": self.id,
            "state": self.state,
            "argv": [word[:200] for word in self.request.argv[:16]],
            "seconds": round(self.result.seconds if self.result else time.monotonic() - self._begun, 3),
            "log_bytes": self.log_bytes,
            "resident_bytes": self._subject.resident if self._subject and not self.result else 0,
        }
        if self.result is not None:
            found["result"] = self.result._asdict()
            found["outputs"] = self.outputs()
        return found

    def outputs(self) -> list[dict[str, Any]]:
        """The named outputs that are there: plain files inside of the folder."""
        found = []
        for name in self.request.outputs:
            with contextlib.suppress(OSError, AgentError), self.open_output(name) as file:
                found.append({"name": name, "size": os.fstat(file.fileno()).st_size})
        return found

    def open_output(self, name: str) -> BinaryIO:
        """An output, opened. :raises OSError: it is not there :raises Refused: it is no plain file of this job"""
        path = self.folder / name
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        inside = path.parent.resolve().is_relative_to(self.folder.resolve())
        if not inside or not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Refused("NoOutput", f"{name} is no plain file in the job's folder")
        return os.fdopen(fd, "rb")

    def open_log(self) -> Any:
        """What the job has printed so far, and goes on to."""
        return open(self._log, "rb", buffering=0)

    def follow(self) -> int:
        """An eventfd that is readable when log or state have news. Give it back to ``unfollow``."""
        fd = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        with self._lock:
            self._followers.append(fd)
        return fd

    def unfollow(self, fd: int) -> None:
        """No more news."""
        with self._lock:
            self._followers.remove(fd)
        os.close(fd)

    def _news(self) -> None:
        with self._lock:
            for fd in self._followers:
                os.eventfd_write(fd, 1)

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Its inputs are here: run it, in a thread of its own."""
        threading.Thread(target=self._run, name=f"job {self.id}", daemon=True).start()

    def end(self, reason: str, text: str = "") -> None:
        """End it: at once where a limit was passed, else after a moment in which it may tidy up. First reason wins."""
        with self._lock:
            if self._ending is None and self.state != "ended":
                self._ending = (reason, text)
                os.eventfd_write(self._wake, 1)

    def abandon(self) -> None:
        """Its inputs never came whole."""
        self._finish(Result("failed", None, "the client left before its inputs were here", 0.0, 0.0, 0))

    def remove(self) -> None:
        """Take its folder and log away. It has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._log.unlink(missing_ok=True)

    def _finish(self, result: Result) -> None:
        with self._lock:
            self.result, self.state = result, "ended"
            os.close(self._wake)
        self._news()

    def _run(self) -> None:
        self._begun = time.monotonic()
        self.state = "running"  # from here on: its first words may be here before its keeper's
        self._news()
        limits = self.request.limits
        group = None
        used: dict[str, Any] = {}
        try:
            group = self._make_group(limits)
            used = self._live(limits, group)
        except Exception as problem:  # ours, or the system's: this job fails, the agent goes on
            used = {"failed": f"{type(problem).__name__}: {problem}"}
        finally:
            if self._subject is not None:
                self._machinery.governor.remove(self._subject)
                if "status" not in used:  # the keeper was killed from outside: end what it kept
                    self._subject.kill()
            by_memory = group is not None and group.ended_by_memory()
            if group is not None:
                group.close()
        self._finish(self._verdict(used, by_memory))

    def _make_group(self, limits: Limits) -> Group | None:
        if self._machinery.group is None:
            return None
        group = self._machinery.group.below(self.id)
        if limits.memory_bytes is not None:
            group.limit_memory(limits.memory_bytes)
        return group

    def _spec(self, group: Group | None) -> dict[str, Any]:
        """What the keeper needs."""
        limits, machinery = self.request.limits, self._machinery
        affinity = machinery.affinity[: limits.cpus] if limits.cpus else machinery.affinity
        return {
            "argv": self.request.argv,
            "env": {**machinery.environment(), "EMUCSD_JOB": self.id, "HOME": str(self.folder), **self.request.env},
            "folder": str(self.folder),
            "rlimits": {"data": self._memory_bytes + SLACK, "file": self._output_bytes, "core": 0},
            "nice": limits.nice,
            "cpus": affinity,
            "cgroup": group.path if group else None,
        }

    @property
    def _output_bytes(self) -> int:
        limit = self.request.limits.output_bytes
        return OUTPUT_BYTES if limit is None else limit

    @property
    def _memory_bytes(self) -> int:
        most = self._machinery.governor.engine.memory_bytes
        return min(self.request.limits.memory_bytes or most, most)

    def _live(self, limits: Limits, group: Group | None) -> dict[str, Any]:
        """From its start until all of it has ended. :returns: what the keeper said last"""
        read, write = os.pipe()
        with open(read, "rb", buffering=0) as output:
            try:
                self._line = self._machinery.spawner.start(self._spec(group), write)
            finally:
                os.close(write)
            os.set_blocking(read, False)
            if limits.seconds is not None:
                self._deadline = time.monotonic() + limits.seconds
            with self._line, open(self._log, "ab", buffering=0) as log:
                return self._pump(output, log, group)

    def _pump(self, output: Any, log: Any, group: Group | None) -> dict[str, Any]:
        """Move its output into the log, obey deadlines and orders, until the keeper hangs up."""
        assert self._line is not None
        said: dict[str, Any] = {}
        pending = b""
        poller = select.poll()
        for one in (output, self._line, self._wake):
            poller.register(one, select.POLLIN)
        kill_at = float("inf")
        while True:
            ready = {fd for fd, _ in poller.poll(self._patience(kill_at))}
            if output.fileno() in ready and self._drain(output, log) == 0:
                poller.unregister(output)
            if self._line.fileno() in ready:
                piece = self._line.recv(_LINE_LIMIT)
                pending += piece
                while b"\n" in pending:
                    line, _, pending = pending.partition(b"\n")
                    said = json.loads(line)
                    self._heard(said, group)
                if not piece:
                    break
            if self._wake in ready:
                os.eventfd_read(self._wake)
                kill_at = self._order()
            if time.monotonic() >= self._deadline:
                self._deadline = float("inf")
                self.end("seconds", f"it ran for {self.request.limits.seconds:g} s, its limit")
            if time.monotonic() >= kill_at:
                kill_at = float("inf")
                self._tell(KILL)
        while self._drain(output, log) > 0:  # all writers are dead: up to the end of file
            pass
        return said

    def _patience(self, kill_at: float) -> float | None:
        """Milliseconds until something is due."""
        due = min(self._deadline, kill_at)
        return None if due == float("inf") else max(0.0, (due - time.monotonic()) * 1000) + 1

    def _heard(self, said: Mapping[str, Any], group: Group | None) -> None:
        if "keeper" not in said:
            return
        self._subject = Subject(int(said["keeper"]), self._memory_bytes, group, self.end)
        self._machinery.governor.add(self._subject)

    def _order(self) -> float:
        """``end`` was called. :returns: when to kill what is left"""
        assert self._ending is not None
        if self._ending[0] in ("cancelled", "disconnected", "seconds"):
            self._tell(TERM)
            return time.monotonic() + GRACE
        self._tell(KILL)
        return float("inf")

    def _tell(self, order: bytes) -> None:
        assert self._line is not None
        with contextlib.suppress(OSError):
            self._line.send(order, socket.MSG_NOSIGNAL)

    def _drain(self, output: Any, log: Any) -> int:
        """One piece of output into the log. :returns: its bytes, 0 at the end of file, -1 where there is none now"""
        data: bytes | None = output.read(_PIECE)
        if data is None:
            return -1
        kept = data[: self._output_bytes - self.log_bytes]
        if len(kept) < len(data):
            self.end("output", f"it printed more than {self._output_bytes} bytes")
        try:
            log.write(kept)
        except OSError as problem:
            self.end("output", f"its log can't be kept: {problem.strerror}")
        else:
            self.log_bytes += len(kept)
            self._news()
        return len(data)

    def _verdict(self, used: Mapping[str, Any], by_memory: bool) -> Result:
        status = used.get("status")
        if status is None:
            reason, text = "failed", str(used.get("failed", "its keeper was killed"))
        elif self._ending is not None:
            reason, text = self._ending
        elif by_memory:
            reason, text = "memory", "the kernel ended it: its group had no memory left"
        elif status == -signal.SIGXFSZ:
            reason, text = "output", f"a file passed {self._output_bytes} bytes"
        elif status < 0:
            reason, text = "signal", signal.Signals(-status).name if -status in signal.valid_signals() else str(-status)
        else:
            reason, text = "exited", ""
        peak = self._subject.peak if self._subject else 0
        peak = max(peak, int(used.get("largest_bytes", 0)))
        seconds = time.monotonic() - self._begun
        return Result(reason, status, text, round(seconds, 6), float(used.get("cpu_seconds", 0.0)), peak)
